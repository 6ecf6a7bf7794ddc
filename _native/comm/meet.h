/* SPDX-License-Identifier: Apache-2.0
 *
 * meet.h: entering a call, and the ways of waiting for the others in it.
 *
 * *Enter* publishes this rank's entry. *Gather* polls the members' entries one by one: with a CPU for each
 * rank nothing is faster. *Arrive* counts ranks at the gate and lets the last one act for all: with more
 * ranks than CPUs each rank then runs once per call. *Drain* waits until the members have completed an
 * earlier call, so that its memory is free. All are steps: they return PMR_PENDING with task->want set where
 * they would have to wait. Invariant: no user data is written before the fingerprints of all ranks that
 * matter to this one were compared.
 */
#ifndef PMR_COMM_MEET_H
#define PMR_COMM_MEET_H

#include "comm/communicator.h"

static inline pmr_status pmr_task_want(pmr_task *task, pmr_flag *flag, uint32_t target)
{
    task->want.flag = flag;
    task->want.target = target;
    return PMR_PENDING;
}

/* This rank's entry of the call, to be filled before pmr_task_enter. */
static inline pmr_entry *pmr_task_entry(const pmr_task *task)
{
    return &task->comm->me->entry[task->seq % PMR_ENTRY_SLOTS];
}

static inline void pmr_task_enter(pmr_task *task, pmr_entry *entry)
{
    entry->fingerprint = task->fingerprint;
    pmr_flag_set(&entry->seq, task->seq);
}

/* The entry of `rank` in this call, or NULL while it has not entered (task->want is then set).
 * *status_out: PMR_PENDING, or PMR_ERR_MISMATCH. */
static inline const pmr_entry *pmr_task_look(pmr_task *task, uint32_t rank, pmr_status *status_out,
                                             pmr_error *error)
{
    pmr_entry *entry = pmr_comm_entry(task->comm, rank, task->seq);
    if (!pmr_flag_reached(&entry->seq, task->seq)) {
        *status_out = pmr_task_want(task, &entry->seq, task->seq);
        return NULL;
    }
    if (entry->fingerprint != task->fingerprint) {
        *status_out = pmr_comm_mismatch(task, rank, error);
        return NULL;
    }
    return entry;
}

/* All members have entered, with the same fingerprint. Leaves task->cursor at 0 when it succeeds. */
static inline pmr_status pmr_task_gather(pmr_task *task, pmr_error *error)
{
    pmr_status status = PMR_OK;
    for (; task->cursor < task->comm->size; task->cursor++)
        if (!pmr_task_look(task, task->cursor, &status, error))
            return status;
    task->cursor = 0;
    task->comm->floor = task->seq - 1;
    return PMR_OK;
}

/* Counts this rank at the gate. True: it is the last; it must verify, act and pmr_task_open. */
static inline bool pmr_task_arrive(pmr_task *task)
{
    pmr_comm *comm = task->comm;
    task->meeting = ++comm->meetings;
    uint32_t arrived =
        atomic_fetch_add_explicit(&comm->board->gate[PMR_GATE_MEET].arrived, 1, memory_order_acq_rel) + 1;
    return arrived == task->meeting * comm->size;
}

/* By the last: all fingerprints agree. */
static inline pmr_status pmr_task_verify(pmr_task *task, pmr_error *error)
{
    for (uint32_t rank = 0; rank < task->comm->size; rank++)
        if (pmr_comm_entry(task->comm, rank, task->seq)->fingerprint != task->fingerprint ||
            !pmr_flag_reached(&pmr_comm_entry(task->comm, rank, task->seq)->seq, task->seq))
            return pmr_comm_mismatch(task, rank, error);
    return PMR_OK;
}

static inline void pmr_task_open(pmr_task *task)
{
    task->comm->floor = task->seq - 1;
    pmr_flag_set(&task->comm->board->gate[PMR_GATE_MEET].open, task->meeting);
}

static inline pmr_status pmr_task_await_open(pmr_task *task)
{
    pmr_flag *open = &task->comm->board->gate[PMR_GATE_MEET].open;
    if (!pmr_flag_reached(open, task->meeting))
        return pmr_task_want(task, open, task->meeting);
    task->comm->floor = task->seq - 1;
    return PMR_OK;
}

/* Second meeting, member by member: nobody passes before all called it. Begin, then poll. */
static inline void pmr_task_round_begin(pmr_task *task)
{
    pmr_comm *comm = task->comm;
    task->meeting = ++comm->rounds;
    task->cursor = 0;
    pmr_flag_set(&comm->me->round, task->meeting);
}

static inline pmr_status pmr_task_round(pmr_task *task)
{
    for (; task->cursor < task->comm->size; task->cursor++) {
        pmr_flag *round = &pmr_comm_member(task->comm, task->cursor)->round;
        if (!pmr_flag_reached(round, task->meeting))
            return pmr_task_want(task, round, task->meeting);
    }
    task->cursor = 0;
    return PMR_OK;
}

/* All members have completed call `seq`: uses task->cursor. Only for calls after which everyone raises `done`
 * (see pmr_task_leave) or meets again. */
static inline pmr_status pmr_task_drain(pmr_task *task, uint32_t seq)
{
    pmr_comm *comm = task->comm;
    if ((int32_t)(comm->floor - seq) >= 0)
        return PMR_OK;
    for (; task->cursor < comm->size; task->cursor++) {
        if (task->cursor == comm->rank)
            continue;
        pmr_flag *done = &pmr_comm_member(comm, task->cursor)->done;
        if (!pmr_flag_reached(done, seq))
            return pmr_task_want(task, done, seq);
    }
    task->cursor = 0;
    comm->floor = seq;
    return PMR_OK;
}

/* This rank needs nothing more of the others' memory in this call. */
static inline void pmr_task_leave(pmr_task *task)
{
    pmr_flag_set(&task->comm->me->done, task->seq);
}

#endif
