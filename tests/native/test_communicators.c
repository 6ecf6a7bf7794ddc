/* SPDX-License-Identifier: Apache-2.0
 *
 * test_communicators.c: communicators made, used and freed many times over, by groups of any shape.
 *
 * All ranks draw the same colors and keys, so each knows who should be in its group and in which order. Boards are used again and
 * again; a board that kept anything of its last communicator would show in the next one's first call.
 *
 * Usage: test_communicators [seed]
 */
#include <time.h>

#include "gang.h"

#define RANKS_MAX 5u
#define LONG 80000000000ll
#define LOST_AFTER_S 90 /* a hang fails the test */

static uint64_t draw(uint64_t *state)
{
    uint64_t z = (*state += 0x9e3779b97f4a7c15ull);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
}

/* Sum of the members' world ranks, as they and as the caller know it. */
static int check_members(pmr_comm *comm, uint32_t world_size, const int32_t *colors, const int32_t *keys, int32_t color)
{
    int64_t expected = 0, last = INT64_MIN;
    uint32_t members = 0;
    for (uint32_t rank = 0; rank < world_size; rank++)
        if (colors[rank] == color) {
            expected += (int64_t)rank << (8 * members % 32);
            members++;
        }
    int64_t mine = 0, sum = 0, all = 0;
    for (uint32_t i = 0; i < pmr_comm_size(comm); i++) {
        uint32_t rank = pmr_comm_world_rank(comm, i);
        int64_t place = (int64_t)keys[rank] * 1000 + rank;
        if (colors[rank] != color || place <= last)
            return 1;
        last = place;
        all += rank;
    }
    mine = pmr_comm_world_rank(comm, pmr_comm_rank(comm));
    pmr_call call = {.kind = PMR_ALLREDUCE, .dtype = PMR_INT64, .op = PMR_SUM, .send = &mine, .recv = &sum, .count = 1};
    pmr_error error;
    return pmr_comm_size(comm) != members || pmr_coll_run(comm, &call, LONG, &error) || sum != all;
}

static int split_often(pmr_context *context, void *arg)
{
    alarm(LOST_AFTER_S);
    pmr_comm *world = pmr_context_world(context);
    uint32_t rank = pmr_comm_rank(world), size = pmr_comm_size(world);
    uint64_t common = *(const uint64_t *)arg;
    pmr_error error;
    for (int round = 0; round < 300; round++) {
        int32_t colors[RANKS_MAX], keys[RANKS_MAX];
        for (uint32_t i = 0; i < size; i++) {
            colors[i] = (int32_t)(draw(&common) % 4) - 1;
            keys[i] = (int32_t)(draw(&common) % 5) - 2;
        }
        pmr_comm *part = NULL, *copy = NULL;
        bool nested = draw(&common) & 1;
        pmr_status status = pmr_comm_split(world, colors[rank], keys[rank], 0, &part, &error);
        if (!status && (part == NULL) != (colors[rank] < 0))
            return fprintf(stderr, "split %d: color %d got %s\n", round, colors[rank], part ? "a communicator" : "none");
        if (!status && part && check_members(part, size, colors, keys, colors[rank]))
            return fprintf(stderr, "split %d: wrong members\n", round);
        if (!status && part && nested)
            status = pmr_comm_split(part, 0, (int32_t)pmr_comm_rank(part), 0, &copy, &error);
        if (!status && copy && check_members(copy, size, colors, keys, colors[rank]))
            return fprintf(stderr, "split %d: wrong members of the copy\n", round);
        if (!status && part)
            status = pmr_comm_free(part, &error);
        if (!status && copy)
            status = pmr_comm_free(copy, &error);
        if (status)
            return fprintf(stderr, "split %d: %s\n", round, error.text);
    }
    return 0;
}

/* All boards of the node at once, one more, and again. */
static int take_all(pmr_context *context, void *arg)
{
    (void)arg;
    alarm(LOST_AFTER_S);
    pmr_comm *world = pmr_context_world(context), *taken[257] = {NULL};
    pmr_error error;
    for (int round = 0; round < 2; round++) {
        for (int i = 0; i < 256; i++)
            if (pmr_comm_split(world, 0, 0, 0, &taken[i], &error))
                return fprintf(stderr, "communicator %d: %s\n", i, error.text);
        if (pmr_comm_split(world, 0, 0, 0, &taken[256], &error) != PMR_ERR_NO_MEMORY || taken[256])
            return fprintf(stderr, "there is no end of communicators\n");
        int64_t one = 1, sum = 0;
        pmr_call call = {.kind = PMR_ALLREDUCE, .dtype = PMR_INT64, .send = &one, .recv = &sum, .count = 1};
        if (pmr_coll_run(taken[255], &call, LONG, &error) || sum != pmr_comm_size(world))
            return fprintf(stderr, "the last communicator is of no use\n");
        for (int i = 0; i < 256; i++)
            if (pmr_comm_free(taken[i], &error))
                return fprintf(stderr, "free %d: %s\n", i, error.text);
        pmr_call barrier = {.kind = PMR_BARRIER}; /* everybody gave its boards back */
        if (pmr_coll_run(world, &barrier, LONG, &error))
            return 1;
    }
    return 0;
}

int main(int argc, char **argv)
{
    uint64_t seed = argc > 1 ? strtoull(argv[1], NULL, 10) : (uint64_t)time(NULL);
    printf("seed %llu\n", (unsigned long long)seed);
    int failed = 0;
    for (uint32_t ranks = 1; ranks <= RANKS_MAX; ranks++) {
        uint64_t own = seed + ranks;
        failed += gang_run(ranks, ranks & 1 ? 1 : 64, split_often, &own);
    }
    failed += gang_run(2, 64, take_all, NULL);
    printf("%s\n", failed ? "FAILED" : "ok");
    return failed != 0;
}
