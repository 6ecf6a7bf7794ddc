/* SPDX-License-Identifier: Apache-2.0
 *
 * test_algorithms.c: every algorithm of every kind, on one node and across nodes, gives the same bits: those of the
 * canonical tree.
 *
 * The oracle adds in the order (0+1), (2+3), ... pairs of pairs, the odd one passing up, in plain C; 16-bit types in float32,
 * rounded once. A rank's data repeat with a prime period, so an oracle of one period knows any message and a chunk in
 * the wrong place shows. The product of algorithm, size, dtype, operation, memory (private, heap, by rank), in place or not,
 * is too big: a sample is drawn from the seed, alike on all ranks; every algorithm meets every size of its own.
 * The v-forms are drawn in test_collectives.c.
 *
 * Usage: test_algorithms [seed]
 */
#include <math.h>
#include <time.h>

#include "node_gang.h"

#define PERIOD 4099u
#define RANKS_MAX 8u
#define ITEM_MAX 8u
#define BYTES_MAX (((size_t)3 << 20) + 64)
#define GUARD_BYTES 64u
#define GUARD 0xa5
#define LONG 80000000000ll
#define LOST_AFTER_S 90 /* a hang fails the test */

static const pmr_dtype DTYPES[] = {PMR_FLOAT32, PMR_FLOAT64, PMR_FLOAT16, PMR_BFLOAT16, PMR_INT32};
static const pmr_op OPS[] = {PMR_SUM, PMR_SUM, PMR_PROD, PMR_MAX};
#define DTYPE_COUNT (sizeof DTYPES / sizeof *DTYPES)

typedef struct trial {
    pmr_kind kind;
    pmr_dtype dtype;
    pmr_op op;
    size_t count;       /* as pmr_call has it */
    int32_t root;
    bool in_place, nonblocking;
    unsigned memory;    /* 0 all private, 1 all in the heap, else by rank */
    uint32_t shift;     /* where in the period the data begin */
} trial;

typedef struct bench {  /* one process's buffers */
    pmr_context *context;
    const char *algorithm;
    uint32_t rank, size;
    uint8_t *send[2], *recv[2];     /* private, heap */
    uint8_t *period[RANKS_MAX];     /* what each rank sends, for the dtype at hand */
    uint8_t *expected;              /* a period of the result */
    uint64_t seed;
} bench;

static uint64_t draw(uint64_t *state)
{
    uint64_t z = (*state += 0x9e3779b97f4a7c15ull);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
}

/* ---- the oracle -------------------------------------------------------------------------------------------------------- */

static float widen(pmr_dtype dtype, uint16_t half)
{
    int digits = dtype == PMR_FLOAT16 ? 10 : 7, bias = dtype == PMR_FLOAT16 ? 15 : 127;
    int exponent = (half & 0x7fff) >> digits, fraction = half & ((1 << digits) - 1);
    float size = exponent ? ldexpf((float)(fraction + (1 << digits)), exponent - bias - digits)
                          : ldexpf((float)fraction, 1 - bias - digits);
    return half & 0x8000 ? -size : size;
}

/* To the nearest, ties to even; the data are finite and far from the ends. */
static uint16_t narrow(pmr_dtype dtype, float value)
{
    int digits = dtype == PMR_FLOAT16 ? 10 : 7, bias = dtype == PMR_FLOAT16 ? 15 : 127, exponent;
    float size = fabsf(value);
    uint16_t sign = signbit(value) ? 0x8000 : 0;
    if (size == 0)
        return sign;
    frexpf(size, &exponent);
    int unit = exponent - 1 - digits, lowest = 1 - bias - digits;
    unit = unit < lowest ? lowest : unit;
    return (uint16_t)(sign | (((unit - lowest) << digits) + (int)nearbyintf(ldexpf(size, -unit))));
}

typedef union number {
    float f;
    double d;
    int32_t i;
} number;

static number load(pmr_dtype dtype, const uint8_t *from)
{
    number n = {.d = 0};
    uint16_t half;
    switch (dtype) {
    case PMR_FLOAT32:
        memcpy(&n.f, from, 4);
        break;
    case PMR_FLOAT64:
        memcpy(&n.d, from, 8);
        break;
    case PMR_INT32:
        memcpy(&n.i, from, 4);
        break;
    default:
        memcpy(&half, from, 2);
        n.f = widen(dtype, half);
    }
    return n;
}

static void store(pmr_dtype dtype, number n, uint8_t *to)
{
    uint16_t half;
    switch (dtype) {
    case PMR_FLOAT32:
        memcpy(to, &n.f, 4);
        break;
    case PMR_FLOAT64:
        memcpy(to, &n.d, 8);
        break;
    case PMR_INT32:
        memcpy(to, &n.i, 4);
        break;
    default:
        half = narrow(dtype, n.f);
        memcpy(to, &half, 2);
    }
}

#define COMBINE(op, a, b) ((op) == PMR_SUM ? (a) + (b) : (op) == PMR_PROD ? (a) * (b) : (a) > (b) ? (a) : (b))

static number combine(pmr_dtype dtype, pmr_op op, number a, number b)
{
    number n = {.d = 0};
    if (dtype == PMR_FLOAT64)
        n.d = COMBINE(op, a.d, b.d);
    else if (dtype == PMR_INT32)
        n.i = op == PMR_MAX ? (a.i > b.i ? a.i : b.i)
                            : (int32_t)(op == PMR_SUM ? (uint32_t)a.i + (uint32_t)b.i : (uint32_t)a.i * (uint32_t)b.i);
    else
        n.f = COMBINE(op, a.f, b.f);
    return n;
}

/* Pairs, then pairs of pairs, until one is left. */
static void reduce_period(const bench *b, const trial *t, uint32_t ranks)
{
    size_t item = pmr_dtype_size(t->dtype);
    for (size_t i = 0; i < PERIOD; i++) {
        number row[RANKS_MAX];
        uint32_t left = ranks;
        for (uint32_t rank = 0; rank < ranks; rank++)
            row[rank] = load(t->dtype, b->period[rank] + i * item);
        while (left > 1) {
            uint32_t pairs = left / 2;
            for (uint32_t pair = 0; pair < pairs; pair++)
                row[pair] = combine(t->dtype, t->op, row[2 * pair], row[2 * pair + 1]);
            if (left % 2)
                row[pairs] = row[left - 1];
            left = pairs + left % 2;
        }
        store(t->dtype, row[0], b->expected + i * item);
    }
}

/* ---- data -------------------------------------------------------------------------------------------------------------- */

/* Small numbers around one: sums and products of eight round, and stay finite in every type. */
static void fill_periods(bench *b, pmr_dtype dtype)
{
    uint64_t state = b->seed ^ (uint64_t)dtype;
    for (uint32_t rank = 0; rank < b->size; rank++)
        for (size_t i = 0; i < PERIOD; i++) {
            uint64_t bits = draw(&state);
            double value = (0.3 + (double)(bits >> 12) / 4503599627370496.0 * 1.5) * (bits & 1 ? -1 : 1);
            number n = {.d = value};
            if (dtype == PMR_INT32)
                n.i = (int32_t)(bits >> 16);
            else if (dtype != PMR_FLOAT64)
                n = (number){.f = (float)value};
            store(dtype, n, b->period[rank] + i * pmr_dtype_size(dtype));
        }
}

/* `items` items of a period, from item `first` on: written, or compared. Answers the first that differs, or SIZE_MAX. */
static size_t repeat(uint8_t *at, const uint8_t *period, size_t item, size_t first, size_t items, bool compare)
{
    for (size_t i = 0; i < items;) {
        size_t from = (first + i) % PERIOD, run = PERIOD - from < items - i ? PERIOD - from : items - i;
        if (!compare)
            memcpy(at + i * item, period + from * item, run * item);
        else if (memcmp(at + i * item, period + from * item, run * item) != 0)
            return i;
        i += run;
    }
    return SIZE_MAX;
}

/* ---- one trial ------------------------------------------------------------------------------------------------------------ */

static bool many_sent(pmr_kind kind)
{
    return kind == PMR_SCATTER || kind == PMR_REDUCE_SCATTER || kind == PMR_ALLTOALL;
}

static bool many_received(pmr_kind kind)
{
    return kind == PMR_GATHER || kind == PMR_ALLGATHER || kind == PMR_ALLTOALL;
}

static bool reduces(pmr_kind kind)
{
    return kind == PMR_ALLREDUCE || kind == PMR_REDUCE || kind == PMR_REDUCE_SCATTER || kind == PMR_SCAN || kind == PMR_EXSCAN;
}

static bool may_be_in_place(pmr_kind kind)
{
    return kind == PMR_ALLREDUCE || kind == PMR_REDUCE || kind == PMR_SCAN || kind == PMR_EXSCAN || kind == PMR_ALLTOALL;
}

static int wrong(const bench *b, const trial *t, size_t where, const char *what)
{
    fprintf(stderr, "%s by %s, rank %u of %u: %s at item %zu; %s %s, count %zu, root %d, %s, memory %u%s\n",
            pmr_kind_name(t->kind), b->algorithm, b->rank, b->size, what, where, pmr_dtype_name(t->dtype), pmr_op_name(t->op),
            t->count, t->root, t->in_place ? "in place" : "apart", t->memory, t->nonblocking ? ", nonblocking" : "");
    return 1;
}

/* The result of this rank, block by block. Answers 1 and says so when a bit is wrong. */
static int check(const bench *b, const trial *t, uint8_t *out)
{
    size_t item = pmr_dtype_size(t->dtype), bad = SIZE_MAX, n = t->count;
    bool root = (uint32_t)t->root == b->rank;
    if (reduces(t->kind)) {
        uint32_t ranks = t->kind == PMR_SCAN ? b->rank + 1 : t->kind == PMR_EXSCAN ? b->rank : b->size;
        size_t first = t->kind == PMR_REDUCE_SCATTER ? b->rank * n : 0;
        if (ranks > 0 && (t->kind != PMR_REDUCE || root)) {
            reduce_period(b, t, ranks);
            bad = repeat(out, b->expected, item, t->shift + first, n, true);
        }
    } else if (t->kind == PMR_BROADCAST || t->kind == PMR_SCATTER) {
        bad = repeat(out, b->period[t->root], item, t->shift + (t->kind == PMR_SCATTER ? b->rank * n : 0), n, true);
    } else if (t->kind != PMR_BARRIER && (t->kind != PMR_GATHER || root)) {
        size_t first = t->kind == PMR_ALLTOALL ? b->rank * n : 0;
        for (uint32_t rank = 0; rank < b->size && bad == SIZE_MAX; rank++) {
            bad = repeat(out + rank * n * item, b->period[rank], item, t->shift + first, n, true);
            bad = bad == SIZE_MAX ? bad : rank * n + bad;
        }
    }
    if (bad != SIZE_MAX)
        return wrong(b, t, bad, "wrong bits");
    size_t end = (many_received(t->kind) ? b->size : 1) * n * item;
    for (size_t i = 0; i < GUARD_BYTES; i++)
        if (out[end + i] != GUARD)
            return wrong(b, t, end / item, "written past the end");
    return 0;
}

static int run_trial(const bench *b, pmr_comm *comm, const trial *t)
{
    size_t item = pmr_dtype_size(t->dtype);
    unsigned heap = t->memory < 2 ? t->memory : (t->memory >> b->rank) & 1;
    size_t sent = (many_sent(t->kind) ? b->size : 1) * t->count, received = (many_received(t->kind) ? b->size : 1) * t->count;
    uint8_t *send = b->send[heap], *recv = t->in_place ? send : b->recv[heap];
    memset(recv + received * item, GUARD, GUARD_BYTES);
    repeat(send, b->period[b->rank], item, t->shift, sent, false);
    if (!t->in_place)
        memset(recv, 0, received * item);
    pmr_call call = {.kind = t->kind, .dtype = t->dtype, .op = t->op, .root = t->root, .send = send, .recv = recv, .count = t->count};
    pmr_error error;
    pmr_status status;
    pmr_request *request;
    if (!t->nonblocking) {
        status = pmr_coll_run(comm, &call, LONG, &error);
    } else if (!(status = pmr_coll_start(comm, &call, &request, &error))) {
        status = pmr_request_wait(request, LONG, &error);
        pmr_request_free(request);
    }
    if (status)
        return wrong(b, t, 0, error.text);
    bool own = t->kind == PMR_BROADCAST && (uint32_t)t->root == b->rank;
    if (own)
        memset(send + received * item, GUARD, GUARD_BYTES);
    return check(b, t, own ? send : recv);
}

/* ---- the sample ------------------------------------------------------------------------------------------------------------ */

/* Bytes of a message at which something changes, give or take an item; 0, 1, 7, 8, 9 items. */
static size_t count_of(size_t which, size_t item, size_t blocks)
{
    static const size_t edges[] = {32, 64, 4096, 16384, 32768, 131072, 262144, 524288, 1048576, 3145728};
    static const size_t few[] = {0, 1, 7, 8, 9};
    if (which < 5)
        return few[which];
    size_t count = edges[(which - 5) / 3] / item + (which - 5) % 3 - 1;
    return count * item * blocks > BYTES_MAX ? BYTES_MAX / item / blocks : count;
}
#define SIZES (5u + 10u * 3u)

static trial draw_trial(const bench *b, uint64_t *state, pmr_kind kind, size_t which)
{
    trial t = {.kind = kind};
    t.dtype = DTYPES[draw(state) % DTYPE_COUNT];
    t.op = OPS[draw(state) % 4];
    t.root = (int32_t)(draw(state) % b->size);
    t.in_place = (draw(state) & 1) && may_be_in_place(kind);
    t.nonblocking = draw(state) % 4 == 0;
    t.memory = (unsigned)(draw(state) % 5);
    if (t.memory >= 2)
        t.memory = 2 + (unsigned)(draw(state) % 254);
    t.shift = (uint32_t)(draw(state) % PERIOD);
    t.count = kind == PMR_BARRIER ? 0
                                  : count_of(which, pmr_dtype_size(t.dtype), many_sent(kind) || many_received(kind) ? b->size : 1);
    return t;
}

static int try_algorithm(bench *b, pmr_kind kind, uint64_t *state)
{
    pmr_error error;
    pmr_comm *comm;
    if (pmr_algorithm_force(kind, b->algorithm) ||
        pmr_comm_split(pmr_context_world(b->context), 0, (int32_t)b->rank, 0, &comm, &error))
        return fprintf(stderr, "cannot force %s\n", b->algorithm);
    int failed = 0;
    size_t trials = kind == PMR_BARRIER ? 10 : kind == PMR_ALLREDUCE ? SIZES : SIZES / 3;
    for (size_t i = 0; i < trials && !failed; i++) {
        trial t = draw_trial(b, state, kind, kind == PMR_ALLREDUCE ? i : draw(state) % SIZES);
        fill_periods(b, t.dtype);
        failed = run_trial(b, comm, &t);
    }
    pmr_algorithm_force(kind, NULL);
    if (!failed && pmr_comm_free(comm, &error))
        failed = fprintf(stderr, "free: %s\n", error.text);
    return failed;
}

static int try_all(pmr_context *context, void *arg)
{
    alarm(LOST_AFTER_S);
    pmr_comm *world = pmr_context_world(context);
    bench b = {.context = context, .rank = pmr_comm_rank(world), .size = pmr_comm_size(world), .seed = *(uint64_t *)arg};
    size_t bytes = BYTES_MAX + ITEM_MAX * RANKS_MAX + GUARD_BYTES;
    for (int heap = 0; heap < 2; heap++) {
        b.send[heap] = heap ? pmr_heap_alloc(context, bytes) : malloc(bytes);
        b.recv[heap] = heap ? pmr_heap_alloc(context, bytes) : malloc(bytes);
    }
    for (uint32_t rank = 0; rank < b.size; rank++)
        b.period[rank] = malloc(PERIOD * ITEM_MAX);
    b.expected = malloc(PERIOD * ITEM_MAX);
    uint64_t state = b.seed;
    int failed = 0;
    for (int kind = PMR_BARRIER; kind <= PMR_EXSCAN && !failed; kind++)
        for (size_t i = 0; (b.algorithm = pmr_algorithm_name((pmr_kind)kind, i)) && !failed; i++)
            if (strcmp(b.algorithm, "alone") != 0) /* for communicators of one rank */
                failed = try_algorithm(&b, (pmr_kind)kind, &state);
    free(b.send[0]);
    free(b.recv[0]);
    for (uint32_t rank = 0; rank < b.size; rank++)
        free(b.period[rank]);
    free(b.expected);
    return failed;
}

/* Nodes that hold aligned blocks of a power of two of ranks; others, where the bits are asked for. */
static const node_layout LAYOUTS[] = {
    {.nodes = 2, .sizes = {1, 1}},
    {.nodes = 2, .sizes = {4, 4}},
    {.nodes = 3, .sizes = {2, 2, 2}},
    {.nodes = 5, .sizes = {1, 1, 1, 1, 1}},
    {.nodes = 3, .sizes = {4, 2, 2}},
    {.nodes = 2, .sizes = {3, 2}, .reproducible = true},
    {.nodes = 3, .sizes = {1, 3, 2}, .reproducible = true},
};

static int try_layouts(uint64_t seed)
{
    int failed = 0;
    const uint32_t count = sizeof LAYOUTS / sizeof *LAYOUTS;
#if defined(__SANITIZE_THREAD__)
    const uint32_t stride = count, first = 0; /* two ranks: eight on few CPUs outlive the alarm */
#elif defined(__SANITIZE_ADDRESS__)
    const uint32_t stride = 3, first = (uint32_t)(seed % stride);
#else
    const uint32_t stride = 1, first = 0;
#endif
    for (uint32_t i = first; i < count; i += stride) {
        node_layout layout = LAYOUTS[i];
        uint64_t own = seed + i;
        layout.transport = node_transport(own);
        layout.cpus = own % 3 ? 64 : 1;
        int bad = node_gang_run(&layout, try_all, &own);
        if (bad)
            fprintf(stderr, "failed: layout %u by %s, %u CPUs\n", i, layout.transport, layout.cpus);
        failed += bad;
    }
    return failed;
}

int main(int argc, char **argv)
{
    uint64_t seed = argc > 1 ? strtoull(argv[1], NULL, 10) : (uint64_t)time(NULL);
    printf("seed %llu\n", (unsigned long long)seed);
#ifdef __SANITIZE_THREAD__
    static const uint32_t ranks[] = {2, 5}; /* twenty times slower, and no other code than with more */
#else
    static const uint32_t ranks[] = {2, 3, 4, 5, 7, 8};
#endif
    int failed = 0;
    for (size_t i = 0; i < sizeof ranks / sizeof *ranks; i++)
        for (uint32_t crowded = 0; crowded < 2; crowded++) { /* the same trials: the bits must not depend on it */
            uint64_t own = seed + i;
            int bad = gang_run(ranks[i], crowded ? 1 : 64, try_all, &own);
            if (bad)
                fprintf(stderr, "failed: %u ranks, %s\n", ranks[i], crowded ? "crowded" : "dedicated");
            failed += bad;
        }
    failed += try_layouts(seed);
    printf("%s\n", failed ? "FAILED" : "ok");
    return failed != 0;
}
