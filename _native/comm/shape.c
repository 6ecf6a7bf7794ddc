/* SPDX-License-Identifier: Apache-2.0
 *
 * shape.c: numbering the nodes of a communicator, and finding the canonical tree in them.
 *
 * Where each node is a subtree of the canonical tree over ranks, the tree over nodes splits where that one does;
 * otherwise it is the canonical tree over as many sources as there are nodes.
 */
#include "comm/shape.h"

#include <stdlib.h>

#include "core/status.h"

static uint32_t half_of(uint32_t count)
{
    return 1u << (31 - __builtin_clz(count - 1));
}

/* The node in [from, end) that begins with that rank; `end`: none does. */
static uint32_t node_at(const pmr_shape *shape, uint32_t from, uint32_t end, uint32_t rank)
{
    uint32_t low = from, high = end;
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        if (shape->first[middle] < rank)
            low = middle + 1;
        else
            high = middle;
    }
    return low < end && shape->first[low] == rank ? low : end;
}

uint32_t pmr_shape_split(const pmr_shape *shape, uint32_t from, uint32_t end, uint32_t ranks_end)
{
    if (!shape->canonical)
        return from + half_of(end - from);
    uint32_t start = shape->first[from];
    return node_at(shape, from, end, start + half_of(ranks_end - start));
}

/* Every split of the canonical tree, down to single nodes, falls between two nodes. */
static bool is_canonical(const pmr_shape *shape, uint32_t from, uint32_t end)
{
    while (end - from > 1) {
        uint32_t start = shape->first[from];
        uint32_t middle = node_at(shape, from + 1, end, start + half_of(shape->first[end] - start));
        if (middle == end || !is_canonical(shape, from, middle))
            return false;
        from = middle;
    }
    return true;
}

static bool is_even(const pmr_shape *shape, uint32_t from, uint32_t end)
{
    while (end - from > 1) {
        uint32_t middle = pmr_shape_split(shape, from, end, shape->first[end]);
        if (middle != from + half_of(end - from) || !is_even(shape, from, middle))
            return false;
        from = middle;
    }
    return true;
}

/* Numbers nodes in the order of their first ranks, by looking for each rank's place among the nodes known so far. */
static void number_nodes(pmr_shape *shape, const uint32_t *place, uint32_t *known)
{
    shape->nodes = 0;
    for (uint32_t rank = 0; rank < shape->size; rank++) {
        bool same = rank > 0 && place[rank] == place[rank - 1];
        uint32_t node = same ? shape->node[rank - 1] : 0;
        while (!same && node < shape->nodes && known[node] != place[rank])
            node++;
        if (node == shape->nodes)
            known[shape->nodes++] = place[rank];
        shape->node[rank] = node;
    }
}

static void order_ranks(pmr_shape *shape)
{
    for (uint32_t node = 0; node <= shape->nodes; node++)
        shape->first[node] = 0;
    for (uint32_t rank = 0; rank < shape->size; rank++)
        shape->index[rank] = shape->first[shape->node[rank] + 1]++;
    shape->rails = UINT32_MAX;
    for (uint32_t node = 0; node < shape->nodes; node++) {
        uint32_t members = shape->first[node + 1];
        shape->rails = members < shape->rails ? members : shape->rails;
        shape->first[node + 1] += shape->first[node];
    }
    shape->ordered = true;
    for (uint32_t rank = 0; rank < shape->size; rank++) {
        uint32_t at = shape->first[shape->node[rank]] + shape->index[rank];
        shape->rank[at] = rank;
        shape->ordered = shape->ordered && at == rank;
    }
}

pmr_status pmr_shape_init(pmr_shape *shape, const uint32_t *place, uint32_t size, pmr_error *error)
{
    *shape = (pmr_shape){.size = size};
    uint32_t *all = malloc(((size_t)size * 4 + 1) * sizeof *all);
    if (!all)
        return pmr_fail(error, PMR_ERR_NO_MEMORY, "out of memory for a communicator of %u ranks", size);
    shape->node = all;
    shape->index = all + size;
    shape->rank = all + 2 * (size_t)size;
    shape->first = all + 3 * (size_t)size;
    number_nodes(shape, place, shape->rank);
    order_ranks(shape);
    shape->canonical = shape->ordered && is_canonical(shape, 0, shape->nodes);
    shape->even = is_even(shape, 0, shape->nodes);
    return PMR_OK;
}

void pmr_shape_fini(pmr_shape *shape)
{
    free(shape->node);
    *shape = (pmr_shape){0};
}
