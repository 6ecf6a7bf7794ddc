/* SPDX-License-Identifier: Apache-2.0
 *
 * recorder.h: the flight recorder: which call each rank is in, readable by others at any time.
 *
 * A ring of fixed records in the window, written by its rank alone with plain stores. A reader checks that
 * `number` fits the slot and is the same before and after. Invariant: a record is one cache line, so entering
 * a call costs a handful of stores to a line that no one else writes.
 */
#ifndef PMR_CORE_RECORDER_H
#define PMR_CORE_RECORDER_H

#include <stdatomic.h>

#include "core/clock.h"
#include "core/window_layout.h"

void pmr_recorder_open(pmr_recorder *recorder);

uint32_t pmr_recorder_site(pmr_recorder *recorder, const char *text);

/* The text of a site, or "an unknown place". */
const char *pmr_recorder_site_text(const pmr_recorder *recorder, uint32_t site);

/* The newest record of call `seq` on communicator `comm`. False: already overwritten, or never entered. */
bool pmr_recorder_find(const pmr_recorder *recorder, uint32_t comm, uint32_t seq, pmr_record *out);

/* The caller fills the rest of the record, then `pmr_recorder_publish`es it. */
static inline pmr_record *pmr_recorder_next(pmr_recorder *recorder)
{
    return &recorder->record[(recorder->count + 1) % PMR_RECORDER_ENTRIES];
}

static inline void pmr_recorder_publish(pmr_recorder *recorder, pmr_record *record)
{
    record->number = recorder->count + 1;
    atomic_thread_fence(memory_order_release);
    recorder->count = record->number;
}

static inline void pmr_recorder_done(pmr_record *record)
{
    record->done_ticks = pmr_ticks();
}

#endif
