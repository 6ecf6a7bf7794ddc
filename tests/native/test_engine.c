/* SPDX-License-Identifier: Apache-2.0
 *
 * test_engine.c: many nonblocking calls at once, on several communicators, in different orders on different ranks.
 *
 * Ranks are forked processes; each has the engine's thread beside its own, and one scene has two threads of its own, so
 * that under ThreadSanitizer the engine is seen against its callers.
 *
 * Usage: test_engine [seed]
 */
#include <poll.h>
#include <pthread.h>
#include <sys/eventfd.h>
#include <time.h>

#include "gang.h"

#define COMMS 4u
#define DEPTH 6u                /* calls in flight on each communicator */
#define OPEN (COMMS * DEPTH)
#define LONG 80000000000ll
#define LOST_AFTER_S 90         /* a hang fails the test */

typedef struct scene {
    uint64_t seed;
    uint32_t rounds;
} scene;

static uint64_t draw(uint64_t *state)
{
    uint64_t z = (*state += 0x9e3779b97f4a7c15ull);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
}

#define FAIL(...) return fprintf(stderr, __VA_ARGS__), 1

/* One allreduce in flight: `items` items, each of them known. */
typedef struct flight {
    pmr_request *request;
    int64_t *data;
    size_t items;
    int64_t number;
} flight;

static int64_t value_of(int64_t number, uint32_t rank, size_t index)
{
    return number * 1000 + rank * 7 + (int64_t)(index % 1009);
}

static int launch(pmr_comm *comm, flight *f, int64_t number, size_t items, pmr_error *error)
{
    f->number = number;
    f->items = items;
    for (size_t i = 0; i < items; i++)
        f->data[i] = value_of(number, pmr_comm_world_rank(comm, pmr_comm_rank(comm)), i);
    pmr_call call = {.kind = PMR_ALLREDUCE, .dtype = PMR_INT64, .op = PMR_SUM, .send = f->data, .recv = f->data, .count = items};
    return pmr_coll_start(comm, &call, &f->request, error) != PMR_OK;
}

static int landed(const flight *f, uint32_t size)
{
    for (size_t i = 0; i < f->items; i++) {
        int64_t sum = 0;
        for (uint32_t rank = 0; rank < size; rank++)
            sum += value_of(f->number, rank, i);
        if (f->data[i] != sum)
            FAIL("call %lld: item %zu is %lld, not %lld\n", (long long)f->number, i, (long long)f->data[i], (long long)sum);
    }
    return 0;
}

static int barrier(pmr_comm *comm)
{
    pmr_error error;
    pmr_call call = {.kind = PMR_BARRIER};
    if (pmr_coll_run(comm, &call, LONG, &error))
        FAIL("barrier: %s\n", error.text);
    return 0;
}

/* ---- ways of ending --------------------------------------------------------------------------------------------------- */

static int end_by_waiting(flight *flights, uint64_t *random)
{
    pmr_error error;
    uint32_t first = (uint32_t)(draw(random) % OPEN);
    for (uint32_t i = 0; i < OPEN; i++)
        if (pmr_request_wait(flights[(first + i * 5) % OPEN].request, LONG, &error))
            FAIL("wait: %s\n", error.text);
    return 0;
}

static int end_by_any(flight *flights)
{
    pmr_error error;
    pmr_request *open[OPEN];
    for (uint32_t i = 0; i < OPEN; i++)
        open[i] = flights[i].request;
    for (uint32_t ended = 0; ended < OPEN; ended++) {
        size_t index = OPEN;
        if (pmr_request_wait_any(open, OPEN, LONG, &index, &error))
            FAIL("wait_any: %s\n", error.text);
        if (index >= OPEN || !open[index] || pmr_request_test(open[index], &error) != PMR_OK)
            FAIL("wait_any named %zu, which has not ended\n", index);
        open[index] = NULL;
    }
    return 0;
}

static int end_by_testing(flight *flights)
{
    pmr_error error;
    for (uint32_t left = OPEN; left > 0;) {
        left = 0;
        for (uint32_t i = 0; i < OPEN; i++) {
            pmr_status status = pmr_request_test(flights[i].request, &error);
            if (status < 0)
                FAIL("test: %s\n", error.text);
            left += status == PMR_PENDING;
        }
    }
    return 0;
}

static int end_by_event(flight *flights)
{
    pmr_error error;
    int event = eventfd(0, EFD_CLOEXEC);
    for (uint32_t i = 0; i < OPEN; i++)
        if (pmr_request_notify(flights[i].request, event, &error))
            FAIL("notify: %s\n", error.text);
    uint64_t heard = 0;
    while (heard < OPEN) {
        struct pollfd ready = {.fd = event, .events = POLLIN};
        uint64_t more;
        if (poll(&ready, 1, (int)(LONG / 1000000)) != 1 || read(event, &more, sizeof more) != sizeof more)
            FAIL("only %llu of %u completions were told\n", (unsigned long long)heard, OPEN);
        heard += more;
    }
    close(event);
    for (uint32_t i = 0; i < OPEN; i++)
        if (pmr_request_test(flights[i].request, &error))
            FAIL("a completion was told that was none\n");
    return heard != OPEN;
}

/* A blocking call takes effect behind all calls before it, also those whose requests are gone. */
static int end_by_forgetting(pmr_comm **comm, flight *flights, const uint32_t *order)
{
    for (uint32_t i = 0; i < OPEN; i++) {
        pmr_request_free(flights[i].request);
        flights[i].request = NULL;
    }
    for (uint32_t i = 0; i < COMMS; i++)
        if (barrier(comm[order[i]]))
            return 1;
    return 0;
}

/* ---- scenes -------------------------------------------------------------------------------------------------------------- */

static void shuffle(uint32_t *order, uint64_t *random)
{
    for (uint32_t i = 0; i < COMMS; i++)
        order[i] = i;
    for (uint32_t i = COMMS - 1; i > 0; i--) {
        uint32_t j = (uint32_t)(draw(random) % (i + 1)), kept = order[i];
        order[i] = order[j];
        order[j] = kept;
    }
}

static int one_round(pmr_comm **comm, flight *flights, uint32_t round, uint64_t *common, uint64_t *own)
{
    static const size_t items[] = {0, 1, 4, 100, 2000, 30000};
    pmr_error error;
    uint32_t order[COMMS], size = pmr_comm_size(comm[0]);
    size_t count[OPEN];
    for (uint32_t i = 0; i < OPEN; i++)
        count[i] = items[draw(common) % 6];
    uint64_t manner = draw(own) % 5;
    for (uint32_t depth = 0; depth < DEPTH; depth++) {
        shuffle(order, own); /* legal: they are different communicators */
        for (uint32_t i = 0; i < COMMS; i++) {
            uint32_t at = order[i] * DEPTH + depth;
            if (launch(comm[order[i]], &flights[at], round * 100 + at, count[at], &error))
                FAIL("start: %s\n", error.text);
        }
    }
    for (uint32_t i = 0; i < COMMS; i++)
        order[i] = i; /* blocking calls of all ranks in one order */
    int failed = manner == 0   ? end_by_waiting(flights, own)
                 : manner == 1 ? end_by_any(flights)
                 : manner == 2 ? end_by_testing(flights)
                 : manner == 3 ? end_by_event(flights)
                               : 0;
    if (!failed)
        failed = end_by_forgetting(comm, flights, order);
    for (uint32_t i = 0; i < OPEN && !failed; i++)
        failed = landed(&flights[i], size);
    return failed;
}

static int crossed(pmr_context *context, void *arg)
{
    const scene *s = arg;
    alarm(LOST_AFTER_S);
    pmr_comm *world = pmr_context_world(context), *comm[COMMS];
    uint64_t common = s->seed, own = s->seed + 1 + pmr_comm_rank(world);
    pmr_error error;
    flight flights[OPEN];
    for (uint32_t i = 0; i < OPEN; i++)
        flights[i].data = i % 2 ? malloc(30000 * sizeof(int64_t)) : pmr_heap_alloc(context, 30000 * sizeof(int64_t));
    comm[0] = world;
    for (uint32_t i = 1; i < COMMS; i++)
        if (pmr_comm_split(world, 0, (int32_t)pmr_comm_rank(world), 0, &comm[i], &error))
            FAIL("split: %s\n", error.text);
    for (uint32_t round = 1; round <= s->rounds; round++)
        if (one_round(comm, flights, round, &common, &own))
            FAIL("rank %u, round %u\n", pmr_comm_rank(world), round);
    for (uint32_t i = 1; i < COMMS; i++)
        if (pmr_comm_free(comm[i], &error))
            FAIL("free: %s\n", error.text);
    for (uint32_t i = 1; i < OPEN; i += 2)
        free(flights[i].data);
    return 0;
}

/* A communicator is freed the moment its last call is over; the engine's thread may still be asleep on it. */
static int short_lives(pmr_context *context, void *arg)
{
    const scene *s = arg;
    alarm(LOST_AFTER_S);
    pmr_comm *world = pmr_context_world(context);
    pmr_error error;
    int64_t data[64];
    for (uint32_t round = 1; round <= s->rounds * 8; round++) {
        pmr_comm *brief;
        if (pmr_comm_split(world, 0, (int32_t)pmr_comm_rank(world), 0, &brief, &error))
            FAIL("split: %s\n", error.text);
        flight f = {.data = data};
        uint64_t busy = s->seed + round * 64 + pmr_comm_rank(world); /* some come late, so that the others' engines sleep */
        for (uint64_t spins = draw(&busy) % 200000; spins > 0; spins--)
            __asm__ volatile("");
        if (launch(brief, &f, round, 64, &error) || pmr_request_wait(f.request, LONG, &error))
            FAIL("round %u: %s\n", round, error.text);
        pmr_request_free(f.request);
        if (landed(&f, pmr_comm_size(world)) || pmr_comm_free(brief, &error))
            FAIL("round %u\n", round);
    }
    return 0;
}

typedef struct worker {
    pmr_comm *comm;
    uint32_t rounds;
    int64_t first;
    int failed;
} worker;

static void *work(void *arg)
{
    worker *w = arg;
    pmr_error error;
    int64_t data[2][300];
    for (uint32_t round = 0; round < w->rounds && !w->failed; round++) {
        flight f[2] = {{.data = data[0]}, {.data = data[1]}};
        w->failed = launch(w->comm, &f[0], w->first + round, 300, &error) || launch(w->comm, &f[1], w->first - round, 2, &error) ||
                    pmr_request_wait(f[0].request, LONG, &error) || pmr_request_wait(f[1].request, LONG, &error) ||
                    landed(&f[0], pmr_comm_size(w->comm)) || landed(&f[1], pmr_comm_size(w->comm)) || barrier(w->comm);
        if (!w->failed) {
            pmr_request_free(f[0].request);
            pmr_request_free(f[1].request);
        }
    }
    return NULL;
}

/* Two threads of each rank, a communicator each, over one engine. */
static int threads(pmr_context *context, void *arg)
{
    const scene *s = arg;
    alarm(LOST_AFTER_S);
    pmr_comm *world = pmr_context_world(context);
    pmr_error error;
    worker workers[2];
    pthread_t thread[2];
    for (int i = 0; i < 2; i++) {
        workers[i] = (worker){.rounds = s->rounds * 10, .first = 5000 * (i + 1)};
        if (pmr_comm_split(world, 0, (int32_t)pmr_comm_rank(world), 0, &workers[i].comm, &error))
            FAIL("split: %s\n", error.text);
    }
    for (int i = 0; i < 2; i++)
        if (pthread_create(&thread[i], NULL, work, &workers[i]))
            FAIL("no thread\n");
    for (int i = 0; i < 2; i++)
        pthread_join(thread[i], NULL);
    return workers[0].failed + workers[1].failed;
}

/* A wait runs out and can be repeated; closing the context ends what is open, and those who wait are told of it. */
static int ends_with_context(pmr_context *context, void *arg)
{
    (void)arg;
    alarm(LOST_AFTER_S);
    pmr_comm *world = pmr_context_world(context);
    pmr_error error;
    if (pmr_comm_rank(world) != 0) { /* stays until rank 0 closed, which it is told of */
        pmr_call call = {.kind = PMR_BARRIER};
        int8_t byte = 0;
        pmr_call broadcast = {.kind = PMR_BROADCAST, .dtype = PMR_INT8, .root = 1, .count = 0, .send = &byte};
        if (pmr_coll_run(world, &broadcast, LONG, &error)) /* as root: waits for nobody */
            FAIL("broadcast: %s\n", error.text);
        pmr_status status = pmr_coll_run(world, &call, LONG, &error);
        if (status != PMR_ERR_RANK_FAILED || error.rank != 0 || !strstr(error.text, "shutdown"))
            FAIL("told of a rank that left: %s: %s\n", pmr_status_name(status), status ? error.text : "");
        return 0;
    }
    int8_t byte = 0;
    pmr_call broadcast = {.kind = PMR_BROADCAST, .dtype = PMR_INT8, .root = 1, .count = 0, .send = &byte, .recv = &byte};
    if (pmr_coll_run(world, &broadcast, LONG, &error))
        FAIL("broadcast: %s\n", error.text);
    pmr_request *request;
    int64_t data = 0;
    if (pmr_irecv(world, &data, sizeof data, 1, 5, 0, &request, &error)) /* a message that never comes */
        FAIL("irecv: %s\n", error.text);
    for (int i = 0; i < 2; i++)
        if (pmr_request_wait(request, 2000000, &error) != PMR_ERR_TIMEOUT || pmr_request_test(request, &error) != PMR_PENDING)
            FAIL("a wait for nothing ended\n");
    pmr_context_close(context);
    if (pmr_request_wait(request, LONG, &error) != PMR_ERR_SHUTDOWN)
        FAIL("an open request did not end with the context\n");
    pmr_request_free(request);
    return 0;
}

int main(int argc, char **argv)
{
    scene s = {.seed = argc > 1 ? strtoull(argv[1], NULL, 10) : (uint64_t)time(NULL)};
    printf("seed %llu\n", (unsigned long long)s.seed);
    static const struct {
        const char *name;
        gang_body body;
    } scenes[] = {{"crossed", crossed}, {"short lives", short_lives}, {"threads", threads}, {"ends with context", ends_with_context}};
    int failed = 0;
    s.rounds = 12;
    for (size_t i = 0; i < sizeof scenes / sizeof *scenes; i++)
        for (uint32_t ranks = 2; ranks <= 4; ranks++)
            for (uint32_t crowded = 0; crowded < 2; crowded++) {
                int bad = gang_run(ranks, crowded ? 1 : 64, scenes[i].body, &s);
                if (bad)
                    fprintf(stderr, "failed: %s, %u ranks, %s\n", scenes[i].name, ranks, crowded ? "crowded" : "dedicated");
                failed += bad;
            }
    printf("%s\n", failed ? "FAILED" : "ok");
    return failed != 0;
}
