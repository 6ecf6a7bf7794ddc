/* SPDX-License-Identifier: Apache-2.0
 *
 * span_scan.c: scan and exscan: what the nodes before have, and what this node's ranks before have.
 *
 * The leader (first rank) of each node sends the node's sum to the leaders behind it, which hand all they got to their
 * node's ranks; each joins them with its own prefix on the node. One latency. Long messages go segment by segment, and a
 * leader that was sent a segment answers when its memory is free again. The shape must be ordered.
 */
#include "coll/span_build.h"

#include <stdlib.h>

typedef struct prefixes {
    const pmr_plan *plan;
    pmr_schedule *schedule;
    pmr_stand stand;
    bool exclusive;
    uint64_t start, items;  /* of this segment */
    pmr_place widened, total, before, within, joined; /* scratch memory, the same in each segment */
    uint64_t stride;        /* bytes from one node's sum to the next one's in `before` */
    uint32_t past;          /* all steps up to here belong to earlier segments */
    uint32_t freed;         /* the step after which what earlier nodes send has its place again */
    bool last;
    pmr_sum *sums;
} prefixes;

static uint32_t leader(const prefixes *p, uint32_t node)
{
    return pmr_shape_rank(p->plan->shape, node, 0);
}

/* Memory is used again: nothing of a segment's own begins before the one before it has ended on this rank. */
static uint32_t begin(prefixes *p)
{
    uint32_t first = p->past, now = p->schedule->steps.count;
    p->past = now;
    if (p->start == 0)
        return PMR_NO_STEP;
    pmr_place nowhere = p->widened;
    uint32_t step = pmr_schedule_work(p->schedule, PMR_STEP_COPY, nowhere, nowhere, 0, 0);
    pmr_span_after_all(p->schedule, step, first, now);
    return step;
}

static pmr_sum own_items(prefixes *p, uint32_t ready)
{
    pmr_place from = pmr_span_send(p->start * p->plan->item_bytes);
    if (!p->plan->widens)
        return (pmr_sum){from, ready};
    uint32_t step = pmr_schedule_work(p->schedule, PMR_STEP_WIDEN, p->widened, from, p->items, 0);
    pmr_schedule_after(p->schedule, step, ready);
    return (pmr_sum){p->widened, step};
}

static pmr_sum on_node(prefixes *p, pmr_kind kind, pmr_sum own, pmr_place to)
{
    pmr_node_call call = {.kind = kind, .partial = true, .send = own.place, .recv = to, .count = p->items};
    uint32_t step = pmr_schedule_node(p->schedule, &call);
    pmr_schedule_after(p->schedule, step, own.step);
    return (pmr_sum){to, step};
}

/* The node's sum goes to the nodes behind. */
static void tell_later(prefixes *p, pmr_sum own)
{
    uint64_t bytes = p->items * p->plan->partial_bytes;
    if (p->stand.node + 1 == p->stand.nodes)
        return;
    pmr_sum total = p->stand.members > 1 ? on_node(p, PMR_REDUCE, own, p->total) : own;
    for (uint32_t node = p->stand.node + 1; p->stand.index == 0 && node < p->stand.nodes; node++) {
        uint32_t step = pmr_schedule_send(p->schedule, leader(p, node), total.place, bytes);
        pmr_schedule_after(p->schedule, step, total.step);
        if (!p->last)
            pmr_schedule_receive(p->schedule, leader(p, node), p->total, 0);
    }
}

/* The sums of the nodes before come to this rank. Answers the step after which they are here. */
static uint32_t hear_earlier(prefixes *p)
{
    uint64_t bytes = p->items * p->plan->partial_bytes;
    uint32_t first = p->schedule->steps.count;
    for (uint32_t node = 0; p->stand.index == 0 && node < p->stand.node; node++)
        pmr_schedule_guard(p->schedule,
                           pmr_schedule_receive(p->schedule, leader(p, node),
                                                pmr_place_plus(p->before, node * p->stride), bytes),
                           p->freed);
    uint32_t heard = p->schedule->steps.count;
    uint32_t step;
    if (p->stand.members > 1)
        step = pmr_span_node_broadcast(p->schedule, 0, p->before, p->before,
                                       (p->stand.node - 1) * p->stride + bytes);
    else
        step = pmr_schedule_work(p->schedule, PMR_STEP_COPY, p->before, p->before, 0, 0);
    pmr_span_after_all(p->schedule, step, first, heard);
    return step;
}

static void answer(prefixes *p)
{
    uint32_t first = p->past, end = p->schedule->steps.count;
    if (p->last || p->stand.index != 0)
        return;
    p->freed = pmr_schedule_work(p->schedule, PMR_STEP_COPY, p->before, p->before, 0, 0);
    for (uint32_t i = first; i < end && p->freed != PMR_NO_STEP; i++)
        if (pmr_schedule_step(p->schedule, i)->kind != PMR_STEP_SEND)
            pmr_schedule_after(p->schedule, p->freed, i);
    for (uint32_t node = 0; node < p->stand.node; node++)
        pmr_schedule_after(p->schedule, pmr_schedule_send(p->schedule, leader(p, node), p->before, 0), p->freed);
}

static void build_segment(prefixes *p)
{
    const pmr_plan *plan = p->plan;
    size_t item = plan->item_bytes;
    uint32_t summed = plan->rank + (p->exclusive ? 0 : 1), sums = p->stand.node;
    pmr_place result = pmr_span_recv(p->start * item);
    pmr_sum own = own_items(p, begin(p));
    tell_later(p, own);
    bool alone = p->exclusive && p->stand.index == 0; /* no rank of this node is before this one */
    pmr_sum within = own;
    if (p->stand.members > 1)
        within = on_node(p, p->exclusive ? PMR_EXSCAN : PMR_SCAN, own, p->within);
    uint32_t here = p->stand.node ? hear_earlier(p) : PMR_NO_STEP;
    for (uint32_t node = 0; node < sums; node++)
        p->sums[node] = (pmr_sum){pmr_place_plus(p->before, node * p->stride), here};
    if (!alone)
        p->sums[sums++] = within;
    pmr_place to = plan->finishes ? p->joined : result;
    uint32_t end_rank = alone ? plan->shape->first[p->stand.node] : summed;
    if (sums) {
        uint32_t step = pmr_span_join(plan, p->schedule, p->sums, sums, end_rank, UINT32_MAX, to, p->items);
        step = pmr_span_finish(plan, p->schedule, result, to, p->items, summed, step);
        if (plan->in_place) /* this rank's contribution is on its way, or others read it, where the result goes */
            pmr_span_after_all(p->schedule, step, p->past, step > p->past ? step - 1 : step);
    }
    answer(p);
}

static void take_memory(prefixes *p, uint64_t items)
{
    uint64_t bytes = items * p->plan->partial_bytes;
    p->stride = (bytes + PMR_LINE - 1) / PMR_LINE * PMR_LINE;
    p->widened = pmr_schedule_scratch(p->schedule, p->plan->widens ? bytes : 0);
    p->total = pmr_schedule_scratch(p->schedule, bytes);
    p->before = pmr_schedule_scratch(p->schedule, p->stride * p->stand.node);
    p->within = pmr_schedule_scratch(p->schedule, bytes);
    p->joined = pmr_schedule_scratch(p->schedule, bytes);
}

static void build(const pmr_plan *plan, pmr_schedule *schedule)
{
    prefixes p = {.plan = plan,
                  .schedule = schedule,
                  .stand = pmr_span_stand(plan),
                  .exclusive = plan->call->kind == PMR_EXSCAN,
                  .freed = PMR_NO_STEP};
    uint64_t segment = plan->fragment_bytes / plan->partial_bytes, count = plan->call->count;
    p.sums = malloc(((size_t)p.stand.nodes + 1) * sizeof *p.sums);
    schedule->failed = schedule->failed || !p.sums;
    if (schedule->failed)
        return;
    take_memory(&p, count < segment ? count : segment);
    do {
        p.items = count - p.start < segment ? count - p.start : segment;
        p.last = p.start + p.items >= count;
        build_segment(&p);
        p.start += p.items;
    } while (p.start < count && !schedule->failed);
    free(p.sums);
}

static size_t limit(const pmr_comm *comm, pmr_kind kind)
{
    (void)kind;
    return pmr_comm_sums_raw(comm) || !pmr_comm_shape(comm)->ordered ? 0 : SIZE_MAX - 1;
}

static const pmr_algorithm prefix = {.name = "prefix",
                                     .kinds = PMR_KIND_BIT(PMR_SCAN) | PMR_KIND_BIT(PMR_EXSCAN),
                                     .limit = limit,
                                     .bytes_max = SIZE_MAX,
                                     .build = build};
PMR_REGISTER_ALGORITHM(prefix);
