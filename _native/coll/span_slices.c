/* SPDX-License-Identifier: Apache-2.0
 *
 * span_slices.c: long allreduce and reduce: every node owns a slice of every slice.
 *
 * Nouns: the message is cut into *segments*; a segment into one *slice* per *rail*, which is one rank of each node; a
 * slice into one *part* per node, its owner. On the node the ranks reduce the segment and scatter it by slices; a rail
 * sends each part of its slice to the part's owner ("addends"), joins what it gets for its own part as soon as it has
 * all, and sends the *result* to all nodes (of a reduce: to the root's); then the node gathers the slices. Two latencies;
 * each node sends 2 (N-1)/N M bytes in all, of a reduce at most (N-1)/N M + M/N.
 *
 * `window` segments are under way at once, so that nodes add up one while another travels. The scratch memory of a
 * segment is used again when nobody needs it: a rail sends the addends of a segment only after the results of the one
 * `window` before it came, which each owner sent after it had joined them (a reduce sends empty results for that).
 */
#include "coll/span_build.h"

#include <stdlib.h>

#define PART_BYTES_MIN    16384u
#define SEGMENTS_WANTED   4u
#define SEGMENT_BYTES_MAX ((uint64_t)16 << 20)

/* Steps and memory of the segments under way, by segment % window. */
typedef struct slot {
    pmr_place widened, slice, own_part, held;
    pmr_sum sum;             /* of this rail's slice */
    uint32_t prepared;       /* the step that no longer needs `widened` */
    uint32_t first, last;    /* of its exchange */
    uint32_t joined, collected;
    uint32_t *answered;      /* receives of results, by node */
    pmr_place *addends;      /* by node */
} slot;

typedef struct slices {
    const pmr_plan *plan;
    pmr_schedule *schedule;
    pmr_stand stand;
    bool rooted;
    uint32_t root_node, root_index;
    uint64_t segment_items;
    uint32_t segments, window;
    slot *slots;
    pmr_sum *sums;
} slices;

static pmr_part segment_of(const slices *s, uint32_t segment)
{
    uint64_t start = s->segment_items * segment, end = start + s->segment_items;
    return (pmr_part){.start = start, .end = end < s->plan->call->count ? end : s->plan->call->count};
}

static pmr_part slice_of(const slices *s, uint32_t segment, uint32_t rail)
{
    return pmr_span_cut(segment_of(s, segment), s->plan->shape->rails, rail, s->plan->partial_bytes);
}

static pmr_part part_of(const slices *s, uint32_t segment, uint32_t node)
{
    return pmr_span_cut(slice_of(s, segment, s->stand.index), s->stand.nodes, node, s->plan->partial_bytes);
}

static bool is_rail(const slices *s)
{
    return s->stand.index < s->plan->shape->rails;
}

/* Here results are wanted. */
static bool wants(const slices *s, uint32_t node)
{
    return !s->rooted || node == s->root_node;
}

/* Results are held until the node's ranks hand them to the root. */
static bool holds(const slices *s)
{
    return s->rooted && !(s->stand.node == s->root_node && s->stand.members == 1);
}

/* ---- segments and their memory ---- */

static void plan_segments(slices *s)
{
    const pmr_plan *plan = s->plan;
    uint64_t parts = (uint64_t)plan->shape->rails * s->stand.nodes;
    uint64_t bytes = plan->call->count * plan->partial_bytes;
    uint64_t part = bytes / parts / SEGMENTS_WANTED / PMR_LINE * PMR_LINE;
    uint64_t most = SEGMENT_BYTES_MAX / parts / PMR_LINE * PMR_LINE;
    part = part < PART_BYTES_MIN ? PART_BYTES_MIN : part;
    part = part > most ? most : part;
    part = part < PMR_LINE ? PMR_LINE : part;
    part = part > plan->fragment_bytes ? plan->fragment_bytes : part;
    s->segment_items = part * parts / plan->partial_bytes;
    s->segments = (uint32_t)((plan->call->count + s->segment_items - 1) / s->segment_items);
    s->window = plan->window < s->segments ? plan->window : s->segments;
}

static void take_memory(slices *s, slot *at)
{
    const pmr_plan *plan = s->plan;
    uint64_t segment = pmr_part_items(segment_of(s, 0)), slice = pmr_part_items(slice_of(s, 0, 0));
    uint64_t part = is_rail(s) ? pmr_part_items(part_of(s, 0, 0)) : 0;
    slice = slice < segment ? slice + PMR_LINE : slice; /* cutting at lines makes some slices a line longer */
    part += PMR_LINE;
    if (plan->widens)
        at->widened = pmr_schedule_scratch(s->schedule, segment * plan->partial_bytes);
    if (!is_rail(s))
        return;
    if (s->stand.members > 1)
        at->slice = pmr_schedule_scratch(s->schedule, slice * plan->partial_bytes);
    if (plan->finishes)
        at->own_part = pmr_schedule_scratch(s->schedule, part * plan->partial_bytes);
    if (holds(s))
        at->held = pmr_schedule_scratch(s->schedule, slice * plan->item_bytes);
    for (uint32_t node = 0; node < s->stand.nodes; node++)
        if (node != s->stand.node)
            at->addends[node] = pmr_schedule_scratch(s->schedule, part * plan->partial_bytes);
}

static bool take_slots(slices *s)
{
    s->slots = calloc(s->window ? s->window : 1, sizeof *s->slots);
    s->sums = malloc(s->stand.nodes * sizeof *s->sums);
    bool taken = s->slots && s->sums;
    for (uint32_t i = 0; taken && i < s->window; i++) {
        s->slots[i].answered = malloc(s->stand.nodes * sizeof *s->slots[i].answered);
        s->slots[i].addends = calloc(s->stand.nodes, sizeof *s->slots[i].addends);
        taken = s->slots[i].answered && s->slots[i].addends;
        if (taken)
            take_memory(s, &s->slots[i]);
    }
    s->schedule->failed = s->schedule->failed || !taken;
    return taken;
}

static void give_slots(slices *s)
{
    for (uint32_t i = 0; s->slots && i < s->window; i++) {
        free(s->slots[i].answered);
        free(s->slots[i].addends);
    }
    free(s->slots);
    free(s->sums);
}

/* ---- on the node ---- */

/* A node call over the slices of the segment's rails, in items or bytes: as the even kind where it is one. */
static void fill_counts(slices *s, uint32_t segment, size_t unit, size_t *counts, size_t *displs)
{
    uint64_t start = segment_of(s, segment).start;
    for (uint32_t i = 0; i < s->stand.members; i++) {
        bool rail = i < s->plan->shape->rails;
        pmr_part slice = rail ? slice_of(s, segment, i) : (pmr_part){start, start};
        counts[i] = pmr_part_items(slice) * unit;
        if (displs)
            displs[i] = (slice.start - start) * unit;
    }
}

/* The ranks of the node have slices of one length each. */
static bool is_even(const slices *s, uint32_t segment)
{
    uint64_t length = pmr_part_items(slice_of(s, segment, 0));
    return s->plan->shape->rails == s->stand.members &&
           length * s->stand.members == pmr_part_items(segment_of(s, segment)) &&
           pmr_part_items(slice_of(s, segment, s->stand.members - 1)) == length;
}

static void prepare(slices *s, uint32_t segment)
{
    const pmr_plan *plan = s->plan;
    slot *at = &s->slots[segment % s->window];
    bool again = segment >= s->window;
    pmr_part items = segment_of(s, segment);
    pmr_sum source = {.place = pmr_span_send(items.start * plan->item_bytes), .step = PMR_NO_STEP};
    if (plan->widens) {
        source.step = pmr_schedule_work(s->schedule, PMR_STEP_WIDEN, at->widened, source.place,
                                        pmr_part_items(items), 0);
        source.place = at->widened;
        if (again)
            pmr_schedule_after(s->schedule, source.step, at->prepared);
        if (again && s->stand.members == 1)
            pmr_span_after_all(s->schedule, source.step, at->first, at->last);
    }
    at->sum = source;
    if (s->stand.members == 1)
        return;
    bool even = is_even(s, segment);
    pmr_node_call call = {.kind = even ? PMR_REDUCE_SCATTER : PMR_REDUCE_SCATTERV,
                          .partial = true,
                          .send = source.place,
                          .recv = at->slice,
                          .count = pmr_part_items(slice_of(s, segment, 0))};
    size_t *counts = even ? NULL : pmr_schedule_table(s->schedule, s->stand.members, &call.recv_counts);
    if (counts)
        fill_counts(s, segment, 1, counts, NULL);
    uint32_t step = pmr_schedule_node(s->schedule, &call);
    pmr_schedule_after(s->schedule, step, source.step);
    if (again && is_rail(s))
        pmr_span_after_all(s->schedule, step, at->first, at->last);
    at->prepared = step;
    at->sum = (pmr_sum){.place = at->slice, .step = step};
}

/* What the rails have goes to all ranks of the node, or to the root. */
static void collect(slices *s, uint32_t segment)
{
    const pmr_plan *plan = s->plan;
    slot *at = &s->slots[segment % s->window];
    at->collected = PMR_NO_STEP;
    if (s->stand.members == 1 || !wants(s, s->stand.node))
        return;
    bool even = is_even(s, segment);
    pmr_part items = segment_of(s, segment);
    pmr_part slice = is_rail(s) ? slice_of(s, segment, s->stand.index) : (pmr_part){items.start, items.start};
    pmr_node_call call = {.root = s->root_index,
                          .recv = pmr_span_recv(items.start * plan->item_bytes),
                          .send = s->rooted ? at->held : pmr_span_recv(slice.start * plan->item_bytes),
                          .count = pmr_part_items(slice) * plan->item_bytes,
                          .kind = s->rooted ? (even ? PMR_GATHER : PMR_GATHERV)
                                            : (even ? PMR_ALLGATHER : PMR_ALLGATHERV)};
    if (!even) {
        size_t *counts = pmr_schedule_table(s->schedule, s->stand.members, &call.recv_counts);
        size_t *displs = pmr_schedule_table(s->schedule, s->stand.members, &call.recv_displs);
        if (displs) /* the first table may have moved */
            counts = (size_t *)s->schedule->counts.data + call.recv_counts;
        if (displs)
            fill_counts(s, segment, plan->item_bytes, counts, displs);
        size_t *own = pmr_schedule_table(s->schedule, 1, &call.send_counts);
        if (own)
            *own = call.count;
    }
    at->collected = pmr_schedule_node(s->schedule, &call);
    if (is_rail(s))
        pmr_span_after_all(s->schedule, at->collected, at->first, at->last);
}

/* ---- between nodes ---- */

static uint32_t peer_of(const slices *s, uint32_t node)
{
    return pmr_shape_rank(s->plan->shape, node, s->stand.index);
}

/* Where the results of a node's part lie here. */
static pmr_place result_of(const slices *s, const slot *at, uint32_t segment, uint32_t node)
{
    uint64_t start = part_of(s, segment, node).start;
    if (!holds(s))
        return pmr_span_recv(start * s->plan->item_bytes);
    uint64_t within = start - slice_of(s, segment, s->stand.index).start;
    return pmr_place_plus(at->held, within * s->plan->item_bytes);
}

static void send_addends(slices *s, slot *at, uint32_t segment)
{
    size_t unit = s->plan->partial_bytes;
    pmr_part slice = s->stand.members > 1 ? slice_of(s, segment, s->stand.index) : segment_of(s, segment);
    for (uint32_t i = 0; i < s->stand.nodes; i++) {
        uint32_t node = (s->stand.node + i) % s->stand.nodes;
        pmr_part part = part_of(s, segment, node);
        pmr_place from = pmr_place_plus(at->sum.place, (part.start - slice.start) * unit);
        s->sums[node] = (pmr_sum){.place = from, .step = at->sum.step};
        if (i == 0)
            continue;
        uint32_t step =
            pmr_schedule_send(s->schedule, peer_of(s, node), from, pmr_part_items(part) * unit);
        pmr_schedule_after(s->schedule, step, at->sum.step);
        if (segment >= s->window) {
            pmr_schedule_after(s->schedule, step, at->answered[node]);
            pmr_schedule_after(s->schedule, step, at->collected);
        }
    }
}

static uint32_t join_own(slices *s, slot *at, uint32_t segment)
{
    const pmr_plan *plan = s->plan;
    uint64_t items = pmr_part_items(part_of(s, segment, s->stand.node));
    for (uint32_t i = 1; i < s->stand.nodes; i++) {
        uint32_t node = (s->stand.node + i) % s->stand.nodes;
        uint32_t step = pmr_schedule_receive(s->schedule, peer_of(s, node), at->addends[node],
                                             items * plan->partial_bytes);
        if (segment >= s->window)
            pmr_schedule_guard(s->schedule, step, at->joined);
        s->sums[node] = (pmr_sum){.place = at->addends[node], .step = step};
    }
    pmr_place result = result_of(s, at, segment, s->stand.node);
    pmr_place to = plan->finishes ? at->own_part : result;
    uint32_t joined = pmr_span_join(plan, s->schedule, s->sums, s->stand.nodes, plan->shape->size,
                                    s->stand.node, to, items);
    if (segment >= s->window) /* what lay at `to` was handed on */
        pmr_schedule_after(s->schedule, joined, at->collected);
    return pmr_span_finish(plan, s->schedule, result, to, items, plan->shape->size, joined);
}

static void exchange(slices *s, uint32_t segment)
{
    slot *at = &s->slots[segment % s->window];
    size_t unit = s->plan->item_bytes;
    uint32_t first = s->schedule->steps.count, before = at->collected;
    send_addends(s, at, segment);
    uint32_t joined = join_own(s, at, segment);
    for (uint32_t i = 1; i < s->stand.nodes; i++) {
        uint32_t node = (s->stand.node + i) % s->stand.nodes;
        uint64_t items = wants(s, node) ? pmr_part_items(part_of(s, segment, s->stand.node)) : 0;
        uint32_t step = pmr_schedule_send(s->schedule, peer_of(s, node),
                                          result_of(s, at, segment, s->stand.node), items * unit);
        pmr_schedule_after(s->schedule, step, joined);
    }
    for (uint32_t i = 1; i < s->stand.nodes; i++) {
        uint32_t node = (s->stand.node + i) % s->stand.nodes;
        uint64_t items = wants(s, s->stand.node) ? pmr_part_items(part_of(s, segment, node)) : 0;
        at->answered[node] = pmr_schedule_receive(s->schedule, peer_of(s, node),
                                                  result_of(s, at, segment, node), items * unit);
        if (segment >= s->window && holds(s))
            pmr_schedule_guard(s->schedule, at->answered[node], before);
    }
    at->joined = joined;
    at->first = first;
    at->last = s->schedule->steps.count;
}

static void build(const pmr_plan *plan, pmr_schedule *schedule)
{
    bool rooted = plan->call->kind == PMR_REDUCE;
    slices s = {.plan = plan, .schedule = schedule, .stand = pmr_span_stand(plan), .rooted = rooted};
    if (rooted) {
        s.root_node = plan->shape->node[plan->call->root];
        s.root_index = plan->shape->index[plan->call->root];
    }
    plan_segments(&s);
    if (take_slots(&s)) {
        for (uint32_t segment = 0; segment < s.window; segment++)
            prepare(&s, segment);
        for (uint32_t segment = 0; segment < s.segments; segment++) {
            if (is_rail(&s))
                exchange(&s, segment);
            collect(&s, segment);
            if (segment + s.window < s.segments)
                prepare(&s, segment + s.window);
        }
    }
    give_slots(&s);
}

static size_t limit(const pmr_comm *comm, pmr_kind kind)
{
    (void)kind;
    return pmr_comm_sums_raw(comm) ? 0 : SIZE_MAX;
}

static const pmr_algorithm slices_algorithm = {.name = "slices",
                                               .kinds = PMR_KIND_BIT(PMR_ALLREDUCE) | PMR_KIND_BIT(PMR_REDUCE),
                                               .limit = limit,
                                               .bytes_max = SIZE_MAX,
                                               .build = build};
PMR_REGISTER_ALGORITHM(slices_algorithm);
