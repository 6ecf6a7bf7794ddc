/* SPDX-License-Identifier: Apache-2.0
 *
 * allreduce_sliced.c: long messages with a CPU for each rank: chunk by chunk, each rank reduces its slice.
 *
 * Nouns: the message is cut into *chunks* that fit the caches; a chunk into one *slice* per rank, its owner.
 * Chunk i of a rank is *staged* (all slices but the own one are copied to shared memory), then each owner
 * *reduces* its slice from its own array and the others' staging, into its own array and its staging, then
 * everyone *collects* the other slices. Iteration i stages chunk i, reduces chunk i - 1 and collects chunk i
 * - 2, so no rank waits for work that others only begin now. Bytes per rank: (5 - 2/size) * M, of which only
 * 2 M leave the caches.
 *
 * Why five chunk slots need no further flag: to stage chunk i a rank has reduced chunk i - 2, for which it
 * saw that all had staged chunk i - 2; who has staged chunk i - 2 has finished iteration i - 3, which
 * collected chunk i - 5. Between calls: even and odd calls use different halves of the staging (board.h).
 */
#include "coll/coll.h"

#define CHUNKS_WANTED    4u
#define CHUNK_BYTES_MIN  32768u
#define CHUNK_BYTES_BEST 262144u

static size_t limit(const pmr_comm *comm, pmr_kind kind)
{
    (void)kind;
    return comm->size > 1 && !comm->crowded ? SIZE_MAX : 0;
}

static void plan(pmr_task *task)
{
    size_t bytes = task->bytes / CHUNKS_WANTED;
    bytes = bytes < CHUNK_BYTES_MIN ? CHUNK_BYTES_MIN : bytes > CHUNK_BYTES_BEST ? CHUNK_BYTES_BEST : bytes;
    task->chunk_items = bytes / PMR_LINE * PMR_LINE / task->item_bytes;
    task->steps = (uint32_t)((task->call->count + task->chunk_items - 1) / task->chunk_items);
}

/* First item, within the chunk, of the slice that `rank` owns. */
static size_t slice_start(const pmr_task *task, size_t items, uint32_t rank)
{
    size_t per_line = PMR_LINE / task->item_bytes;
    size_t lines = (items + per_line - 1) / per_line;
    size_t start = lines * rank / task->comm->size * per_line;
    return start < items ? start : items;
}

static void stage(pmr_task *task, uint32_t chunk)
{
    pmr_comm *comm = task->comm;
    size_t items = pmr_task_items(task, chunk), item = task->item_bytes;
    const uint8_t *from = (const uint8_t *)task->call->send + (size_t)chunk * task->chunk_items * item;
    uint8_t *to = pmr_comm_chunk(comm, comm->rank, task->seq, chunk);
    size_t own = slice_start(task, items, comm->rank) * item,
           after = slice_start(task, items, comm->rank + 1) * item;
    memcpy(to, from, own);
    memcpy(to + after, from + after, items * item - after);
    task->staged = chunk + 1;
    pmr_flag_set(&comm->me->in, pmr_task_entry(task)->in_base + task->staged);
}

static void reduce_own(pmr_task *task, uint32_t chunk)
{
    pmr_comm *comm = task->comm;
    const pmr_call *call = task->call;
    size_t items = pmr_task_items(task, chunk), item = task->item_bytes;
    size_t start = slice_start(task, items, comm->rank), end = slice_start(task, items, comm->rank + 1);
    size_t at = ((size_t)chunk * task->chunk_items + start) * item;
    const void *source[PMR_WINDOW_RANKS_MAX];
    for (uint32_t rank = 0; rank < comm->size; rank++)
        source[rank] = rank == comm->rank ? (const uint8_t *)call->send + at
                                          : pmr_comm_chunk(comm, rank, task->seq, chunk) + start * item;
    if (end > start) {
        void *target[2] = {(uint8_t *)call->recv + at,
                           pmr_comm_chunk(comm, comm->rank, task->seq, chunk) + start * item};
        pmr_reduce_push(pmr_reduce_lookup(call->op, call->dtype), call->dtype, target, 2, source, comm->size,
                        end - start);
    }
    task->published = chunk + 1;
    pmr_flag_set(&comm->me->out, pmr_task_entry(task)->out_base + task->published);
}

static void collect(pmr_task *task, uint32_t chunk, uint32_t rank)
{
    pmr_comm *comm = task->comm;
    size_t items = pmr_task_items(task, chunk), item = task->item_bytes;
    size_t start = slice_start(task, items, rank), end = slice_start(task, items, rank + 1);
    memcpy((uint8_t *)task->call->recv + ((size_t)chunk * task->chunk_items + start) * item,
           pmr_comm_chunk(comm, rank, task->seq, chunk) + start * item, (end - start) * item);
}

/* Within an iteration task->cursor polls the members. */
static pmr_status await_staged(pmr_task *task, uint32_t chunks)
{
    pmr_comm *comm = task->comm;
    for (; task->cursor < comm->size; task->cursor++) {
        pmr_flag *in = &pmr_comm_member(comm, task->cursor)->in;
        uint32_t target = pmr_comm_entry(comm, task->cursor, task->seq)->in_base + chunks;
        if (task->cursor != comm->rank && !pmr_flag_reached(in, target))
            return pmr_task_want(task, in, target);
    }
    task->cursor = 0;
    return PMR_OK;
}

/* Collects the slices of one chunk as they become ready, in rank order behind the own one. */
static pmr_status collect_all(pmr_task *task, uint32_t chunk)
{
    pmr_comm *comm = task->comm;
    for (; task->cursor + 1 < comm->size; task->cursor++) {
        uint32_t rank = (comm->rank + 1 + task->cursor) % comm->size;
        pmr_flag *out = &pmr_comm_member(comm, rank)->out;
        uint32_t target = pmr_comm_entry(comm, rank, task->seq)->out_base + chunk + 1;
        if (!pmr_flag_reached(out, target))
            return pmr_task_want(task, out, target);
        collect(task, chunk, rank);
    }
    task->cursor = 0;
    return PMR_OK;
}

static pmr_status pipeline(pmr_task *task, pmr_error *error)
{
    (void)error;
    for (; task->steps > 0; task->step++) {
        uint32_t i = task->step;
        if (i < task->steps && task->staged <= i)
            stage(task, i);
        if (i >= 1 && i - 1 < task->steps && task->published <= i - 1) {
            pmr_status status = await_staged(task, i);
            if (status)
                return status;
            reduce_own(task, i - 1);
        }
        if (i >= 2) {
            pmr_status status = collect_all(task, i - 2);
            if (status)
                return status;
            if (i - 1 == task->steps)
                break;
        }
    }
    return PMR_OK;
}

static pmr_status enter(pmr_task *task)
{
    pmr_comm *comm = task->comm;
    uint32_t half = task->seq % 2;
    task->exposed = pmr_task_in_heap(task, task->bytes, task->bytes);
    pmr_status status = pmr_task_drain(task, comm->half_busy[half]);
    if (status)
        return status;
    plan(task);
    task->staged = task->published = 0;
    pmr_entry *entry = pmr_task_entry(task);
    entry->style = PMR_STYLE_STAGED;
    entry->in_base = atomic_load_explicit(&comm->me->in.value, memory_order_relaxed);
    entry->out_base = atomic_load_explicit(&comm->me->out.value, memory_order_relaxed);
    if (task->exposed)
        pmr_task_expose(task, entry);
    pmr_task_enter(task, entry);
    comm->half_busy[half] = task->seq;
    if (!task->exposed && task->steps)
        stage(task, 0);
    return PMR_OK;
}

static void settle(pmr_task *task)
{
    if (task->exposed && pmr_task_exposed_ranks(task) == task->comm->size)
        task->phase = PMR_PHASE_IN_PLACE;
}

static const pmr_phases phases = {.enter = enter, .settle = settle, .work = pipeline};

static pmr_status step(pmr_task *task, pmr_error *error)
{
    return pmr_task_go_through(&phases, task, error);
}

static const pmr_algorithm sliced = {
    .name = "sliced",
    .kinds = PMR_KIND_BIT(PMR_ALLREDUCE),
    .limit = limit,
    .bytes_max = SIZE_MAX,
    .step = step,
};
PMR_REGISTER_ALGORITHM(sliced);
