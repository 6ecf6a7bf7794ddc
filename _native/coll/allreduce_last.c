/* SPDX-License-Identifier: Apache-2.0
 *
 * allreduce_last.c: the last to arrive reduces for all and publishes once.
 *
 * Each rank leaves its contribution (in the entry, on its bench, or where it lies in the heap), arrives at
 * the gate and waits for it alone: with more ranks than CPUs it runs once per call. The last reads size * M
 * bytes and writes M, the others read M. One bench and one result are enough: who leaves the call knows that
 * its bench was read, and the next result is written only when all have arrived with the last one in hand.
 * Where every array lies in the heap it writes the results straight into them.
 */
#include "coll/coll.h"

#define BYTES_MAX 16384u

static size_t limit(const pmr_comm *comm, pmr_kind kind)
{
    (void)kind;
    return comm->size > 1 && comm->crowded ? BYTES_MAX : 0;
}

static void contribute(pmr_task *task)
{
    pmr_comm *comm = task->comm;
    const pmr_call *call = task->call;
    pmr_entry *entry = pmr_task_entry(task);
    if (task->bytes <= PMR_INLINE_BYTES) {
        entry->style = PMR_STYLE_INLINE;
        memcpy(entry->payload, call->send, task->bytes);
    } else if (pmr_task_in_heap(task, task->bytes, task->bytes)) {
        pmr_task_expose(task, entry);
    } else {
        entry->style = PMR_STYLE_SLOT;
        memcpy(pmr_comm_bench(comm, comm->rank, 0), call->send, task->bytes);
    }
    pmr_task_enter(task, entry);
}

static void reduce_for_all(pmr_task *task)
{
    pmr_comm *comm = task->comm;
    const pmr_call *call = task->call;
    const void *source[PMR_WINDOW_RANKS_MAX];
    void *target[PMR_WINDOW_RANKS_MAX];
    uint32_t exposed = 0;
    for (uint32_t rank = 0; rank < comm->size; rank++) {
        pmr_entry *entry = pmr_comm_entry(comm, rank, task->seq);
        if (entry->style == PMR_STYLE_INLINE) {
            source[rank] = entry->payload;
        } else if (entry->style == PMR_STYLE_SLOT) {
            source[rank] = pmr_comm_bench(comm, rank, 0);
        } else {
            source[rank] = pmr_comm_address(comm, entry->send_offset);
            target[exposed++] = pmr_comm_address(comm, entry->recv_offset);
        }
    }
    pmr_reduce_fn reduce = pmr_reduce_lookup(call->op, call->dtype);
    if (exposed == comm->size)
        pmr_reduce_push(reduce, call->dtype, target, exposed, source, comm->size, call->count);
    else
        reduce(pmr_comm_result(comm, 0), source, comm->size, call->count);
}

static pmr_status step(pmr_task *task, pmr_error *error)
{
    pmr_comm *comm = task->comm;
    const pmr_call *call = task->call;
    pmr_status status;
    if (task->phase == 0) {
        status = pmr_task_drain(task, task->seq - PMR_ENTRY_SLOTS);
        if (status)
            return status;
        contribute(task);
        task->phase = 1;
        if (pmr_task_arrive(task)) {
            status = pmr_task_verify(task, error);
            if (status)
                return status;
            if (task->bytes)
                reduce_for_all(task);
            pmr_task_open(task);
        }
    }
    status = pmr_task_await_open(task);
    if (status || task->bytes == 0)
        return status;
    if (pmr_task_exposed_ranks(task) != comm->size)
        memcpy(call->recv, pmr_comm_result(comm, 0), task->bytes);
    return PMR_OK;
}

static const pmr_algorithm last = {
    .name = "last",
    .kinds = PMR_KIND_BIT(PMR_ALLREDUCE),
    .limit = limit,
    .bytes_max = BYTES_MAX,
    .step = step,
};
PMR_REGISTER_ALGORITHM(last);
