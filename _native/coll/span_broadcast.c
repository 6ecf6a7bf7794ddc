/* SPDX-License-Identifier: Apache-2.0
 *
 * span_broadcast.c: one rank's message to all: from node to node, and on each node from the rank that got it.
 *
 * "tree": a binomial tree over the nodes, counted from the root's: log2(N) latencies, and the root sends log2(N) M bytes.
 * "chain": each node hands on to the next one, fragment by fragment: every node sends M bytes, so that long messages run
 * at the network's rate, and the last node has them N - 2 fragments later than the second. The more nodes, the longer the
 * tree is the shorter way. Data go straight to the receive buffer, and to the node's other ranks a group of fragments at a
 * time. The root waits for nobody.
 */
#include "coll/span_build.h"

#define GROUP_FRAGMENTS 4u /* handed out on the node at once */

typedef struct relay {
    const pmr_plan *plan;
    pmr_schedule *schedule;
    pmr_stand stand;
    uint32_t root_node, root_index;
    uint32_t place; /* of this node, counted from the root's */
    bool chain;
} relay;

/* The rank that gets the message for the node which is that far behind the root's. */
static uint32_t head(const relay *r, uint32_t place)
{
    uint32_t node = (r->root_node + place) % r->stand.nodes;
    return pmr_shape_rank(r->plan->shape, node, place == 0 ? r->root_index : 0);
}

static uint32_t highest_bit(uint32_t value)
{
    return 1u << (31 - __builtin_clz(value));
}

static uint32_t parent(const relay *r)
{
    return r->chain ? r->place - 1 : r->place - highest_bit(r->place);
}

/* One fragment from the parent to all children; answers the step after which it is here. */
static uint32_t pass_on(const relay *r, pmr_place at, uint64_t bytes)
{
    uint32_t here = PMR_NO_STEP;
    if (r->place > 0)
        here = pmr_schedule_receive(r->schedule, head(r, parent(r)), at, bytes);
    uint32_t nodes = r->stand.nodes;
    if (r->chain) {
        if (r->place + 1 < nodes)
            pmr_schedule_after(r->schedule, pmr_schedule_send(r->schedule, head(r, r->place + 1), at, bytes),
                               here);
        return here;
    }
    uint32_t lowest = r->place ? highest_bit(r->place) * 2 : 1;
    for (uint32_t far = highest_bit(nodes); far >= lowest && far > 0; far /= 2) /* the largest subtree first */
        if (r->place + far < nodes)
            pmr_schedule_after(r->schedule,
                               pmr_schedule_send(r->schedule, head(r, r->place + far), at, bytes), here);
    return here;
}

static void build(const pmr_plan *plan, pmr_schedule *schedule, bool chain)
{
    uint32_t root = (uint32_t)plan->call->root;
    relay r = {.plan = plan, .schedule = schedule, .stand = pmr_span_stand(plan), .chain = chain};
    r.root_node = plan->shape->node[root];
    r.root_index = plan->shape->index[root];
    r.place = (r.stand.node + r.stand.nodes - r.root_node) % r.stand.nodes;
    uint32_t own_head = head(&r, r.place);
    pmr_place data = plan->rank == root ? pmr_span_send(0) : pmr_span_recv(0);
    uint64_t bytes = plan->call->count * plan->item_bytes, group = (uint64_t)plan->fragment_bytes * GROUP_FRAGMENTS;
    uint64_t at = 0;
    do {
        uint64_t end = bytes - at < group ? bytes : at + group;
        uint32_t first = schedule->steps.count;
        for (uint64_t start = at; plan->rank == own_head && (start < end || start == 0);
             start += plan->fragment_bytes) {
            uint64_t left = end - start;
            pass_on(&r, pmr_place_plus(data, start), left < plan->fragment_bytes ? left : plan->fragment_bytes);
            if (bytes == 0)
                break;
        }
        uint32_t last = schedule->steps.count;
        if (r.stand.members > 1) {
            uint32_t out = pmr_span_node_broadcast(schedule, plan->shape->index[own_head],
                                                   pmr_place_plus(data, at), pmr_span_recv(at), end - at);
            for (uint32_t i = first; i < last; i++)
                if (pmr_schedule_step(schedule, i)->kind == PMR_STEP_RECEIVE)
                    pmr_schedule_after(schedule, out, i);
        }
        at = end;
    } while (at < bytes && !schedule->failed);
}

static void build_tree(const pmr_plan *plan, pmr_schedule *schedule)
{
    build(plan, schedule, false);
}

static void build_chain(const pmr_plan *plan, pmr_schedule *schedule)
{
    build(plan, schedule, true);
}

#define HOP_BYTES      ((size_t)256 << 10) /* what a hop of the chain holds back: a fragment and its latency */
#define TREE_BYTES_MIN HOP_BYTES /* up to here the tree, on any number of nodes */

/* Where log2(N) M, the tree's time, becomes more than the chain's, M and N - 2 hops. */
static size_t limit_tree(const pmr_comm *comm, pmr_kind kind)
{
    (void)kind;
    uint32_t nodes = pmr_comm_shape(comm)->nodes;
    if (nodes < 8)
        return TREE_BYTES_MIN;
    uint32_t levels = 32 - (uint32_t)__builtin_clz(nodes - 1);
    return HOP_BYTES * (nodes - 2) / (levels - 1);
}

static size_t limit_chain(const pmr_comm *comm, pmr_kind kind)
{
    (void)comm;
    (void)kind;
    return SIZE_MAX;
}

static const pmr_algorithm tree = {.name = "tree",
                                   .kinds = PMR_KIND_BIT(PMR_BROADCAST),
                                   .limit = limit_tree,
                                   .bytes_max = SIZE_MAX,
                                   .build = build_tree};
PMR_REGISTER_ALGORITHM(tree);

static const pmr_algorithm chain = {.name = "chain",
                                    .kinds = PMR_KIND_BIT(PMR_BROADCAST),
                                    .limit = limit_chain,
                                    .bytes_max = SIZE_MAX,
                                    .build = build_chain};
PMR_REGISTER_ALGORITHM(chain);
