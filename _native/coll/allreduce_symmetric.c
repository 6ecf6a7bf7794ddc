/* SPDX-License-Identifier: Apache-2.0
 *
 * allreduce_symmetric.c: chunk by chunk, everyone shows its chunk and reduces everyone's.
 *
 * One meeting per chunk. Bytes per rank: M copied to shared memory, size * M read, M written: for two ranks
 * as little as cutting into slices would move, with half the meetings; for more, worth it while a meeting
 * costs more than the extra reads. Arrays that all lie in the heap are reduced in place instead (in_place.c);
 * where only some do, their ranks show their first chunk after all have entered.
 *
 * Chunks are numbered through all calls; chunk n lies in turn n % 2 of its rank. Why two are enough: a rank
 * shows chunk n after it saw that all had shown chunk n - 1, which each did after it had reduced chunk n - 2.
 * Two ranks swap their turns each time.
 */
#include "coll/coll.h"

enum { ENTER = 0, GATHER, SHOW, AWAIT, IN_PLACE = 100 };

#define CHUNK_BYTES 65536u
#define BYTES_BEST  32768u /* above it, with three ranks and more, slices move less */

static size_t limit(const pmr_comm *comm, pmr_kind kind)
{
    (void)kind;
    if (comm->size < 2 || comm->crowded)
        return 0;
    return comm->size == 2 ? SIZE_MAX - 1 : BYTES_BEST;
}

static size_t items_of(const pmr_task *task, uint32_t chunk)
{
    size_t left = task->call->count - (size_t)chunk * task->chunk_items;
    return left < task->chunk_items ? left : task->chunk_items;
}

static void show(pmr_task *task, uint32_t chunk)
{
    pmr_comm *comm = task->comm;
    memcpy(pmr_comm_turn(comm, comm->rank, comm->turns + chunk),
           (const uint8_t *)task->call->send + (size_t)chunk * task->chunk_items * task->item_bytes,
           items_of(task, chunk) * task->item_bytes);
    task->staged = chunk + 1;
}

static void raise_turn(pmr_task *task)
{
    pmr_flag_set(&task->comm->me->turn, task->comm->turns + task->staged);
}

static pmr_status await_chunk(pmr_task *task, uint32_t chunk)
{
    pmr_comm *comm = task->comm;
    uint32_t target = comm->turns + chunk + 1;
    for (; task->cursor < comm->size; task->cursor++) {
        pmr_flag *turn = &pmr_comm_member(comm, task->cursor)->turn;
        if (task->cursor != comm->rank && !pmr_flag_reached(turn, target))
            return pmr_task_want(task, turn, target);
    }
    task->cursor = 0;
    return PMR_OK;
}

static void reduce_chunk(const pmr_task *task, uint32_t chunk)
{
    pmr_comm *comm = task->comm;
    const pmr_call *call = task->call;
    size_t at = (size_t)chunk * task->chunk_items * task->item_bytes;
    const void *source[PMR_WINDOW_RANKS_MAX];
    for (uint32_t rank = 0; rank < comm->size; rank++)
        source[rank] = rank == comm->rank ? (const uint8_t *)call->send + at
                                          : pmr_comm_turn(comm, rank, comm->turns + chunk);
    pmr_reduce_lookup(call->op, call->dtype)((uint8_t *)call->recv + at, source, comm->size,
                                             items_of(task, chunk));
}

static pmr_status enter(pmr_task *task)
{
    pmr_comm *comm = task->comm;
    const pmr_call *call = task->call;
    pmr_status status = pmr_task_drain(task, task->seq - PMR_ENTRY_SLOTS);
    if (status)
        return status;
    task->chunk_items = CHUNK_BYTES / task->item_bytes;
    task->steps = (uint32_t)((call->count + task->chunk_items - 1) / task->chunk_items);
    task->staged = 0;
    pmr_entry *entry = pmr_task_entry(task);
    if (pmr_task_in_heap(task, task->bytes, task->bytes)) {
        entry->style = PMR_STYLE_EXPOSED;
        entry->send_offset = pmr_comm_offset(comm, call->send);
        entry->recv_offset = pmr_comm_offset(comm, call->recv);
    } else {
        entry->style = PMR_STYLE_SLOT;
        if (task->steps)
            show(task, 0);
    }
    pmr_task_enter(task, entry);
    return PMR_OK;
}

static pmr_status run_chunks(pmr_task *task)
{
    for (; task->step < task->steps; task->step++, task->phase = SHOW) {
        if (task->phase == SHOW) {
            if (task->staged == task->step)
                show(task, task->step);
            raise_turn(task);
            task->phase = AWAIT;
        }
        pmr_status status = await_chunk(task, task->step);
        if (status)
            return status;
        reduce_chunk(task, task->step);
    }
    task->comm->turns += task->steps;
    return PMR_OK;
}

static pmr_status step(pmr_task *task, pmr_error *error)
{
    pmr_status status;
    if (task->phase == ENTER) {
        status = enter(task);
        if (status)
            return status;
        task->phase = GATHER;
    }
    if (task->phase == GATHER) {
        status = pmr_task_gather(task, error);
        if (status)
            return status;
        uint32_t exposed = pmr_task_exposed_ranks(task);
        if (exposed == task->comm->size)
            return pmr_in_place_step(task);
        task->phase = SHOW;
        if (exposed == 0 && task->steps) { /* who has entered has shown its first chunk */
            reduce_chunk(task, 0);
            task->step = 1;
        }
    }
    if (task->phase >= IN_PLACE)
        return pmr_in_place_step(task);
    return run_chunks(task);
}

static const pmr_algorithm symmetric = {
    .name = "symmetric",
    .kinds = PMR_KIND_BIT(PMR_ALLREDUCE),
    .limit = limit,
    .bytes_max = SIZE_MAX,
    .step = step,
};
PMR_REGISTER_ALGORITHM(symmetric);
