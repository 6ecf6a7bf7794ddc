/* SPDX-License-Identifier: Apache-2.0
 *
 * split.c: making communicators out of a communicator, and freeing them.
 *
 * The world's board lies in the shared area; the others' come from the node's pool of boards, claimed by the
 * group's rank 0 with an atomic bit. Split is two allgathers on the parent: everyone's (color, key), then the
 * board that each group's rank 0 claimed. Who leaves a freed communicator last gives the board back.
 * Invariant: a board in the pool that is not taken reads as zero.
 */
#include <stdlib.h>

#include "coll/coll.h"

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
} split_card;

typedef struct split_place { /* what a group's rank 0 tells its members */
    uint32_t board_index;
    uint32_t id;
} split_place;

typedef struct split_origin { /* the user's call */
    pmr_form form;
    uint32_t site;
} split_origin;

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

/* Parent ranks of my group, ordered by (key, rank); answers their number. */
static uint32_t group_of(const pmr_comm *comm, const split_card *cards, int32_t color, uint32_t *group)
{
    uint32_t size = 0;
    for (uint32_t rank = 0; rank < comm->size; rank++) {
        if (cards[rank].color != color)
            continue;
        uint32_t at = size++;
        for (; at > 0 && cards[group[at - 1]].key > cards[rank].key; at--)
            group[at] = group[at - 1];
        group[at] = rank;
    }
    return size;
}

static pmr_status open_group(pmr_comm *comm, const uint32_t *group, uint32_t size, split_place place,
                             pmr_comm **out, pmr_error *error)
{
    pmr_context *context = comm->context;
    if (place.board_index == PMR_BOARDS_MAX)
        return pmr_fail(error, PMR_ERR_NO_MEMORY,
                        "%u communicators are alive on this node, the most there can be: "
                        "free() those that are done",
                        PMR_BOARDS_MAX);
    uint16_t *local = malloc(size * sizeof *local);
    if (!local)
        return pmr_fail(error, PMR_ERR_NO_MEMORY, "out of memory for a communicator of %u ranks", size);
    uint32_t my_rank = 0;
    for (uint32_t i = 0; i < size; i++) {
        local[i] = comm->local[group[i]];
        if (group[i] == comm->rank)
            my_rank = i;
    }
    void *board;
    size_t bytes = pmr_board_layout_of(size).bytes;
    pmr_status status =
        pmr_window_map_pool(&context->window, pool_offset(context, place.board_index), bytes, &board, error);
    if (!status) {
        status = pmr_comm_open(context, board, place.id, my_rank, size, local, place.board_index, out, error);
        if (status)
            pmr_window_unmap_pool(board, bytes);
    }
    free(local);
    return status;
}

static pmr_status split(pmr_comm *comm, split_card mine, split_origin origin, pmr_comm **out,
                        pmr_error *error)
{
    split_card *cards = malloc(comm->size * sizeof *cards);
    split_place *places = malloc(comm->size * sizeof *places);
    uint32_t *group = malloc(comm->size * sizeof *group);
    pmr_status status = PMR_OK;
    if (!cards || !places || !group)
        status = pmr_fail(error, PMR_ERR_NO_MEMORY, "out of memory for a split of %u ranks", comm->size);
    if (!status)
        status = allgather(comm, &mine, cards, sizeof mine, origin, error);
    uint32_t size = 0;
    split_place place = {PMR_BOARDS_MAX, 0};
    if (!status && mine.color >= 0) {
        size = group_of(comm, cards, mine.color, group);
        if (group[0] == comm->rank)
            place = (split_place){pool_take(comm->context->pool),
                                  atomic_fetch_add(&comm->context->pool->made, 1) + 1};
    }
    if (!status)
        status = allgather(comm, &place, places, sizeof place, origin, error);
    pmr_comm *made = NULL;
    if (!status && mine.color >= 0)
        status = open_group(comm, group, size, places[group[0]], &made, error);
    if (!status)
        *out = made;
    free(group);
    free(places);
    free(cards);
    return status;
}

pmr_status pmr_comm_split(pmr_comm *comm, int32_t color, int32_t key, uint32_t site, pmr_comm **out,
                          pmr_error *error)
{
    return split(comm, (split_card){color, key}, (split_origin){PMR_FORM_SPLIT, site}, out, error);
}

pmr_status pmr_comm_dup(pmr_comm *comm, uint32_t site, pmr_comm **out, pmr_error *error)
{
    return split(comm, (split_card){0, (int32_t)comm->rank}, (split_origin){PMR_FORM_DUP, site}, out, error);
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
    pmr_board *board = comm->board;
    size_t bytes = comm->board_bytes;
    uint32_t index = comm->board_index;
    uint32_t size = comm->size;
    pmr_comm_close(comm);
    bool last = atomic_fetch_add(&board->leaving, 1) + 1 == size; /* this process touches the board no more */
    pmr_window_unmap_pool(board, bytes);
    if (last)
        pool_give(context, index);
    return PMR_OK;
}
