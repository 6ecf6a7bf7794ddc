/* SPDX-License-Identifier: Apache-2.0
 *
 * test_collectives.c: random programs of collectives on forked ranks, of one node and of several, checked against what
 * each rank can compute.
 *
 * All ranks draw the same program from the same seed: kind, size, root, memory (private or heap, per rank),
 * blocking or not, algorithm. Data are int64 functions of (call, rank, index), so every result is known
 * exactly.
 */
#include <time.h>

#include "node_gang.h"

#define ITEMS_MAX 1200000u /* 9.6 MB: beyond all thresholds of size */

typedef struct program {
    uint64_t seed;
    uint32_t calls;
    uint32_t items_max;
} program;

static uint64_t draw(uint64_t *state)
{
    uint64_t z = (*state += 0x9e3779b97f4a7c15ull);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
}

static int64_t value(uint32_t call, uint32_t rank, size_t index)
{
    return (int64_t)((call * 131u + rank * 7919u) ^ (uint32_t)index * 2654435761u) >> 3;
}

typedef struct drawn {
    pmr_kind kind;
    size_t count;
    size_t filled; /* items of the send buffer that anybody may read */
    int32_t root;
    bool nonblocking;
    size_t counts[64], displs[64], matrix[64][64];
} drawn;

static void draw_call(uint64_t *state, const program *p, uint32_t size, drawn *d)
{
    d->kind = (pmr_kind)(draw(state) % PMR_SEND);
    static const size_t limits[] = {1, 4, 8, 300, 2048, 9000, ITEMS_MAX / 4};
    size_t limit = draw(state) % 16 == 0 ? ITEMS_MAX : limits[draw(state) % 7];
    limit = limit > p->items_max ? p->items_max : limit;
    d->count = draw(state) % (limit + 1) / (d->kind == PMR_ALLREDUCE || d->kind == PMR_BROADCAST ? 1 : size);
    d->filled = limit + 4 * size + 1;
    d->root = (int32_t)(draw(state) % size);
    d->nonblocking = draw(state) % 3 == 0;
    size_t at = 0;
    for (uint32_t i = 0; i < size; i++) {
        d->counts[i] = draw(state) % (limit / size + 1);
        d->displs[i] = at;
        at += d->counts[i] + (d->kind == PMR_REDUCE_SCATTERV ? 0 : draw(state) % 3);
        for (uint32_t j = 0; j < size; j++)
            d->matrix[i][j] = draw(state) % (limit / size / 2 + 1);
    }
}

/* What rank `from` sends as item `index` of its buffer. */
#define SENT(from, index) value(number, from, index)

static int64_t reduced(uint32_t number, uint32_t first, uint32_t end, size_t index)
{
    int64_t sum = 0;
    for (uint32_t r = first; r < end; r++)
        sum += SENT(r, index);
    return sum;
}

static int wrong(uint32_t number, const drawn *d, uint32_t rank, size_t index, int64_t got, int64_t expected)
{
    fprintf(stderr, "call %u %s count %zu root %d rank %u: item %zu is %lld, not %lld\n", number,
            pmr_kind_name(d->kind), d->count, d->root, rank, index, (long long)got, (long long)expected);
    return 1;
}

#define EXPECT(index, got, expected)                                                                         \
    do {                                                                                                     \
        int64_t want = (expected);                                                                           \
        if ((got) != want)                                                                                   \
            return wrong(number, d, rank, index, got, want);                                                 \
    } while (0)

static int check_uneven(uint32_t number, const drawn *d, uint32_t rank, uint32_t size, const int64_t *out)
{
    bool root = (int32_t)rank == d->root;
    uint32_t origin = (uint32_t)d->root;
    switch (d->kind) {
    case PMR_GATHERV:
    case PMR_ALLGATHERV:
        for (uint32_t r = 0; (root || d->kind == PMR_ALLGATHERV) && r < size; r++)
            for (size_t i = 0; i < d->counts[r]; i++)
                EXPECT(d->displs[r] + i, out[d->displs[r] + i], SENT(r, i));
        break;
    case PMR_SCATTERV:
        for (size_t i = 0; i < d->counts[rank]; i++)
            EXPECT(i, out[i], SENT(origin, d->displs[rank] + i));
        break;
    case PMR_REDUCE_SCATTERV:
        for (size_t i = 0; i < d->counts[rank]; i++)
            EXPECT(i, out[i], reduced(number, 0, size, d->displs[rank] + i));
        break;
    case PMR_ALLTOALLV: {
        size_t at = 0;
        for (uint32_t r = 0; r < size; r++) {
            size_t from = 0;
            for (uint32_t j = 0; j < rank; j++)
                from += d->matrix[r][j];
            for (size_t i = 0; i < d->matrix[r][rank]; i++)
                EXPECT(at + i, out[at + i], SENT(r, from + i));
            at += d->matrix[r][rank];
        }
        break;
    }
    default:
        break;
    }
    return 0;
}

static int check(uint32_t number, const drawn *d, uint32_t rank, uint32_t size, const int64_t *out)
{
    bool root = (int32_t)rank == d->root;
    size_t n = d->count;
    uint32_t origin = (uint32_t)d->root;
    switch (d->kind) {
    case PMR_BROADCAST:
        for (size_t i = 0; i < n; i++)
            EXPECT(i, out[i], SENT(origin, i));
        break;
    case PMR_REDUCE:
        for (size_t i = 0; root && i < n; i++)
            EXPECT(i, out[i], reduced(number, 0, size, i));
        break;
    case PMR_ALLREDUCE:
        for (size_t i = 0; i < n; i++)
            EXPECT(i, out[i], reduced(number, 0, size, i));
        break;
    case PMR_GATHER:
    case PMR_ALLGATHER:
        for (uint32_t r = 0; (root || d->kind == PMR_ALLGATHER) && r < size; r++)
            for (size_t i = 0; i < n; i++)
                EXPECT(r * n + i, out[r * n + i], SENT(r, i));
        break;
    case PMR_SCATTER:
        for (size_t i = 0; i < n; i++)
            EXPECT(i, out[i], SENT(origin, rank * n + i));
        break;
    case PMR_REDUCE_SCATTER:
        for (size_t i = 0; i < n; i++)
            EXPECT(i, out[i], reduced(number, 0, size, rank * n + i));
        break;
    case PMR_ALLTOALL:
        for (uint32_t r = 0; r < size; r++)
            for (size_t i = 0; i < n; i++)
                EXPECT(r * n + i, out[r * n + i], SENT(r, rank * n + i));
        break;
    case PMR_SCAN:
    case PMR_EXSCAN: {
        uint32_t end = rank + (d->kind == PMR_SCAN);
        for (size_t i = 0; end > 0 && i < n; i++)
            EXPECT(i, out[i], reduced(number, 0, end, i));
        break;
    }
    default:
        return check_uneven(number, d, rank, size, out);
    }
    return 0;
}

static void fill_call(pmr_call *call, const drawn *d, uint32_t rank, uint32_t size, size_t (*v)[64])
{
    *call =
        (pmr_call){.kind = d->kind, .dtype = PMR_INT64, .op = PMR_SUM, .root = d->root, .count = d->count};
    for (uint32_t i = 0; i < size; i++) {
        v[0][i] = d->matrix[rank][i];
        v[1][i] = i ? v[1][i - 1] + d->matrix[rank][i - 1] : 0;
        v[2][i] = d->matrix[i][rank];
        v[3][i] = i ? v[3][i - 1] + d->matrix[i - 1][rank] : 0;
    }
    if (d->kind == PMR_GATHERV || d->kind == PMR_ALLGATHERV) {
        call->send_counts = &d->counts[rank];
        call->recv_counts = d->counts;
        call->recv_displs = d->displs;
    } else if (d->kind == PMR_SCATTERV) {
        call->send_counts = d->counts;
        call->send_displs = d->displs;
        call->recv_counts = &d->counts[rank];
    } else if (d->kind == PMR_REDUCE_SCATTERV) {
        call->recv_counts = d->counts;
    } else if (d->kind == PMR_ALLTOALLV) {
        call->send_counts = v[0];
        call->send_displs = v[1];
        call->recv_counts = v[2];
        call->recv_displs = v[3];
    }
}

static bool in_place_allowed(pmr_kind kind)
{
    return kind == PMR_ALLREDUCE || kind == PMR_REDUCE || kind == PMR_SCAN || kind == PMR_EXSCAN ||
           kind == PMR_BROADCAST || kind == PMR_ALLTOALL;
}

static int one_call(pmr_comm *comm, uint32_t number, const drawn *d, int64_t *send, int64_t *recv,
                    bool in_place)
{
    uint32_t rank = pmr_comm_rank(comm), size = pmr_comm_size(comm);
    size_t v[4][64];
    pmr_call call;
    pmr_error error;
    fill_call(&call, d, rank, size, v);
    for (size_t i = 0; i < d->filled; i++)
        send[i] = SENT(rank, i);
    in_place = in_place && in_place_allowed(d->kind);
    call.send = send;
    call.recv = in_place ? send : recv;
    pmr_status status;
    if (d->nonblocking) {
        pmr_request *request;
        status = pmr_coll_start(comm, &call, &request, &error);
        if (!status) {
            status = pmr_request_wait(request, PMR_FOREVER, &error);
            pmr_request_free(request);
        }
    } else {
        status = pmr_coll_run(comm, &call, 20000000000ll, &error);
    }
    if (status) {
        fprintf(stderr, "call %u %s: %s: %s\n", number, pmr_kind_name(d->kind), pmr_status_name(status),
                error.text);
        return 1;
    }
    const int64_t *out = in_place || (d->kind == PMR_BROADCAST && (int32_t)rank == d->root) ? send : recv;
    return check(number, d, rank, size, out);
}

static int run_program(pmr_context *context, void *arg)
{
    const program *p = arg;
    pmr_comm *world = pmr_context_world(context);
    uint32_t rank = pmr_comm_rank(world), size = pmr_comm_size(world);
    uint64_t common = p->seed, own = p->seed * 31 + rank + 1;
    size_t bytes = (2 * ITEMS_MAX + 4096) * sizeof(int64_t);
    int64_t *memory[2][2] = {{malloc(bytes), malloc(bytes)},
                             {pmr_heap_alloc(context, bytes), pmr_heap_alloc(context, bytes)}};
    drawn *d = malloc(sizeof *d);
    int failed = 0;
    for (uint32_t number = 1; number <= p->calls && !failed; number++) {
        draw_call(&common, p, size, d);
        uint64_t manner = draw(&common) % 4;
        uint64_t mine = draw(&own);
        int which = manner == 0 ? 0 : manner == 1 ? 1 : (int)(mine & 1); /* all private, all heap, mixed */
        failed = one_call(world, number, d, memory[which][0], memory[which][1], (mine & 2) != 0);
    }
    free(d);
    free(memory[0][0]);
    free(memory[0][1]);
    pmr_heap_free(context, memory[1][0]);
    pmr_heap_free(context, memory[1][1]);
    return failed;
}

static const node_layout LAYOUTS[] = {
    {.nodes = 2, .sizes = {1, 1}},    {.nodes = 2, .sizes = {2, 2}}, {.nodes = 3, .sizes = {1, 3, 2}},
    {.nodes = 4, .sizes = {2, 1, 1, 1}}, {.nodes = 2, .sizes = {4, 3}},
};

/* The same over nodes: shapes, transports, and fewer CPUs than ranks or not. */
static int run_layouts(uint64_t seed, uint32_t calls)
{
    int failed = 0;
#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
    calls /= 4;
#endif
    for (uint32_t i = 0; i < sizeof LAYOUTS / sizeof *LAYOUTS * 2; i++) {
        node_layout layout = LAYOUTS[i / 2];
        layout.transport = node_transport(seed + i + i / 3);
        layout.cpus = (seed + i) % 3 ? 64 : 1;
        layout.reproducible = (seed + i) % 2;
        program p = {.seed = seed + 100 + i, .calls = calls, .items_max = i % 2 ? ITEMS_MAX : 60000};
        int bad = node_gang_run(&layout, run_program, &p);
        if (bad)
            fprintf(stderr, "failed: layout %u of %u nodes by %s, %u CPUs%s, seed %llu\n", i / 2, layout.nodes,
                    layout.transport, layout.cpus, layout.reproducible ? ", reproducible" : "",
                    (unsigned long long)p.seed);
        failed += bad;
    }
    return failed;
}

int main(int argc, char **argv)
{
    uint64_t seed = argc > 1 ? strtoull(argv[1], NULL, 10) : (uint64_t)time(NULL);
    uint32_t calls = argc > 2 ? (uint32_t)atoi(argv[2]) : 400;
    printf("seed %llu\n", (unsigned long long)seed);
    int failed = 0;
    static const uint32_t ranks[] = {1, 2, 3, 4, 5, 8};
    for (uint32_t i = 0; i < sizeof ranks / sizeof *ranks; i++)
        for (uint32_t crowded = 0; crowded < 2; crowded++) {
            /* half of the worlds read even short blocks from each other's memory */
            setenv("PMRUN_SINGLE_COPY", (i + crowded) % 2 ? "4096" : "0", 1);
            /* with few CPUs the crowded algorithms run; both kinds must be right whatever the machine has */
            program p = {.seed = seed + i * 2 + crowded, .calls = calls, .items_max = ITEMS_MAX};
            if (ranks[i] == 8)
                p.calls /= 2;
            int bad = gang_run(ranks[i], crowded ? 1 : 64, run_program, &p);
            if (bad)
                fprintf(stderr, "failed: %u ranks, %s, seed %llu\n", ranks[i],
                        crowded ? "crowded" : "dedicated", (unsigned long long)p.seed);
            failed += bad;
        }
    failed += run_layouts(seed, calls / 2);
    printf("%s\n", failed ? "FAILED" : "ok");
    return failed != 0;
}
