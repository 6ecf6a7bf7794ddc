/* SPDX-License-Identifier: Apache-2.0
 *
 * shape.h: which ranks of a communicator share a node.
 *
 * Nodes are numbered by their lowest rank, the ranks of a node by their order. Schedules are functions of the shape and
 * of a rank, so all ranks must have the same one. Invariant: no node is empty.
 */
#ifndef PMR_COMM_SHAPE_H
#define PMR_COMM_SHAPE_H

#include "include/pmr.h"

typedef struct pmr_shape {
    uint32_t size, nodes;
    uint32_t rails;     /* ranks of the smallest node: how many ranks of each can work side by side */
    bool ordered;       /* ranks are numbered node after node */
    bool canonical;     /* sums over nodes are subtrees of the canonical tree over ranks */
    bool even;          /* the tree over nodes is the canonical one over as many sources */
    uint32_t *node;     /* of each rank */
    uint32_t *index;    /* of each rank, within its node */
    uint32_t *first;    /* of each node, and one more: where its ranks begin in `rank` */
    uint32_t *rank;     /* node by node */
} pmr_shape;

/* `place`: of each rank, any number that those of one node share and no others. */
pmr_status pmr_shape_init(pmr_shape *shape, const uint32_t *place, uint32_t size, pmr_error *error);
/* Safe after a failed init. */
void pmr_shape_fini(pmr_shape *shape);

static inline uint32_t pmr_shape_members(const pmr_shape *shape, uint32_t node)
{
    return shape->first[node + 1] - shape->first[node];
}

static inline uint32_t pmr_shape_rank(const pmr_shape *shape, uint32_t node, uint32_t index)
{
    return shape->rank[shape->first[node] + index];
}

/* Where the tree over the nodes [from, end) splits; `ranks_end`: the rank behind the last one that counts, which is
 * first[end] unless only a part of the last node does. At least two nodes. */
uint32_t pmr_shape_split(const pmr_shape *shape, uint32_t from, uint32_t end, uint32_t ranks_end);

#endif
