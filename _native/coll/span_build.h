/* SPDX-License-Identifier: Apache-2.0
 *
 * span_build.h: what the builders of schedules share: cutting, joining the sums of nodes, moving blocks.
 *
 * Invariant: what is cut or ordered here depends on the shape and the call alone, so both ends of a message agree.
 */
#ifndef PMR_COLL_SPAN_BUILD_H
#define PMR_COLL_SPAN_BUILD_H

#include "coll/coll.h"

static inline pmr_place pmr_span_send(uint64_t at)
{
    return pmr_place_at(PMR_BUFFER_SEND, at);
}

static inline pmr_place pmr_span_recv(uint64_t at)
{
    return pmr_place_at(PMR_BUFFER_RECV, at);
}

/* Where this rank stands. */
typedef struct pmr_stand {
    uint32_t node, index, members, nodes;
} pmr_stand;

pmr_stand pmr_span_stand(const pmr_plan *plan);

/* Items [start, end) of a range that is cut in `parts`, at cache lines. */
typedef struct pmr_part {
    uint64_t start, end;
} pmr_part;

pmr_part pmr_span_cut(pmr_part range, uint32_t parts, uint32_t part, size_t item_bytes);

static inline uint64_t pmr_part_items(pmr_part part)
{
    return part.end - part.start;
}

/* A sum and the step that makes it; PMR_NO_STEP: it is there from the start. */
typedef struct pmr_sum {
    pmr_place place;
    uint32_t step;
} pmr_sum;

/* The sum of this node's contributions, whole, at the rank `root` of the node; elsewhere only `step` means something. */
pmr_sum pmr_span_node_sum(const pmr_plan *plan, pmr_schedule *schedule, uint32_t root);

/* Joins the sums of the nodes [0, end), of which `kept` must not be overwritten, by the tree that splits as the ranks up
 * to ranks_end do. Their places other than that are overwritten. Answers the step after which the result is at `to`. */
uint32_t pmr_span_join(const pmr_plan *plan, pmr_schedule *schedule, const pmr_sum *sums, uint32_t end,
                       uint32_t ranks_end, uint32_t kept, pmr_place to, uint64_t items);

/* Partial sums at `from` become the result, if they are not yet. Answers the step after which they are. */
uint32_t pmr_span_finish(const pmr_plan *plan, pmr_schedule *schedule, pmr_place to, pmr_place from, uint64_t items,
                         uint32_t ranks, uint32_t after);

/* The node's rank `root` hands `bytes` at `from` to the others, at `to`. */
uint32_t pmr_span_node_broadcast(pmr_schedule *schedule, uint32_t root, pmr_place from, pmr_place to, uint64_t bytes);

/* `step` comes after all steps in [from, end). */
void pmr_span_after_all(pmr_schedule *schedule, uint32_t step, uint32_t from, uint32_t end);

/* ---- blocks: what one rank has for another ---- */

typedef struct pmr_span_block {
    pmr_place place;
    uint64_t bytes;
} pmr_span_block;

/* For all ranks, in one buffer, by the tables of the call (items) or evenly. NULL (and schedule->failed): no memory. */
pmr_span_block *pmr_span_blocks(const pmr_plan *plan, pmr_schedule *schedule, pmr_buffer buffer,
                                const size_t *counts, const size_t *displs);

/* Every rank's block reaches every rank: once over the network to each node, then from rank to rank of the node.
 * `own`: this rank's block, there after `ready`; `blocks`: where all of them are to lie, in one buffer. */
void pmr_span_allgather(const pmr_plan *plan, pmr_schedule *schedule, pmr_place own, uint32_t ready,
                        const pmr_span_block *blocks);
/* Each rank's block for each other goes there directly. `in_place`: both are the same memory. */
void pmr_span_alltoall(const pmr_plan *plan, pmr_schedule *schedule, const pmr_span_block *out,
                       const pmr_span_block *in, bool in_place);
/* Every rank's block goes to `root` directly. `blocks` of the root, else NULL. */
void pmr_span_gather(const pmr_plan *plan, pmr_schedule *schedule, uint32_t root, pmr_span_block own, uint32_t ready,
                     const pmr_span_block *blocks);

#endif
