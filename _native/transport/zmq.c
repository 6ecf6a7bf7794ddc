/* SPDX-License-Identifier: Apache-2.0
 *
 * zmq.c: packets over libzmq, which moves them in threads of its own.
 *
 * The contract's frame: opening, sending, polling, losing, closing. A socket of libzmq has a descriptor that is readable
 * when something *changed*, and using the socket may swallow that signal; so whatever was used is looked at once more by
 * the next poll, until it was found empty, and only then left to its descriptor.
 * Invariant: `unsent_bytes` is the sum over all outboxes; a flow with a lent payload is in the list `lending`.
 */
#include "transport/zmq.h"

#include <poll.h>
#include <sched.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include "core/clock.h"
#include "core/status.h"

#define FLOWS_DEFAULT   3u
#define FRAGMENT_BYTES  (256u * 1024u)
#define EVENTS_PER_POLL 64
#define CLOSE_SLICE_MS  20
#define WHY_BYTES       512u
#define ABANDON_NS      200000000

pmr_zmq_flow *pmr_zmq_flow_of(pmr_zmq_endpoint *self, uint32_t peer, uint32_t lane)
{
    pmr_zmq_flow **place = &self->flows[peer * self->base.lanes + lane];
    if (!*place && (*place = calloc(1, sizeof **place))) {
        bool over = self->peers[peer].lost || self->peers[peer].losing;
        (*place)->peer = peer;
        (*place)->lane = lane;
        (*place)->state = over ? PMR_ZMQ_ENDED : PMR_ZMQ_IDLE;
    }
    return *place;
}

void pmr_zmq_due(pmr_zmq_endpoint *self, pmr_zmq_flow *flow)
{
    if (flow->due)
        return;
    flow->due = true;
    flow->next_due = self->due;
    self->due = flow;
}

bool pmr_zmq_option(const pmr_zmq_endpoint *self, void *socket, int option, int value)
{
    int64_t wide = value;
    bool is_wide = option == PMR_ZMQ_MAXMSGSIZE;
    return self->zmq.setsockopt(socket, option, is_wide ? (void *)&wide : (void *)&value,
                                is_wide ? sizeof wide : sizeof value) == 0;
}

static bool watch_descriptor(pmr_zmq_endpoint *self, int fd, uint32_t kind, uint32_t index)
{
    struct epoll_event event = {.events = EPOLLIN, .data.u64 = (uint64_t)kind << 32 | index};
    return epoll_ctl(self->base.descriptor, EPOLL_CTL_ADD, fd, &event) == 0;
}

bool pmr_zmq_watch(pmr_zmq_endpoint *self, void *socket, uint32_t kind, uint32_t index)
{
    int fd = -1;
    size_t bytes = sizeof fd;
    return self->zmq.getsockopt(socket, PMR_ZMQ_FD, &fd, &bytes) == 0 && watch_descriptor(self, fd, kind, index);
}

/* ---- losing ---- */

bool pmr_zmq_lose(pmr_zmq_endpoint *self, uint32_t peer, const char *format, ...)
{
    pmr_zmq_peer *lost = &self->peers[peer];
    if (lost->losing || lost->lost)
        return true;
    lost->losing = true;
    self->losing++;
    lost->why = malloc(WHY_BYTES); /* without memory the text is a shorter one */
    if (lost->why) {
        va_list arguments;
        va_start(arguments, format);
        vsnprintf(lost->why, WHY_BYTES, format, arguments);
        va_end(arguments);
    }
    for (uint32_t lane = 0; lane < self->base.lanes; lane++) {
        pmr_zmq_flow *flow = self->flows[peer * self->base.lanes + lane];
        if (!flow)
            continue;
        pmr_zmq_hang_up(self, flow, 0);
        flow->state = PMR_ZMQ_ENDED;
        self->unsent_bytes -= flow->outbox.unsent_bytes;
        pmr_outbox_drop(&flow->outbox);
        pmr_zmq_due(self, flow);
    }
    return true;
}

/* Tells of a peer whose payloads libzmq has all let go of. */
static bool finish_losing(pmr_zmq_endpoint *self, uint32_t peer)
{
    pmr_zmq_peer *lost = &self->peers[peer];
    for (uint32_t lane = 0; lane < self->base.lanes; lane++) {
        pmr_zmq_flow *flow = self->flows[peer * self->base.lanes + lane];
        if (!flow)
            continue;
        pmr_zmq_settle(self, flow);
        if (pmr_outbox_unsettled(&flow->outbox))
            return false;
    }
    for (uint32_t lane = 0; lane < self->base.lanes; lane++)
        if (self->flows[peer * self->base.lanes + lane])
            pmr_zmq_drop_kept(self, self->flows[peer * self->base.lanes + lane]);
    lost->losing = false;
    lost->lost = true;
    self->losing--;
    pmr_error error;
    pmr_fail(&error, PMR_ERR_RANK_FAILED, "%s", lost->why ? lost->why : "lost a rank, and memory to tell more");
    error.rank = (int32_t)peer;
    free(lost->why);
    lost->why = NULL;
    self->base.sink.lost(self->base.sink.arg, peer, &error);
    return true;
}

/* ---- sending ---- */

static bool zmq_send_packet(pmr_endpoint *base, uint32_t peer, uint32_t lane, const pmr_packet *packet,
                            const void *payload, uint64_t cookie)
{
    pmr_zmq_endpoint *self = (pmr_zmq_endpoint *)base;
    pmr_zmq_flow *flow = pmr_zmq_flow_of(self, peer, lane);
    if (!flow || !pmr_outbox_room(&flow->outbox, cookie ? 0 : packet->payload_bytes))
        return false;
    base->counts.packets_sent++;
    base->counts.bytes_sent += packet->payload_bytes;
    if (flow->state == PMR_ZMQ_OPEN && !cookie && pmr_outbox_empty(&flow->outbox) &&
        pmr_zmq_hand(self, flow, packet, payload, NULL))
        return true;
    pmr_outbox_put(&flow->outbox, packet, payload, cookie, 0);
    if (flow->state == PMR_ZMQ_ENDED)
        pmr_outbox_drop(&flow->outbox);
    else
        self->unsent_bytes += sizeof *packet + packet->payload_bytes;
    if (flow->state == PMR_ZMQ_IDLE)
        pmr_zmq_dial(self, flow);
    else
        pmr_zmq_push(self, flow);
    pmr_zmq_due(self, flow);
    return true;
}

static void zmq_resume(pmr_endpoint *base, uint32_t peer, uint32_t lane)
{
    pmr_zmq_endpoint *self = (pmr_zmq_endpoint *)base;
    pmr_zmq_flow *flow = self->flows[peer * base->lanes + lane];
    if (flow) {
        flow->resumed = true;
        pmr_zmq_due(self, flow);
    }
}

/* Whether libzmq may still read anything of it. */
static bool lent_out_of(pmr_zmq_flow *flow, const void *data, size_t bytes)
{
    for (uint32_t number = flow->outbox.settled; number != flow->outbox.written; number++) {
        const pmr_outgoing *entry = &flow->outbox.entry[number % PMR_OUTBOX_ENTRIES];
        if (atomic_load_explicit(&flow->slot[number % PMR_OUTBOX_ENTRIES].lent, memory_order_acquire) &&
            pmr_overlap(entry->payload, entry->packet.payload_bytes, data, bytes))
            return true;
    }
    return false;
}

/* What libzmq holds cannot be copied behind its back: it gets a moment to write it, then the connection is closed, which
 * makes it let go. Nothing that arrives is affected: its place is written in one go. */
static void zmq_abandon(pmr_endpoint *base, const void *data, size_t bytes)
{
    pmr_zmq_endpoint *self = (pmr_zmq_endpoint *)base;
    int64_t patience_ns = pmr_now_ns() + ABANDON_NS;
    for (uint32_t i = 0; i < base->ranks * base->lanes; i++) {
        pmr_zmq_flow *flow = self->flows[i];
        if (!flow)
            continue;
        if (!pmr_outbox_abandon(&flow->outbox, data, bytes))
            pmr_zmq_lose(self, flow->peer, "gave up rank %u (%s): no memory to take it out of a call in the middle",
                         flow->peer, self->peers[flow->peer].address);
        while (lent_out_of(flow, data, bytes)) {
            if (pmr_now_ns() > patience_ns)
                pmr_zmq_lose(self, flow->peer, "gave up rank %u (%s): it did not take what a call in the middle had sent",
                             flow->peer, self->peers[flow->peer].address);
            struct pollfd waiting = {.fd = self->wake, .events = POLLIN};
            poll(&waiting, 1, 1);
        }
    }
}

static uint64_t zmq_unsent_bytes(const pmr_endpoint *base)
{
    return ((const pmr_zmq_endpoint *)base)->unsent_bytes;
}

/* ---- polling ---- */

static bool settle_lending(pmr_zmq_endpoint *self)
{
    bool told = false;
    pmr_zmq_flow *next = self->lending;
    self->lending = NULL;
    while (next) {
        pmr_zmq_flow *flow = next;
        next = flow->next_lending;
        flow->lending = false;
        told |= pmr_zmq_settle(self, flow);
        if (pmr_outbox_unsettled(&flow->outbox) && !flow->lending) {
            flow->lending = true;
            flow->next_lending = self->lending;
            self->lending = flow;
        }
    }
    return told;
}

static bool tick(pmr_zmq_endpoint *self)
{
    int64_t now_ns = pmr_now_ns();
    bool moved = pmr_zmq_route(self); /* before guests are found to be late who were only not heard */
    for (uint32_t i = 0; i < PMR_ZMQ_GUESTS_MAX; i++)
        self->guests[i].taken = self->guests[i].taken && now_ns < self->guests[i].deadline_ns;
    for (uint32_t i = 0; i < self->base.ranks * self->base.lanes; i++)
        if (self->flows[i])
            moved |= pmr_zmq_out_tick(self, self->flows[i], now_ns);
    return moved;
}

static bool handle(pmr_zmq_endpoint *self, uint64_t about)
{
    uint64_t count;
    ssize_t done;
    switch (about >> 32) {
    case PMR_ZMQ_WAKE:
        done = read(self->wake, &count, sizeof count);
        (void)done;
        return settle_lending(self);
    case PMR_ZMQ_TIMER:
        done = read(self->timer, &count, sizeof count);
        return done == (ssize_t)sizeof count && tick(self);
    case PMR_ZMQ_ROUTE:
        return pmr_zmq_route(self);
    case PMR_ZMQ_ZAP:
        return pmr_zmq_admit(self);
    default:
        pmr_zmq_due(self, self->flows[(uint32_t)about]);
        return false;
    }
}

static bool work_off_due(pmr_zmq_endpoint *self)
{
    bool moved = false;
    pmr_zmq_flow *next = self->due;
    self->due = NULL;
    while (next) {
        pmr_zmq_flow *flow = next;
        next = flow->next_due;
        flow->due = false;
        moved |= pmr_zmq_listen(self, flow);
        moved |= pmr_zmq_push(self, flow);
        if (flow->resumed) {
            flow->resumed = false;
            moved |= pmr_zmq_resume_kept(self, flow);
        }
        moved |= pmr_zmq_settle(self, flow);
    }
    return moved;
}

static bool zmq_poll(pmr_endpoint *base)
{
    pmr_zmq_endpoint *self = (pmr_zmq_endpoint *)base;
    struct epoll_event events[EVENTS_PER_POLL];
    int count = epoll_wait(base->descriptor, events, EVENTS_PER_POLL, 0);
    bool moved = false;
    if (self->router_due)
        moved |= pmr_zmq_route(self);
    if (self->zap_due)
        moved |= pmr_zmq_admit(self);
    for (int i = 0; i < count; i++)
        moved |= handle(self, events[i].data.u64);
    if (self->due)
        moved |= work_off_due(self);
    for (uint32_t peer = 0; self->losing && peer < base->ranks; peer++)
        moved |= self->peers[peer].losing && finish_losing(self, peer);
    return moved || self->due || self->router_due || self->zap_due;
}

/* ---- opening and closing ---- */

static void free_endpoint(pmr_zmq_endpoint *self, int linger_ms)
{
    const pmr_zmq *zmq = &self->zmq;
    uint32_t flows = self->base.ranks * self->base.lanes;
    for (uint32_t i = 0; self->flows && i < flows; i++)
        if (self->flows[i]) {
            /* What is queued before the handshake is done is the handshake. */
            pmr_zmq_hang_up(self, self->flows[i], self->flows[i]->state == PMR_ZMQ_OPEN ? linger_ms : 0);
            pmr_zmq_drop_kept(self, self->flows[i]);
        }
    if (self->router)
        zmq->close(self->router);
    if (self->zap)
        zmq->close(self->zap);
    if (self->context)
        zmq->ctx_term(self->context); /* behind it libzmq has no thread, and no payload of ours */
    for (uint32_t i = 0; self->flows && i < flows; i++)
        if (self->flows[i]) {
            pmr_outbox_fini(&self->flows[i]->outbox);
            free(self->flows[i]->kept);
            free(self->flows[i]);
        }
    for (uint32_t i = 0; self->peers && i < self->base.ranks; i++)
        free(self->peers[i].why);
    for (int *fd = (int[]){self->wake, self->timer, self->base.descriptor, -2}; *fd != -2; fd++)
        if (*fd >= 0)
            close(*fd);
    free(self->flows);
    free(self->peers);
    free(self->named);
    free(self->aligned);
    pmr_zmq_unload(&self->zmq);
    explicit_bzero(self, sizeof *self);
    free(self);
}

static bool flush(pmr_zmq_endpoint *self, int64_t deadline_ns)
{
    for (;;) {
        while (zmq_poll(&self->base) && pmr_now_ns() < deadline_ns)
            continue;
        if (!self->unsent_bytes)
            return true;
        if (pmr_now_ns() >= deadline_ns)
            return false;
        struct pollfd waiting = {.fd = self->base.descriptor, .events = POLLIN};
        poll(&waiting, 1, CLOSE_SLICE_MS);
    }
}

static void zmq_close(pmr_endpoint *base, int64_t deadline_ns)
{
    static const pmr_packet goodbye = {.kind = PMR_PACKET_GOODBYE};
    pmr_zmq_endpoint *self = (pmr_zmq_endpoint *)base;
    base->sink = pmr_sink_of_closing;
    if (flush(self, deadline_ns)) {
        for (uint32_t i = 0; i < base->ranks * base->lanes; i++)
            if (self->flows[i] && self->flows[i]->state == PMR_ZMQ_OPEN)
                zmq_send_packet(base, i / base->lanes, i % base->lanes, &goodbye, NULL, 0);
        flush(self, deadline_ns);
    }
    int64_t left_ms = (deadline_ns - pmr_now_ns()) / 1000000;
    free_endpoint(self, left_ms < 0 ? 0 : left_ms > 60000 ? 60000 : (int)left_ms);
}

static pmr_status zmq_connect(pmr_endpoint *base, const char *const *addresses, pmr_error *error)
{
    pmr_zmq_endpoint *self = (pmr_zmq_endpoint *)base;
    for (uint32_t rank = 0; rank < base->ranks; rank++) {
        pmr_address address;
        pmr_status status =
            rank == base->rank ? PMR_OK : pmr_address_take(addresses[rank], base->ops->name, rank, &address, error);
        if (status)
            return status;
        if (rank != base->rank)
            pmr_address_text(&address, self->peers[rank].address);
    }
    return PMR_OK;
}

/* Under CURVE all ranks have the same key pair, which follows from the job's key. */
static pmr_status derive_curve(pmr_zmq_endpoint *self, pmr_error *error)
{
    const pmr_zmq *zmq = &self->zmq;
    uint8_t secret[PMR_DIGEST_BYTES];
    pmr_hmac hmac;
    if (!zmq->has("curve"))
        return pmr_fail(error, PMR_ERR_UNSUPPORTED,
                        "this libzmq was built without CURVE: install pyzmq's wheel, or leave --encrypt out");
    pmr_hmac_init(&hmac, self->key, sizeof self->key);
    pmr_hmac_add(&hmac, "curve", 5);
    pmr_hmac_end(&hmac, secret);
    bool good = zmq->z85_encode(self->curve_secret, secret, sizeof secret) &&
                zmq->curve_public(self->curve_public, self->curve_secret) == 0;
    explicit_bzero(secret, sizeof secret);
    return good ? PMR_OK : pmr_fail(error, PMR_ERR_OS, "libzmq makes no key pair");
}

static pmr_status start(pmr_zmq_endpoint *self, const pmr_endpoint_options *options, pmr_error *error)
{
    const pmr_zmq *zmq = &self->zmq;
    uint32_t flows = options->ranks * self->base.lanes, names = 64;
    while (names < 4 * flows)
        names *= 2;
    self->named_mask = names - 1;
    self->peers = calloc(options->ranks, sizeof *self->peers);
    self->flows = calloc(flows, sizeof *self->flows);
    self->named = calloc(names, sizeof *self->named);
    self->aligned = aligned_alloc(64, PMR_PACKET_COPY_MAX);
    if (!self->peers || !self->flows || !self->named || !self->aligned)
        return pmr_fail(error, PMR_ERR_NO_MEMORY, "out of memory for a network of %u ranks", options->ranks);
    struct itimerspec interval = {{0, PMR_ZMQ_TICK_NS}, {0, PMR_ZMQ_TICK_NS}};
    self->base.descriptor = epoll_create1(EPOLL_CLOEXEC);
    self->wake = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    self->timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
    if (self->base.descriptor < 0 || self->wake < 0 || self->timer < 0 ||
        timerfd_settime(self->timer, 0, &interval, NULL) != 0 || !watch_descriptor(self, self->wake, PMR_ZMQ_WAKE, 0) ||
        !watch_descriptor(self, self->timer, PMR_ZMQ_TIMER, 0))
        return pmr_fail_os(error, "cannot make what libzmq's sockets are watched with");
    pmr_endpoint_raise_descriptors((uint64_t)flows * 4 + 1024);
    cpu_set_t cpus;
    int threads = sched_getaffinity(0, sizeof cpus, &cpus) == 0 && CPU_COUNT(&cpus) >= 4 ? 2 : 1;
    self->context = zmq->ctx_new();
    if (!self->context || zmq->ctx_set(self->context, PMR_ZMQ_IO_THREADS, threads) != 0 ||
        zmq->ctx_set(self->context, PMR_ZMQ_MAX_SOCKETS, (int)(4 * flows + 64)) != 0)
        return pmr_fail(error, PMR_ERR_OS, "cannot start libzmq: %s", zmq->text_of(zmq->last_errno()));
    pmr_status status = self->encrypt ? derive_curve(self, error) : PMR_OK;
    return status ? status : pmr_zmq_bind(self, options->bind_address, error);
}

static const pmr_endpoint_ops zmq_ops;

static pmr_status zmq_open(const pmr_endpoint_options *options, pmr_endpoint **out, pmr_error *error)
{
    uint32_t flows = options->flows ? options->flows : FLOWS_DEFAULT;
    if (flows >= PMR_LANES_MAX)
        return pmr_fail(error, PMR_ERR_ARGUMENT, "%u connections per pair of ranks: at most %u", flows, PMR_LANES_MAX - 1);
    pmr_zmq_endpoint *self = calloc(1, sizeof *self);
    if (!self)
        return pmr_fail(error, PMR_ERR_NO_MEMORY, "out of memory for a network of %u ranks", options->ranks);
    self->base = (pmr_endpoint){
        .ops = &zmq_ops,
        .rank = options->rank,
        .ranks = options->ranks,
        .lanes = 1 + flows,
        .payload_max = PMR_ZMQ_PAYLOAD_MAX,
        .fragment_bytes = FRAGMENT_BYTES,
        .threaded = true,
        .descriptor = -1,
    };
    self->wake = self->timer = -1;
    self->encrypt = options->encrypt;
    self->socket_bytes = options->socket_bytes;
    memcpy(self->key, options->key, sizeof self->key);
    pmr_status status = pmr_zmq_load(&self->zmq, options->library, error);
    if (!status)
        status = start(self, options, error);
    if (status) {
        free_endpoint(self, 0);
        return status;
    }
    *out = &self->base;
    return PMR_OK;
}

static const pmr_endpoint_ops zmq_ops = {
    .name = "zmq",
    .open = zmq_open,
    .connect = zmq_connect,
    .send = zmq_send_packet,
    .poll = zmq_poll,
    .resume = zmq_resume,
    .abandon = zmq_abandon,
    .unsent_bytes = zmq_unsent_bytes,
    .close = zmq_close,
};
PMR_REGISTER_ENDPOINT(zmq_ops);
