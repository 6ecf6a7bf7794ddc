/* SPDX-License-Identifier: Apache-2.0
 *
 * copy.h: copying of long blocks, with or without the caches.
 *
 * A store to a line that is in no cache first reads that line. Where a call moves more bytes than the caches
 * hold, nobody will find the result there, so it is written past them: that read goes away, and what others
 * keep in the caches stays. Below that size it would send the next reader to memory. Invariant: memory
 * written by pmr_copy is visible to whoever sees a flag that is raised after it.
 */
#ifndef PMR_CORE_COPY_H
#define PMR_CORE_COPY_H

#include <stdbool.h>
#include <stddef.h>
#include <string.h>

/* Bytes that the largest cache of this machine holds; a guess where the system does not tell. Reads files. */
size_t pmr_cache_bytes_find(void);

/* Blocks must not overlap. Where the processor has no such stores it is memcpy. */
void pmr_copy_past_caches(void *to, const void *from, size_t bytes);

static inline void pmr_copy(void *to, const void *from, size_t bytes, bool past_caches)
{
    if (past_caches)
        pmr_copy_past_caches(to, from, bytes);
    else
        memcpy(to, from, bytes);
}

#endif
