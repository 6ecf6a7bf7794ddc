/* SPDX-License-Identifier: Apache-2.0
 *
 * p2p.c: the calls: blocking ones, which drive while they wait, and the progress engine's source.
 *
 * A blocking caller puts its operation on its stack into the queues, drives, and waits for the inbox to pass the value
 * it had before the last pass; the lock is free while it waits. Whoever drives finishes whatever can be finished, and
 * raises this rank's own inbox when that was another thread's. In a process with one thread the lock costs nothing.
 * Invariant: a blocking call returns only after its operations are in no queue.
 */
#include "progress/p2p.h"

#include <sched.h>
#include <stdlib.h>
#include <string.h>

#include "core/clock.h"
#include "core/status.h"
#include "progress/p2p_net.h"
#include "progress/p2p_state.h"
#include "transport/shm.h"

#define UNMATCHED_BYTES_MAX ((size_t)64 << 20)  /* kept for later at one rank, all senders together */
#define CREDIT_BYTES_MIN ((size_t)256 << 10)    /* of one sender, however many there are */
#define CREDIT_BYTES_MAX ((size_t)16 << 20)
#define PASSES_PER_LOOK 256u                    /* passes that moved something between two looks at the deadline */
#define WAKES_PER_LOOK 64u                      /* wake-ups, the same */
#define SWEEP_INTERVAL_NS 20000000
#define LOOKS_BEFORE_SLEEP 32u

/* ---- open and close ---- */

static bool poll_source(pmr_source *source, pmr_wants *wants);

size_t pmr_p2p_area_bytes(uint32_t ranks)
{
    return pmr_shm_area_bytes(ranks);
}

static size_t credit_for(uint32_t ranks)
{
    size_t share = UNMATCHED_BYTES_MAX / ranks;
    return share < CREDIT_BYTES_MIN ? CREDIT_BYTES_MIN : share > CREDIT_BYTES_MAX ? CREDIT_BYTES_MAX : share;
}

pmr_status pmr_p2p_open(pmr_p2p **out, const pmr_window *window, void *area, pmr_hub *hub, pmr_engine *engine,
                        pmr_error *error)
{
    uint32_t places = window->ranks + (hub ? hub->net->ranks : 0);
    pmr_p2p *p2p = calloc(1, sizeof *p2p + places * sizeof(pmr_p2p_peer));
    if (!p2p)
        return pmr_fail(error, PMR_ERR_NO_MEMORY, "no memory for the message queues of %u ranks", places);
    pmr_status status = pmr_shm_open(&p2p->transport, area, window->ranks, window->local_rank, error);
    if (!status && hub) {
        status = pmr_p2p_net_open(&p2p->far, hub, error);
        if (status)
            p2p->transport->ops->close(p2p->transport);
    }
    if (status) {
        free(p2p);
        return status;
    }
    pthread_mutex_init(&p2p->lock, NULL);
    p2p->hub = hub;
    p2p->places = places;
    p2p->window = window;
    p2p->engine = engine;
    p2p->ranks = window->ranks;
    p2p->me = window->local_rank;
    p2p->first_rank = (int32_t)window->header->first_rank;
    p2p->credit_bytes = credit_for(places);
    pmr_link_init(&p2p->busy);
    pmr_link_init(&p2p->todo);
    pmr_link_init(&p2p->parked);
    pmr_link_init(&p2p->pool);
    pmr_match_init(&p2p->match);
    for (uint32_t peer = 0; peer < places; peer++) {
        pmr_link_init(&p2p->peers[peer].queue);
        pmr_link_init(&p2p->peers[peer].busy_link);
    }
    p2p->source.poll = poll_source;
    if (engine)
        pmr_engine_add(engine, &p2p->source);
    *out = p2p;
    return PMR_OK;
}

void pmr_p2p_close(pmr_p2p *p2p)
{
    if (!p2p)
        return;
    pmr_error error;
    pmr_fail(&error, PMR_ERR_SHUTDOWN, "the message was under way when pmrun was shut down: wait for it first");
    pmr_p2p_end_requests(p2p, PMR_ERR_SHUTDOWN, &error);
    if (p2p->engine)
        pmr_engine_remove(p2p->engine, &p2p->source);
    while (!pmr_list_empty(&p2p->match.order)) {
        pmr_unexpected *message = PMR_MEMBER_OF(p2p->match.order.next, pmr_unexpected, order_link);
        pmr_match_take(message);
        free(PMR_MEMBER_OF(message, pmr_kept, unexpected));
    }
    while (!pmr_list_empty(&p2p->pool)) {
        pmr_transfer *op = PMR_MEMBER_OF(p2p->pool.next, pmr_transfer, link);
        pmr_list_remove(&op->link);
        free(op);
    }
    p2p->transport->ops->close(p2p->transport);
    if (p2p->far)
        p2p->far->ops->close(p2p->far);
    pthread_mutex_destroy(&p2p->lock);
    free(p2p);
}

/* ---- driving ---- */

static void lock(pmr_p2p *p2p)
{
    pthread_mutex_lock(&p2p->lock);
}

static void unlock(pmr_p2p *p2p)
{
    bool wake = p2p->wake_others;
    p2p->wake_others = false;
    pthread_mutex_unlock(&p2p->lock);
    if (wake)
        pmr_flag_add(p2p->transport->inbox);
}

static uint32_t inbox_now(const pmr_p2p *p2p)
{
    return atomic_load_explicit(&p2p->transport->inbox->value, memory_order_acquire);
}

/* The same for the network. */
static uint32_t far_now(const pmr_p2p *p2p)
{
    return p2p->hub ? pmr_hub_moves(p2p->hub) : 0;
}

static bool poll_source(pmr_source *source, pmr_wants *wants)
{
    pmr_p2p *p2p = PMR_MEMBER_OF(source, pmr_p2p, source);
    lock(p2p);
    pmr_wants_add(wants, p2p->transport->inbox, inbox_now(p2p) + 1);
    if (p2p->hub)
        pmr_wants_add_network(wants, p2p->hub, far_now(p2p));
    p2p->polling = true;
    p2p->looks_far = true;
    bool moved = pmr_p2p_drive(p2p);
    int64_t now = pmr_now_ns();
    if (!moved && now >= p2p->sweep_due_ns) {
        p2p->sweep_due_ns = now + SWEEP_INTERVAL_NS;
        pmr_p2p_sweep(p2p);
    }
    p2p->polling = false;
    if (p2p->ended) {
        atomic_fetch_sub_explicit(&source->active, p2p->ended, memory_order_release);
        p2p->ended = 0;
        moved = true;
    }
    unlock(p2p);
    return moved;
}

/* What a blocking caller looks at, beside the caller's own watch, while it waits. */
typedef struct lookout {
    const pmr_p2p *p2p;
    const pmr_watch *outer;
    uint32_t peers[2];          /* of its unfinished operations; PMR_NO_PEER: any */
    uint32_t count;
    bool lost;                  /* one of them is gone */
    bool told;                  /* the caller's watch ended the wait, and filled the error */
} lookout;

static pmr_status look(void *arg, pmr_error *error)
{
    lookout *self = arg;
    pmr_status status = self->outer->check(self->outer->arg, error);
    self->told = status != PMR_OK;
    for (uint32_t i = 0; !status && i < self->count; i++)
        self->lost |= pmr_p2p_peer_gone(self->p2p, self->peers[i]);
    return !status && self->lost ? PMR_ERR_RANK_FAILED : status;
}

/* What this rank's inbox and the network had moved when a pass began. */
typedef struct sighting {
    uint32_t inbox, far;
} sighting;

static sighting look_now(const pmr_p2p *p2p)
{
    return (sighting){.inbox = inbox_now(p2p), .far = far_now(p2p)};
}

/* Waits for this node and for others: a while by looking, then asleep on two flags, one of which the hub's watcher raises.
 * May return early. */
static pmr_status wait_for_both(pmr_p2p *p2p, sighting seen, const pmr_watch *watch, const pmr_p2p_wait *wait,
                                pmr_error *error)
{
    pmr_flag_target targets[2] = {{p2p->transport->inbox, seen.inbox + 1}, {&p2p->hub->moves, seen.far + 1}};
    for (uint32_t i = 0; i < LOOKS_BEFORE_SLEEP; i++) {
        if (pmr_flag_reached(targets[0].flag, targets[0].target) || pmr_flag_reached(targets[1].flag, targets[1].target) ||
            pmr_p2p_net_poll(p2p->far))
            return PMR_OK;
        sched_yield();
    }
    pmr_status status = watch->check(watch->arg, error);
    int64_t now = pmr_now_ns();
    if (!status && now >= wait->deadline_ns)
        status = PMR_ERR_STALLED;
    if (!status)
        status = pmr_hub_arm(p2p->hub, error);
    int64_t slice_end = now + PMR_WAIT_SLICE_NS;
    if (!status)
        pmr_flags_sleep(targets, 2, slice_end < wait->deadline_ns ? slice_end : wait->deadline_ns);
    return status;
}

/* Where what the caller waits for can come from: another node alone, both, or (neither) this one alone. */
static bool waits_far(const pmr_p2p *p2p, const lookout *lookout, bool *near_out)
{
    bool far = false;
    *near_out = false;
    for (uint32_t i = 0; i < lookout->count; i++) {
        bool any = lookout->peers[i] == PMR_NO_PEER;
        far = far || (p2p->hub && (any || pmr_p2p_is_far(p2p, lookout->peers[i])));
        *near_out = *near_out || any || !pmr_p2p_is_far(p2p, lookout->peers[i]);
    }
    return far;
}

/* With the lock: waits without it until there may be something to do. `busy`: there is, so only look around. */
static pmr_status wait_inbox(pmr_p2p *p2p, sighting seen, bool busy, lookout *lookout, const pmr_p2p_wait *wait,
                             pmr_error *error)
{
    pmr_watch watch = {.abort_state = lookout->outer->abort_state, .check = look, .arg = lookout};
    lookout->lost = false;
    lookout->told = false;
    bool near, far = waits_far(p2p, lookout, &near);
    unlock(p2p);
    pmr_status status;
    if (busy) {
        status = look(lookout, error);
        if (!status && pmr_now_ns() >= wait->deadline_ns)
            status = PMR_ERR_STALLED;
    } else if (!far) {
        status = pmr_flag_wait(p2p->transport->inbox, seen.inbox + 1, wait->policy, &watch, wait->deadline_ns, error);
    } else if (!near) {
        status = pmr_hub_wait(p2p->hub, seen.far, wait->policy, &watch, wait->deadline_ns, error);
    } else {
        status = wait_for_both(p2p, seen, &watch, wait, error);
    }
    lock(p2p);
    return status;
}

/* ---- blocking calls ---- */

/* Drives for this caller. True: something still moved when it stopped. */
static bool drive_for(pmr_p2p *p2p, pmr_p2p_waiter *waiter)
{
    p2p->driver = waiter;
    bool moved = true;
    for (uint32_t i = 0; i < PASSES_PER_LOOK && moved && waiter->left; i++)
        moved = pmr_p2p_drive(p2p);
    p2p->driver = NULL;
    return moved;
}

static pmr_status fail_timeout(const pmr_transfer *op, pmr_error *error)
{
    const pmr_pattern *pattern = &op->posted.pattern;
    switch (op->state) {
    case PMR_TRANSFER_QUEUED:
        return pmr_fail(error, PMR_ERR_TIMEOUT,
                        "the receiver made no room for a message (tag %d, %zu bytes) within the time limit; "
                        "nothing was sent", pattern->tag, op->bytes);
    case PMR_TRANSFER_ANNOUNCED:
        return pmr_fail(error, PMR_ERR_STALLED,
                        "nobody received a message (tag %d, %zu bytes) within the time limit; it is withdrawn",
                        pattern->tag, op->bytes);
    case PMR_TRANSFER_POSTED:
        return pmr_fail(error, PMR_ERR_TIMEOUT,
                        "no message came from rank %d with tag %d (-1: any) within the time limit", pattern->source,
                        pattern->tag);
    default:
        return pmr_fail(error, PMR_ERR_STALLED,
                        "the time limit passed in the middle of a message (tag %d), after %zu bytes; it is lost",
                        pattern->tag, op->moved);
    }
}

/* The wait ended: takes the operations back. `deadline`: that ended it; else the error is filled. */
static pmr_status give_up(pmr_p2p *p2p, pmr_transfer *ops, uint32_t count, pmr_status status, bool deadline,
                          pmr_error *error)
{
    for (uint32_t i = 0; i < count; i++) {
        if (ops[i].state == PMR_TRANSFER_DONE)
            continue;
        if (deadline)
            status = fail_timeout(&ops[i], error);
        pmr_transfer_withdraw(p2p, &ops[i]);
    }
    p2p->looks_far = true;
    pmr_p2p_drive(p2p); /* the farewells */
    return status;
}

/* What no wait can help: no memory, or a receive from this rank itself. */
static pmr_status find_hopeless(pmr_p2p *p2p, const pmr_transfer *ops, uint32_t count, pmr_error *error)
{
    if (p2p->starved)
        return pmr_fail(error, PMR_ERR_NO_MEMORY, "no memory to keep a message that came before its receive");
    for (uint32_t i = 0; i < count; i++)
        if (ops[i].state == PMR_TRANSFER_POSTED && ops[i].peer == p2p->me)
            return pmr_fail(error, PMR_ERR_ARGUMENT,
                            "a blocking receive from this rank itself (tag %d) would never end: nothing that fits was "
                            "sent; send first", ops[i].posted.pattern.tag);
    return PMR_OK;
}

/* Some unfinished operation is with another node, or may be. */
static bool is_far(const pmr_p2p *p2p, const pmr_transfer *ops, uint32_t count)
{
    bool far = false;
    for (uint32_t i = 0; i < count; i++)
        far = far || (ops[i].state != PMR_TRANSFER_DONE && ops[i].peer >= p2p->ranks);
    return far;
}

/* With the lock, which it gives back: waits until all `ops` of `waiter` are done. */
static pmr_status wait_for(pmr_p2p *p2p, pmr_p2p_waiter *waiter, pmr_transfer *ops, uint32_t count,
                           const pmr_p2p_wait *wait, pmr_error *error)
{
    pmr_status status = PMR_OK;
    lookout lookout = {.p2p = p2p, .outer = wait->watch};
    p2p->driver = NULL;
    for (uint32_t wakes = 1; waiter->left; wakes++) {
        sighting seen = look_now(p2p);
        p2p->looks_far = is_far(p2p, ops, count);
        bool busy = drive_for(p2p, waiter) || wakes % WAKES_PER_LOOK == 0;
        if (!waiter->left)
            break;
        status = busy ? PMR_OK : find_hopeless(p2p, ops, count, error);
        if (status) {
            lookout.told = true;
            break;
        }
        lookout.count = 0;
        for (uint32_t i = 0; i < count; i++)
            if (ops[i].state != PMR_TRANSFER_DONE)
                lookout.peers[lookout.count++] = ops[i].peer;
        status = wait_inbox(p2p, seen, busy, &lookout, wait, error);
        if (!status)
            continue;
        drive_for(p2p, waiter); /* the event wins over what happened after it */
        if (!lookout.lost)
            break;
        pmr_p2p_sweep(p2p);
    }
    if (waiter->left)
        status = give_up(p2p, ops, count, status, !lookout.told, error);
    else
        status = waiter->status;
    unlock(p2p);
    return status;
}

static pmr_transfer send_op(const pmr_p2p_out *out)
{
    pmr_transfer op = {.peer = out->dest, .bytes = out->bytes};
    op.data = (uint8_t *)(uintptr_t)out->data; /* only read */
    op.posted.pattern = (pmr_pattern){out->comm, out->source, out->tag};
    return op;
}

static pmr_transfer recv_op(const pmr_p2p_in *in)
{
    pmr_transfer op = {.peer = in->source == PMR_ANY_SOURCE ? PMR_NO_PEER : in->source_place, .bytes = in->bytes};
    op.data = in->data;
    op.posted.pattern = (pmr_pattern){in->comm, in->source, in->tag};
    return op;
}

pmr_status pmr_p2p_send(pmr_p2p *p2p, const pmr_p2p_out *out, const pmr_p2p_wait *wait, pmr_error *error)
{
    pmr_p2p_waiter waiter = {.left = 1, .status = PMR_OK, .error = error};
    pmr_transfer op = send_op(out);
    op.waiter = &waiter;
    pmr_link_init(&op.link);
    lock(p2p);
    p2p->driver = &waiter;
    pmr_p2p_start_send(p2p, &op);
    return wait_for(p2p, &waiter, &op, 1, wait, error);
}

pmr_status pmr_p2p_recv(pmr_p2p *p2p, const pmr_p2p_in *in, const pmr_p2p_wait *wait, pmr_message_info *info_out,
                        pmr_error *error)
{
    pmr_p2p_waiter waiter = {.left = 1, .status = PMR_OK, .error = error};
    pmr_transfer op = recv_op(in);
    op.waiter = &waiter;
    pmr_link_init(&op.link);
    lock(p2p);
    p2p->driver = &waiter;
    pmr_p2p_start_recv(p2p, &op);
    pmr_status status = wait_for(p2p, &waiter, &op, 1, wait, error);
    if (!status && info_out)
        *info_out = op.info;
    return status;
}

pmr_status pmr_p2p_sendrecv(pmr_p2p *p2p, const pmr_p2p_out *out, const pmr_p2p_in *in, const pmr_p2p_wait *wait,
                            pmr_message_info *info_out, pmr_error *error)
{
    pmr_p2p_waiter waiter = {.left = 2, .status = PMR_OK, .error = error};
    pmr_transfer ops[2] = {recv_op(in), send_op(out)};
    for (uint32_t i = 0; i < 2; i++) {
        ops[i].waiter = &waiter;
        pmr_link_init(&ops[i].link);
    }
    lock(p2p);
    p2p->driver = &waiter;
    pmr_p2p_start_recv(p2p, &ops[0]);
    pmr_p2p_start_send(p2p, &ops[1]);
    pmr_status status = wait_for(p2p, &waiter, ops, 2, wait, error);
    if (!status && info_out)
        *info_out = ops[0].info;
    return status;
}

pmr_status pmr_p2p_probe(pmr_p2p *p2p, const pmr_p2p_in *in, const pmr_p2p_wait *wait, pmr_message_info *info_out,
                         pmr_error *error)
{
    pmr_pattern pattern = {in->comm, in->source, in->tag};
    lookout lookout = {.p2p = p2p, .outer = wait->watch, .count = 1};
    lookout.peers[0] = in->source == PMR_ANY_SOURCE ? PMR_NO_PEER : in->source_place;
    pmr_status ended = PMR_OK;
    pmr_unexpected *found;
    lock(p2p);
    for (;;) {
        sighting seen = look_now(p2p);
        bool moved = true;
        p2p->looks_far = lookout.peers[0] >= p2p->ranks;
        found = pmr_match_find(&p2p->match, &pattern);
        for (uint32_t i = 0; !found && moved && i < PASSES_PER_LOOK; i++) {
            moved = pmr_p2p_drive(p2p);
            found = pmr_match_find(&p2p->match, &pattern);
        }
        if (found || ended || wait->deadline_ns == 0)
            break;
        if (in->source != PMR_ANY_SOURCE && in->source_place == p2p->me) {
            ended = pmr_fail(error, PMR_ERR_ARGUMENT, "a blocking probe for a message of this rank to itself (tag %d) "
                             "would never end: nothing that fits was sent", in->tag);
            break;
        }
        ended = wait_inbox(p2p, seen, moved, &lookout, wait, error); /* then one more look */
    }
    if (found) {
        const pmr_kept *kept = PMR_MEMBER_OF(found, pmr_kept, unexpected);
        *info_out = (pmr_message_info){found->envelope.source, found->envelope.tag, kept->bytes};
    }
    unlock(p2p);
    if (found)
        return PMR_OK;
    if (wait->deadline_ns == 0)
        return PMR_PENDING;
    if (lookout.lost)
        return pmr_p2p_fail_gone(p2p, lookout.peers[0], "without sending the message that is probed for", in->tag,
                                 error);
    if (ended == PMR_ERR_STALLED && !lookout.told)
        return pmr_fail(error, PMR_ERR_TIMEOUT, "no message with tag %d (-1: any) came within the time limit", in->tag);
    return ended;
}

/* ---- nonblocking calls ---- */

static pmr_transfer *take_op(pmr_p2p *p2p)
{
    if (pmr_list_empty(&p2p->pool))
        return malloc(sizeof(pmr_transfer));
    pmr_transfer *op = PMR_MEMBER_OF(p2p->pool.next, pmr_transfer, link);
    pmr_list_remove(&op->link);
    return op;
}

/* The engine could not be started: takes the operation back, unless it has ended meanwhile. */
static pmr_status take_back(pmr_p2p *p2p, pmr_transfer *op, uint64_t token, pmr_request *request, pmr_status status)
{
    lock(p2p);
    bool ended = op->token != token || op->state == PMR_TRANSFER_DONE; /* pooled operations stay readable */
    if (!ended) {
        pmr_transfer_withdraw(p2p, op);
        atomic_fetch_sub_explicit(&p2p->source.active, 1, memory_order_release);
        pmr_list_append(&p2p->pool, &op->link);
        pmr_request_drop(request);
        pmr_request_drop(request);
    }
    unlock(p2p);
    return ended ? PMR_OK : status;
}

static pmr_status start(pmr_p2p *p2p, const pmr_transfer *draft, void (*begin)(pmr_p2p *, pmr_transfer *),
                        pmr_request **request_out, pmr_error *error)
{
    pmr_request *request = pmr_request_take(p2p->engine);
    if (!request)
        return pmr_fail(error, PMR_ERR_NO_MEMORY, "no memory for a request");
    lock(p2p);
    pmr_transfer *op = take_op(p2p);
    if (!op) {
        unlock(p2p);
        pmr_request_drop(request);
        pmr_request_drop(request);
        return pmr_fail(error, PMR_ERR_NO_MEMORY, "no memory for a request");
    }
    *op = *draft;
    op->request = request;
    pmr_link_init(&op->link);
    begin(p2p, op);
    uint64_t token = op->token;
    p2p->looks_far = true;
    if (op->state != PMR_TRANSFER_DONE && op->peer != p2p->me)
        pmr_p2p_drive(p2p);
    bool left = op->state != PMR_TRANSFER_DONE;
    if (left) {
        op->counted = true;
        atomic_fetch_add_explicit(&p2p->source.active, 1, memory_order_release);
    }
    unlock(p2p);
    pmr_status status = left ? pmr_engine_kick(p2p->engine, error) : PMR_OK;
    if (status)
        status = take_back(p2p, op, token, request, status);
    if (!status)
        *request_out = request;
    return status;
}

pmr_status pmr_p2p_isend(pmr_p2p *p2p, const pmr_p2p_out *out, pmr_request **request_out, pmr_error *error)
{
    pmr_transfer draft = send_op(out);
    return start(p2p, &draft, pmr_p2p_start_send, request_out, error);
}

pmr_status pmr_p2p_irecv(pmr_p2p *p2p, const pmr_p2p_in *in, pmr_request **request_out, pmr_error *error)
{
    pmr_transfer draft = recv_op(in);
    return start(p2p, &draft, pmr_p2p_start_recv, request_out, error);
}
