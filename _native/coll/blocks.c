/* SPDX-License-Identifier: Apache-2.0
 *
 * blocks.c: where the blocks of the one-way collectives lie in the caller's buffers.
 *
 * Invariant: a block of zero bytes may have any address; nobody reads it.
 */
#include "coll/blocks.h"

static size_t sum_before(const size_t *counts, uint32_t rank)
{
    size_t sum = 0;
    for (uint32_t i = 0; i < rank; i++)
        sum += counts[i];
    return sum;
}

static pmr_block block_at(const void *base, size_t at, size_t count, size_t item_bytes)
{
    return (pmr_block){.data = base ? (uint8_t *)(uintptr_t)base + at * item_bytes : NULL,
                       .bytes = count * item_bytes};
}

uint64_t pmr_block_offset(const pmr_task *task, uint32_t block, size_t expected)
{
    const pmr_call *call = task->call;
    if (call->kind == PMR_REDUCE_SCATTERV)
        return sum_before(call->recv_counts, block) * task->item_bytes;
    return (uint64_t)block * expected;
}

pmr_block pmr_block_out(const pmr_task *task, uint32_t block)
{
    const pmr_call *call = task->call;
    size_t item = task->item_bytes;
    switch (call->kind) {
    case PMR_GATHERV:
    case PMR_ALLGATHERV:
        return block_at(call->send, 0, call->send_counts[0], item);
    case PMR_SCATTERV:
    case PMR_ALLTOALLV:
        return block_at(call->send, call->send_displs[block], call->send_counts[block], item);
    case PMR_REDUCE_SCATTERV:
        return block_at(call->send, sum_before(call->recv_counts, block), call->recv_counts[block], item);
    case PMR_SCATTER:
    case PMR_ALLTOALL:
    case PMR_REDUCE_SCATTER:
        return block_at(call->send, block * call->count, call->count, item);
    default:
        return block_at(call->send, 0, call->count, item);
    }
}

pmr_block pmr_block_in(const pmr_task *task, uint32_t maker)
{
    const pmr_call *call = task->call;
    size_t item = task->item_bytes;
    switch (call->kind) {
    case PMR_GATHER:
    case PMR_ALLGATHER:
    case PMR_ALLTOALL:
        return block_at(call->recv, maker * call->count, call->count, item);
    case PMR_GATHERV:
    case PMR_ALLGATHERV:
    case PMR_ALLTOALLV:
        return block_at(call->recv, call->recv_displs[maker], call->recv_counts[maker], item);
    case PMR_SCATTERV:
        return block_at(call->recv, 0, call->recv_counts[0], item);
    case PMR_REDUCE_SCATTERV:
        return block_at(call->recv, 0, call->recv_counts[task->comm->rank], item);
    default:
        return block_at(call->recv, 0, call->count, item);
    }
}

size_t pmr_blocks_total(const pmr_task *task)
{
    size_t total = 0;
    for (uint32_t block = 0; block < pmr_blocks_count(task); block++)
        total += pmr_block_out(task, block).bytes;
    return total;
}

/* Not where a rank overwrites, with its result, what others have yet to read: those calls are staged. */
bool pmr_blocks_exposable(const pmr_task *task)
{
    const pmr_call *call = task->call;
    if (pmr_task_is(task, PMR_KIND_BIT(PMR_ALLTOALL) | PMR_KIND_BIT(PMR_ALLTOALLV)) &&
        call->send == call->recv)
        return false;
    if (pmr_task_is(task, PMR_PREFIX) && call->send == call->recv)
        return false;
    if (call->kind == PMR_REDUCE_SCATTERV || call->kind == PMR_REDUCE_SCATTER) {
        size_t send_bytes = pmr_blocks_total(task);
        const uint8_t *send = call->send, *recv = call->recv;
        bool apart = recv >= send + send_bytes || recv + pmr_block_in(task, 0).bytes <= send;
        return pmr_comm_covers(task->comm, send, send_bytes) &&
               (apart || recv == pmr_block_out(task, task->comm->rank).data);
    }
    for (uint32_t block = 0; block < pmr_blocks_count(task); block++) {
        pmr_block out = pmr_block_out(task, block);
        if (out.bytes && !pmr_comm_covers(task->comm, out.data, out.bytes))
            return false;
    }
    return true;
}
