/* SPDX-License-Identifier: Apache-2.0
 *
 * span_reduce_scatter.c: reduce_scatter and its v-form: the sums of a node's ranks go straight to who owns the result.
 *
 * For each node, and for as many of its ranks at a time as this node has, the ranks of this node reduce the blocks of
 * those and scatter them: rank i gets its node's sum of the block of one of them, and sends it there. So each node sends
 * (N-1)/N M bytes. The owner joins the sums of all nodes, fragment by fragment. The own node's blocks come last, when the
 * others are under way.
 */
#include "coll/span_build.h"

#include <stdlib.h>

typedef struct scattering {
    const pmr_plan *plan;
    pmr_schedule *schedule;
    pmr_stand stand;
    const pmr_span_block *blocks; /* of all ranks, in the send buffer */
    pmr_sum own;                  /* this node's sum of this rank's block */
} scattering;

static uint64_t items_of(const scattering *s, uint32_t rank)
{
    return s->blocks[rank].bytes / s->plan->item_bytes;
}

/* The blocks of the ranks [first, first + count) of a node, one behind the other, as the node call wants them. */
static pmr_sum line_up(const scattering *s, uint32_t node, uint32_t first, uint32_t count)
{
    const pmr_plan *plan = s->plan;
    const pmr_span_block *block = &s->blocks[pmr_shape_rank(plan->shape, node, first)];
    if (!plan->widens && (plan->shape->ordered || count == 1))
        return (pmr_sum){.place = block->place, .step = PMR_NO_STEP};
    uint64_t items = 0;
    for (uint32_t i = 0; i < count; i++)
        items += items_of(s, pmr_shape_rank(plan->shape, node, first + i));
    pmr_sum lined = {.place = pmr_schedule_scratch(s->schedule, items * plan->partial_bytes)};
    uint32_t begin = s->schedule->steps.count;
    pmr_place to = lined.place;
    for (uint32_t i = 0; i < count; i++) {
        uint32_t rank = pmr_shape_rank(plan->shape, node, first + i);
        uint64_t each = items_of(s, rank);
        if (plan->widens)
            pmr_schedule_work(s->schedule, PMR_STEP_WIDEN, to, s->blocks[rank].place, each, 0);
        else
            pmr_schedule_work(s->schedule, PMR_STEP_COPY, to, s->blocks[rank].place, s->blocks[rank].bytes, 0);
        to = pmr_place_plus(to, each * plan->partial_bytes);
    }
    lined.step = pmr_schedule_work(s->schedule, PMR_STEP_COPY, lined.place, lined.place, 0, 0);
    pmr_span_after_all(s->schedule, lined.step, begin, lined.step);
    return lined;
}

/* The node's sum of the block that this rank gets of such a group: it belongs to rank `first` + index of `node`. */
static pmr_sum reduce_group(const scattering *s, uint32_t node, uint32_t first, uint32_t count)
{
    const pmr_plan *plan = s->plan;
    pmr_sum lined = line_up(s, node, first, count);
    if (s->stand.members == 1)
        return lined;
    bool mine = s->stand.index < count;
    uint64_t items = mine ? items_of(s, pmr_shape_rank(plan->shape, node, first + s->stand.index)) : 0;
    pmr_node_call call = {.kind = PMR_REDUCE_SCATTERV,
                          .partial = true,
                          .send = lined.place,
                          .recv = pmr_schedule_scratch(s->schedule, items * plan->partial_bytes)};
    size_t *counts = pmr_schedule_table(s->schedule, s->stand.members, &call.recv_counts);
    for (uint32_t i = 0; counts && i < s->stand.members; i++)
        counts[i] = i < count ? items_of(s, pmr_shape_rank(plan->shape, node, first + i)) : 0;
    pmr_sum sum = {.place = call.recv, .step = pmr_schedule_node(s->schedule, &call)};
    pmr_schedule_after(s->schedule, sum.step, lined.step);
    return sum;
}

/* In fragments of partial sums; both ends cut alike. */
static uint64_t fragment_items(const scattering *s)
{
    return s->plan->fragment_bytes / s->plan->partial_bytes;
}

static void send_sum(const scattering *s, uint32_t rank, pmr_sum sum)
{
    size_t unit = s->plan->partial_bytes;
    uint64_t items = items_of(s, rank), at = 0;
    do {
        uint64_t left = items - at, now = left < fragment_items(s) ? left : fragment_items(s);
        uint32_t step = pmr_schedule_send(s->schedule, rank, pmr_place_plus(sum.place, at * unit), now * unit);
        pmr_schedule_after(s->schedule, step, sum.step);
        at += now;
    } while (at < items && !s->schedule->failed);
}

static void reduce_for(scattering *s, uint32_t node)
{
    const pmr_shape *shape = s->plan->shape;
    uint32_t theirs = pmr_shape_members(shape, node);
    for (uint32_t first = 0; first < theirs; first += s->stand.members) {
        uint32_t count = theirs - first < s->stand.members ? theirs - first : s->stand.members;
        pmr_sum sum = reduce_group(s, node, first, count);
        if (s->stand.index >= count)
            continue;
        if (node == s->stand.node)
            s->own = sum;
        else
            send_sum(s, pmr_shape_rank(shape, node, first + s->stand.index), sum);
    }
}

/* Joins what all nodes have for this rank. `behind`: the result may lie where others are still read from. */
static void join_block(const scattering *s, pmr_sum *sums, uint32_t behind)
{
    const pmr_plan *plan = s->plan;
    const pmr_shape *shape = plan->shape;
    size_t unit = plan->partial_bytes;
    uint64_t items = items_of(s, plan->rank), at = 0;
    do {
        uint64_t left = items - at, now = left < fragment_items(s) ? left : fragment_items(s);
        for (uint32_t node = 0; node < shape->nodes; node++) {
            if (node == s->stand.node) {
                sums[node] = (pmr_sum){pmr_place_plus(s->own.place, at * unit), s->own.step};
                continue;
            }
            uint32_t from =
                pmr_shape_rank(shape, node, s->stand.index % pmr_shape_members(shape, node));
            pmr_place place = pmr_schedule_scratch(s->schedule, now * unit);
            sums[node] = (pmr_sum){place, pmr_schedule_receive(s->schedule, from, place, now * unit)};
        }
        pmr_place result = pmr_span_recv(at * plan->item_bytes);
        pmr_place to = plan->finishes ? pmr_schedule_scratch(s->schedule, now * unit) : result;
        uint32_t step =
            pmr_span_join(plan, s->schedule, sums, shape->nodes, shape->size, s->stand.node, to, now);
        if (plan->finishes)
            step = pmr_span_finish(plan, s->schedule, result, to, now, shape->size, step);
        if (plan->in_place)
            pmr_span_after_all(s->schedule, step, 0, behind);
        at += now;
    } while (at < items && !s->schedule->failed);
}

static pmr_span_block *blocks_of(const pmr_plan *plan, pmr_schedule *schedule)
{
    const pmr_call *call = plan->call;
    pmr_span_block *blocks = pmr_span_blocks(plan, schedule, PMR_BUFFER_SEND,
                                             call->kind == PMR_REDUCE_SCATTERV ? call->recv_counts : NULL, NULL);
    uint64_t at = 0;
    for (uint32_t rank = 0; blocks && rank < plan->shape->size; rank++) {
        blocks[rank].place.at = at;
        at += blocks[rank].bytes;
    }
    return blocks;
}

static void build(const pmr_plan *plan, pmr_schedule *schedule)
{
    pmr_span_block *blocks = blocks_of(plan, schedule);
    pmr_sum *sums = malloc(plan->shape->nodes * sizeof *sums);
    schedule->failed = schedule->failed || !sums;
    if (!schedule->failed) {
        scattering s = {
            .plan = plan, .schedule = schedule, .stand = pmr_span_stand(plan), .blocks = blocks};
        for (uint32_t i = 1; i <= s.stand.nodes; i++)
            reduce_for(&s, (s.stand.node + i) % s.stand.nodes);
        join_block(&s, sums, schedule->steps.count);
    }
    free(sums);
    free(blocks);
}

static size_t limit(const pmr_comm *comm, pmr_kind kind)
{
    (void)kind;
    return pmr_comm_sums_raw(comm) ? 0 : SIZE_MAX;
}

static const pmr_algorithm owners = {.name = "owners",
                                     .kinds = PMR_KIND_BIT(PMR_REDUCE_SCATTER) |
                                              PMR_KIND_BIT(PMR_REDUCE_SCATTERV),
                                     .limit = limit,
                                     .bytes_max = SIZE_MAX,
                                     .build = build};
PMR_REGISTER_ALGORITHM(owners);
