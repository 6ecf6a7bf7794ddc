/* SPDX-License-Identifier: Apache-2.0
 *
 * exchange.c: alltoall, reduce_scatter and, between two ranks, allgather: every pair of ranks exchanges
 * blocks.
 *
 * Each pair has two buffers and swaps them with every chunk (pmr_comm_pair): a rank writes the lines that it
 * read last, which its own cache holds. A rank *shows* a chunk of all its blocks, then *takes* the chunk
 * meant for it from each other rank: one meeting per chunk. Bytes per rank: its blocks copied to shared
 * memory, those of the others read and written once (added up in canonical order in reduce_scatter). Blocks
 * in the heap are taken from where they lie; their owner waits until all are done.
 *
 * Chunks are numbered through all calls. Why two buffers are enough: a rank writes chunk n of a pair where it
 * read chunk n - 1, and the other side, which wrote that, had read chunk n - 2 there before.
 */
#include "coll/blocks.h"
#include "core/copy.h"

enum { SHOW = PMR_PHASE_WORK, TAKE, RELEASE };

static size_t limit(const pmr_comm *comm, pmr_kind kind)
{
    return comm->size == 2 || (comm->size > 2 && kind != PMR_ALLGATHER) ? SIZE_MAX - 1 : 0;
}

/* Bytes of a block that are taken at once: all, where nothing is copied to shared memory. */
static size_t block_chunk(const pmr_task *task)
{
    if (task->exposed)
        return SIZE_MAX / 2;
    return PMR_PAIRS_BYTES / task->comm->size / PMR_LINE * PMR_LINE;
}

static size_t part_of(const pmr_task *task, size_t bytes, uint32_t chunk)
{
    size_t left = bytes - (chunk ? block_chunk(task) * chunk : 0);
    return left < block_chunk(task) ? left : block_chunk(task);
}

static uint32_t block_for(const pmr_task *task, uint32_t rank)
{
    return pmr_blocks_count(task) == 1 ? 0 : rank;
}

/* A rank whose blocks lie in the heap copies nothing, but says that it has come so far, which tells the
 * others that it has taken the chunk before. */
static void show(pmr_task *task, uint32_t chunk)
{
    pmr_comm *comm = task->comm;
    size_t room = block_chunk(task);
    bool staged = pmr_task_entry(task)->style == PMR_STYLE_STAGED;
    for (uint32_t i = 1; i < comm->size && staged; i++) {
        uint32_t taker = (comm->rank + i) % comm->size;
        pmr_block block = pmr_block_out(task, block_for(task, taker));
        memcpy(pmr_comm_pair(comm, comm->rank, taker, comm->exchanges + chunk, room),
               block.data + room * chunk, part_of(task, block.bytes, chunk));
    }
    task->staged = chunk + 1;
    pmr_flag_set(&comm->me->pair, comm->exchanges + task->staged);
}

static pmr_status enter(pmr_task *task)
{
    pmr_comm *comm = task->comm;
    size_t bytes = pmr_block_in(task, comm->rank).bytes;
    task->exposed = false;
    task->streaming = pmr_blocks_streaming(task);
    task->steps = (uint32_t)((bytes + block_chunk(task) - 1) / block_chunk(task));
    task->staged = 0;
    pmr_entry *entry = pmr_task_entry(task);
    entry->style = pmr_blocks_style(task);
    entry->send_offset = entry->style == PMR_STYLE_EXPOSED ? pmr_comm_offset(comm, task->call->send)
                                                           : (uint64_t)(uintptr_t)task->call->send;
    if (task->steps)
        show(task, 0);
    pmr_task_enter(task, entry);
    return PMR_OK;
}

/* Where the chunk that `maker` has for this rank begins, in the window or in the maker's memory. */
static uint64_t place_of(const pmr_task *task, uint32_t maker, uint32_t chunk)
{
    size_t block = block_for(task, task->comm->rank) * pmr_block_in(task, maker).bytes;
    return pmr_comm_entry(task->comm, maker, task->seq)->send_offset + block + block_chunk(task) * chunk;
}

/* The same as an address here; not in PMR_STYLE_REMOTE. */
static const uint8_t *locate(const pmr_task *task, uint32_t maker, uint32_t chunk)
{
    pmr_comm *comm = task->comm;
    if (pmr_comm_entry(comm, maker, task->seq)->style == PMR_STYLE_STAGED)
        return pmr_comm_pair(comm, maker, comm->rank, comm->exchanges + chunk, block_chunk(task));
    return pmr_comm_address(comm, place_of(task, maker, chunk));
}

static pmr_status await_chunk_of(pmr_task *task, uint32_t maker, uint32_t chunk)
{
    pmr_comm *comm = task->comm;
    pmr_flag *pair = &pmr_comm_member(comm, maker)->pair;
    uint32_t target = comm->exchanges + chunk + 1;
    bool ready = task->exposed || maker == comm->rank || pmr_flag_reached(pair, target);
    return ready ? PMR_OK : pmr_task_want(task, pair, target);
}

static pmr_status copy_chunk(pmr_task *task, uint32_t chunk, pmr_error *error)
{
    pmr_comm *comm = task->comm;
    for (; task->cursor + 1 < comm->size; task->cursor++) {
        uint32_t maker = (comm->rank + 1 + task->cursor) % comm->size;
        pmr_status status = await_chunk_of(task, maker, chunk);
        if (status)
            return status;
        pmr_block block = pmr_block_in(task, maker);
        uint8_t *to = block.data + block_chunk(task) * chunk;
        size_t bytes = part_of(task, block.bytes, chunk);
        if (pmr_comm_entry(comm, maker, task->seq)->style == PMR_STYLE_REMOTE)
            status = pmr_blocks_read(task, maker, to, place_of(task, maker, chunk), bytes, error);
        else
            pmr_copy(to, locate(task, maker, chunk), bytes, task->streaming);
        if (status)
            return status;
    }
    task->cursor = 0;
    return PMR_OK;
}

static pmr_status reduce_chunk(pmr_task *task, uint32_t chunk)
{
    pmr_comm *comm = task->comm;
    for (; task->cursor < comm->size; task->cursor++) {
        pmr_status status = await_chunk_of(task, task->cursor, chunk);
        if (status)
            return status;
    }
    task->cursor = 0;
    size_t at = block_chunk(task) * chunk;
    const void *source[PMR_WINDOW_RANKS_MAX];
    for (uint32_t rank = 0; rank < comm->size; rank++)
        source[rank] = rank == comm->rank ? pmr_block_out(task, rank).data + at : locate(task, rank, chunk);
    pmr_block into = pmr_block_in(task, comm->rank);
    pmr_reduce_lookup(task->call->op, task->call->dtype)(into.data + at, source, comm->size,
                                                         part_of(task, into.bytes, chunk) / task->item_bytes);
    return PMR_OK;
}

static void copy_own(pmr_task *task)
{
    uint32_t rank = task->comm->rank;
    pmr_block from = pmr_block_out(task, block_for(task, rank)), to = pmr_block_in(task, rank);
    if (!pmr_blocks_reducing(task) && from.bytes && from.data != to.data)
        pmr_copy(to.data, from.data, from.bytes, task->streaming);
}

static bool nothing_staged(const pmr_task *task)
{
    for (uint32_t rank = 0; rank < task->comm->size; rank++)
        if (pmr_comm_entry(task->comm, rank, task->seq)->style == PMR_STYLE_STAGED)
            return false;
    return true;
}

static pmr_status run_chunks(pmr_task *task, pmr_error *error)
{
    uint32_t steps = task->exposed ? 1 : task->steps;
    for (; task->step < steps; task->step++, task->phase = SHOW) {
        if (task->phase == SHOW) {
            if (!task->exposed && task->staged == task->step)
                show(task, task->step);
            task->phase = TAKE;
        }
        pmr_status status =
            pmr_blocks_reducing(task) ? reduce_chunk(task, task->step) : copy_chunk(task, task->step, error);
        if (status)
            return status;
    }
    return PMR_OK;
}

/* Blocks in the heap are their owner's again when all have taken theirs. */
static pmr_status release(pmr_task *task)
{
    pmr_comm *comm = task->comm;
    for (; task->cursor < comm->size; task->cursor++) {
        pmr_flag *done = &pmr_comm_member(comm, task->cursor)->done;
        if (task->cursor != comm->rank && !pmr_flag_reached(done, task->seq))
            return pmr_task_want(task, done, task->seq);
    }
    return PMR_OK;
}

static void settle(pmr_task *task)
{
    task->exposed = nothing_staged(task);
    copy_own(task);
}

static pmr_status work(pmr_task *task, pmr_error *error)
{
    if (task->phase != RELEASE) {
        pmr_status status = run_chunks(task, error);
        if (status)
            return status;
        task->comm->exchanges += task->steps;
        pmr_task_leave(task);
        task->phase = RELEASE;
    }
    return pmr_task_entry(task)->style >= PMR_STYLE_REMOTE ? release(task) : PMR_OK;
}

static const pmr_phases phases = {.enter = enter, .settle = settle, .work = work};

static pmr_status step(pmr_task *task, pmr_error *error)
{
    return pmr_task_go_through(&phases, task, error);
}

static const pmr_algorithm exchange = {
    .name = "exchange",
    .kinds = PMR_KIND_BIT(PMR_ALLTOALL) | PMR_KIND_BIT(PMR_REDUCE_SCATTER) | PMR_KIND_BIT(PMR_ALLGATHER),
    .limit = limit,
    .bytes_max = SIZE_MAX,
    .step = step,
};
PMR_REGISTER_ALGORITHM(exchange);
