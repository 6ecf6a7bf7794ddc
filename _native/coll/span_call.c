/* SPDX-License-Identifier: Apache-2.0
 *
 * span_call.c: what a call across nodes is made of before it runs: plan, schedule, memory, and places for packets.
 *
 * Invariant: two calls with equal keys have equal schedules; those whose tables differ from call to call are not kept.
 */
#include <stdlib.h>
#include <string.h>

#include "coll/span_run.h"

#define FRAGMENT_BYTES_MIN 131072u
#define FRAGMENT_BYTES_MAX 262144u
#define WINDOW             3u
#define SCRATCH_KEPT_BYTES ((size_t)16 << 20)
#define UNEVEN                                                                                               \
    (PMR_KIND_BIT(PMR_GATHERV) | PMR_KIND_BIT(PMR_ALLGATHERV) | PMR_KIND_BIT(PMR_SCATTERV) |                 \
     PMR_KIND_BIT(PMR_REDUCE_SCATTERV) | PMR_KIND_BIT(PMR_ALLTOALLV))
#define REDUCING                                                                                             \
    (PMR_KIND_BIT(PMR_REDUCE) | PMR_KIND_BIT(PMR_ALLREDUCE) | PMR_KIND_BIT(PMR_REDUCE_SCATTER) |             \
     PMR_KIND_BIT(PMR_REDUCE_SCATTERV) | PMR_KIND_BIT(PMR_SCAN) | PMR_KIND_BIT(PMR_EXSCAN))

static bool is(const pmr_call *call, uint32_t kinds)
{
    return (kinds & PMR_KIND_BIT(call->kind)) != 0;
}

/* ---- packets (under the hub's lock) ---- */

uint32_t pmr_runner_peer(const pmr_schedule *schedule, uint32_t rank)
{
    uint32_t low = 0, high = schedule->peer_count;
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        if (schedule->peers[middle].rank < rank)
            low = middle + 1;
        else
            high = middle;
    }
    return low < schedule->peer_count && schedule->peers[low].rank == rank ? low : UINT32_MAX;
}

static uint32_t receive_of(const pmr_runner *runner, uint32_t rank, uint64_t number)
{
    const pmr_schedule *schedule = &runner->now->schedule;
    uint32_t peer = pmr_runner_peer(schedule, rank);
    if (peer == UINT32_MAX || number >= schedule->peers[peer].receives)
        return PMR_NO_STEP;
    return schedule->receive_steps[schedule->peers[peer].receive + (uint32_t)number];
}

static void *place(pmr_span_call *call, uint32_t rank, uint64_t number, uint64_t bytes)
{
    pmr_runner *runner = (pmr_runner *)call;
    uint32_t receive = receive_of(runner, rank, number);
    if (receive == PMR_NO_STEP)
        return NULL;
    const pmr_step *step = pmr_schedule_step(&runner->now->schedule, receive);
    if (step->amount != bytes)
        return NULL;
    return bytes ? pmr_runner_at(runner, step->to) : runner; /* no byte: any address that says so */
}

static void arrived(pmr_span_call *call, uint32_t rank, uint64_t number)
{
    pmr_runner *runner = (pmr_runner *)call;
    uint32_t receive = receive_of(runner, rank, number);
    uint32_t *left = &runner->left[pmr_schedule_step(&runner->now->schedule, receive)->source];
    if (*left == 0 || runner->landed_count + 1 >= runner->room)
        return; /* more than there can be: a peer that repeats itself does no harm */
    runner->landed[runner->landed_count++] = receive;
    --*left;
}

static bool entered(pmr_span_call *call, uint32_t rank, uint64_t bytes)
{
    pmr_runner *runner = (pmr_runner *)call;
    uint32_t peer = pmr_runner_peer(&runner->now->schedule, rank);
    if (peer == UINT32_MAX || runner->now->schedule.peers[peer].receive_bytes != bytes)
        return false;
    runner->entered[peer] = 1;
    runner->entered_new = true;
    return true;
}

static void sent(pmr_span_call *call, uint32_t number)
{
    pmr_runner *runner = (pmr_runner *)call;
    runner->landed[runner->landed_count++] = number;
    runner->leaving--;
}

static bool awaits(const pmr_span_call *call, uint32_t rank)
{
    const pmr_runner *runner = (const pmr_runner *)call;
    uint32_t peer = pmr_runner_peer(&runner->now->schedule, rank);
    return peer != UINT32_MAX && !runner->entered[peer];
}

static bool needs(const pmr_span_call *call, uint32_t rank)
{
    const pmr_runner *runner = (const pmr_runner *)call;
    uint32_t peer = pmr_runner_peer(&runner->now->schedule, rank);
    if (peer == UINT32_MAX)
        return false;
    bool sends_large = runner->now->schedule.peers[peer].longest > PMR_EAGER_BYTES;
    return runner->left[peer] > 0 || (sends_large && !runner->entered[peer]);
}

/* ---- the plan ---- */

static size_t sum_of(const size_t *counts, uint32_t size)
{
    size_t sum = 0;
    for (uint32_t i = 0; i < size; i++)
        sum += counts[i];
    return sum;
}

/* The result goes where contributions of this rank lie. */
static bool is_in_place(const pmr_task *task)
{
    const pmr_call *call = task->call;
    uint32_t size = task->comm->size;
    if (!call->send || !call->recv)
        return false;
    if (!is(call, PMR_KIND_BIT(PMR_REDUCE_SCATTER) | PMR_KIND_BIT(PMR_REDUCE_SCATTERV)))
        return call->send == call->recv;
    bool uneven = call->kind == PMR_REDUCE_SCATTERV;
    size_t all = uneven ? sum_of(call->recv_counts, size) : call->count * size;
    size_t own = uneven ? call->recv_counts[task->comm->rank] : call->count;
    const uint8_t *send = call->send, *recv = call->recv;
    return recv < send + all * task->item_bytes && send < recv + own * task->item_bytes;
}

pmr_plan pmr_span_plan(const pmr_shape *shape, uint32_t rank, const pmr_call *call, bool in_place,
                       uint32_t fragment_bytes)
{
    uint32_t fragment = fragment_bytes / PMR_LINE * PMR_LINE;
    fragment = fragment < FRAGMENT_BYTES_MIN ? FRAGMENT_BYTES_MIN : fragment;
    bool reducing = is(call, REDUCING);
    pmr_dtype partial = reducing ? pmr_partial_dtype(call->op, call->dtype) : call->dtype;
    return (pmr_plan){.shape = shape,
                      .rank = rank,
                      .call = call,
                      .item_bytes = pmr_dtype_size(call->dtype),
                      .partial_bytes = pmr_dtype_size(partial),
                      .widens = partial != call->dtype,
                      .finishes = partial != call->dtype || (reducing && call->op == PMR_AVG),
                      .in_place = in_place,
                      .fragment_bytes = fragment > FRAGMENT_BYTES_MAX ? FRAGMENT_BYTES_MAX : fragment,
                      .window = WINDOW};
}

/* ---- schedules that are kept ---- */

static void forget(pmr_span_kept *kept)
{
    pmr_schedule_fini(&kept->schedule);
    free(kept->after);
    free(kept->node);
    kept->after = kept->node = NULL;
    kept->used = false;
}

static bool fits(const pmr_span_kept *kept, const pmr_task *task, bool in_place)
{
    const pmr_call *call = task->call;
    return kept->used && !kept->uneven && kept->kind == call->kind && kept->count == call->count &&
           kept->dtype == call->dtype && kept->root == call->root && kept->in_place == in_place &&
           kept->algorithm == task->algorithm && (kept->op == call->op || !is(call, REDUCING));
}

static pmr_status list_steps(pmr_span_kept *kept)
{
    const pmr_schedule *schedule = &kept->schedule;
    uint32_t steps = schedule->steps.count, nodes = 0;
    kept->after = malloc(((size_t)steps + 1) * sizeof *kept->after);
    kept->node = malloc(((size_t)schedule->calls.count + 1) * sizeof *kept->node);
    if (!kept->after || !kept->node)
        return PMR_ERR_NO_MEMORY;
    for (uint32_t i = 0; i < steps; i++) {
        const pmr_step *step = pmr_schedule_step(schedule, i);
        kept->after[i] = step->after;
        if (step->kind == PMR_STEP_NODE)
            kept->node[nodes++] = i;
    }
    return PMR_OK;
}

static pmr_status build(pmr_runner *runner, pmr_task *task, bool in_place, pmr_span_kept *kept, pmr_error *error)
{
    const pmr_call *call = task->call;
    forget(kept);
    pmr_plan plan = pmr_span_plan(&runner->span->shape, task->comm->rank, call, in_place,
                                  runner->span->hub->endpoint->fragment_bytes);
    task->algorithm->build(&plan, &kept->schedule);
    pmr_status status = pmr_schedule_end(&kept->schedule, error);
    if (!status && list_steps(kept))
        status = pmr_fail(error, PMR_ERR_NO_MEMORY, "out of memory for a collective across nodes");
    if (status) {
        forget(kept);
        return status;
    }
    kept->algorithm = task->algorithm;
    kept->kind = call->kind;
    kept->dtype = call->dtype;
    kept->op = call->op;
    kept->root = call->root;
    kept->count = call->count;
    kept->in_place = in_place;
    kept->uneven = is(call, UNEVEN);
    kept->used = true;
    return PMR_OK;
}

/* ---- memory ---- */

static bool grow(void *array, size_t count, size_t item_bytes)
{
    void **at = array, *more = realloc(*at, count * item_bytes);
    if (more)
        *at = more;
    return more != NULL;
}

static bool make_room(pmr_runner *runner, const pmr_schedule *schedule)
{
    size_t steps = schedule->steps.count + 1u, peers = schedule->peer_count + 1u;
    bool done = true;
    if (steps > runner->room) {
        done = grow(&runner->after, steps, sizeof *runner->after) &&
               grow(&runner->work, steps, sizeof *runner->work) &&
               grow(&runner->sends, steps, sizeof *runner->sends) &&
               grow(&runner->held, steps, sizeof *runner->held) &&
               grow(&runner->sending, steps, sizeof *runner->sending) &&
               grow(&runner->landed, steps, sizeof *runner->landed);
        runner->room = done ? (uint32_t)steps : 0;
    }
    if (done && peers > runner->peers_room) {
        done = grow(&runner->left, peers, sizeof *runner->left) &&
               grow(&runner->entered, peers, sizeof *runner->entered) &&
               grow(&runner->brings, peers, sizeof *runner->brings);
        runner->peers_room = done ? (uint32_t)peers : 0;
    }
    return done;
}

static bool make_scratch(pmr_runner *runner, size_t bytes)
{
    bool enough = runner->scratch && runner->scratch_bytes >= bytes;
    bool too_much = runner->scratch_bytes > SCRATCH_KEPT_BYTES && bytes <= SCRATCH_KEPT_BYTES;
    if (enough && !too_much)
        return true;
    free(runner->scratch);
    size_t rounded = (bytes + 4095) / 4096 * 4096;
    runner->scratch = aligned_alloc(4096, rounded ? rounded : 4096);
    runner->scratch_bytes = runner->scratch ? rounded : 0;
    return runner->scratch != NULL;
}

static bool runner_free(void *arg)
{
    pmr_runner *runner = arg;
    for (uint32_t i = 0; i < PMR_SPAN_KEPT; i++)
        forget(&runner->kept[i]);
    if (runner->leaving)
        return false; /* a call was left half way: the transport will still give payloads back */
    free(runner->scratch);
    free(runner->after);
    free(runner->work);
    free(runner->sends);
    free(runner->held);
    free(runner->sending);
    free(runner->landed);
    free(runner->left);
    free(runner->entered);
    free(runner->brings);
    free(runner);
    return true;
}

pmr_runner *pmr_runner_of(pmr_span *span)
{
    if (span->runner)
        return span->runner;
    pmr_runner *runner = calloc(1, sizeof *runner);
    if (!runner)
        return NULL;
    runner->span = span;
    for (uint32_t i = 0; i < PMR_SPAN_KEPT; i++)
        pmr_schedule_init(&runner->kept[i].schedule);
    span->runner = runner;
    span->runner_free = runner_free;
    return runner;
}

/* ---- a call ---- */

static void reset(pmr_runner *runner, pmr_task *task)
{
    const pmr_schedule *schedule = &runner->now->schedule;
    runner->call = (pmr_span_call){.seq = task->seq,
                                   .fingerprint = task->fingerprint,
                                   .place = place,
                                   .arrived = arrived,
                                   .entered = entered,
                                   .sent = sent,
                                   .awaits = awaits,
                                   .needs = needs};
    runner->task = task;
    runner->base[PMR_BUFFER_SEND] = (uint8_t *)(uintptr_t)task->call->send; /* only read */
    runner->base[PMR_BUFFER_RECV] = task->call->recv;
    runner->base[PMR_BUFFER_SCRATCH] = runner->scratch;
    memcpy(runner->after, runner->now->after, schedule->steps.count * sizeof *runner->after);
    runner->works = runner->send_count = runner->held_count = 0;
    runner->done = runner->next_node = runner->enter_next = 0;
    runner->sends_left = schedule->sends;
    runner->node_runs = false;
    runner->landed_count = 0;
    runner->entered_new = false;
    for (uint32_t i = 0; i < schedule->peer_count; i++) {
        runner->left[i] = schedule->peers[i].receives;
        runner->entered[i] = 0;
    }
}

pmr_status pmr_runner_prepare(pmr_runner *runner, pmr_task *task, pmr_error *error)
{
    bool in_place = is_in_place(task);
    runner->now = NULL;
    for (uint32_t i = 0; i < PMR_SPAN_KEPT && !runner->now; i++)
        if (fits(&runner->kept[i], task, in_place))
            runner->now = &runner->kept[i];
    if (!runner->now) {
        pmr_span_kept *kept = &runner->kept[runner->next_kept++ % PMR_SPAN_KEPT];
        pmr_status status = build(runner, task, in_place, kept, error);
        if (status)
            return status;
        runner->now = kept;
    }
    const pmr_schedule *schedule = &runner->now->schedule;
    if (!make_room(runner, schedule) || !make_scratch(runner, schedule->scratch_bytes))
        return pmr_fail(error, PMR_ERR_NO_MEMORY, "out of memory: a collective across nodes takes %llu MiB",
                        (unsigned long long)(schedule->scratch_bytes >> 20));
    reset(runner, task);
    return PMR_OK;
}
