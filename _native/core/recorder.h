/* SPDX-License-Identifier: Apache-2.0
 *
 * recorder.h: the flight recorder: which call each rank is in, readable by others at any time.
 *
 * A ring of fixed records in the window, written by its rank alone: an atomic addition takes a number, the
 * rest are stores of a word each. A reader checks that `number` fits the slot and is the same before and after.
 * Invariant: a record is one cache line, so entering a call costs a handful of stores to a line that no one
 * else writes.
 */
#ifndef PMR_CORE_RECORDER_H
#define PMR_CORE_RECORDER_H

#include <stdatomic.h>
#include <stddef.h>

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

/* A record as machine words. Writer and readers of a record take it word by word, each one atomically: a reader may come
 * while it is written, and then sees so by the number, word 0, which is written first and last. */
#define PMR_RECORD_WORDS (sizeof(pmr_record) / sizeof(uint64_t))
typedef uint64_t __attribute__((may_alias)) pmr_record_word;

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "the words below");
_Static_assert(offsetof(pmr_record, seq) == 32 && offsetof(pmr_record, comm) == 36, "the words below");
_Static_assert(offsetof(pmr_record, site) == 40 && offsetof(pmr_record, peer) == 44, "the words below");
_Static_assert(offsetof(pmr_record, kind) == 48 && offsetof(pmr_record, mode) == 52, "the words below");

static inline void pmr_record_store(pmr_record *record, size_t word, uint64_t value)
{
    __atomic_store_n((pmr_record_word *)record + word, value, __ATOMIC_RELAXED);
}

/* Enters what `filled` says; its number and the time when it is done are not read, what is reserved stays zero. Where the
 * time of entering is 0 it is left for later, as the clock costs more than all the stores here: pmr_recorder_waits_if or
 * pmr_recorder_done takes it. Threads of a process, each with a communicator of its own, may do so at once. */
static inline pmr_record *pmr_recorder_add(pmr_recorder *recorder, pmr_record filled)
{
    uint64_t number = __atomic_add_fetch(&recorder->count, 1, __ATOMIC_RELAXED);
    pmr_record *record = &recorder->record[number % PMR_RECORDER_ENTRIES];
    __atomic_store_n(&record->number, ~number, __ATOMIC_RELAXED); /* nobody's, until it is whole */
    atomic_thread_fence(memory_order_release);
    pmr_record_store(record, 1, filled.bytes);
    pmr_record_store(record, 2, filled.entered_ticks);
    pmr_record_store(record, 3, 0);
    pmr_record_store(record, 4, (uint64_t)filled.seq | (uint64_t)filled.comm << 32);
    pmr_record_store(record, 5, (uint64_t)filled.site | (uint64_t)(uint32_t)filled.peer << 32);
    pmr_record_store(record, 6, (uint64_t)filled.kind | (uint64_t)filled.dtype << 8 | (uint64_t)filled.op << 16 |
                                    (uint64_t)filled.form << 24 | (uint64_t)filled.mode << 32);
    __atomic_store_n(&record->number, number, __ATOMIC_RELEASE);
    return record;
}

/* Takes the time of entering, if that was left for later. */
static inline void pmr_recorder_entered(pmr_record *record, uint64_t ticks)
{
    if (__atomic_load_n(&record->entered_ticks, __ATOMIC_RELAXED) == 0)
        __atomic_store_n(&record->entered_ticks, ticks, __ATOMIC_RELAXED);
}

static inline void pmr_recorder_done(pmr_record *record)
{
    uint64_t now = pmr_ticks();
    pmr_recorder_entered(record, now);
    __atomic_store_n(&record->done_ticks, now, __ATOMIC_RELEASE);
}

/* The rank is about to wait in the call. Here and below, later calls of other threads may have overwritten the record:
 * `number` is what it had. */
static inline void pmr_recorder_waits_if(pmr_record *record, uint64_t number)
{
    if (__atomic_load_n(&record->number, __ATOMIC_RELAXED) == number)
        pmr_recorder_entered(record, pmr_ticks());
}

static inline void pmr_recorder_done_if(pmr_record *record, uint64_t number)
{
    if (__atomic_load_n(&record->number, __ATOMIC_RELAXED) == number)
        pmr_recorder_done(record);
}

#endif
