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

enum { SHOW = PMR_PHASE_WORK, AWAIT };

#define CHUNK_BYTES 65536u
#define BYTES_BEST  32768u /* above it, with three ranks and more, slices move less */

static size_t limit(const pmr_comm *comm, pmr_kind kind)
{
    (void)kind;
    if (comm->size < 2 || comm->crowded)
        return 0;
    return comm->size == 2 ? SIZE_MAX - 1 : BYTES_BEST;
}

static void show(pmr_task *task, uint32_t chunk)
{
    pmr_comm *comm = task->comm;
    memcpy(pmr_comm_turn(comm, comm->rank, comm->turns + chunk),
           (const uint8_t *)task->call->send + (size_t)chunk * task->chunk_items * task->item_bytes,
           pmr_task_items(task, chunk) * task->item_bytes);
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
                                             pmr_task_items(task, chunk));
}

static pmr_status enter(pmr_task *task)
{
    task->chunk_items = CHUNK_BYTES / task->item_bytes;
    task->steps = (uint32_t)((task->call->count + task->chunk_items - 1) / task->chunk_items);
    task->staged = 0;
    pmr_entry *entry = pmr_task_entry(task);
    if (pmr_task_in_heap(task, task->bytes, task->bytes)) {
        pmr_task_expose(task, entry);
    } else {
        entry->style = PMR_STYLE_SLOT;
        if (task->steps)
            show(task, 0);
    }
    pmr_task_enter(task, entry);
    return PMR_OK;
}

static pmr_status run_chunks(pmr_task *task, pmr_error *error)
{
    (void)error;
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

static void settle(pmr_task *task)
{
    uint32_t exposed = pmr_task_exposed_ranks(task);
    if (exposed == task->comm->size) {
        task->phase = PMR_PHASE_IN_PLACE;
    } else if (exposed == 0 && task->steps) { /* who has entered has shown its first chunk */
        reduce_chunk(task, 0);
        task->step = 1;
    }
}

static const pmr_phases phases = {.enter = enter, .settle = settle, .work = run_chunks};

static pmr_status step(pmr_task *task, pmr_error *error)
{
    return pmr_task_go_through(&phases, task, error);
}

static const pmr_algorithm symmetric = {
    .name = "symmetric",
    .kinds = PMR_KIND_BIT(PMR_ALLREDUCE),
    .limit = limit,
    .bytes_max = SIZE_MAX,
    .step = step,
};
PMR_REGISTER_ALGORITHM(symmetric);
