/* SPDX-License-Identifier: Apache-2.0
 *
 * blocks.c: where the blocks of the one-way collectives lie in the caller's buffers.
 *
 * Invariant: a block of zero bytes may have any address; nobody reads it.
 */
#include "coll/blocks.h"

#include "core/remote.h"

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

bool pmr_blocks_streaming(const pmr_task *task)
{
    uint32_t rank = task->comm->rank, size = task->comm->size;
    size_t made = pmr_blocks_makes(task, rank) ? pmr_blocks_total(task) : 0, taken = 0;
    if (pmr_blocks_reducing(task))
        taken = pmr_blocks_reduces_here(task) ? pmr_block_in(task, rank).bytes : 0;
    else
        for (uint32_t maker = 0; maker < size; maker++)
            if (pmr_blocks_takes(task, rank, maker))
                taken += pmr_block_in(task, maker).bytes;
    return (made + taken) > task->comm->context->cache_bytes / size;
}

/* A rank would overwrite, with its result, what others have yet to read. */
static bool overwritten(const pmr_task *task)
{
    const pmr_call *call = task->call;
    if (pmr_task_is(task, PMR_PREFIX | PMR_KIND_BIT(PMR_ALLTOALL) | PMR_KIND_BIT(PMR_ALLTOALLV)))
        return call->send == call->recv;
    if (!pmr_task_is(task, PMR_KIND_BIT(PMR_REDUCE_SCATTER) | PMR_KIND_BIT(PMR_REDUCE_SCATTERV)))
        return false;
    const uint8_t *send = call->send, *recv = call->recv;
    bool apart = recv >= send + pmr_blocks_total(task) || recv + pmr_block_in(task, 0).bytes <= send;
    return !apart && recv != pmr_block_out(task, task->comm->rank).data;
}

static bool all_in_heap(const pmr_task *task)
{
    for (uint32_t block = 0; block < pmr_blocks_count(task); block++) {
        pmr_block out = pmr_block_out(task, block);
        if (out.bytes && !pmr_comm_covers(task->comm, out.data, out.bytes))
            return false;
    }
    return true;
}

/* Tried on any rank of the communicator that is attached. */
static bool reads_possible(pmr_comm *comm)
{
    pmr_context *context = comm->context;
    for (uint32_t i = 1; i < comm->size && context->remote_reads == PMR_READS_UNKNOWN; i++) {
        uint32_t peer = comm->local[(comm->rank + i) % comm->size];
        if (pmr_window_rank_state(&context->window, peer) == PMR_RANK_ATTACHED)
            context->remote_reads = pmr_remote_try(pmr_window_recorder(&context->window, peer))
                                        ? PMR_READS_POSSIBLE
                                        : PMR_READS_REFUSED;
    }
    return context->remote_reads == PMR_READS_POSSIBLE;
}

/* Where several take the same block, one copy to shared memory serves all of them, and they read it from there
 * as fast as they can write. */
static bool has_one_taker(const pmr_task *task)
{
    return task->comm->size == 2 || pmr_blocks_count(task) > 1 || pmr_task_is(task, PMR_TO_ROOT);
}

enum pmr_style pmr_blocks_style(const pmr_task *task)
{
    if (overwritten(task))
        return PMR_STYLE_STAGED;
    if (all_in_heap(task))
        return PMR_STYLE_EXPOSED;
    size_t block_bytes = pmr_blocks_total(task) / pmr_blocks_count(task);
    bool remote = !pmr_blocks_reducing(task) && has_one_taker(task) &&
                  block_bytes >= task->comm->context->remote_bytes_min[task->comm->crowded] && reads_possible(task->comm);
    return remote ? PMR_STYLE_REMOTE : PMR_STYLE_STAGED;
}

pmr_status pmr_blocks_read(const pmr_task *task, uint32_t maker, void *to, uint64_t address, size_t bytes,
                           pmr_error *error)
{
    const pmr_comm *comm = task->comm;
    const pmr_recorder *recorder = pmr_window_recorder(&comm->context->window, comm->local[maker]);
    pmr_status status = pmr_remote_read(recorder->pid, to, address, bytes, error);
    if (status == PMR_ERR_RANK_FAILED)
        error->rank = (int32_t)pmr_comm_world_rank(comm, maker);
    return status;
}
