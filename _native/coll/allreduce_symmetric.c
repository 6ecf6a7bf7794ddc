/* SPDX-License-Identifier: Apache-2.0
 *
 * allreduce_symmetric.c: everyone copies its message into its slot and reduces everyone's.
 *
 * One meeting. Bytes per rank: M copied in, size * M read, M written; worth it while the meeting costs more than the
 * extra reads. Arrays in the heap are reduced in place instead where all are (in_place.c); where only some are, those
 * ranks copy after the meeting, and a second one follows.
 */
#include "coll/coll.h"

enum { ENTER = 0, GATHER, LATE_COPY, IN_PLACE = 100 };

static size_t limit(const pmr_comm *comm, pmr_kind kind)
{
    (void)kind;
    return comm->size > 1 && !comm->crowded ? PMR_SLOT_BYTES : 0;
}

static void contribute(pmr_task *task)
{
    pmr_comm *comm = task->comm;
    const pmr_call *call = task->call;
    pmr_entry *entry = pmr_task_entry(task);
    task->exposed = pmr_task_in_heap(task, task->bytes, task->bytes);
    if (task->exposed) {
        entry->style = PMR_STYLE_EXPOSED;
        entry->send_offset = pmr_comm_offset(comm, call->send);
        entry->recv_offset = pmr_comm_offset(comm, call->recv);
    } else {
        entry->style = PMR_STYLE_SLOT;
        memcpy(pmr_comm_slot(comm, comm->rank, task->seq), call->send, task->bytes);
    }
    pmr_task_enter(task, entry);
}

static uint32_t count_exposed(const pmr_task *task)
{
    uint32_t exposed = 0;
    for (uint32_t rank = 0; rank < task->comm->size; rank++)
        exposed += pmr_comm_entry(task->comm, rank, task->seq)->style == PMR_STYLE_EXPOSED;
    return exposed;
}

static void reduce_slots(pmr_task *task)
{
    pmr_comm *comm = task->comm;
    const pmr_call *call = task->call;
    const void *source[PMR_WINDOW_RANKS_MAX];
    for (uint32_t rank = 0; rank < comm->size; rank++)
        source[rank] = rank == comm->rank ? call->send : pmr_comm_slot(comm, rank, task->seq);
    pmr_reduce_lookup(call->op, call->dtype)(call->recv, source, comm->size, call->count);
}

static pmr_status step(pmr_task *task, pmr_error *error)
{
    pmr_comm *comm = task->comm;
    pmr_status status;
    if (task->phase == ENTER) {
        status = pmr_task_drain(task, task->seq - PMR_ENTRY_SLOTS);
        if (status)
            return status;
        contribute(task);
        task->phase = GATHER;
    }
    if (task->phase == GATHER) {
        status = pmr_task_gather(task, error);
        if (status)
            return status;
        uint32_t exposed = count_exposed(task);
        if (exposed == comm->size)
            return pmr_in_place_step(task);
        if (exposed == 0) {
            reduce_slots(task);
            return PMR_OK;
        }
        if (task->exposed)
            memcpy(pmr_comm_slot(comm, comm->rank, task->seq), task->call->send, task->bytes);
        pmr_task_round_begin(task);
        task->phase = LATE_COPY;
    }
    if (task->phase >= IN_PLACE)
        return pmr_in_place_step(task);
    status = pmr_task_round(task);
    if (!status)
        reduce_slots(task);
    return status;
}

static const pmr_algorithm symmetric = {
    .name = "symmetric",
    .kinds = PMR_KIND_BIT(PMR_ALLREDUCE),
    .limit = limit,
    .bytes_max = PMR_SLOT_BYTES,
    .step = step,
};
PMR_REGISTER_ALGORITHM(symmetric);
