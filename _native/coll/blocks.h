/* SPDX-License-Identifier: Apache-2.0
 *
 * blocks.h: who makes what for whom in the one-way collectives.
 *
 * A maker has one block that all its takers take, or one block for each rank. Invariant: these functions
 * depend on the call and the communicator alone, so maker and taker agree on them.
 */
#ifndef PMR_COLL_BLOCKS_H
#define PMR_COLL_BLOCKS_H

#include "coll/coll.h"

typedef struct pmr_block {
    uint8_t *data;
    size_t bytes;
} pmr_block;

#define PMR_SCATTERS                                                                                         \
    (PMR_KIND_BIT(PMR_SCATTER) | PMR_KIND_BIT(PMR_SCATTERV) | PMR_KIND_BIT(PMR_ALLTOALL) |                   \
     PMR_KIND_BIT(PMR_ALLTOALLV) | PMR_KIND_BIT(PMR_REDUCE_SCATTER) | PMR_KIND_BIT(PMR_REDUCE_SCATTERV))
#define PMR_FROM_ROOT (PMR_KIND_BIT(PMR_BROADCAST) | PMR_KIND_BIT(PMR_SCATTER) | PMR_KIND_BIT(PMR_SCATTERV))
#define PMR_TO_ROOT   (PMR_KIND_BIT(PMR_REDUCE) | PMR_KIND_BIT(PMR_GATHER) | PMR_KIND_BIT(PMR_GATHERV))
#define PMR_PREFIX    (PMR_KIND_BIT(PMR_SCAN) | PMR_KIND_BIT(PMR_EXSCAN))
#define PMR_REDUCES                                                                                          \
    (PMR_PREFIX | PMR_KIND_BIT(PMR_REDUCE) | PMR_KIND_BIT(PMR_REDUCE_SCATTER) |                              \
     PMR_KIND_BIT(PMR_REDUCE_SCATTERV))

static inline bool pmr_task_is(const pmr_task *task, uint32_t kinds)
{
    return (kinds & PMR_KIND_BIT(task->call->kind)) != 0;
}

/* Blocks of one maker: 1, or one for each rank. */
static inline uint32_t pmr_blocks_count(const pmr_task *task)
{
    return pmr_task_is(task, PMR_SCATTERS) ? task->comm->size : 1;
}

static inline bool pmr_blocks_takes(const pmr_task *task, uint32_t taker, uint32_t maker)
{
    if (taker == maker)
        return false;
    if (pmr_task_is(task, PMR_FROM_ROOT))
        return maker == (uint32_t)task->call->root;
    if (pmr_task_is(task, PMR_TO_ROOT))
        return taker == (uint32_t)task->call->root;
    return !pmr_task_is(task, PMR_PREFIX) || maker < taker;
}

static inline bool pmr_blocks_makes(const pmr_task *task, uint32_t rank)
{
    if (pmr_task_is(task, PMR_FROM_ROOT))
        return rank == (uint32_t)task->call->root;
    if (pmr_task_is(task, PMR_TO_ROOT))
        return rank != (uint32_t)task->call->root;
    return !pmr_task_is(task, PMR_PREFIX) || rank + 1 < task->comm->size;
}

/* Every rank takes from every other: who has looked at all it takes from has met all. */
static inline bool pmr_blocks_everyone(const pmr_task *task)
{
    return !pmr_task_is(task, PMR_FROM_ROOT | PMR_TO_ROOT | PMR_PREFIX);
}

static inline bool pmr_blocks_reducing(const pmr_task *task)
{
    return pmr_task_is(task, PMR_REDUCES);
}

static inline bool pmr_blocks_reduces_here(const pmr_task *task)
{
    return task->call->kind != PMR_REDUCE || task->comm->rank == (uint32_t)task->call->root;
}

/* This rank's own block goes from its send to its receive buffer. */
static inline bool pmr_blocks_keeps_own(const pmr_task *task)
{
    return !pmr_task_is(task, PMR_FROM_ROOT | PMR_TO_ROOT) || task->comm->rank == (uint32_t)task->call->root;
}

/* A taker cannot compute where its block begins: the maker tells in a table. */
static inline bool pmr_blocks_uneven(const pmr_task *task)
{
    return task->call->kind == PMR_SCATTERV || task->call->kind == PMR_ALLTOALLV;
}

/* The two ends state the size independently. */
static inline bool pmr_blocks_checked(const pmr_task *task)
{
    return pmr_blocks_uneven(task) || task->call->kind == PMR_GATHERV || task->call->kind == PMR_ALLGATHERV;
}

/* Offset of a block from the start of the maker's blocks; `expected`: bytes of this rank's. */
uint64_t pmr_block_offset(const pmr_task *task, uint32_t block, size_t expected);
/* A block that this rank makes. */
pmr_block pmr_block_out(const pmr_task *task, uint32_t block);
/* Where this rank puts what it takes from `maker` (itself: its own block; reductions: the result). */
pmr_block pmr_block_in(const pmr_task *task, uint32_t maker);
/* Bytes of all blocks that this rank makes. */
size_t pmr_blocks_total(const pmr_task *task);
/* All ranks together move more than the caches hold. Buffers that this rank does not have count as none, so
 * ranks may differ, which is harmless. */
bool pmr_blocks_streaming(const pmr_task *task);
/* How takers can read this rank's long blocks from where they lie, until they are done: PMR_STYLE_EXPOSED,
 * PMR_STYLE_REMOTE, or PMR_STYLE_STAGED where they cannot. */
enum pmr_style pmr_blocks_style(const pmr_task *task);
/* Reads what a maker in PMR_STYLE_REMOTE has at `address`. */
pmr_status pmr_blocks_read(const pmr_task *task, uint32_t maker, void *to, uint64_t address, size_t bytes,
                           pmr_error *error);

#endif
