/* SPDX-License-Identifier: Apache-2.0
 *
 * span_rails.c: the shortest allreduce and barrier: every rank speaks for its node.
 *
 * First the ranks of each node reduce among themselves, so that all of them have the node's sum; then each exchanges it
 * with one rank of every other node, and joins all. One phase on the node and one latency, and nothing to hand out at
 * the end; the price is a message for each rank where leaders send one for each node, so this is for few and short ones.
 * Where nodes have different numbers of ranks, rank i gets what it needs from rank i modulo the other's number.
 */
#include "coll/span_build.h"

#include <stdlib.h>

#define NODES_MAX   8u
#define MEMBERS_MAX 8u
#define BYTES_MAX   8192u

static pmr_sum sum_on_node(const pmr_plan *plan, pmr_schedule *schedule)
{
    pmr_stand stand = pmr_span_stand(plan);
    uint64_t items = plan->call->count, bytes = items * plan->partial_bytes;
    pmr_sum own = {.place = pmr_span_send(0), .step = PMR_NO_STEP};
    if (plan->widens) {
        own.place = pmr_schedule_scratch(schedule, bytes);
        own.step = pmr_schedule_work(schedule, PMR_STEP_WIDEN, own.place, pmr_span_send(0), items, 0);
    }
    if (stand.members == 1)
        return own;
    pmr_node_call call = {.kind = PMR_ALLREDUCE,
                          .partial = true,
                          .send = own.place,
                          .recv = pmr_schedule_scratch(schedule, bytes),
                          .count = items};
    pmr_sum sum = {.place = call.recv, .step = pmr_schedule_node(schedule, &call)};
    pmr_schedule_after(schedule, sum.step, own.step);
    return sum;
}

/* To all ranks of other nodes that count on this one. */
static void send_sum(const pmr_plan *plan, pmr_schedule *schedule, pmr_sum sum, uint64_t bytes)
{
    pmr_stand stand = pmr_span_stand(plan);
    for (uint32_t i = 1; i < stand.nodes; i++) {
        uint32_t node = (stand.node + i) % stand.nodes;
        for (uint32_t at = stand.index; at < pmr_shape_members(plan->shape, node); at += stand.members)
            pmr_schedule_after(
                schedule,
                pmr_schedule_send(schedule, pmr_shape_rank(plan->shape, node, at), sum.place, bytes), sum.step);
    }
}

static uint32_t receive_sum(const pmr_plan *plan, pmr_schedule *schedule, uint32_t node, pmr_place to, uint64_t bytes)
{
    uint32_t at = pmr_span_stand(plan).index % pmr_shape_members(plan->shape, node);
    return pmr_schedule_receive(schedule, pmr_shape_rank(plan->shape, node, at), to, bytes);
}

static void build_allreduce(const pmr_plan *plan, pmr_schedule *schedule)
{
    pmr_stand stand = pmr_span_stand(plan);
    uint64_t items = plan->call->count, bytes = items * plan->partial_bytes;
    pmr_sum own = sum_on_node(plan, schedule);
    uint32_t first = schedule->steps.count;
    send_sum(plan, schedule, own, bytes);
    uint32_t sent = schedule->steps.count;
    pmr_sum *sums = calloc(stand.nodes, sizeof *sums);
    schedule->failed = schedule->failed || !sums;
    for (uint32_t node = 0; sums && node < stand.nodes; node++) {
        sums[node] = own;
        if (node == stand.node)
            continue;
        sums[node].place = pmr_schedule_scratch(schedule, bytes);
        sums[node].step = receive_sum(plan, schedule, node, sums[node].place, bytes);
    }
    pmr_place to = plan->finishes ? pmr_schedule_scratch(schedule, bytes) : pmr_span_recv(0);
    if (sums) {
        uint32_t joined = pmr_span_join(plan, schedule, sums, stand.nodes, plan->shape->size, stand.node, to, items);
        if (plan->in_place && own.place.buffer == PMR_BUFFER_SEND) /* it may still be on its way */
            pmr_span_after_all(schedule, joined, first, sent);
        pmr_span_finish(plan, schedule, pmr_span_recv(0), to, items, plan->shape->size, joined);
    }
    free(sums);
}

static void build_barrier(const pmr_plan *plan, pmr_schedule *schedule)
{
    pmr_stand stand = pmr_span_stand(plan);
    pmr_sum nothing = {.place = pmr_schedule_scratch(schedule, 0), .step = PMR_NO_STEP};
    if (stand.members > 1)
        nothing.step = pmr_schedule_node(
            schedule,
            &(pmr_node_call){.kind = PMR_BARRIER, .send = nothing.place, .recv = nothing.place});
    send_sum(plan, schedule, nothing, 0);
    for (uint32_t node = 0; node < stand.nodes; node++)
        if (node != stand.node)
            receive_sum(plan, schedule, node, nothing.place, 0);
}

static size_t limit(const pmr_comm *comm, pmr_kind kind)
{
    const pmr_shape *shape = pmr_comm_shape(comm);
    uint32_t most = 0;
    for (uint32_t node = 0; node < shape->nodes; node++) {
        uint32_t members = pmr_shape_members(shape, node);
        most = members > most ? members : most;
    }
    if (shape->nodes > NODES_MAX || most > MEMBERS_MAX || (kind == PMR_ALLREDUCE && pmr_comm_sums_raw(comm)))
        return 0;
    return BYTES_MAX;
}

static const pmr_algorithm allreduce = {.name = "rails",
                                        .kinds = PMR_KIND_BIT(PMR_ALLREDUCE),
                                        .limit = limit,
                                        .bytes_max = BYTES_MAX,
                                        .build = build_allreduce};
PMR_REGISTER_ALGORITHM(allreduce);

static const pmr_algorithm barrier = {.name = "rails",
                                      .kinds = PMR_KIND_BIT(PMR_BARRIER),
                                      .limit = limit,
                                      .bytes_max = SIZE_MAX,
                                      .build = build_barrier};
PMR_REGISTER_ALGORITHM(barrier);
