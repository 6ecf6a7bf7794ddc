/* SPDX-License-Identifier: Apache-2.0
 *
 * split.c: making communicators out of a communicator, and freeing them.
 *
 * The world's board lies in the shared area; the others' come from each node's pool of boards, claimed with an atomic
 * bit by the group's first rank on that node. Split is two allgathers on the parent: everyone's (color, key, first free
 * id), then the boards that were claimed. A group on one node is a communicator around its board; one on several nodes
 * spans them, around one such communicator on each. Who leaves a freed communicator last on a node gives the board back.
 * Invariant: a board in the pool that is not taken reads as zero.
 */
#include <stdlib.h>

#include "coll/coll.h"
#include "comm/span.h"

/* ---- the pool of boards ---- */

/* PMR_BOARDS_MAX: none is free. */
static uint32_t pool_take(pmr_pool *pool)
{
    for (uint32_t word = 0; word < PMR_BOARDS_MAX / 64; word++) {
        uint64_t taken = atomic_load(&pool->taken[word]);
        while (taken != UINT64_MAX) {
            uint32_t bit = (uint32_t)__builtin_ctzll(~taken);
            if (atomic_compare_exchange_weak(&pool->taken[word], &taken, taken | (1ull << bit)))
                return word * 64 + bit;
        }
    }
    return PMR_BOARDS_MAX;
}

static uint64_t pool_offset(const pmr_context *context, uint32_t index)
{
    return context->window.pool_offset + (uint64_t)index * pmr_board_layout_of(context->window.ranks).bytes;
}

static void pool_give(pmr_context *context, uint32_t index)
{
    pmr_window_drop_pool(&context->window, pool_offset(context, index),
                         pmr_board_layout_of(context->window.ranks).bytes);
    atomic_fetch_and(&context->pool->taken[index / 64], ~(1ull << (index % 64)));
}

/* ---- split ---- */

typedef struct split_card {
    int32_t color;
    int32_t key;
    uint32_t next_comm;
} split_card;

typedef struct split_place { /* what a group's first rank on a node tells the others */
    uint32_t board_index;
    uint32_t claimed;
} split_place;

typedef struct split_origin { /* the user's call */
    pmr_form form;
    uint32_t site;
} split_origin;

/* A group, in the order of its ranks. */
typedef struct split_group {
    uint32_t *rank; /* in the parent */
    uint32_t size;
    uint32_t id;
} split_group;

static pmr_status allgather(pmr_comm *comm, const void *card, void *cards, size_t bytes, split_origin origin,
                            pmr_error *error)
{
    pmr_call call = {.kind = PMR_ALLGATHER,
                     .dtype = PMR_UINT8,
                     .send = card,
                     .recv = cards,
                     .count = bytes,
                     .site = origin.site,
                     .form = origin.form};
    return pmr_coll_run(comm, &call, PMR_FOREVER, error);
}

static int compare_colors(const void *a, const void *b)
{
    int32_t left = *(const int32_t *)a, right = *(const int32_t *)b;
    return left < right ? -1 : left > right;
}

/* Ids are given in the order of colors, from the first that is free on all ranks. Answers the first that is free then;
 * `colors`: room for as many as there are ranks. */
static uint32_t number_groups(const pmr_comm *comm, const split_card *cards, int32_t color, int32_t *colors,
                              uint32_t *id_out)
{
    uint32_t next = 0;
    for (uint32_t rank = 0; rank < comm->size; rank++) {
        colors[rank] = cards[rank].color;
        next = cards[rank].next_comm > next ? cards[rank].next_comm : next;
    }
    qsort(colors, comm->size, sizeof *colors, compare_colors);
    *id_out = next;
    for (uint32_t i = 0; i < comm->size; i++) {
        if (colors[i] < 0 || (i > 0 && colors[i] == colors[i - 1]))
            continue;
        if (colors[i] == color)
            *id_out = next;
        next++;
    }
    return next;
}

/* Parent ranks of my group, ordered by (key, rank). */
static void find_group(const pmr_comm *comm, const split_card *cards, int32_t color, split_group *group)
{
    group->size = 0;
    for (uint32_t rank = 0; rank < comm->size; rank++) {
        if (cards[rank].color != color)
            continue;
        uint32_t at = group->size++;
        for (; at > 0 && cards[group->rank[at - 1]].key > cards[rank].key; at--)
            group->rank[at] = group->rank[at - 1];
        group->rank[at] = rank;
    }
}

static uint32_t node_of(const pmr_comm *comm, uint32_t rank)
{
    return comm->span ? comm->span->shape.node[rank] : 0;
}

/* The group's first rank on this node is this one. */
static bool claims(const pmr_comm *comm, const split_group *group)
{
    uint32_t at = 0;
    while (node_of(comm, group->rank[at]) != node_of(comm, comm->rank))
        at++;
    return group->rank[at] == comm->rank;
}

/* The board that was claimed for this node; PMR_BOARDS_MAX: some node of the group had none. */
static uint32_t board_of(const pmr_comm *comm, const split_group *group, const split_place *places)
{
    uint32_t board = PMR_BOARDS_MAX;
    for (uint32_t i = 0; i < group->size; i++) {
        const split_place *place = &places[group->rank[i]];
        if (place->claimed && place->board_index == PMR_BOARDS_MAX)
            return PMR_BOARDS_MAX;
        if (place->claimed && node_of(comm, group->rank[i]) == node_of(comm, comm->rank))
            board = place->board_index;
    }
    return board;
}

/* World ranks of the group, of all nodes or of this one alone; answers how many, and this rank's place among them. */
static uint32_t list_members(const pmr_comm *comm, const split_group *group, bool here, uint32_t *members,
                             uint32_t *rank_out)
{
    uint32_t count = 0;
    for (uint32_t i = 0; i < group->size; i++) {
        uint32_t rank = group->rank[i];
        if (here && node_of(comm, rank) != node_of(comm, comm->rank))
            continue;
        if (rank == comm->rank)
            *rank_out = count;
        members[count++] = comm->members[rank];
    }
    return count;
}

static pmr_status open_group(pmr_comm *comm, const split_group *group, uint32_t board_index, uint32_t *members,
                             pmr_comm **out, pmr_error *error)
{
    pmr_context *context = comm->context;
    uint32_t rank = 0, size = list_members(comm, group, true, members, &rank);
    void *board;
    size_t bytes = pmr_board_layout_of(size).bytes;
    pmr_status status =
        pmr_window_map_pool(&context->window, pool_offset(context, board_index), bytes, &board, error);
    if (status)
        return status;
    pmr_comm *here;
    status = pmr_comm_open(context, board, group->id, rank, size, members, board_index, &here, error);
    if (!status && size == group->size) {
        *out = here;
        return PMR_OK;
    }
    if (!status) {
        list_members(comm, group, false, members, &rank);
        status = pmr_comm_open_span(context, group->id, rank, group->size, members, here, board_index, out, error);
        if (status)
            pmr_comm_close(here);
    }
    if (status)
        pmr_window_unmap_pool(board, bytes);
    return status;
}

/* Everyone's cards are here: claims boards, tells each other, opens. */
static pmr_status split_by_cards(pmr_comm *comm, const split_card *cards, split_group *group, split_place *places,
                                 split_origin origin, pmr_comm **made, pmr_error *error)
{
    pmr_context *context = comm->context;
    int32_t color = cards[comm->rank].color;
    uint32_t *members = (uint32_t *)(void *)places; /* as many entries, used later */
    split_place place = {.board_index = PMR_BOARDS_MAX, .claimed = 0};
    uint32_t next = number_groups(comm, cards, color, (int32_t *)(void *)places, &group->id);
    if (color >= 0) {
        find_group(comm, cards, color, group);
        if (claims(comm, group))
            place = (split_place){.board_index = pool_take(context->pool), .claimed = 1};
    }
    pmr_status status = allgather(comm, &place, places, sizeof place, origin, error);
    if (status)
        return status;
    context->next_comm = next > context->next_comm ? next : context->next_comm;
    if (color >= 0) {
        uint32_t board_index = board_of(comm, group, places);
        if (board_index != PMR_BOARDS_MAX)
            status = open_group(comm, group, board_index, members, made, error);
        else
            status = pmr_fail(error, PMR_ERR_NO_MEMORY,
                              "%u communicators are alive on a node, the most there can be: "
                              "free() those that are done",
                              PMR_BOARDS_MAX);
        if (board_index == PMR_BOARDS_MAX && place.board_index != PMR_BOARDS_MAX)
            pool_give(context, place.board_index);
    }
    if (context->hub)
        pmr_hub_comms_made(context->hub, context->next_comm);
    return status;
}

static pmr_status split(pmr_comm *comm, split_card mine, split_origin origin, pmr_comm **out,
                        pmr_error *error)
{
    split_card *cards = malloc(comm->size * sizeof *cards);
    split_place *places = malloc(comm->size * sizeof *places);
    split_group group = {.rank = malloc(comm->size * sizeof *group.rank)};
    pmr_comm *made = NULL;
    pmr_status status = PMR_OK;
    if (!cards || !places || !group.rank)
        status = pmr_fail(error, PMR_ERR_NO_MEMORY, "out of memory for a split of %u ranks", comm->size);
    mine.next_comm = comm->context->next_comm;
    if (!status)
        status = allgather(comm, &mine, cards, sizeof mine, origin, error);
    if (!status)
        status = split_by_cards(comm, cards, &group, places, origin, &made, error);
    if (!status)
        *out = made;
    free(group.rank);
    free(places);
    free(cards);
    return status;
}

pmr_status pmr_comm_split(pmr_comm *comm, int32_t color, int32_t key, uint32_t site, pmr_comm **out,
                          pmr_error *error)
{
    return split(comm, (split_card){.color = color, .key = key}, (split_origin){PMR_FORM_SPLIT, site}, out, error);
}

pmr_status pmr_comm_dup(pmr_comm *comm, uint32_t site, pmr_comm **out, pmr_error *error)
{
    return split(comm, (split_card){.color = 0, .key = (int32_t)comm->rank}, (split_origin){PMR_FORM_DUP, site}, out, error);
}

pmr_status pmr_comm_free(pmr_comm *comm, pmr_error *error)
{
    pmr_context *context = comm->context;
    if (comm->board_index == PMR_BOARDS_MAX)
        return pmr_fail(error, PMR_ERR_ARGUMENT,
                        "the world communicator cannot be freed; pm.shutdown() ends it");
    if (atomic_load(&comm->source.active))
        return pmr_fail(error, PMR_ERR_ARGUMENT,
                        "the communicator has nonblocking calls under way: wait for their "
                        "requests before free()");
    const pmr_comm *here = comm->span ? comm->span->inner : comm;
    pmr_board *board = here->board;
    size_t bytes = here->board_bytes;
    uint32_t index = comm->board_index;
    uint32_t size = here->size;
    pmr_comm_close(comm);
    bool last = atomic_fetch_add(&board->leaving, 1) + 1 == size; /* this process touches the board no more */
    pmr_window_unmap_pool(board, bytes);
    if (last)
        pool_give(context, index);
    return PMR_OK;
}
