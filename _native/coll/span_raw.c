/* SPDX-License-Identifier: Apache-2.0
 *
 * span_raw.c: reductions whose bits must be those of one node, where the sums of nodes are no part of the canonical tree
 * (--reproducible on uneven nodes), and prefixes where ranks are not numbered node after node.
 *
 * No partial sums travel: each rank owns a slice, gets what every rank contributes to it, reduces all at once, and the
 * slices are gathered ("allreduce", also for reduce). reduce_scatter owns blocks already. A prefix needs everything on
 * every rank. Long messages go segment by segment: memory is used again when this rank is through with a segment, and
 * nobody sends for the next one before it knows that.
 */
#include "coll/span_build.h"

#include <stdlib.h>

#define SEGMENT_BYTES ((uint64_t)4 << 20)

typedef struct raw {
    const pmr_plan *plan;
    pmr_schedule *schedule;
    pmr_place contributions; /* of all ranks, in rank order */
    uint64_t stride;         /* bytes of one */
    pmr_place result;        /* of reduce, where it is not wanted */
    uint32_t past;
    uint32_t freed;          /* the step after which the contributions of the segment before are no longer read */
} raw;

/* The step after which all earlier segments have ended on this rank. */
static uint32_t begin(raw *r)
{
    uint32_t first = r->past, now = r->schedule->steps.count;
    r->past = now;
    if (now == 0)
        return PMR_NO_STEP;
    uint32_t step =
        pmr_schedule_work(r->schedule, PMR_STEP_COPY, r->contributions, r->contributions, 0, 0);
    pmr_span_after_all(r->schedule, step, first, now);
    return step;
}

static uint32_t reduce_all(const raw *r, pmr_place to, uint32_t ranks, uint64_t items)
{
    pmr_place *sources = malloc(((size_t)ranks + 1) * sizeof *sources);
    if (!sources) {
        r->schedule->failed = true;
        return PMR_NO_STEP;
    }
    for (uint32_t rank = 0; rank < ranks; rank++)
        sources[rank] = pmr_place_plus(r->contributions, rank * r->stride);
    uint32_t first = r->past, now = r->schedule->steps.count;
    uint32_t step = pmr_schedule_reduce(r->schedule, PMR_STEP_REDUCE_ALL, to, sources, ranks, items);
    pmr_span_after_all(r->schedule, step, first, now);
    free(sources);
    return step;
}

/* Whether messages may begin: those of this rank's steps in [first, now) that wait for nothing wait for `ready`. */
static void hold_back(const raw *r, uint32_t first, uint32_t ready)
{
    uint32_t now = r->schedule->steps.count;
    for (uint32_t step = first; step < now && ready != PMR_NO_STEP; step++)
        if (pmr_schedule_step(r->schedule, step)->kind != PMR_STEP_RECEIVE)
            pmr_schedule_after(r->schedule, step, ready);
        else
            pmr_schedule_guard(r->schedule, step, r->freed);
}

static pmr_span_block *room_for_all(const raw *r, uint64_t bytes)
{
    uint32_t size = r->plan->shape->size;
    pmr_span_block *in = malloc(size * sizeof *in);
    r->schedule->failed = r->schedule->failed || !in;
    for (uint32_t rank = 0; in && rank < size; rank++)
        in[rank] = (pmr_span_block){pmr_place_plus(r->contributions, rank * r->stride), bytes};
    return in;
}

static void allreduce_segment(raw *r, pmr_part segment)
{
    const pmr_plan *plan = r->plan;
    uint32_t size = plan->shape->size;
    bool wanted = plan->call->kind == PMR_ALLREDUCE || plan->rank == (uint32_t)plan->call->root;
    pmr_place result = wanted ? pmr_span_recv(segment.start * plan->item_bytes) : r->result;
    uint64_t own = pmr_part_items(pmr_span_cut(segment, size, plan->rank, plan->item_bytes));
    pmr_span_block *in = room_for_all(r, own * plan->item_bytes);
    pmr_span_block *slices = malloc(2 * (size_t)size * sizeof *slices), *results = slices + size;
    r->schedule->failed = r->schedule->failed || !slices;
    if (!r->schedule->failed) {
        for (uint32_t rank = 0; rank < size; rank++) {
            pmr_part slice = pmr_span_cut(segment, size, rank, plan->item_bytes);
            uint64_t bytes = pmr_part_items(slice) * plan->item_bytes;
            slices[rank] = (pmr_span_block){pmr_span_send(slice.start * plan->item_bytes), bytes};
            results[rank] = (pmr_span_block){
                pmr_place_plus(result, (slice.start - segment.start) * plan->item_bytes), bytes};
        }
        uint32_t ready = begin(r), first = r->schedule->steps.count;
        pmr_span_alltoall(plan, r->schedule, slices, in, false);
        hold_back(r, first, ready);
        uint32_t reduced = reduce_all(r, results[plan->rank].place, size, own);
        r->freed = reduced;
        pmr_span_allgather(plan, r->schedule, results[plan->rank].place, reduced, results);
    }
    free(slices);
    free(in);
}

static void build_allreduce(const pmr_plan *plan, pmr_schedule *schedule)
{
    uint64_t count = plan->call->count, most = SEGMENT_BYTES / plan->item_bytes;
    uint64_t items = count < most ? count : most;
    raw r = {.plan = plan, .schedule = schedule, .freed = PMR_NO_STEP};
    uint64_t slice = (items * plan->item_bytes / plan->shape->size / PMR_LINE + 2) * PMR_LINE;
    r.stride = slice;
    r.contributions = pmr_schedule_scratch(schedule, slice * plan->shape->size);
    if (plan->call->kind == PMR_REDUCE)
        r.result = pmr_schedule_scratch(schedule, items * plan->item_bytes);
    uint64_t start = 0;
    do {
        uint64_t end = count - start < items ? count : start + items;
        allreduce_segment(&r, (pmr_part){start, end});
        start = end;
    } while (start < count && !schedule->failed);
}

static void build_reduce_scatter(const pmr_plan *plan, pmr_schedule *schedule)
{
    const pmr_call *call = plan->call;
    pmr_span_block *out = pmr_span_blocks(
        plan, schedule, PMR_BUFFER_SEND, call->kind == PMR_REDUCE_SCATTERV ? call->recv_counts : NULL, NULL);
    uint64_t at = 0;
    for (uint32_t rank = 0; out && rank < plan->shape->size; rank++) {
        out[rank].place.at = at;
        at += out[rank].bytes;
    }
    raw r = {.plan = plan, .schedule = schedule, .freed = PMR_NO_STEP};
    uint64_t own = out ? out[plan->rank].bytes : 0;
    r.stride = (own + PMR_LINE - 1) / PMR_LINE * PMR_LINE;
    r.contributions = pmr_schedule_scratch(schedule, r.stride * plan->shape->size);
    pmr_span_block *in = room_for_all(&r, own);
    if (out && in) {
        pmr_span_alltoall(plan, schedule, out, in, false);
        reduce_all(&r, pmr_span_recv(0), plan->shape->size, own / plan->item_bytes);
    }
    free(in);
    free(out);
}

/* ---- prefixes ---- */

/* Who was sent a segment says when its memory is free. */
static void answer(raw *r, uint32_t first)
{
    const pmr_shape *shape = r->plan->shape;
    pmr_stand stand = pmr_span_stand(r->plan);
    uint32_t end = r->schedule->steps.count;
    r->freed = pmr_schedule_work(r->schedule, PMR_STEP_COPY, r->contributions, r->contributions, 0, 0);
    pmr_span_after_all(r->schedule, r->freed, first, end);
    for (uint32_t node = 0; node < shape->nodes; node++) {
        for (uint32_t i = stand.index; node != stand.node && i < pmr_shape_members(shape, node);
             i += stand.members) {
            uint32_t step =
                pmr_schedule_send(r->schedule, pmr_shape_rank(shape, node, i), r->contributions, 0);
            pmr_schedule_after(r->schedule, step, r->freed);
        }
        uint32_t taker = stand.index % pmr_shape_members(shape, node);
        if (node != stand.node)
            pmr_schedule_receive(r->schedule, pmr_shape_rank(shape, node, taker), r->contributions, 0);
    }
}

static void build_prefix(const pmr_plan *plan, pmr_schedule *schedule)
{
    uint32_t size = plan->shape->size, ranks = plan->rank + (plan->call->kind == PMR_SCAN ? 1 : 0);
    uint64_t count = plan->call->count, most = SEGMENT_BYTES / size / plan->item_bytes + 1;
    uint64_t items = count < most ? count : most;
    raw r = {.plan = plan, .schedule = schedule, .freed = PMR_NO_STEP};
    r.stride = (items * plan->item_bytes + PMR_LINE - 1) / PMR_LINE * PMR_LINE;
    r.contributions = pmr_schedule_scratch(schedule, r.stride * size);
    uint64_t start = 0;
    do {
        uint64_t end = count - start < items ? count : start + items;
        pmr_span_block *in = room_for_all(&r, (end - start) * plan->item_bytes);
        uint32_t ready = begin(&r), first = schedule->steps.count;
        if (in)
            pmr_span_allgather(plan, schedule, pmr_span_send(start * plan->item_bytes), PMR_NO_STEP, in);
        hold_back(&r, first, ready);
        if (ranks)
            reduce_all(&r, pmr_span_recv(start * plan->item_bytes), ranks, end - start);
        if (end < count)
            answer(&r, first);
        free(in);
        start = end;
    } while (start < count && !schedule->failed);
}

static size_t limit(const pmr_comm *comm, pmr_kind kind)
{
    (void)kind;
    return pmr_comm_sums_raw(comm) ? SIZE_MAX : 0;
}

static size_t limit_prefix(const pmr_comm *comm, pmr_kind kind)
{
    (void)comm;
    (void)kind;
    return SIZE_MAX; /* any shape: what "prefix" does not take */
}

static const pmr_algorithm allreduce = {.name = "raw",
                                        .kinds = PMR_KIND_BIT(PMR_ALLREDUCE) | PMR_KIND_BIT(PMR_REDUCE),
                                        .limit = limit,
                                        .bytes_max = SIZE_MAX,
                                        .build = build_allreduce};
PMR_REGISTER_ALGORITHM(allreduce);

static const pmr_algorithm reduce_scatter = {.name = "raw",
                                             .kinds = PMR_KIND_BIT(PMR_REDUCE_SCATTER) |
                                                      PMR_KIND_BIT(PMR_REDUCE_SCATTERV),
                                             .limit = limit,
                                             .bytes_max = SIZE_MAX,
                                             .build = build_reduce_scatter};
PMR_REGISTER_ALGORITHM(reduce_scatter);

static const pmr_algorithm prefix = {.name = "raw",
                                     .kinds = PMR_KIND_BIT(PMR_SCAN) | PMR_KIND_BIT(PMR_EXSCAN),
                                     .limit = limit_prefix,
                                     .bytes_max = SIZE_MAX,
                                     .build = build_prefix};
PMR_REGISTER_ALGORITHM(prefix);
