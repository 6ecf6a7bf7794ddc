/* SPDX-License-Identifier: Apache-2.0
 *
 * heap.h: one rank's allocator over its part of the node's window.
 *
 * Only the owner allocates and frees; its bookkeeping is in private memory, so a peer's wild write or death
 * cannot corrupt it. The range is sparse: pages are taken from the kernel when a block is first handed out
 * (so that exhaustion is a NULL here and not SIGBUS later) and large free ranges go back.
 */
#ifndef PMR_CORE_HEAP_H
#define PMR_CORE_HEAP_H

#include <stdbool.h>
#include <stddef.h>

#include "include/pmr.h"

typedef struct pmr_heap pmr_heap;

/* `base`: the mapping of [fd_offset, fd_offset + bytes) of the memfd `fd` (kept by the caller, page aligned). */
pmr_status pmr_heap_init(pmr_heap **out, void *base, size_t bytes, int fd, uint64_t fd_offset);
void pmr_heap_fini(pmr_heap *heap); /* accepts NULL; does not unmap */

/* 64-byte aligned (page aligned from 64 KiB up); NULL when exhausted. Zero bytes give a valid block. Thread-safe. */
void *pmr_heap_take(pmr_heap *heap, size_t bytes);
void *pmr_heap_resize(pmr_heap *heap, void *block, size_t bytes);   /* as realloc */
void pmr_heap_give(pmr_heap *heap, void *block);                    /* accepts NULL */
size_t pmr_heap_bytes_used(const pmr_heap *heap);

#endif
