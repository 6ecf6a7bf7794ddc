/* SPDX-License-Identifier: Apache-2.0
 *
 * allreduce_flat.c: the message travels in the entry itself.
 *
 * One phase, one cache line per rank: the line that says "I have entered" carries the data, so a rank that
 * has seen all entries has all contributions, and reduces them for itself in canonical order.
 */
#include "coll/coll.h"

static size_t limit(const pmr_comm *comm, pmr_kind kind)
{
    (void)kind;
    return comm->size > 1 && !comm->crowded ? PMR_INLINE_BYTES : 0;
}

static pmr_status step(pmr_task *task, pmr_error *error)
{
    pmr_comm *comm = task->comm;
    const pmr_call *call = task->call;
    if (task->phase == 0) {
        pmr_status status = pmr_task_drain(task, task->seq - PMR_ENTRY_SLOTS);
        if (status)
            return status;
        pmr_entry *entry = pmr_task_entry(task);
        entry->style = PMR_STYLE_INLINE;
        memcpy(entry->payload, call->send, task->bytes);
        pmr_task_enter(task, entry);
        task->phase = 1;
    }
    pmr_status status = pmr_task_gather(task, error);
    if (status || task->bytes == 0)
        return status;
    const void *source[PMR_WINDOW_RANKS_MAX];
    for (uint32_t rank = 0; rank < comm->size; rank++)
        source[rank] = pmr_comm_entry(comm, rank, task->seq)->payload;
    alignas(16) uint8_t result[PMR_INLINE_BYTES];
    pmr_reduce_lookup(call->op, call->dtype)(result, source, comm->size, call->count);
    memcpy(call->recv, result, task->bytes);
    return PMR_OK;
}

static const pmr_algorithm flat = {
    .name = "flat",
    .kinds = PMR_KIND_BIT(PMR_ALLREDUCE),
    .limit = limit,
    .bytes_max = PMR_INLINE_BYTES,
    .step = step,
};
PMR_REGISTER_ALGORITHM(flat);
