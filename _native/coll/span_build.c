/* SPDX-License-Identifier: Apache-2.0
 *
 * span_build.c: the parts that builders put schedules together from: sums.
 *
 * A join needs no memory of its own: the sum of two neighbours goes where one of them lay, but for the one that is
 * kept, since it may still be on its way to other nodes.
 */
#include "coll/span_build.h"

#include <stdlib.h>

pmr_stand pmr_span_stand(const pmr_plan *plan)
{
    const pmr_shape *shape = plan->shape;
    uint32_t node = shape->node[plan->rank];
    return (pmr_stand){.node = node,
                       .index = shape->index[plan->rank],
                       .members = pmr_shape_members(shape, node),
                       .nodes = shape->nodes};
}

pmr_part pmr_span_cut(pmr_part range, uint32_t parts, uint32_t part, size_t item_bytes)
{
    uint64_t per_line = item_bytes < PMR_LINE ? PMR_LINE / item_bytes : 1;
    uint64_t items = pmr_part_items(range), lines = (items + per_line - 1) / per_line;
    uint64_t start = lines * part / parts * per_line, end = lines * (part + 1) / parts * per_line;
    return (pmr_part){.start = range.start + (start < items ? start : items),
                      .end = range.start + (end < items ? end : items)};
}

pmr_sum pmr_span_node_sum(const pmr_plan *plan, pmr_schedule *schedule, uint32_t root)
{
    pmr_stand stand = pmr_span_stand(plan);
    uint64_t items = plan->call->count;
    pmr_sum sum = {.place = pmr_span_send(0), .step = PMR_NO_STEP};
    if (plan->widens) {
        sum.place = pmr_schedule_scratch(schedule, items * plan->partial_bytes);
        sum.step = pmr_schedule_work(schedule, PMR_STEP_WIDEN, sum.place, pmr_span_send(0), items, 0);
    }
    if (stand.members == 1)
        return sum;
    pmr_node_call call = {
        .kind = PMR_REDUCE, .partial = true, .root = root, .send = sum.place, .count = items};
    if (stand.index == root)
        call.recv = pmr_schedule_scratch(schedule, items * plan->partial_bytes);
    uint32_t step = pmr_schedule_node(schedule, &call);
    pmr_schedule_after(schedule, step, sum.step);
    return (pmr_sum){.place = call.recv, .step = step};
}

/* What one join works on. */
typedef struct joining {
    const pmr_plan *plan;
    pmr_schedule *schedule;
    const pmr_sum *sums;
    uint32_t kept;
    uint64_t items;
} joining;

static pmr_sum join_two(const joining *j, const pmr_sum *pair, pmr_place to)
{
    pmr_place sources[2] = {pair[0].place, pair[1].place};
    uint32_t step = pmr_schedule_reduce(j->schedule, PMR_STEP_REDUCE, to, sources, 2, j->items);
    for (int i = 0; i < 2; i++)
        pmr_schedule_after(j->schedule, step, pair[i].step);
    return (pmr_sum){.place = to, .step = step};
}

static pmr_sum join_range(const joining *j, uint32_t from, uint32_t end, uint32_t ranks_end)
{
    if (end - from == 1)
        return j->sums[from];
    uint32_t middle = pmr_shape_split(j->plan->shape, from, end, ranks_end);
    pmr_sum pair[2] = {join_range(j, from, middle, j->plan->shape->first[middle]),
                       join_range(j, middle, end, ranks_end)};
    bool keeps_left = middle - from == 1 && from == j->kept;
    return join_two(j, pair, pair[keeps_left ? 1 : 0].place);
}

uint32_t pmr_span_join(const pmr_plan *plan, pmr_schedule *schedule, const pmr_sum *sums, uint32_t end,
                       uint32_t ranks_end, uint32_t kept, pmr_place to, uint64_t items)
{
    joining j = {.plan = plan, .schedule = schedule, .sums = sums, .kept = kept, .items = items};
    if (end == 1) {
        uint32_t copy =
            pmr_schedule_work(schedule, PMR_STEP_COPY, to, sums[0].place, items * plan->partial_bytes, 0);
        pmr_schedule_after(schedule, copy, sums[0].step);
        return copy;
    }
    if (!plan->shape->even) {
        uint32_t middle = pmr_shape_split(plan->shape, 0, end, ranks_end);
        pmr_sum pair[2] = {join_range(&j, 0, middle, plan->shape->first[middle]),
                           join_range(&j, middle, end, ranks_end)};
        return join_two(&j, pair, to).step;
    }
    pmr_place *sources = calloc(end, sizeof *sources);
    if (!sources) {
        schedule->failed = true;
        return PMR_NO_STEP;
    }
    for (uint32_t node = 0; node < end; node++)
        sources[node] = sums[node].place;
    uint32_t step = pmr_schedule_reduce(schedule, PMR_STEP_REDUCE, to, sources, end, items);
    for (uint32_t node = 0; node < end; node++)
        pmr_schedule_after(schedule, step, sums[node].step);
    free(sources);
    return step;
}

uint32_t pmr_span_finish(const pmr_plan *plan, pmr_schedule *schedule, pmr_place to, pmr_place from, uint64_t items,
                         uint32_t ranks, uint32_t after)
{
    if (!plan->finishes)
        return after;
    uint32_t step = pmr_schedule_work(schedule, PMR_STEP_FINISH, to, from, items, ranks);
    pmr_schedule_after(schedule, step, after);
    return step;
}

uint32_t pmr_span_node_broadcast(pmr_schedule *schedule, uint32_t root, pmr_place from, pmr_place to, uint64_t bytes)
{
    return pmr_schedule_node(
        schedule,
        &(pmr_node_call){.kind = PMR_BROADCAST, .root = root, .send = from, .recv = to, .count = bytes});
}

void pmr_span_after_all(pmr_schedule *schedule, uint32_t step, uint32_t from, uint32_t end)
{
    for (uint32_t earlier = from; earlier < end; earlier++)
        if (earlier != step)
            pmr_schedule_after(schedule, step, earlier);
}
