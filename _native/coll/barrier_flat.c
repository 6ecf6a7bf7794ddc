/* SPDX-License-Identifier: Apache-2.0
 *
 * barrier_flat.c: every rank raises its own entry and reads everyone's.
 *
 * One phase: one line written, size - 1 lines read. The fastest there is while each rank has a CPU.
 */
#include "coll/coll.h"

static size_t limit(const pmr_comm *comm, pmr_kind kind)
{
    (void)kind;
    return comm->size > 1 && !comm->crowded ? SIZE_MAX : 0;
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
    }
    return pmr_task_gather(task, error);
}

static const pmr_algorithm flat = {
    .name = "flat",
    .kinds = PMR_KIND_BIT(PMR_BARRIER),
    .limit = limit,
    .bytes_max = SIZE_MAX,
    .step = step,
};
PMR_REGISTER_ALGORITHM(flat);
