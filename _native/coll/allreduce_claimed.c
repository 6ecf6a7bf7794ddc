/* SPDX-License-Identifier: Apache-2.0
 *
 * allreduce_claimed.c: long messages with more ranks than CPUs: whoever runs takes the next slice.
 *
 * Nouns: a *chunk* of the message fits the shared caches; it is cut into *slices* that ranks *claim* by an
 * atomic counter, so the ranks that happen to run do all the reducing and the others need only be scheduled
 * to copy their own data. A rank stages chunk i + 1 before it claims slices of chunk i, and so works on two
 * chunks whenever it runs. The last rank to stage a chunk opens its claims; the one that finishes its last
 * slice marks it ready, and everyone copies it out. Bytes per rank: M staged, M reduced (size reads, one
 * write each 1/size of the time), M copied out. Arrays that all lie in the heap are claimed as they are, in
 * one chunk, and results are written into all of them: M read, M written per rank. Bits do not depend on who
 * reduces a slice.
 *
 * Reuse, with two benches per rank and two results: a rank puts chunk i + 1 where chunk i - 1 was after it
 * saw chunk i - 1 ready, so all of it had been read; and slices of chunk i + 1 are reduced only when all have
 * arrived at it, which each did after it had copied out chunk i - 1. The same holds from call to call, so
 * nothing needs to be drained.
 */
#include "coll/coll.h"

enum { ENTER = 0, MEET, LATE_STAGE, CLAIM, COLLECT };
#define CHUNK_BYTES      131072u /* of a long message: the benches of all ranks stay in the caches */
#define SINGLE_BYTES_MAX 524288u /* up to here one chunk: fewer meetings count for more */
#define SLICE_BYTES      16384u

static size_t limit(const pmr_comm *comm, pmr_kind kind)
{
    (void)kind;
    return comm->size > 1 && comm->crowded ? SIZE_MAX : 0;
}

static size_t slice_items(const pmr_task *task)
{
    return SLICE_BYTES / task->item_bytes;
}

static uint32_t slices_of(const pmr_task *task, uint32_t chunk)
{
    return (uint32_t)((pmr_task_items(task, chunk) + slice_items(task) - 1) / slice_items(task));
}

static pmr_claims *claims_of(const pmr_task *task, uint32_t chunk)
{
    return &task->comm->board->claims[chunk % 2];
}

/* Number of the chunk's meeting: unique among all chunks of all calls. */
static uint32_t meeting_of(const pmr_task *task, uint32_t chunk)
{
    return task->first_slices + chunk;
}

/* By the last rank that staged the chunk. */
static void open_claims(pmr_task *task, uint32_t chunk)
{
    pmr_claims *claims = claims_of(task, chunk);
    atomic_store_explicit(&claims->finished, 0, memory_order_relaxed);
    atomic_store_explicit(&claims->next, (uint64_t)meeting_of(task, chunk) << 32, memory_order_release);
}

static void stage(pmr_task *task, uint32_t chunk)
{
    pmr_comm *comm = task->comm;
    size_t bytes = pmr_task_items(task, chunk) * task->item_bytes;
    memcpy(pmr_comm_bench(comm, comm->rank, chunk),
           (const uint8_t *)task->call->send + (size_t)chunk * task->chunk_items * task->item_bytes, bytes);
    task->staged = chunk + 1;
}

/* Chunks behind the first have gates of their own; whoever completes one opens its claims. */
static void stage_and_arrive(pmr_task *task, uint32_t chunk)
{
    pmr_comm *comm = task->comm;
    stage(task, chunk);
    uint32_t slot = chunk % 2;
    pmr_gate *gate = &comm->board->gate[PMR_GATE_CHUNK + slot];
    uint32_t number = ++comm->chunk_meetings[slot];
    if (atomic_fetch_add_explicit(&gate->arrived, 1, memory_order_acq_rel) + 1 == number * comm->size) {
        open_claims(task, chunk);
        pmr_flag_set(&gate->open, number);
    }
}

/* The number that the gate of a staged chunk opens with: stages behind it in the same slot do not exist yet. */
static pmr_status await_chunk(pmr_task *task, uint32_t chunk)
{
    if (chunk == 0)
        return PMR_OK; /* the meeting of the call */
    uint32_t slot = chunk % 2;
    pmr_flag *open = &task->comm->board->gate[PMR_GATE_CHUNK + slot].open;
    uint32_t number = task->comm->chunk_meetings[slot];
    return pmr_flag_reached(open, number) ? PMR_OK : pmr_task_want(task, open, number);
}

/* The next slice of the chunk, or false when all are claimed. */
static bool claim(pmr_task *task, uint32_t chunk, uint32_t slices, uint32_t *slice_out)
{
    pmr_claims *claims = claims_of(task, chunk);
    uint64_t next = atomic_load_explicit(&claims->next, memory_order_acquire);
    while ((uint32_t)(next >> 32) == meeting_of(task, chunk) && (uint32_t)next < slices)
        if (atomic_compare_exchange_weak_explicit(&claims->next, &next, next + 1, memory_order_acq_rel,
                                                  memory_order_acquire)) {
            *slice_out = (uint32_t)next;
            return true;
        }
    return false;
}

static void reduce_slice(const pmr_task *task, uint32_t chunk, uint32_t slice)
{
    pmr_comm *comm = task->comm;
    const pmr_call *call = task->call;
    size_t start = slice * slice_items(task), items = pmr_task_items(task, chunk) - start;
    if (items > slice_items(task))
        items = slice_items(task);
    const void *source[PMR_WINDOW_RANKS_MAX];
    void *target[PMR_WINDOW_RANKS_MAX];
    size_t at = start * task->item_bytes;
    for (uint32_t rank = 0; rank < comm->size; rank++) {
        if (task->exposed) {
            const pmr_entry *entry = pmr_comm_entry(comm, rank, task->seq);
            source[rank] = (uint8_t *)pmr_comm_address(comm, entry->send_offset) + at;
            target[rank] = (uint8_t *)pmr_comm_address(comm, entry->recv_offset) + at;
        } else {
            source[rank] = pmr_comm_bench(comm, rank, chunk) + at;
        }
    }
    pmr_reduce_fn reduce = pmr_reduce_lookup(call->op, call->dtype);
    if (task->exposed)
        pmr_reduce_push(reduce, call->dtype, target, comm->size, source, comm->size, items);
    else
        reduce(pmr_comm_result(comm, chunk) + at, source, comm->size, items);
}

static void work(pmr_task *task, uint32_t chunk)
{
    pmr_claims *claims = claims_of(task, chunk);
    uint32_t slices = slices_of(task, chunk), slice;
    while (claim(task, chunk, slices, &slice)) {
        reduce_slice(task, chunk, slice);
        if (atomic_fetch_add_explicit(&claims->finished, 1, memory_order_acq_rel) + 1 == slices)
            pmr_flag_set(&claims->ready, meeting_of(task, chunk));
    }
}

static pmr_status await_ready(pmr_task *task, uint32_t chunk)
{
    pmr_flag *ready = &claims_of(task, chunk)->ready;
    uint32_t meeting = meeting_of(task, chunk);
    return pmr_flag_reached(ready, meeting) ? PMR_OK : pmr_task_want(task, ready, meeting);
}

/* ---- the phases ---- */

static pmr_status enter(pmr_task *task)
{
    pmr_status status = pmr_task_drain(task, task->seq - PMR_ENTRY_SLOTS);
    if (status)
        return status;
    bool exposed = pmr_task_in_heap(task, task->bytes, task->bytes);
    task->exposed = false;
    task->staged = 0;
    task->chunk_items = (task->bytes <= SINGLE_BYTES_MAX ? SINGLE_BYTES_MAX : CHUNK_BYTES) / task->item_bytes;
    task->steps = (uint32_t)((task->call->count + task->chunk_items - 1) / task->chunk_items);
    pmr_entry *entry = pmr_task_entry(task);
    if (exposed) {
        pmr_task_expose(task, entry);
    } else {
        entry->style = PMR_STYLE_STAGED;
        stage(task, 0);
    }
    pmr_task_enter(task, entry);
    return PMR_OK;
}

/* Behind the meeting: whether all arrays lie in the heap decides what the one chunk is. Where only some do,
 * their ranks stage now, and all meet once more before the first claim. True: go on; false: meet. */
static bool settle(pmr_task *task)
{
    uint32_t exposed = pmr_task_exposed_ranks(task);
    task->exposed = exposed == task->comm->size;
    if (task->exposed) {
        task->chunk_items = task->call->count;
        task->steps = task->call->count > 0;
    }
    if (task->exposed || exposed == 0)
        return true;
    if (task->staged == 0)
        stage(task, 0);
    return false;
}

static pmr_status run_chunks(pmr_task *task)
{
    pmr_comm *comm = task->comm;
    for (; task->step < task->steps; task->step++, task->phase = CLAIM) {
        uint32_t chunk = task->step;
        pmr_status status;
        if (task->phase == CLAIM) {
            if (!task->exposed && task->staged == chunk + 1 && chunk + 1 < task->steps)
                stage_and_arrive(task, chunk + 1);
            status = await_chunk(task, chunk);
            if (status)
                return status;
            work(task, chunk);
            task->phase = COLLECT;
        }
        status = await_ready(task, chunk);
        if (status)
            return status;
        if (!task->exposed)
            memcpy((uint8_t *)task->call->recv + (size_t)chunk * task->chunk_items * task->item_bytes,
                   pmr_comm_result(comm, chunk), pmr_task_items(task, chunk) * task->item_bytes);
    }
    return PMR_OK;
}

/* Arrives at the call's meeting; the last rank verifies and opens the first chunk's claims. */
static pmr_status meet(pmr_task *task, pmr_error *error)
{
    pmr_comm *comm = task->comm;
    task->first_slices = comm->slice_meetings + 1;
    comm->slice_meetings += task->steps;
    if (!pmr_task_arrive(task))
        return PMR_OK;
    pmr_status status = pmr_task_verify(task, error);
    if (status)
        return status;
    open_claims(task, 0);
    pmr_task_open(task);
    return PMR_OK;
}

static pmr_status step(pmr_task *task, pmr_error *error)
{
    pmr_status status;
    if (task->phase == ENTER) {
        status = enter(task);
        if (!status)
            status = meet(task, error);
        if (status)
            return status;
        task->phase = MEET;
    }
    if (task->phase == MEET) {
        status = pmr_task_await_open(task);
        if (status)
            return status;
        task->phase = CLAIM;
        if (!settle(task)) {
            pmr_task_round_begin(task);
            task->phase = LATE_STAGE;
        }
    }
    if (task->phase == LATE_STAGE) {
        status = pmr_task_round(task);
        if (status)
            return status;
        task->phase = CLAIM;
    }
    return run_chunks(task);
}

static const pmr_algorithm claimed = {
    .name = "claimed",
    .kinds = PMR_KIND_BIT(PMR_ALLREDUCE),
    .limit = limit,
    .bytes_max = SIZE_MAX,
    .step = step,
};
PMR_REGISTER_ALGORITHM(claimed);
