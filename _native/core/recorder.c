/* SPDX-License-Identifier: Apache-2.0
 *
 * recorder.c: opening a recorder, its tables of call sites and of communicators, finding a record.
 *
 * Sites are interned by text, so the table is bounded by the program's number of call sites; a full table
 * answers 0, which reads as an unknown place. Invariant: a site's text is complete before its number is
 * handed out.
 */
#include "core/recorder.h"

#include <string.h>
#include <unistd.h>

void pmr_recorder_open(pmr_recorder *recorder)
{
    recorder->pid = (uint32_t)getpid();
    recorder->tick_hz = pmr_ticks_hz();
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    recorder->base_realtime_ns = (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
    recorder->base_ticks = pmr_ticks();
    recorder->sites = 1;
}

uint32_t pmr_recorder_site(pmr_recorder *recorder, const char *text)
{
    for (uint32_t i = 1; i < recorder->sites; i++)
        if (strncmp(recorder->site[i], text, PMR_RECORDER_SITE_BYTES - 1) == 0)
            return i;
    if (recorder->sites == PMR_RECORDER_SITES)
        return 0;
    uint32_t site = recorder->sites;
    strncpy(recorder->site[site], text, PMR_RECORDER_SITE_BYTES - 1);
    atomic_thread_fence(memory_order_release);
    recorder->sites = site + 1;
    return site;
}

const char *pmr_recorder_site_text(const pmr_recorder *recorder, uint32_t site)
{
    return site > 0 && site < recorder->sites ? recorder->site[site] : "an unknown place";
}

static uint32_t hash_of(uint32_t size, const uint32_t *members)
{
    uint32_t hash = 2166136261u; /* FNV-1a, by words */
    for (uint32_t i = 0; i < size; i++)
        hash = (hash ^ members[i]) * 16777619u;
    return hash;
}

void pmr_recorder_join(pmr_recorder *recorder, uint32_t comm, uint32_t size, const uint32_t *members)
{
    for (uint32_t i = 0; i < PMR_RECORDER_COMMS; i++) {
        pmr_membership *entry = &recorder->membership[i];
        uint32_t untaken = 0;
        if (!__atomic_compare_exchange_n(&entry->taken, &untaken, 1, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED))
            continue;
        entry->comm = comm;
        entry->group = hash_of(size, members);
        __atomic_store_n(&entry->size, size, __ATOMIC_RELEASE);
        return;
    }
}

void pmr_recorder_part(pmr_recorder *recorder, uint32_t comm, uint32_t size, const uint32_t *members)
{
    uint32_t group = hash_of(size, members);
    for (uint32_t i = 0; i < PMR_RECORDER_COMMS; i++) {
        pmr_membership *entry = &recorder->membership[i];
        if (__atomic_load_n(&entry->size, __ATOMIC_ACQUIRE) != size || entry->comm != comm || entry->group != group)
            continue;
        __atomic_store_n(&entry->size, 0, __ATOMIC_RELAXED);
        __atomic_store_n(&entry->taken, 0, __ATOMIC_RELEASE);
        return;
    }
}

/* The newest record of a collective on `comm`, of call `seq` unless that is 0. */
static bool find(const pmr_recorder *recorder, uint32_t comm, uint32_t seq, pmr_record *out)
{
    uint64_t newest = __atomic_load_n(&recorder->count, __ATOMIC_RELAXED);
    atomic_thread_fence(memory_order_acquire);
    uint64_t oldest = newest > PMR_RECORDER_ENTRIES ? newest - PMR_RECORDER_ENTRIES + 1 : 1;
    for (uint64_t number = newest; number >= oldest && number > 0; number--) {
        const pmr_record *record = &recorder->record[number % PMR_RECORDER_ENTRIES];
        uint64_t words[PMR_RECORD_WORDS];
        for (size_t i = 0; i < PMR_RECORD_WORDS; i++)
            words[i] = __atomic_load_n((const pmr_record_word *)record + i, __ATOMIC_RELAXED);
        atomic_thread_fence(memory_order_acquire);
        memcpy(out, words, sizeof *out);
        if (out->number == number && __atomic_load_n(&record->number, __ATOMIC_RELAXED) == number && out->comm == comm && out->kind < PMR_SEND &&
            out->mode != PMR_RECORD_WAIT && (seq == 0 || out->seq == seq))
            return true;
    }
    return false;
}

bool pmr_recorder_find(const pmr_recorder *recorder, uint32_t comm, uint32_t seq, pmr_record *out)
{
    return seq != 0 && find(recorder, comm, seq, out);
}

bool pmr_recorder_newest(const pmr_recorder *recorder, uint32_t comm, pmr_record *out)
{
    return find(recorder, comm, 0, out);
}
