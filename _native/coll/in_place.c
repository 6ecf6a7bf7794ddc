/* SPDX-License-Identifier: Apache-2.0
 *
 * in_place.c: allreduce of arrays that all local ranks can reach: each rank owns a slice, reads it from every
 * array and writes the result into every array.
 *
 * Two meetings: all have entered (before this step), all have finished. Bytes: M read and M written per rank,
 * the least there can be. Owners are fixed, so that a slice stays in its owner's cache from call to call.
 * Invariant: an owner has read a block of every array before it writes that block of any.
 */
#include "coll/coll.h"

enum { BEGIN = PMR_PHASE_IN_PLACE, FINISH };

static void reduce_own_slice(pmr_task *task)
{
    pmr_comm *comm = task->comm;
    const pmr_call *call = task->call;
    size_t items_per_line = PMR_LINE / task->item_bytes;
    size_t lines = (call->count + items_per_line - 1) / items_per_line;
    size_t first = lines * comm->rank / comm->size * items_per_line;
    size_t end = lines * (comm->rank + 1) / comm->size * items_per_line;
    if (end > call->count)
        end = call->count;
    if (first >= end)
        return;
    const void *source[PMR_WINDOW_RANKS_MAX];
    void *target[PMR_WINDOW_RANKS_MAX];
    for (uint32_t rank = 0; rank < comm->size; rank++) {
        const pmr_entry *entry = pmr_comm_entry(comm, rank, task->seq);
        source[rank] = (uint8_t *)pmr_comm_address(comm, entry->send_offset) + first * task->item_bytes;
        target[rank] = (uint8_t *)pmr_comm_address(comm, entry->recv_offset) + first * task->item_bytes;
    }
    pmr_reduce_push(pmr_reduce_lookup(call->op, call->dtype), call->dtype, target, comm->size, source,
                    comm->size, end - first);
}

pmr_status pmr_in_place_step(pmr_task *task)
{
    if (task->phase == BEGIN) {
        reduce_own_slice(task);
        pmr_task_round_begin(task);
        task->phase = FINISH;
    }
    return pmr_task_round(task);
}
