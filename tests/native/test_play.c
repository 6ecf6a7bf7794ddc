/* SPDX-License-Identifier: Apache-2.0
 *
 * test_play.c: the model that predicts times (benchmarks/play.h) gives the times that can be told without it.
 */
#include <stdio.h>

#include "../../benchmarks/play.c"
#include "../../benchmarks/play_link.c"

#define CHECK_BETWEEN(us, low, high)                                                                          \
    do {                                                                                                      \
        double got = (us), from = (low), to = (high);                                                         \
        if (got < from - 1e-6 || got > to + 1e-6) {                                                           \
            fprintf(stderr, "%s:%d: %s is %g, not %g to %g\n", __FILE__, __LINE__, #us, got, from, to);       \
            exit(1);                                                                                          \
        }                                                                                                     \
    } while (0)
#define CHECK_SAME(us, wanted) CHECK_BETWEEN(us, wanted, wanted)

extern const pmr_algorithm *const __start_pmr_algorithms[];
extern const pmr_algorithm *const __stop_pmr_algorithms[];

static const pmr_algorithm *named(const char *name, pmr_kind kind)
{
    for (const pmr_algorithm *const *each = __start_pmr_algorithms; each < __stop_pmr_algorithms; each++)
        if ((*each)->build && strcmp((*each)->name, name) == 0 && ((*each)->kinds & PMR_KIND_BIT(kind)))
            return *each;
    fprintf(stderr, "there is no %s\n", name);
    exit(1);
}

/* Microseconds per call; negative: what play says. */
static double played(const char *name, pmr_kind kind, size_t items, uint32_t nodes, uint32_t members, bool fold,
                     uint32_t calls, const play_model *model)
{
    uint32_t size = nodes * members, count = fold ? members : size, place[256];
    pmr_schedule schedules[256];
    pmr_shape shape;
    pmr_error error;
    for (uint32_t rank = 0; rank < size; rank++)
        place[rank] = rank / members;
    if (pmr_shape_init(&shape, place, size, &error))
        exit(1);
    pmr_call call = {.kind = kind, .dtype = PMR_FLOAT32, .op = PMR_SUM, .count = items};
    for (uint32_t rank = 0; rank < count; rank++) {
        pmr_plan plan = pmr_span_plan(&shape, rank, &call, false, 1u << 18);
        pmr_schedule_init(&schedules[rank]);
        named(name, kind)->build(&plan, &schedules[rank]);
        if (pmr_schedule_end(&schedules[rank], &error))
            exit(1);
    }
    play_world world = {.shape = &shape, .schedules = schedules, .item_bytes = 4, .partial_bytes = 4, .folded = fold,
                        .calls = calls};
    double us = play(&world, model);
    for (uint32_t rank = 0; rank < count; rank++)
        pmr_schedule_fini(&schedules[rank]);
    pmr_shape_fini(&shape);
    return us;
}

int main(void)
{
    /* Two ranks that send each other a word: begin, send, travel, wake, take in. */
    play_model latency = {.call_us = 1, .send_us = 10, .receive_us = 100, .latency_us = 1000, .cpus = 1};
    CHECK_SAME(played("dissemination", PMR_BARRIER, 0, 2, 1, false, 1, &latency), 1111);
    latency.wake_us = 0.5;
    CHECK_SAME(3 * played("dissemination", PMR_BARRIER, 0, 2, 1, false, 3, &latency), 3 * 1111 + 4 * 0.5);

    /* On one CPU for both, sends and receives come one after the other. */
    play_model shared = latency;
    shared.wake_us = 0;
    shared.shared = 1;
    CHECK_SAME(played("dissemination", PMR_BARRIER, 0, 2, 1, false, 1, &shared), 2 * 11 + 1000 + 200 - 11);

    /* A long exchange takes as long as its bytes on a link, and the last piece of each message a little more, as it is
     * on two of them: to three others; or, in a sum over four nodes, 2 * 3/4 of it. */
    play_model rate = {.link_kib_us = 8, .cpus = 2};
    double mib_us = 1024 * rate.link_kib_us, more = 1.1;
    CHECK_BETWEEN(played("ranks", PMR_ALLTOALL, 1u << 18, 4, 1, false, 1, &rate), 3 * mib_us, 3 * more * mib_us);
    CHECK_BETWEEN(played("slices", PMR_ALLREDUCE, 1u << 22, 4, 2, false, 1, &rate), 24 * mib_us, 24 * more * mib_us);
    /* What was saved while a link was idle passes at once: all but the first message on its way out. */
    play_model saved = {.link_kib_us = 8, .burst_kib = 64, .latency_us = 1000, .cpus = 1};
    CHECK_SAME(2 * played("ranks", PMR_ALLTOALL, 1024, 2, 1, false, 2, &saved), 1000 + 4 * 8 + 1000);

    /* A world that is the same from every node is the same when it is folded, and one that is not is refused. */
    play_model own = {.send_us = 1, .receive_us = 2, .latency_us = 5, .cpus = 4, .node_us = 1, .wake_us = 1};
    CHECK_SAME(played("ranks", PMR_ALLTOALL, 4, 16, 4, true, 2, &own),
               played("ranks", PMR_ALLTOALL, 4, 16, 4, false, 2, &own));
    if (played("tree", PMR_BROADCAST, 4, 16, 4, true, 1, &own) >= 0) {
        fprintf(stderr, "a broadcast is not the same seen from every node\n");
        return 1;
    }
    printf("ok\n");
    return 0;
}
