/* SPDX-License-Identifier: Apache-2.0
 *
 * span_blocks.c: what moves whole blocks: gather, allgather, scatter, alltoall and their v-forms.
 *
 * Between nodes blocks go directly from the rank that has them to a rank that wants them, and on a node by the node's own
 * collectives. allgather sends each block to each other node once: rank i of a node sends to rank i modulo their number
 * of the other, and what a node got in one such round its ranks hand each other, where it lies. A block of no bytes is a
 * message too, so that both sides of every pair meet and disagreements about sizes are seen.
 */
#include "coll/span_build.h"

#include <stdlib.h>

/* ---- tables ---- */

pmr_span_block *pmr_span_blocks(const pmr_plan *plan, pmr_schedule *schedule, pmr_buffer buffer,
                                const size_t *counts, const size_t *displs)
{
    uint32_t size = plan->shape->size;
    pmr_span_block *blocks = malloc(size * sizeof *blocks);
    schedule->failed = schedule->failed || !blocks;
    for (uint32_t rank = 0; blocks && rank < size; rank++) {
        uint64_t count = counts ? counts[rank] : plan->call->count;
        uint64_t at = displs ? displs[rank] : (uint64_t)rank * plan->call->count;
        blocks[rank].place = pmr_place_at(buffer, at * plan->item_bytes);
        blocks[rank].bytes = count * plan->item_bytes;
    }
    return blocks;
}

/* Where the node's ranks have or want blocks: counts and displacements in bytes, from the start of the buffer. */
static void fill_tables(pmr_schedule *schedule, const pmr_plan *plan, const pmr_span_block *blocks,
                        uint32_t *counts_out, uint32_t *displs_out)
{
    pmr_stand stand = pmr_span_stand(plan);
    size_t *table = pmr_schedule_table(schedule, 2 * stand.members, counts_out);
    *displs_out = *counts_out + stand.members;
    for (uint32_t i = 0; table && i < stand.members; i++) {
        const pmr_span_block *block = &blocks[pmr_shape_rank(plan->shape, stand.node, i)];
        table[i] = block->bytes;
        table[stand.members + i] = block->place.at;
    }
}

static void fill_own(pmr_schedule *schedule, uint64_t bytes, uint32_t *counts_out)
{
    size_t *table = pmr_schedule_table(schedule, 1, counts_out);
    if (table)
        *table = bytes;
}

/* ---- messages ---- */

static void send_block(const pmr_plan *plan, pmr_schedule *schedule, uint32_t peer, pmr_span_block block,
                       uint32_t ready)
{
    uint64_t at = 0;
    do {
        uint64_t left = block.bytes - at, bytes = left < plan->fragment_bytes ? left : plan->fragment_bytes;
        pmr_schedule_after(schedule,
                           pmr_schedule_send(schedule, peer, pmr_place_plus(block.place, at), bytes), ready);
        at += bytes;
    } while (at < block.bytes && !schedule->failed);
}

static void receive_block(const pmr_plan *plan, pmr_schedule *schedule, uint32_t peer, pmr_span_block block)
{
    uint64_t at = 0;
    do {
        uint64_t left = block.bytes - at, bytes = left < plan->fragment_bytes ? left : plan->fragment_bytes;
        pmr_schedule_receive(schedule, peer, pmr_place_plus(block.place, at), bytes);
        at += bytes;
    } while (at < block.bytes && !schedule->failed);
}

static void copy_block(pmr_schedule *schedule, pmr_place to, pmr_place from, uint64_t bytes, uint32_t ready)
{
    pmr_schedule_after(schedule, pmr_schedule_work(schedule, PMR_STEP_COPY, to, from, bytes, 0), ready);
}

/* ---- allgather ---- */

/* Blocks of another node that came to ranks of this one, `round` times as many ago: they hand them each other. */
static void share_round(const pmr_plan *plan, pmr_schedule *schedule, uint32_t node, uint32_t round,
                        const pmr_span_block *blocks)
{
    const pmr_shape *shape = plan->shape;
    pmr_stand stand = pmr_span_stand(plan);
    uint32_t first = schedule->steps.count, theirs = pmr_shape_members(shape, node);
    uint32_t mine = round * stand.members + stand.index;
    pmr_span_block own = {.place = pmr_place_at(blocks[0].place.buffer, 0)};
    if (mine < theirs) {
        own = blocks[pmr_shape_rank(shape, node, mine)];
        receive_block(plan, schedule, pmr_shape_rank(shape, node, mine), own);
    }
    uint32_t last = schedule->steps.count;
    if (stand.members == 1)
        return;
    pmr_node_call call = {.kind = PMR_ALLGATHERV,
                          .send = own.place,
                          .recv = pmr_place_at(blocks[0].place.buffer, 0)};
    fill_own(schedule, own.bytes, &call.send_counts);
    size_t *table = pmr_schedule_table(schedule, 2 * stand.members, &call.recv_counts);
    call.recv_displs = call.recv_counts + stand.members;
    for (uint32_t i = 0; table && i < stand.members; i++) {
        uint32_t other = round * stand.members + i;
        bool there = other < theirs;
        const pmr_span_block *block = &blocks[pmr_shape_rank(shape, node, there ? other : 0)];
        table[i] = there ? block->bytes : 0;
        table[stand.members + i] = there ? block->place.at : 0;
    }
    uint32_t step = pmr_schedule_node(schedule, &call);
    pmr_span_after_all(schedule, step, first, last);
}

void pmr_span_allgather(const pmr_plan *plan, pmr_schedule *schedule, pmr_place own, uint32_t ready,
                        const pmr_span_block *blocks)
{
    const pmr_shape *shape = plan->shape;
    pmr_stand stand = pmr_span_stand(plan);
    pmr_span_block mine = {.place = own, .bytes = blocks[plan->rank].bytes};
    for (uint32_t i = 1; i < stand.nodes; i++) {
        uint32_t node = (stand.node + i) % stand.nodes;
        send_block(plan, schedule,
                   pmr_shape_rank(shape, node, stand.index % pmr_shape_members(shape, node)), mine, ready);
    }
    if (stand.members > 1) {
        pmr_node_call call = {
            .kind = PMR_ALLGATHERV, .send = own, .recv = pmr_place_at(blocks[0].place.buffer, 0)};
        fill_own(schedule, mine.bytes, &call.send_counts);
        fill_tables(schedule, plan, blocks, &call.recv_counts, &call.recv_displs);
        pmr_schedule_after(schedule, pmr_schedule_node(schedule, &call), ready);
    } else {
        copy_block(schedule, blocks[plan->rank].place, own, mine.bytes, ready);
    }
    /* Node by node in an order that all ranks of this node share, those whose messages come first in front. */
    for (uint32_t i = 1; i < stand.nodes; i++) {
        uint32_t node = (stand.node + stand.nodes - i) % stand.nodes;
        for (uint32_t round = 0; round * stand.members < pmr_shape_members(shape, node); round++)
            share_round(plan, schedule, node, round, blocks);
    }
}

static void build_allgather(const pmr_plan *plan, pmr_schedule *schedule)
{
    const pmr_call *call = plan->call;
    pmr_span_block *blocks =
        pmr_span_blocks(plan, schedule, PMR_BUFFER_RECV, call->recv_counts, call->recv_displs);
    if (blocks)
        pmr_span_allgather(plan, schedule, pmr_span_send(0), PMR_NO_STEP, blocks);
    free(blocks);
}

/* ---- gather and scatter ---- */

void pmr_span_gather(const pmr_plan *plan, pmr_schedule *schedule, uint32_t root, pmr_span_block own, uint32_t ready,
                     const pmr_span_block *blocks)
{
    const pmr_shape *shape = plan->shape;
    pmr_stand stand = pmr_span_stand(plan);
    if (shape->node[root] != stand.node) {
        send_block(plan, schedule, root, own, ready);
        return;
    }
    if (stand.members > 1) {
        pmr_node_call call = {.kind = PMR_GATHERV, .root = shape->index[root], .send = own.place};
        call.recv = pmr_place_at(blocks ? blocks[0].place.buffer : PMR_BUFFER_RECV, 0);
        fill_own(schedule, own.bytes, &call.send_counts);
        call.recv_counts = call.recv_displs = PMR_NO_TABLE;
        if (blocks)
            fill_tables(schedule, plan, blocks, &call.recv_counts, &call.recv_displs);
        pmr_schedule_after(schedule, pmr_schedule_node(schedule, &call), ready);
    } else {
        copy_block(schedule, blocks[root].place, own.place, own.bytes, ready);
    }
    for (uint32_t i = 0; blocks && i < shape->size; i++)
        if (shape->node[i] != stand.node)
            receive_block(plan, schedule, i, blocks[i]);
}

static void build_gather(const pmr_plan *plan, pmr_schedule *schedule)
{
    const pmr_call *call = plan->call;
    bool uneven = call->kind == PMR_GATHERV, root = plan->rank == (uint32_t)call->root;
    pmr_span_block own = {.place = pmr_span_send(0),
                          .bytes = (uneven ? call->send_counts[0] : call->count) * plan->item_bytes};
    pmr_span_block *blocks = NULL;
    if (root)
        blocks = pmr_span_blocks(plan, schedule, PMR_BUFFER_RECV, uneven ? call->recv_counts : NULL,
                                 uneven ? call->recv_displs : NULL);
    if (blocks || !root)
        pmr_span_gather(plan, schedule, (uint32_t)call->root, own, PMR_NO_STEP, blocks);
    free(blocks);
}

static void scatter(const pmr_plan *plan, pmr_schedule *schedule, pmr_span_block own, const pmr_span_block *blocks)
{
    const pmr_shape *shape = plan->shape;
    pmr_stand stand = pmr_span_stand(plan);
    uint32_t root = (uint32_t)plan->call->root;
    if (shape->node[root] != stand.node) {
        receive_block(plan, schedule, root, own);
        return;
    }
    for (uint32_t i = 0; blocks && i < shape->size; i++)
        if (shape->node[i] != stand.node)
            send_block(plan, schedule, i, blocks[i], PMR_NO_STEP);
    if (stand.members > 1) {
        pmr_node_call call = {.kind = PMR_SCATTERV,
                              .root = shape->index[root],
                              .send = pmr_span_send(0),
                              .recv = own.place,
                              .send_counts = PMR_NO_TABLE,
                              .send_displs = PMR_NO_TABLE};
        fill_own(schedule, own.bytes, &call.recv_counts);
        if (blocks)
            fill_tables(schedule, plan, blocks, &call.send_counts, &call.send_displs);
        pmr_schedule_node(schedule, &call);
    } else {
        copy_block(schedule, own.place, blocks[root].place, own.bytes, PMR_NO_STEP);
    }
}

static void build_scatter(const pmr_plan *plan, pmr_schedule *schedule)
{
    const pmr_call *call = plan->call;
    bool uneven = call->kind == PMR_SCATTERV, root = plan->rank == (uint32_t)call->root;
    pmr_span_block own = {.place = pmr_span_recv(0),
                          .bytes = (uneven ? call->recv_counts[0] : call->count) * plan->item_bytes};
    pmr_span_block *blocks = NULL;
    if (root)
        blocks = pmr_span_blocks(plan, schedule, PMR_BUFFER_SEND, uneven ? call->send_counts : NULL,
                                 uneven ? call->send_displs : NULL);
    if (blocks || !root)
        scatter(plan, schedule, own, blocks);
    free(blocks);
}

/* ---- alltoall ---- */

void pmr_span_alltoall(const pmr_plan *plan, pmr_schedule *schedule, const pmr_span_block *out,
                       const pmr_span_block *in, bool in_place)
{
    const pmr_shape *shape = plan->shape;
    pmr_stand stand = pmr_span_stand(plan);
    uint32_t size = shape->size, first = schedule->steps.count;
    for (uint32_t rank = 0; in_place && rank < size; rank++)
        if (shape->node[rank] != stand.node)
            pmr_schedule_work(schedule, PMR_STEP_COPY, pmr_schedule_scratch(schedule, out[rank].bytes),
                              out[rank].place, out[rank].bytes, 0);
    if (in_place)
        schedule->early = schedule->steps.count;
    if (schedule->failed)
        return;
    for (uint32_t i = 1; i < size; i++) { /* each in its own order, so that not all send to one */
        uint32_t to = (plan->rank + i) % size;
        if (shape->node[to] == stand.node)
            continue;
        pmr_span_block block = out[to];
        if (in_place) {
            uint32_t before = 0;
            for (uint32_t rank = 0; rank < to; rank++)
                before += shape->node[rank] != stand.node;
            block.place = pmr_schedule_step(schedule, first + before)->to;
        }
        send_block(plan, schedule, to, block, PMR_NO_STEP);
    }
    for (uint32_t i = 1; i < size; i++) {
        uint32_t from = (plan->rank + size - i) % size;
        if (shape->node[from] != stand.node)
            receive_block(plan, schedule, from, in[from]);
    }
    if (stand.members > 1) {
        pmr_node_call call = {.kind = PMR_ALLTOALLV,
                              .send = pmr_place_at(out[0].place.buffer, 0),
                              .recv = pmr_place_at(in[0].place.buffer, 0)};
        fill_tables(schedule, plan, out, &call.send_counts, &call.send_displs);
        fill_tables(schedule, plan, in, &call.recv_counts, &call.recv_displs);
        pmr_schedule_node(schedule, &call);
    } else {
        copy_block(schedule, in[plan->rank].place, out[plan->rank].place, in[plan->rank].bytes, PMR_NO_STEP);
    }
}

static void build_alltoall(const pmr_plan *plan, pmr_schedule *schedule)
{
    const pmr_call *call = plan->call;
    pmr_span_block *out =
        pmr_span_blocks(plan, schedule, PMR_BUFFER_SEND, call->send_counts, call->send_displs);
    pmr_span_block *in = pmr_span_blocks(plan, schedule, PMR_BUFFER_RECV, call->recv_counts, call->recv_displs);
    if (out && in)
        pmr_span_alltoall(plan, schedule, out, in, plan->in_place);
    free(out);
    free(in);
}

/* ---- registered ---- */

static size_t limit(const pmr_comm *comm, pmr_kind kind)
{
    (void)comm;
    (void)kind;
    return SIZE_MAX;
}

static const pmr_algorithm allgather = {.name = "rails",
                                        .kinds = PMR_KIND_BIT(PMR_ALLGATHER) | PMR_KIND_BIT(PMR_ALLGATHERV),
                                        .limit = limit,
                                        .bytes_max = SIZE_MAX,
                                        .build = build_allgather};
PMR_REGISTER_ALGORITHM(allgather);

static const pmr_algorithm gather = {.name = "ranks",
                                     .kinds = PMR_KIND_BIT(PMR_GATHER) | PMR_KIND_BIT(PMR_GATHERV),
                                     .limit = limit,
                                     .bytes_max = SIZE_MAX,
                                     .build = build_gather};
PMR_REGISTER_ALGORITHM(gather);

static const pmr_algorithm scatter_algorithm = {.name = "ranks",
                                                .kinds =
                                                    PMR_KIND_BIT(PMR_SCATTER) | PMR_KIND_BIT(PMR_SCATTERV),
                                                .limit = limit,
                                                .bytes_max = SIZE_MAX,
                                                .build = build_scatter};
PMR_REGISTER_ALGORITHM(scatter_algorithm);

static const pmr_algorithm alltoall = {.name = "ranks",
                                       .kinds = PMR_KIND_BIT(PMR_ALLTOALL) | PMR_KIND_BIT(PMR_ALLTOALLV),
                                       .limit = limit,
                                       .bytes_max = SIZE_MAX,
                                       .build = build_alltoall};
PMR_REGISTER_ALGORITHM(alltoall);
