/* SPDX-License-Identifier: Apache-2.0
 *
 * barrier_last.c: the last to arrive opens the gate for all.
 *
 * One atomic addition per rank and one line that all wait for: with more ranks than CPUs, each rank has to
 * run once per barrier and is not woken before the gate is open.
 */
#include "coll/coll.h"

static size_t limit(const pmr_comm *comm, pmr_kind kind)
{
    (void)kind;
    return comm->size > 1 && comm->crowded ? SIZE_MAX : 0;
}

static pmr_status step(pmr_task *task, pmr_error *error)
{
    if (task->phase == 0) {
        pmr_status status = pmr_task_drain(task, task->seq - PMR_ENTRY_SLOTS);
        if (status)
            return status;
        pmr_entry *entry = pmr_task_entry(task);
        entry->style = PMR_STYLE_NONE;
        pmr_task_enter(task, entry);
        task->phase = 1;
        if (pmr_task_arrive(task)) {
            status = pmr_task_verify(task, error);
            if (!status)
                pmr_task_open(task);
            return status;
        }
    }
    return pmr_task_await_open(task);
}

static const pmr_algorithm last = {
    .name = "last",
    .kinds = PMR_KIND_BIT(PMR_BARRIER),
    .limit = limit,
    .bytes_max = SIZE_MAX,
    .step = step,
};
PMR_REGISTER_ALGORITHM(last);
