/* SPDX-License-Identifier: Apache-2.0
 *
 * hub.c: routing packets, and the ways of waiting for the network.
 *
 * A waiter first polls for about the cost of a sleep, then sleeps in poll(2) on the endpoint's descriptor and on the
 * bell: somebody else's poll may take what it waits for, and then rings for every sleeper. With more ranks than CPUs it
 * gives the CPU away between polls. Invariant: `sleepers` counts exactly those who may be asleep in poll(2).
 */
#include "progress/hub.h"

#include <errno.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "core/clock.h"
#include "core/status.h"

#define POLLS_DEDICATED 400u /* polls of the endpoint before a sleep: some 100 us */
#define POLLS_CROWDED   16u
#define POLLS_THREADED  1u   /* the transport's own threads need the CPU */
#define POLLS_MIN       8u
#define WATCH_SLICE_NS  1000000000ll
#define ABORT_RANKS_MAX 1024u
#define TELL_NS         200000000ll

/* A packet for a communicator that is not made yet. */
typedef struct pmr_orphan {
    struct pmr_orphan *next;
    uint32_t peer, lane;
    pmr_packet packet;
    _Alignas(8) uint8_t payload[];
} pmr_orphan;

typedef struct abort_card {
    uint32_t state;
    int32_t rank;
    char node[PMR_NODE_NAME_BYTES];
    char text[PMR_ERROR_TEXT_BYTES];
} abort_card;

/* ---- the endpoint's sink ---- */

static pmr_channel *channel_of(pmr_hub *hub, const pmr_packet *packet)
{
    uint32_t comm = packet->kind >= PMR_PACKET_MESSAGE ? PMR_HUB_MESSAGES : packet->comm;
    if (hub->last && hub->last->comm == comm)
        return hub->last;
    for (pmr_channel *channel = hub->channels; channel; channel = channel->next)
        if (channel->comm == comm) {
            hub->last = channel;
            return channel;
        }
    return NULL;
}

static pmr_placing place(void *arg, uint32_t peer, uint32_t lane, const pmr_packet *packet, void **into_out)
{
    pmr_hub *hub = arg;
    pmr_channel *channel = packet->kind == PMR_PACKET_ABORT ? NULL : channel_of(hub, packet);
    return channel ? channel->place(channel, peer, lane, packet, into_out) : PMR_PLACE_SHOW;
}

static void keep_orphan(pmr_hub *hub, uint32_t peer, uint32_t lane, const pmr_packet *packet, const void *payload)
{
    pmr_orphan *orphan = malloc(sizeof *orphan + packet->payload_bytes);
    if (!orphan)
        return; /* the call that waits for it runs into its deadline */
    *orphan = (pmr_orphan){.peer = peer, .lane = lane, .packet = *packet};
    if (packet->payload_bytes && payload)
        memcpy(orphan->payload, payload, packet->payload_bytes);
    *hub->orphans_end = orphan;
    hub->orphans_end = &orphan->next;
}

static void take_abort(pmr_hub *hub, const pmr_packet *packet, const void *payload)
{
    abort_card card;
    if (packet->payload_bytes != sizeof card || !payload)
        return;
    memcpy(&card, payload, sizeof card);
    card.node[sizeof card.node - 1] = '\0';
    card.text[sizeof card.text - 1] = '\0';
    if (card.state >= PMR_ABORT_RANK_FAILED && card.state <= PMR_ABORT_STOPPED)
        pmr_window_abort_gang(hub->window, card.state, card.rank, card.node, card.text);
}

static void arrived(void *arg, uint32_t peer, uint32_t lane, const pmr_packet *packet, const void *payload)
{
    pmr_hub *hub = arg;
    if (packet->kind == PMR_PACKET_ABORT) {
        take_abort(hub, packet, payload);
        return;
    }
    pmr_channel *channel = channel_of(hub, packet);
    if (channel)
        channel->arrived(channel, peer, lane, packet, payload);
    else if (packet->kind >= PMR_PACKET_MESSAGE || packet->comm >= hub->next_comm)
        keep_orphan(hub, peer, lane, packet, payload);
}

static void sent(void *arg, uint64_t cookie)
{
    (void)arg;
    pmr_sending *sending = (pmr_sending *)(uintptr_t)cookie;
    sending->channel->sent(sending->channel, sending);
}

static void lost(void *arg, uint32_t peer, const pmr_error *error)
{
    pmr_hub *hub = arg;
    hub->lost[peer] = true;
    if (!hub->losses)
        hub->losses = calloc(hub->net->ranks, sizeof *hub->losses);
    if (hub->losses)
        hub->losses[peer] = *error;
    for (pmr_channel *channel = hub->channels; channel; channel = channel->next)
        channel->lost(channel, peer, error);
}

/* ---- open and close ---- */

pmr_status pmr_hub_open(pmr_hub **out, pmr_net *net, const pmr_window *window, bool crowded, pmr_error *error)
{
    pmr_hub *hub = calloc(1, sizeof *hub);
    _Atomic bool *is_lost = calloc(net->ranks, sizeof *is_lost);
    if (!hub || !is_lost) {
        free(is_lost);
        free(hub);
        return pmr_fail(error, PMR_ERR_NO_MEMORY, "out of memory for the network of %u ranks", net->ranks);
    }
    hub->bell = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK | EFD_SEMAPHORE);
    if (hub->bell < 0) {
        free(is_lost);
        free(hub);
        return pmr_fail_os(error, "cannot make an eventfd");
    }
    pthread_mutex_init(&hub->lock, NULL);
    hub->lost = is_lost;
    hub->net = net;
    hub->endpoint = net->endpoint;
    hub->window = window;
    hub->crowded = crowded;
    hub->orphans_end = &hub->orphans;
    net->endpoint->sink =
        (pmr_sink){.arg = hub, .place = place, .arrived = arrived, .sent = sent, .lost = lost};
    *out = hub;
    return PMR_OK;
}

static pmr_placing place_nowhere(void *arg, uint32_t peer, uint32_t lane, const pmr_packet *packet, void **into_out)
{
    (void)arg, (void)peer, (void)lane, (void)packet, (void)into_out;
    return PMR_PLACE_SHOW;
}

static void arrived_nowhere(void *arg, uint32_t peer, uint32_t lane, const pmr_packet *packet, const void *payload)
{
    (void)arg, (void)peer, (void)lane, (void)packet, (void)payload;
}

static void sent_by_nobody(void *arg, uint64_t cookie)
{
    (void)arg, (void)cookie;
}

static void lost_by_nobody(void *arg, uint32_t peer, const pmr_error *error)
{
    (void)arg, (void)peer, (void)error;
}

void pmr_hub_close(pmr_hub *hub)
{
    if (!hub)
        return;
    if (hub->watching) {
        atomic_store(&hub->stop, true);
        pmr_flag_add(&hub->armed);
        uint64_t all = UINT32_MAX;
        ssize_t written = write(hub->bell, &all, sizeof all);
        (void)written; /* it also wakes by itself */
        pthread_join(hub->watcher, NULL);
    }
    hub->endpoint->sink = (pmr_sink){.place = place_nowhere,
                                     .arrived = arrived_nowhere,
                                     .sent = sent_by_nobody,
                                     .lost = lost_by_nobody};
    while (hub->orphans) {
        pmr_orphan *next = hub->orphans->next;
        free(hub->orphans);
        hub->orphans = next;
    }
    close(hub->bell);
    pthread_mutex_destroy(&hub->lock);
    free(hub->losses);
    free(hub->lost);
    free(hub);
}

/* ---- channels ---- */

/* Hands over what came before. */
static void adopt(pmr_hub *hub, pmr_channel *channel)
{
    pmr_orphan **at = &hub->orphans;
    while (*at) {
        pmr_orphan *orphan = *at;
        if (channel_of(hub, &orphan->packet) != channel) {
            at = &orphan->next;
            continue;
        }
        *at = orphan->next;
        void *into = NULL;
        if (channel->place(channel, orphan->peer, orphan->lane, &orphan->packet, &into) == PMR_PLACE_INTO &&
            orphan->packet.payload_bytes)
            memcpy(into, orphan->payload, orphan->packet.payload_bytes);
        channel->arrived(channel, orphan->peer, orphan->lane, &orphan->packet, into ? into : orphan->payload);
        free(orphan);
    }
    hub->orphans_end = at;
}

void pmr_hub_attach(pmr_hub *hub, pmr_channel *channel)
{
    pmr_hub_lock(hub);
    channel->next = hub->channels;
    hub->channels = channel;
    adopt(hub, channel);
    for (uint32_t peer = 0; hub->losses && peer < hub->net->ranks; peer++)
        if (hub->lost[peer])
            channel->lost(channel, peer, &hub->losses[peer]);
    pmr_hub_unlock(hub);
}

void pmr_hub_detach(pmr_hub *hub, pmr_channel *channel)
{
    pmr_hub_lock(hub);
    for (pmr_channel **at = &hub->channels; *at; at = &(*at)->next)
        if (*at == channel) {
            *at = channel->next;
            break;
        }
    hub->last = NULL;
    pmr_hub_unlock(hub);
}

void pmr_hub_comms_made(pmr_hub *hub, uint32_t next_comm)
{
    pmr_hub_lock(hub);
    hub->next_comm = next_comm > hub->next_comm ? next_comm : hub->next_comm;
    pmr_orphan **at = &hub->orphans;
    while (*at) {
        pmr_orphan *orphan = *at;
        if (orphan->packet.kind >= PMR_PACKET_MESSAGE || orphan->packet.comm >= hub->next_comm) {
            at = &orphan->next;
            continue;
        }
        *at = orphan->next;
        free(orphan);
    }
    hub->orphans_end = at;
    pmr_hub_unlock(hub);
}

/* ---- driving and waiting ---- */

bool pmr_hub_poll(pmr_hub *hub)
{
    hub->endpoint->patient = atomic_load_explicit(&hub->patient, memory_order_relaxed);
    if (!pmr_endpoint_poll(hub->endpoint))
        return false;
    pmr_hub_ring(hub);
    return true;
}

void pmr_hub_ring(pmr_hub *hub)
{
    pmr_flag_add(&hub->moves);
    uint64_t sleepers = atomic_load(&hub->sleepers);
    if (sleepers) {
        ssize_t written = write(hub->bell, &sleepers, sizeof sleepers);
        (void)written; /* a full counter is readable already */
    }
}

void pmr_hub_sleep(pmr_hub *hub, uint32_t seen, int64_t until_ns)
{
    struct pollfd fds[2] = {{.fd = hub->endpoint->descriptor, .events = POLLIN},
                            {.fd = hub->bell, .events = POLLIN}};
    atomic_fetch_add(&hub->sleepers, 1);
    if (pmr_hub_moves(hub) == seen) {
        int64_t left = until_ns - pmr_now_ns();
        struct timespec wait = {.tv_sec = left > 0 ? left / 1000000000 : 0,
                                .tv_nsec = left > 0 ? left % 1000000000 : 0};
        if (ppoll(fds, 2, &wait, NULL) > 0 && fds[1].revents) {
            uint64_t one;
            ssize_t got = read(hub->bell, &one, sizeof one);
            (void)got; /* another sleeper may have taken it */
        }
    }
    atomic_fetch_sub(&hub->sleepers, 1);
}

/* True: something moved since `seen`. Halves the polls when they were in vain, doubles them when they were not. */
static bool poll_for_a_while(pmr_hub *hub, uint32_t seen, pmr_wait_policy *policy, const pmr_watch *watch)
{
    uint32_t most = hub->crowded ? POLLS_CROWDED : POLLS_DEDICATED;
    most = hub->endpoint->threaded ? POLLS_THREADED : most;
    uint32_t polls = policy->polls && policy->polls < most ? policy->polls : most;
    for (uint32_t i = 0; i < polls; i++) {
        if (pmr_hub_moves(hub) != seen)
            return true;
        pmr_hub_lock(hub);
        bool moved = pmr_hub_poll(hub);
        pmr_hub_unlock(hub);
        if (moved) {
            policy->polls = polls * 2 < most ? polls * 2 : most;
            return true;
        }
        if (watch->abort_state && atomic_load_explicit(watch->abort_state, memory_order_acquire) != 0)
            return false;
        sched_yield(); /* a poll costs as much; and the peer may be a process of this very CPU */
    }
    policy->polls = polls / 2 > POLLS_MIN ? polls / 2 : POLLS_MIN;
    return false;
}

pmr_status pmr_hub_wait(pmr_hub *hub, uint32_t seen, pmr_wait_policy *policy, const pmr_watch *watch,
                        int64_t deadline_ns, pmr_error *error)
{
    if (poll_for_a_while(hub, seen, policy, watch))
        return PMR_OK;
    for (;;) {
        pmr_hub_lock(hub);
        bool moved = pmr_hub_poll(hub);
        pmr_hub_unlock(hub);
        if (moved || pmr_hub_moves(hub) != seen)
            return PMR_OK; /* the event wins over whatever happened after it */
        pmr_status status = watch->check(watch->arg, error);
        if (status)
            return status;
        int64_t now = pmr_now_ns();
        if (now >= deadline_ns)
            return PMR_ERR_STALLED;
        int64_t slice_end = now + PMR_WAIT_SLICE_NS;
        pmr_hub_sleep(hub, seen, slice_end < deadline_ns ? slice_end : deadline_ns);
    }
}

/* ---- the watcher ---- */

static void *watch_descriptor(void *arg)
{
    pmr_hub *hub = arg;
    uint32_t served = 0;
    while (!atomic_load(&hub->stop)) {
        uint32_t armed = atomic_load(&hub->armed.value);
        if (armed == served) {
            pmr_flag_target doorbell = {&hub->armed, served + 1};
            pmr_flags_sleep(&doorbell, 1, pmr_now_ns() + WATCH_SLICE_NS);
            continue;
        }
        pmr_hub_sleep(hub, pmr_hub_moves(hub), pmr_now_ns() + WATCH_SLICE_NS);
        served = armed;
        pmr_flag_add(&hub->moves);
    }
    return NULL;
}

static pmr_status start_watcher(pmr_hub *hub, pmr_error *error)
{
    pmr_hub_lock(hub);
    if (!hub->watching) {
        sigset_t all, before;
        sigfillset(&all);
        pthread_sigmask(SIG_SETMASK, &all, &before); /* signals belong to the program's threads */
        hub->watching = pthread_create(&hub->watcher, NULL, watch_descriptor, hub) == 0;
        pthread_sigmask(SIG_SETMASK, &before, NULL);
    }
    bool watching = hub->watching;
    pmr_hub_unlock(hub);
    return watching ? PMR_OK
                    : pmr_fail(error, PMR_ERR_OS,
                               "cannot start the thread that watches the network (a limit on processes? 'ulimit -u')");
}

pmr_status pmr_hub_arm(pmr_hub *hub, pmr_error *error)
{
    if (!hub->watching) {
        pmr_status status = start_watcher(hub, error);
        if (status)
            return status;
    }
    pmr_flag_add(&hub->armed);
    return PMR_OK;
}

/* ---- the end of the gang ---- */

void pmr_hub_tell_abort(pmr_hub *hub)
{
    pmr_error error;
    const pmr_window_abort *record = &hub->window->header->abort;
    if (!pmr_window_aborted(hub->window, &error))
        return;
    abort_card card = {.state = record->state, .rank = record->rank};
    memcpy(card.node, record->node, sizeof card.node);
    memcpy(card.text, record->text, sizeof card.text);
    pmr_packet packet = {.kind = PMR_PACKET_ABORT, .payload_bytes = sizeof card};
    const pmr_net *net = hub->net;
    pmr_hub_lock(hub);
    for (uint32_t rank = 0; rank < net->ranks && rank < ABORT_RANKS_MAX; rank++)
        if (rank < net->first_rank[net->node] || rank >= net->first_rank[net->node + 1])
            pmr_endpoint_send(hub->endpoint, rank, 0, &packet, &card, 0);
    int64_t deadline_ns = pmr_now_ns() + TELL_NS;
    while (pmr_endpoint_unsent_bytes(hub->endpoint) && pmr_now_ns() < deadline_ns)
        if (!pmr_hub_poll(hub))
            sched_yield();
    pmr_hub_unlock(hub);
}
