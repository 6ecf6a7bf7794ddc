/* SPDX-License-Identifier: Apache-2.0
 *
 * span_run.c: runs schedules: the step of every collective across nodes, and how its caller waits.
 *
 * Phases: *prepare* (schedule, memory, early steps), *open* (once no partner is too far behind, packets of the call find
 * their places), *enter* (those are told that get no short message at once), *run*, *drain* (what is queued goes to the
 * kernel: nobody may drive this rank for a while). In *run* each pass sends what may be sent, polls the network once, and
 * then does all work on memory and on the node that became possible; packets only note what has landed.
 * Invariant: a step is counted done once, and what comes after it is looked at then.
 */
#include "coll/span_run.h"

#include <sched.h>
#include <string.h>

#include "core/clock.h"
#include "core/reduce_op.h"

enum { PREPARE = 0, OPEN, ENTER, RUN, DRAIN };
#define REFUSALS_MAX     16u         /* sends that find no room before the others are left for the next pass */
#define SPINS_BETWEEN    64u

_Static_assert(PMR_EARLY_BYTES <= PMR_KEPT_BYTES, "what is sent before its call is kept until then");

/* ---- work on memory ---- */

static void reduce(const pmr_runner *runner, const pmr_step *step)
{
    const pmr_call *call = runner->task->call;
    const pmr_place *places = (const pmr_place *)runner->now->schedule.sources.data + step->source;
    bool whole = step->kind == PMR_STEP_REDUCE_ALL;
    pmr_op op = whole ? call->op : pmr_partial_op(call->op);
    pmr_dtype dtype = whole ? call->dtype : pmr_partial_dtype(call->op, call->dtype);
    const void *source[step->sources];
    for (uint32_t i = 0; i < step->sources; i++)
        source[i] = pmr_runner_at(runner, places[i]);
    if (step->amount)
        pmr_reduce_lookup(op, dtype)(pmr_runner_at(runner, step->to), source, step->sources, step->amount);
}

static void work_on(const pmr_runner *runner, const pmr_step *step)
{
    const pmr_call *call = runner->task->call;
    switch (step->kind) {
    case PMR_STEP_COPY: {
        void *to = pmr_runner_at(runner, step->to);
        const void *from = pmr_runner_at(runner, step->from);
        if (step->amount && to != from)
            memmove(to, from, step->amount);
        break;
    }
    case PMR_STEP_WIDEN:
        pmr_partial_widen(call->dtype, pmr_runner_at(runner, step->to), pmr_runner_at(runner, step->from),
                          step->amount);
        break;
    case PMR_STEP_FINISH:
        pmr_partial_finish(call->op, call->dtype, pmr_runner_at(runner, step->to),
                           pmr_runner_at(runner, step->from), step->peer, step->amount);
        break;
    default:
        reduce(runner, step);
    }
}

/* ---- what is possible now ---- */

static void enable(pmr_runner *runner, uint32_t number)
{
    switch (pmr_schedule_step(&runner->now->schedule, number)->kind) {
    case PMR_STEP_SEND:
        runner->sends[runner->send_count++] = number;
        break;
    case PMR_STEP_RECEIVE:
    case PMR_STEP_NODE: /* looked at in their order */
        break;
    default:
        runner->work[runner->works++] = number;
    }
}

static void finish(pmr_runner *runner, uint32_t number)
{
    const pmr_schedule *schedule = &runner->now->schedule;
    const pmr_step *step = pmr_schedule_step(schedule, number);
    runner->done++;
    runner->sends_left -= step->kind == PMR_STEP_SEND;
    for (uint32_t i = 0; i < step->next_count; i++) {
        uint32_t next = schedule->edges[step->next + i];
        if (--runner->after[next] == 0)
            enable(runner, next);
    }
}

static bool do_work(pmr_runner *runner)
{
    bool moved = runner->works > 0;
    while (runner->works) {
        uint32_t number = runner->work[--runner->works];
        work_on(runner, pmr_schedule_step(&runner->now->schedule, number));
        finish(runner, number);
    }
    return moved;
}

/* ---- on the node ---- */

static const size_t *table_at(const pmr_schedule *schedule, uint32_t table)
{
    return table == PMR_NO_TABLE ? NULL : (const size_t *)schedule->counts.data + table;
}

static bool has_tables(pmr_kind kind)
{
    return kind >= PMR_GATHERV;
}

static void begin_node(pmr_runner *runner, const pmr_node_call *node)
{
    const pmr_schedule *schedule = &runner->now->schedule;
    const pmr_call *call = runner->task->call;
    runner->inner_call = (pmr_call){
        .kind = node->kind,
        .dtype = node->partial ? pmr_partial_dtype(call->op, call->dtype) : PMR_UINT8,
        .op = node->partial ? pmr_partial_op(call->op) : PMR_SUM,
        .root = (int32_t)node->root,
        .send = pmr_runner_at(runner, node->send),
        .recv = pmr_runner_at(runner, node->recv),
        .count = node->count,
    };
    if (has_tables(node->kind)) {
        runner->inner_call.send_counts = table_at(schedule, node->send_counts);
        runner->inner_call.send_displs = table_at(schedule, node->send_displs);
        runner->inner_call.recv_counts = table_at(schedule, node->recv_counts);
        runner->inner_call.recv_displs = table_at(schedule, node->recv_displs);
    }
    pmr_task_begin_inner(&runner->inner, runner->task, runner->span->inner, &runner->inner_call);
    runner->span->inner->running = &runner->inner;
    runner->node_runs = true;
}

/* The next collective of the node, if it may run. *moved: it went on. */
static pmr_status step_node(pmr_runner *runner, bool *moved, pmr_error *error)
{
    const pmr_schedule *schedule = &runner->now->schedule;
    while (runner->next_node < schedule->calls.count) {
        uint32_t number = runner->now->node[runner->next_node];
        if (runner->after[number])
            return PMR_OK;
        if (!runner->node_runs) {
            begin_node(runner, pmr_schedule_call(schedule, pmr_schedule_step(schedule, number)));
            *moved = true;
        }
        uint32_t phase = runner->inner.phase, step = runner->inner.step, cursor = runner->inner.cursor;
        pmr_status status = pmr_task_step(&runner->inner, error);
        *moved = *moved || status == PMR_OK || phase != runner->inner.phase || step != runner->inner.step ||
                 cursor != runner->inner.cursor;
        if (status == PMR_PENDING)
            return PMR_OK;
        runner->node_runs = false;
        runner->span->inner->running = NULL;
        if (status)
            return status;
        runner->next_node++;
        finish(runner, number);
    }
    return PMR_OK;
}

/* No other node waits for this rank, nor sends it much, while it waits for its own. */
static bool waits_for_node_alone(const pmr_runner *runner)
{
    const pmr_schedule *schedule = &runner->now->schedule;
    if (schedule->peer_count == 0)
        return true;
    if (!runner->node_runs || schedule->large)
        return false;
    const pmr_step *step = pmr_schedule_step(schedule, runner->now->node[runner->next_node]);
    return runner->sends_left == pmr_schedule_call(schedule, step)->sends_behind;
}

/* ---- messages (under the hub's lock) ---- */

/* A long one only while the peer is near. */
static bool brings_entry(const pmr_runner *runner, const pmr_schedule_peer *peer)
{
    return pmr_schedule_brings_entry(&runner->now->schedule, peer) &&
           (peer->longest <= PMR_EAGER_BYTES || pmr_span_is_near(runner->span, peer->rank));
}

/* Tells a peer that gets no message at once. One that this rank only hears short messages from can wait for that. */
static bool tell_entry(pmr_runner *runner, const pmr_schedule_peer *peer)
{
    if (peer->sends == 0 && peer->longest <= PMR_EAGER_BYTES)
        return pmr_span_owe(runner->span, peer->rank);
    return pmr_span_send(runner->span, peer->rank,
                         &(pmr_span_word){.kind = PMR_PACKET_ENTER, .token = peer->send_bytes});
}

/* On lane 0: short, or with the entry. Short ones are copied, and so done. */
static bool send_with_entry(pmr_runner *runner, uint32_t number, const pmr_step *step, bool enters)
{
    bool copied = step->amount <= PMR_EAGER_BYTES;
    runner->sending[number] = (pmr_sending){.channel = &runner->span->channel, .number = number};
    pmr_span_word word = {.kind = enters ? PMR_PACKET_ENTER : PMR_PACKET_DATA,
                          .message = enters,
                          .token = enters ? runner->now->schedule.peers[step->source].send_bytes : step->number,
                          .payload = pmr_runner_at(runner, step->from),
                          .bytes = (uint32_t)step->amount,
                          .cookie = copied ? 0 : (uint64_t)(uintptr_t)&runner->sending[number]};
    if (!pmr_span_send(runner->span, step->peer, &word))
        return false;
    if (copied)
        runner->landed[runner->landed_count++] = number;
    runner->leaving += !copied;
    return true;
}

/* *refused: no room now; false: the peer has not entered. */
static bool send_one(pmr_runner *runner, uint32_t number, bool *refused)
{
    const pmr_step *step = pmr_schedule_step(&runner->now->schedule, number);
    bool enters = step->number == 0 && runner->brings[step->source];
    if (enters || step->amount <= PMR_EAGER_BYTES) {
        *refused = !send_with_entry(runner, number, step, enters);
        return true;
    }
    if (!runner->entered[step->source])
        return false;
    pmr_hub *hub = runner->span->hub;
    pmr_packet packet = {.kind = PMR_PACKET_DATA,
                         .payload_bytes = (uint32_t)step->amount,
                         .comm = runner->task->comm->id,
                         .seq = runner->call.seq,
                         .source = (int32_t)runner->task->comm->rank,
                         .token = step->number,
                         .fingerprint = runner->call.fingerprint};
    runner->sending[number] = (pmr_sending){.channel = &runner->span->channel, .number = number};
    *refused = !pmr_endpoint_send(hub->endpoint, pmr_span_world_rank(runner->span, step->peer),
                                  pmr_hub_large_lane(hub), &packet, pmr_runner_at(runner, step->from),
                                  (uint64_t)(uintptr_t)&runner->sending[number]);
    runner->leaving += !*refused;
    return true;
}

static void release_held(pmr_runner *runner)
{
    const pmr_schedule *schedule = &runner->now->schedule;
    uint32_t kept = 0;
    runner->entered_new = false;
    for (uint32_t i = 0; i < runner->held_count; i++) {
        uint32_t number = runner->held[i];
        if (runner->entered[pmr_schedule_step(schedule, number)->source])
            runner->sends[runner->send_count++] = number;
        else
            runner->held[kept++] = number;
    }
    runner->held_count = kept;
}

/* True: something was sent. */
static bool send_all(pmr_runner *runner)
{
    if (runner->entered_new)
        release_held(runner);
    uint32_t kept = 0, refusals = 0, count = runner->send_count;
    bool moved = false;
    for (uint32_t i = 0; i < count; i++) {
        uint32_t number = runner->sends[i];
        bool refused = false;
        if (refusals >= REFUSALS_MAX)
            refused = true;
        else if (!send_one(runner, number, &refused))
            runner->held[runner->held_count++] = number;
        if (refused)
            runner->sends[kept++] = number;
        else
            moved = true;
        refusals += refused;
    }
    runner->send_count = kept;
    return moved;
}

/* ---- the phases ---- */

static pmr_status pend_on_network(pmr_runner *runner)
{
    pmr_span *span = runner->span;
    runner->task->want_network = true;
    return pmr_task_want(runner->task, &span->hub->moves, span->seen + 1);
}

static pmr_status prepare(pmr_task *task, pmr_error *error)
{
    pmr_runner *runner = pmr_runner_of(task->comm->span);
    if (!runner)
        return pmr_fail(error, PMR_ERR_NO_MEMORY, "out of memory for a collective across nodes");
    pmr_status status = pmr_runner_prepare(runner, task, error);
    if (status)
        return status;
    const pmr_schedule *schedule = &runner->now->schedule;
    for (uint32_t number = 0; number < schedule->early; number++) {
        work_on(runner, pmr_schedule_step(schedule, number));
        finish(runner, number);
    }
    task->phase = OPEN;
    return PMR_OK;
}

static pmr_status open_call(pmr_runner *runner)
{
    pmr_span *span = runner->span;
    const pmr_schedule *schedule = &runner->now->schedule;
    bool may_enter = true;
    pmr_hub_lock(span->hub);
    do {
        may_enter = true;
        for (uint32_t i = 0; may_enter && i < schedule->peer_count; i++)
            may_enter = pmr_span_may_enter(span, schedule->peers[i].rank);
    } while (!may_enter && pmr_hub_poll(span->hub));
    if (may_enter)
        pmr_span_open_call(span, &runner->call);
    span->seen = pmr_hub_moves(span->hub);
    pmr_hub_unlock(span->hub);
    if (!may_enter)
        return pend_on_network(runner);
    runner->task->phase = ENTER;
    return PMR_OK;
}

static pmr_status enter(pmr_runner *runner)
{
    pmr_span *span = runner->span;
    const pmr_schedule *schedule = &runner->now->schedule;
    bool room = true;
    if (schedule->peer_count) {
        pmr_hub_lock(span->hub);
        for (; room && runner->enter_next < schedule->peer_count; runner->enter_next += room) {
            const pmr_schedule_peer *peer = &schedule->peers[runner->enter_next];
            bool brings = brings_entry(runner, peer);
            runner->brings[runner->enter_next] = brings;
            room = brings || tell_entry(runner, peer);
        }
        if (!room)
            pmr_hub_poll(span->hub);
        span->seen = pmr_hub_moves(span->hub);
        pmr_hub_unlock(span->hub);
    }
    if (!room)
        return pend_on_network(runner);
    for (uint32_t number = schedule->early; number < schedule->steps.count; number++)
        if (runner->now->after[number] == 0)
            enable(runner, number);
    runner->task->phase = RUN;
    return PMR_OK;
}

/* One pass over the network; then what has landed is done. */
static bool pass(pmr_runner *runner)
{
    pmr_span *span = runner->span;
    pmr_hub_lock(span->hub);
    bool moved = send_all(runner);
    moved |= pmr_hub_poll(span->hub);
    moved |= runner->landed_count > 0;
    while (runner->landed_count)
        finish(runner, runner->landed[--runner->landed_count]);
    span->seen = pmr_hub_moves(span->hub);
    pmr_hub_unlock(span->hub);
    return moved;
}

static pmr_status run(pmr_runner *runner, pmr_error *error)
{
    const pmr_schedule *schedule = &runner->now->schedule;
    pmr_task *task = runner->task;
    while (runner->done < schedule->steps.count) {
        bool moved = schedule->peer_count > 0 && pass(runner);
        moved |= do_work(runner);
        pmr_status status = step_node(runner, &moved, error);
        if (status)
            return status;
        if (runner->span->differs_rank != UINT32_MAX)
            return pmr_span_mismatch(runner->span, error);
        task->step = runner->done;
        if (moved)
            continue;
        if (!runner->node_runs)
            return pend_on_network(runner);
        task->want = runner->inner.want;
        task->want_network = !waits_for_node_alone(runner);
        return PMR_PENDING;
    }
    task->phase = DRAIN;
    return PMR_OK;
}

static pmr_status drain(pmr_runner *runner)
{
    pmr_span *span = runner->span;
    pmr_hub_lock(span->hub);
    bool empty = runner->now->schedule.peer_count == 0 || pmr_endpoint_unsent_bytes(span->hub->endpoint) == 0;
    while (!empty && pmr_hub_poll(span->hub))
        empty = pmr_endpoint_unsent_bytes(span->hub->endpoint) == 0;
    span->seen = pmr_hub_moves(span->hub);
    if (empty)
        pmr_span_close_call(span);
    pmr_hub_unlock(span->hub);
    return empty ? PMR_OK : pend_on_network(runner);
}

pmr_status pmr_span_step(pmr_task *task, pmr_error *error)
{
    pmr_status status = PMR_OK;
    if (task->phase == PREPARE)
        status = prepare(task, error);
    pmr_runner *runner = task->comm->span->runner;
    if (!status && task->phase == OPEN)
        status = open_call(runner);
    if (!status && task->phase == ENTER)
        status = enter(runner);
    if (!status && task->phase == RUN)
        status = run(runner, error);
    if (!status && task->phase == DRAIN)
        status = drain(runner);
    return status;
}

/* ---- waiting ---- */

/* For the node and the network at once. */
static pmr_status wait_for_both(pmr_task *task, int64_t deadline_ns, pmr_error *error)
{
    pmr_comm *comm = task->comm;
    pmr_hub *hub = comm->span->hub;
    uint32_t seen = comm->span->seen;
    for (uint32_t i = 0; i < SPINS_BETWEEN; i++) {
        if (pmr_flag_reached(task->want.flag, task->want.target) || pmr_hub_moves(hub) != seen)
            return PMR_OK;
        pmr_hub_lock(hub);
        bool moved = pmr_hub_poll(hub);
        pmr_hub_unlock(hub);
        if (moved)
            return PMR_OK;
        if (comm->crowded || hub->crowded || i % 4 == 3)
            sched_yield();
        else
            pmr_cpu_relax();
    }
    pmr_status status = comm->watch.check(comm->watch.arg, error);
    int64_t now = pmr_now_ns();
    if (!status && now >= deadline_ns)
        return PMR_ERR_STALLED;
    if (!status)
        status = pmr_hub_arm(hub, error);
    if (status)
        return status;
    pmr_flag_target targets[2] = {task->want, {&hub->moves, seen + 1}};
    int64_t slice_end = now + PMR_WAIT_SLICE_NS;
    pmr_flags_sleep(targets, 2, slice_end < deadline_ns ? slice_end : deadline_ns);
    return PMR_OK;
}

pmr_status pmr_span_wait(pmr_task *task, int64_t deadline_ns, pmr_error *error)
{
    pmr_comm *comm = task->comm;
    pmr_span *span = comm->span;
    if (!task->want_network)
        return pmr_flag_wait(task->want.flag, task->want.target, &span->inner->policy, &comm->watch,
                             deadline_ns, error);
    if (task->want.flag == &span->hub->moves)
        return pmr_hub_wait(span->hub, span->seen, &comm->policy, &comm->watch, deadline_ns, error);
    return wait_for_both(task, deadline_ns, error);
}

/* ---- leaving a call half way ---- */

/* How far the call's messages reach into a buffer. */
static uint64_t reach(const pmr_schedule *schedule, pmr_buffer buffer)
{
    uint64_t end = 0;
    for (uint32_t i = 0; i < schedule->steps.count; i++) {
        const pmr_step *step = pmr_schedule_step(schedule, i);
        bool message = step->kind == PMR_STEP_SEND || step->kind == PMR_STEP_RECEIVE;
        pmr_place place = step->kind == PMR_STEP_SEND ? step->from : step->to;
        if (message && place.buffer == buffer && place.at + step->amount > end)
            end = place.at + step->amount;
    }
    return end;
}

void pmr_span_abandon(pmr_comm *comm)
{
    pmr_span *span = comm->span;
    pmr_runner *runner = span->runner;
    pmr_hub_lock(span->hub);
    for (uint32_t buffer = 0; runner && span->call && buffer < PMR_BUFFERS; buffer++) {
        uint64_t bytes = reach(&runner->now->schedule, (pmr_buffer)buffer);
        if (bytes && runner->base[buffer])
            pmr_endpoint_abandon(span->hub->endpoint, runner->base[buffer], bytes);
    }
    pmr_span_close_call(span);
    span->inner->running = NULL;
    pmr_hub_unlock(span->hub);
}
