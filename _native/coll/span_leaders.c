/* SPDX-License-Identifier: Apache-2.0
 *
 * span_leaders.c: short messages: one rank of each node, its leader, speaks for the node.
 *
 * allreduce "direct": every leader sends its node's sum to all others, and joins all: one latency, (N-1) * M bytes.
 * allreduce "doubling": the tree over nodes from its leaves up; at each split the two sides exchange their sums, rank by
 * rank; where one side is smaller its leaders serve several: log2(N) latencies and times M bytes.
 * reduce "tree": the same tree, but of each split only one leader, the root's where it is there, has the sum.
 * barrier "dissemination": in round r a leader tells the one 2^r behind it: log2(N) latencies.
 * On the node its leader gathers first, and hands the result out in the end.
 */
#include "coll/span_build.h"

#include <stdlib.h>

/* ---- allreduce ---- */

/* What the leaders of one call exchange. */
typedef struct exchange {
    const pmr_plan *plan;
    pmr_schedule *schedule;
    pmr_sum own;
    pmr_place result;        /* of the last join */
    uint32_t node, nodes;
    uint64_t items, bytes;
} exchange;

static uint32_t leader(const exchange *x, uint32_t node)
{
    return pmr_shape_rank(x->plan->shape, node, 0);
}

static uint32_t send_sum(exchange *x, uint32_t node, pmr_sum sum)
{
    uint32_t step = pmr_schedule_send(x->schedule, leader(x, node), sum.place, x->bytes);
    pmr_schedule_after(x->schedule, step, sum.step);
    return step;
}

static pmr_sum receive_sum(exchange *x, uint32_t node)
{
    pmr_place place = pmr_schedule_scratch(x->schedule, x->bytes);
    return (pmr_sum){.place = place,
                     .step = pmr_schedule_receive(x->schedule, leader(x, node), place, x->bytes)};
}

static uint32_t exchange_direct(exchange *x)
{
    pmr_sum *sums = malloc(x->nodes * sizeof *sums);
    if (!sums) {
        x->schedule->failed = true;
        return PMR_NO_STEP;
    }
    sums[x->node] = x->own;
    for (uint32_t i = 1; i < x->nodes; i++)
        send_sum(x, (x->node + i) % x->nodes, x->own);
    for (uint32_t i = 1; i < x->nodes; i++) {
        uint32_t node = (x->node + i) % x->nodes;
        sums[node] = receive_sum(x, node);
    }
    uint32_t step = pmr_span_join(x->plan, x->schedule, sums, x->nodes, x->plan->shape->size, x->node, x->result,
                                  x->items);
    free(sums);
    return step;
}

/* The sum of the nodes [from, end), this one among them. */
static pmr_sum double_up(exchange *x, uint32_t from, uint32_t end)
{
    if (end - from == 1)
        return x->own;
    const pmr_shape *shape = x->plan->shape;
    uint32_t middle = pmr_shape_split(shape, from, end, shape->first[end]);
    bool left = x->node < middle;
    pmr_sum mine = left ? double_up(x, from, middle) : double_up(x, middle, end);
    uint32_t near = left ? from : middle, near_count = left ? middle - from : end - middle;
    uint32_t far = left ? middle : from, far_count = left ? end - middle : middle - from;
    for (uint32_t other = x->node - near; other < far_count; other += near_count)
        send_sum(x, far + other, mine);
    pmr_sum theirs = receive_sum(x, far + (x->node - near) % far_count);
    bool last = end - from == x->nodes;
    pmr_place to = last ? x->result : pmr_schedule_scratch(x->schedule, x->bytes);
    pmr_place sources[2] = {left ? mine.place : theirs.place, left ? theirs.place : mine.place};
    uint32_t step = pmr_schedule_reduce(x->schedule, PMR_STEP_REDUCE, to, sources, 2, x->items);
    pmr_schedule_after(x->schedule, step, mine.step);
    pmr_schedule_after(x->schedule, step, theirs.step);
    return (pmr_sum){.place = to, .step = step};
}

/* The result may lie where the contribution is still being sent from. */
static void keep_from(pmr_schedule *schedule, uint32_t step, uint32_t first)
{
    for (uint32_t i = first; i < step && step != PMR_NO_STEP; i++)
        if (pmr_schedule_step(schedule, i)->kind == PMR_STEP_SEND)
            pmr_schedule_after(schedule, step, i);
}

static void build_allreduce(const pmr_plan *plan, pmr_schedule *schedule, bool direct)
{
    pmr_stand stand = pmr_span_stand(plan);
    uint64_t items = plan->call->count;
    exchange x = {.plan = plan,
                  .schedule = schedule,
                  .own = pmr_span_node_sum(plan, schedule, 0),
                  .result = pmr_span_recv(0),
                  .node = stand.node,
                  .nodes = stand.nodes,
                  .items = items,
                  .bytes = items * plan->partial_bytes};
    uint32_t done = PMR_NO_STEP;
    if (stand.index == 0) {
        if (plan->finishes)
            x.result = pmr_schedule_scratch(schedule, x.bytes);
        uint32_t first = schedule->steps.count;
        done = direct ? exchange_direct(&x) : double_up(&x, 0, stand.nodes).step;
        if (plan->in_place && x.own.place.buffer == PMR_BUFFER_SEND && !schedule->failed)
            keep_from(schedule, done, first);
        done = pmr_span_finish(plan, schedule, pmr_span_recv(0), x.result, items, plan->shape->size, done);
    }
    if (stand.members == 1)
        return;
    uint32_t out =
        pmr_span_node_broadcast(schedule, 0, pmr_span_recv(0), pmr_span_recv(0), items * plan->item_bytes);
    pmr_schedule_after(schedule, out, done);
}

static void build_direct(const pmr_plan *plan, pmr_schedule *schedule)
{
    build_allreduce(plan, schedule, true);
}

static void build_doubling(const pmr_plan *plan, pmr_schedule *schedule)
{
    build_allreduce(plan, schedule, false);
}

/* ---- reduce ---- */

/* A reduce's leaders are not the first ranks of their nodes where the root is. */
typedef struct gathering {
    exchange x;
    uint32_t root_node;
} gathering;

static uint32_t holder(const gathering *g, uint32_t from, uint32_t end)
{
    return g->root_node >= from && g->root_node < end ? g->root_node : from;
}

static uint32_t speaker(const gathering *g, uint32_t node)
{
    return node == g->root_node ? (uint32_t)g->x.plan->call->root : leader(&g->x, node);
}

/* The sum of [from, end) where this node holds it; elsewhere it was sent on. */
static pmr_sum gather_up(gathering *g, uint32_t from, uint32_t end)
{
    exchange *x = &g->x;
    if (end - from == 1)
        return x->own;
    const pmr_shape *shape = x->plan->shape;
    uint32_t middle = pmr_shape_split(shape, from, end, shape->first[end]);
    bool left = x->node < middle;
    pmr_sum mine = left ? gather_up(g, from, middle) : gather_up(g, middle, end);
    uint32_t holders[2] = {holder(g, from, middle), holder(g, middle, end)};
    uint32_t own_holder = holders[left ? 0 : 1], other = holders[left ? 1 : 0], joined = holder(g, from, end);
    if (x->node != own_holder)
        return mine;
    if (x->node != joined) {
        uint32_t step = pmr_schedule_send(x->schedule, speaker(g, other), mine.place, x->bytes);
        pmr_schedule_after(x->schedule, step, mine.step);
        return mine;
    }
    pmr_place place = pmr_schedule_scratch(x->schedule, x->bytes);
    uint32_t receive = pmr_schedule_receive(x->schedule, speaker(g, other), place, x->bytes);
    bool last = end - from == x->nodes;
    pmr_place to = last ? x->result : pmr_schedule_scratch(x->schedule, x->bytes);
    pmr_place sources[2] = {left ? mine.place : place, left ? place : mine.place};
    uint32_t step = pmr_schedule_reduce(x->schedule, PMR_STEP_REDUCE, to, sources, 2, x->items);
    pmr_schedule_after(x->schedule, step, mine.step);
    pmr_schedule_after(x->schedule, step, receive);
    return (pmr_sum){.place = to, .step = step};
}

static void build_tree(const pmr_plan *plan, pmr_schedule *schedule)
{
    pmr_stand stand = pmr_span_stand(plan);
    uint32_t root = (uint32_t)plan->call->root, root_node = plan->shape->node[root];
    uint32_t head = stand.node == root_node ? plan->shape->index[root] : 0;
    uint64_t items = plan->call->count;
    gathering g = {.x = {.plan = plan,
                         .schedule = schedule,
                         .own = pmr_span_node_sum(plan, schedule, head),
                         .result = pmr_span_recv(0),
                         .node = stand.node,
                         .nodes = stand.nodes,
                         .items = items,
                         .bytes = items * plan->partial_bytes},
                   .root_node = root_node};
    if (stand.index != head)
        return;
    if (plan->finishes && plan->rank == root)
        g.x.result = pmr_schedule_scratch(schedule, g.x.bytes);
    pmr_sum sum = gather_up(&g, 0, stand.nodes);
    if (plan->rank == root)
        pmr_span_finish(plan, schedule, pmr_span_recv(0), g.x.result, items, plan->shape->size, sum.step);
}

/* ---- barrier ---- */

static void build_barrier(const pmr_plan *plan, pmr_schedule *schedule)
{
    pmr_stand stand = pmr_span_stand(plan);
    pmr_place nowhere = pmr_schedule_scratch(schedule, 0);
    uint32_t ready = PMR_NO_STEP;
    if (stand.members > 1)
        ready = pmr_schedule_node(schedule,
                                  &(pmr_node_call){.kind = PMR_GATHER, .send = nowhere, .recv = nowhere});
    for (uint32_t far = 1; stand.index == 0 && far < stand.nodes; far *= 2) {
        uint32_t to = (stand.node + far) % stand.nodes, from = (stand.node + stand.nodes - far) % stand.nodes;
        uint32_t send = pmr_schedule_send(schedule, pmr_shape_rank(plan->shape, to, 0), nowhere, 0);
        pmr_schedule_after(schedule, send, ready);
        uint32_t receive = pmr_schedule_receive(schedule, pmr_shape_rank(plan->shape, from, 0), nowhere, 0);
        uint32_t both = pmr_schedule_work(schedule, PMR_STEP_COPY, nowhere, nowhere, 0, 0);
        pmr_schedule_after(schedule, both, receive);
        pmr_schedule_after(schedule, both, ready);
        ready = both;
    }
    if (stand.members > 1)
        pmr_schedule_after(schedule, pmr_span_node_broadcast(schedule, 0, nowhere, nowhere, 0), ready);
}

/* ---- registered ---- */

#define LEADERS_BYTES_MAX  65536u /* of the call: no message between leaders is longer than a fragment */
#define DIRECT_NODES_MAX   8u /* beyond, messages to all cost more than a second latency */
#define DIRECT_BYTES_MAX   16384u
#define DIRECT_BYTES_TWO   65536u /* two nodes send no more than slices would, and wait once */
#define DOUBLING_BYTES_MAX 32768u
#define TREE_BYTES_MAX     65536u

static size_t limit_direct(const pmr_comm *comm, pmr_kind kind)
{
    (void)kind;
    uint32_t nodes = pmr_comm_shape(comm)->nodes;
    if (pmr_comm_sums_raw(comm) || nodes > DIRECT_NODES_MAX)
        return 0;
    return nodes == 2 ? DIRECT_BYTES_TWO : DIRECT_BYTES_MAX;
}

static size_t limit_doubling(const pmr_comm *comm, pmr_kind kind)
{
    (void)kind;
    return pmr_comm_sums_raw(comm) ? 0 : DOUBLING_BYTES_MAX;
}

static size_t limit_tree(const pmr_comm *comm, pmr_kind kind)
{
    (void)kind;
    return pmr_comm_sums_raw(comm) ? 0 : TREE_BYTES_MAX;
}

static size_t limit_barrier(const pmr_comm *comm, pmr_kind kind)
{
    (void)comm;
    (void)kind;
    return SIZE_MAX;
}

static const pmr_algorithm direct = {.name = "direct",
                                     .kinds = PMR_KIND_BIT(PMR_ALLREDUCE),
                                     .limit = limit_direct,
                                     .bytes_max = LEADERS_BYTES_MAX,
                                     .build = build_direct};
PMR_REGISTER_ALGORITHM(direct);

static const pmr_algorithm doubling = {.name = "doubling",
                                       .kinds = PMR_KIND_BIT(PMR_ALLREDUCE),
                                       .limit = limit_doubling,
                                       .bytes_max = LEADERS_BYTES_MAX,
                                       .build = build_doubling};
PMR_REGISTER_ALGORITHM(doubling);

static const pmr_algorithm tree = {.name = "tree",
                                   .kinds = PMR_KIND_BIT(PMR_REDUCE),
                                   .limit = limit_tree,
                                   .bytes_max = LEADERS_BYTES_MAX,
                                   .build = build_tree};
PMR_REGISTER_ALGORITHM(tree);

static const pmr_algorithm dissemination = {.name = "dissemination",
                                            .kinds = PMR_KIND_BIT(PMR_BARRIER),
                                            .limit = limit_barrier,
                                            .bytes_max = SIZE_MAX,
                                            .build = build_barrier};
PMR_REGISTER_ALGORITHM(dissemination);
