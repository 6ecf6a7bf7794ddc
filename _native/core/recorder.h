/* SPDX-License-Identifier: Apache-2.0
 *
 * recorder.h: the flight recorder: which call each rank is in, readable by others at any time.
 *
 * A ring of fixed records in the window, written by its rank alone: an atomic addition takes a number, the
 * rest are plain stores. A reader checks that `number` fits the slot and is the same before and after.
 * Invariant: a record is one cache line, so entering a call costs a handful of stores to a line that no one
 * else writes.
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

/* The rank has joined a communicator, or left it. One that there is no room for is not listed. */
void pmr_recorder_join(pmr_recorder *recorder, uint32_t comm, uint32_t size, const uint32_t *members);
void pmr_recorder_part(pmr_recorder *recorder, uint32_t comm, uint32_t size, const uint32_t *members);

/* The newest record of call `seq` on communicator `comm`. False: already overwritten, or never entered. */
bool pmr_recorder_find(const pmr_recorder *recorder, uint32_t comm, uint32_t seq, pmr_record *out);

/* The newest record of a collective on that communicator. False: none is kept. */
bool pmr_recorder_newest(const pmr_recorder *recorder, uint32_t comm, pmr_record *out);

/* The caller fills the rest of the record, then `pmr_recorder_publish`es it. Threads of a process, each with
 * a communicator of its own, may do so at once. */
static inline pmr_record *pmr_recorder_next(pmr_recorder *recorder)
{
    uint64_t number = __atomic_add_fetch(&recorder->count, 1, __ATOMIC_RELAXED);
    pmr_record *record = &recorder->record[number % PMR_RECORDER_ENTRIES];
    __atomic_store_n(&record->number, ~number, __ATOMIC_RELAXED); /* nobody's, until it is published */
    atomic_thread_fence(memory_order_release);
    return record;
}

static inline void pmr_recorder_publish(pmr_record *record)
{
    __atomic_store_n(&record->number, ~record->number, __ATOMIC_RELEASE);
}

/* Of a record that later calls of other threads may have overwritten: `number` is what it had. */
static inline void pmr_recorder_done_if(pmr_record *record, uint64_t number)
{
    if (__atomic_load_n(&record->number, __ATOMIC_RELAXED) == number)
        record->done_ticks = pmr_ticks();
}

static inline void pmr_recorder_done(pmr_record *record)
{
    record->done_ticks = pmr_ticks();
}

#endif
