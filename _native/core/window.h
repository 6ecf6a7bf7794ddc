/* SPDX-License-Identifier: Apache-2.0
 *
 * window.h: the node's shared memory as one rank maps it.
 *
 *   header | recorders | shared area (p2p rings, the world's board) | heap of rank 0 | heap of rank 1 | ... |
 * pool
 *
 * One sparse memfd, mapped once up to the end of the heaps, so that an address is an offset that means the
 * same to every local rank. The pool behind the heaps (boards of sub-communicators) is mapped piece by piece.
 * Invariant: the layout is a pure function of the header, so all ranks compute the same one.
 */
#ifndef PMR_CORE_WINDOW_H
#define PMR_CORE_WINDOW_H

#include <stdatomic.h>

#include "core/window_layout.h"

typedef struct pmr_window {
    int fd;         /* our own duplicate, close-on-exec */
    uint32_t ranks; /* local world size */
    uint32_t local_rank;
    uint8_t *base;
    size_t mapped_bytes; /* up to the end of the heaps */
    pmr_window_header *header;
    uint8_t *shared; /* page aligned */
    uint8_t *heaps;
    size_t heap_bytes; /* of each rank */
    uint64_t pool_offset;
} pmr_window;

/* `shared_bytes`: size of the shared area for that many local ranks. fd -1: a window of our own for a world
 * of one. */
pmr_status pmr_window_open(pmr_window *window, int fd, uint32_t local_rank,
                           size_t (*shared_bytes)(uint32_t ranks), pmr_error *error);
/* Unmaps nothing that arrays may live in; closes the descriptor. Safe after a failed open. */
void pmr_window_close(pmr_window *window);

pmr_recorder *pmr_window_recorder(const pmr_window *window, uint32_t local_rank);

static inline uint8_t *pmr_window_heap(const pmr_window *window, uint32_t local_rank)
{
    return window->heaps + (size_t)local_rank * window->heap_bytes;
}

/* Whether the range lies in a heap, of any rank. */
static inline bool pmr_window_covers(const pmr_window *window, const void *data, size_t bytes)
{
    const uint8_t *first = data;
    return first >= window->heaps && first + bytes <= window->base + window->mapped_bytes;
}

/* Maps `bytes` of the pool at `offset` (page aligned), growing the file as needed. */
pmr_status pmr_window_map_pool(const pmr_window *window, uint64_t offset, size_t bytes, void **out,
                               pmr_error *error);
void pmr_window_unmap_pool(void *address, size_t bytes);
/* Gives the pages of a pool range back: they read as zero again. */
void pmr_window_drop_pool(const pmr_window *window, uint64_t offset, size_t bytes);

/* The first to call it decides why the gang ended; later calls change nothing. */
void pmr_window_abort_gang(const pmr_window *window, uint32_t state, int32_t rank, const char *node,
                           const char *text);
/* The status that a pmr_abort_state stands for. */
pmr_status pmr_window_abort_status(uint32_t state);
/* The abort record as a status and an error; PMR_OK while there is none. */
pmr_status pmr_window_aborted(const pmr_window *window, pmr_error *error);

static inline const _Atomic uint32_t *pmr_window_abort_word(const pmr_window *window)
{
    return (const _Atomic uint32_t *)(const void *)&window->header->abort.state;
}

uint32_t pmr_window_rank_state(const pmr_window *window, uint32_t local_rank);
void pmr_window_rank_state_set(const pmr_window *window, uint32_t local_rank, uint32_t state);

#endif
