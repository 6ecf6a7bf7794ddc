/* SPDX-License-Identifier: Apache-2.0
 *
 * test_reduce_op.c: every reduction against an oracle that walks the canonical tree element by element.
 *
 * The oracle is written the other way round from the kernels: values are C numbers, 16-bit floats are taken
 * apart and rounded with ldexp and nearbyint, the tree is built by pairing neighbours. Every kernel set that
 * this processor runs must give the oracle's bits, at any alignment, with dst in place of any source, over any cut.
 *
 * Usage: test_reduce_op [seed]
 */
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/cpu.h"
#include "core/reduce_op.h"

enum { COUNT_MAX = 5000, SOURCES_MAX = 33, GUARD = 64 };

static const size_t COUNTS[] = {0, 1, 7, 64, 1000, COUNT_MAX};
static const char *const SETS[PMR_KERNELS_COUNT] = {"portable", "avx2", "avx512"};

static uint64_t random_state;
static int failures;

static uint64_t random_bits(void) { /* splitmix64 */
    uint64_t z = random_state += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

static size_t random_below(size_t bound) {
    return (size_t)(random_bits() % bound);
}

/* ---- the oracle ---- */

typedef union value {
    uint64_t u;
    int64_t i;
    float f;
    double d;
    float cf[2]; /* real, imaginary */
    double cd[2];
} value;

static const value ZERO; /* of static storage: all of it is zero, not its first member alone */

typedef enum form { FORM_BOOL, FORM_SIGNED, FORM_UNSIGNED, FORM_FLOAT, FORM_DOUBLE, FORM_CFLOAT, FORM_CDOUBLE } form;

static form form_of(pmr_dtype dtype) {
    switch (dtype) {
    case PMR_BOOL:
        return FORM_BOOL;
    case PMR_INT8:
    case PMR_INT16:
    case PMR_INT32:
    case PMR_INT64:
        return FORM_SIGNED;
    case PMR_FLOAT16:
    case PMR_BFLOAT16:
    case PMR_FLOAT32:
        return FORM_FLOAT;
    case PMR_FLOAT64:
        return FORM_DOUBLE;
    case PMR_COMPLEX64:
        return FORM_CFLOAT;
    case PMR_COMPLEX128:
        return FORM_CDOUBLE;
    default:
        return FORM_UNSIGNED;
    }
}

/* The layout of a 16-bit float: digits after the point, and the exponent of its smallest denormal. */
static void half_layout(pmr_dtype dtype, int *digits, int *lowest) {
    *digits = dtype == PMR_FLOAT16 ? 10 : 7;
    *lowest = dtype == PMR_FLOAT16 ? -24 : -133;
}

static float half_to_float(pmr_dtype dtype, uint16_t half) {
    int digits, lowest;
    half_layout(dtype, &digits, &lowest);
    int exponent = (half & 0x7fff) >> digits, fraction = half & ((1 << digits) - 1);
    double size;
    if (exponent == 0x7fff >> digits)
        size = fraction ? (double)NAN : (double)INFINITY;
    else if (exponent == 0)
        size = ldexp(fraction, lowest);
    else
        size = ldexp(fraction + (1 << digits), lowest + exponent - 1);
    return (float)(half & 0x8000 ? -size : size);
}

static uint16_t float_to_half(pmr_dtype dtype, float given) {
    int digits, lowest, exponent;
    half_layout(dtype, &digits, &lowest);
    uint16_t infinite = (uint16_t)(0x7fff >> digits << digits), sign = signbit(given) ? 0x8000 : 0;
    if (isnan(given))
        return (uint16_t)(infinite | 1 << (digits - 1));
    double size = fabs((double)given);
    if (isinf(size))
        return sign | infinite;
    if (size == 0)
        return sign;
    frexp(size, &exponent);
    int unit = exponent - 1 - digits < lowest ? lowest : exponent - 1 - digits;
    long whole = (long)nearbyint(ldexp(size, -unit)); /* up to 2 << digits, which carries into the exponent */
    long half = ((long)(unit - lowest) << digits) + whole;
    return (uint16_t)(sign | (half > infinite ? infinite : half));
}

static value load(pmr_dtype dtype, const unsigned char *from) {
    value v = ZERO;
    uint16_t half;
    switch (dtype) {
    case PMR_BOOL:
        v.u = *from != 0;
        break;
    case PMR_FLOAT16:
    case PMR_BFLOAT16:
        memcpy(&half, from, 2);
        v.f = half_to_float(dtype, half);
        break;
    default:
        memcpy(&v, from, pmr_dtype_size(dtype));
        if (form_of(dtype) == FORM_SIGNED) {
            int unused = 64 - 8 * (int)pmr_dtype_size(dtype);
            v.i = (int64_t)(v.u << unused) >> unused;
        }
    }
    return v;
}

static float tidy_float(float f) {
    return isnan(f) ? NAN : f;
}

static double tidy_double(double d) {
    return isnan(d) ? (double)NAN : d;
}

static void store(pmr_dtype dtype, bool arithmetic, value v, unsigned char *to) {
    uint16_t half;
    switch (dtype) {
    case PMR_FLOAT16:
    case PMR_BFLOAT16:
        half = float_to_half(dtype, v.f);
        memcpy(to, &half, 2);
        return;
    case PMR_FLOAT32:
        v.f = arithmetic ? tidy_float(v.f) : v.f;
        break;
    case PMR_FLOAT64:
        v.d = arithmetic ? tidy_double(v.d) : v.d;
        break;
    case PMR_COMPLEX64:
        v.cf[0] = tidy_float(v.cf[0]);
        v.cf[1] = tidy_float(v.cf[1]);
        break;
    case PMR_COMPLEX128:
        v.cd[0] = tidy_double(v.cd[0]);
        v.cd[1] = tidy_double(v.cd[1]);
        break;
    default:
        break;
    }
    memcpy(to, &v, pmr_dtype_size(dtype));
}

static bool truth(form form, value v) {
    switch (form) {
    case FORM_FLOAT:
        return v.f != 0;
    case FORM_DOUBLE:
        return v.d != 0;
    case FORM_CFLOAT:
        return v.cf[0] != 0 || v.cf[1] != 0;
    case FORM_CDOUBLE:
        return v.cd[0] != 0 || v.cd[1] != 0;
    default:
        return v.u != 0;
    }
}

static value from_truth(form form, bool is) {
    value v = ZERO;
    switch (form) {
    case FORM_FLOAT:
        v.f = is;
        break;
    case FORM_DOUBLE:
        v.d = is;
        break;
    case FORM_CFLOAT:
        v.cf[0] = is;
        break;
    case FORM_CDOUBLE:
        v.cd[0] = is;
        break;
    default:
        v.u = is;
    }
    return v;
}

static value sum_or_product(pmr_op op, form form, value a, value b) {
    bool sum = op != PMR_PROD;
    value v = ZERO;
    switch (form) {
    case FORM_BOOL:
        v.u = sum ? a.u | b.u : a.u & b.u;
        break;
    case FORM_FLOAT:
        v.f = sum ? a.f + b.f : a.f * b.f;
        break;
    case FORM_DOUBLE:
        v.d = sum ? a.d + b.d : a.d * b.d;
        break;
    case FORM_CFLOAT:
        v.cf[0] = sum ? a.cf[0] + b.cf[0] : a.cf[0] * b.cf[0] - a.cf[1] * b.cf[1];
        v.cf[1] = sum ? a.cf[1] + b.cf[1] : a.cf[0] * b.cf[1] + a.cf[1] * b.cf[0];
        break;
    case FORM_CDOUBLE:
        v.cd[0] = sum ? a.cd[0] + b.cd[0] : a.cd[0] * b.cd[0] - a.cd[1] * b.cd[1];
        v.cd[1] = sum ? a.cd[1] + b.cd[1] : a.cd[0] * b.cd[1] + a.cd[1] * b.cd[0];
        break;
    default:
        v.u = sum ? a.u + b.u : a.u * b.u;
    }
    return v;
}

static bool first_wins(pmr_op op, form form, value a, value b) {
    bool min = op == PMR_MIN;
    switch (form) {
    case FORM_FLOAT:
        return isnan(a.f) || (min ? a.f <= b.f : a.f >= b.f);
    case FORM_DOUBLE:
        return isnan(a.d) || (min ? a.d <= b.d : a.d >= b.d);
    case FORM_SIGNED:
        return min ? a.i <= b.i : a.i >= b.i;
    default:
        return min ? a.u <= b.u : a.u >= b.u;
    }
}

static value join(pmr_op op, form form, value a, value b) {
    value v = ZERO;
    switch (op) {
    case PMR_SUM:
    case PMR_PROD:
    case PMR_AVG:
        return sum_or_product(op, form, a, b);
    case PMR_MIN:
    case PMR_MAX:
        return first_wins(op, form, a, b) ? a : b;
    case PMR_LAND:
        return from_truth(form, truth(form, a) && truth(form, b));
    case PMR_LOR:
        return from_truth(form, truth(form, a) || truth(form, b));
    case PMR_LXOR:
        return from_truth(form, truth(form, a) != truth(form, b));
    case PMR_BAND:
        v.u = a.u & b.u;
        return v;
    case PMR_BOR:
        v.u = a.u | b.u;
        return v;
    default:
        v.u = a.u ^ b.u;
        return v;
    }
}

static value divide(form form, value v, uint32_t by) {
    switch (form) {
    case FORM_FLOAT:
        v.f /= (float)by;
        break;
    case FORM_DOUBLE:
        v.d /= by;
        break;
    case FORM_CFLOAT:
        v.cf[0] /= (float)by;
        v.cf[1] /= (float)by;
        break;
    default:
        v.cd[0] /= by;
        v.cd[1] /= by;
    }
    return v;
}

static void oracle(pmr_op op, pmr_dtype dtype, unsigned char *dst, unsigned char *const *src, uint32_t nsrc,
                   size_t count) {
    size_t size = pmr_dtype_size(dtype);
    form form = form_of(dtype);
    bool logical = op == PMR_LAND || op == PMR_LOR || op == PMR_LXOR;
    if (nsrc == 1) {
        memcpy(dst, src[0], count * size);
        return;
    }
    for (size_t i = 0; i < count; i++) {
        value level[SOURCES_MAX] = {load(dtype, src[0] + i * size)};
        for (uint32_t k = 1; k < nsrc; k++)
            level[k] = load(dtype, src[k] + i * size);
        for (uint32_t left = nsrc; left > 1; left = (left + 1) / 2)
            for (uint32_t k = 0; k < left; k += 2)
                level[k / 2] = k + 1 < left ? join(op, form, level[k], level[k + 1]) : level[k];
        value result = op == PMR_AVG ? divide(form, level[0], nsrc) : level[0];
        store(dtype, !logical, result, dst + i * size);
    }
}

/* ---- data ---- */

/* Bit patterns worth having: zeros, ones, extremes, infinities, NaNs (quiet, signalling, with payloads), denormals. */
static uint64_t special_bits(pmr_dtype dtype) {
    static const uint64_t f16[] = {0,      0x8000, 0x3c00, 0x7c00, 0xfc00, 0x7e00, 0x7d01,
                                   0xfe55, 1,      0x8001, 0x3ff,  0x400,  0x7bff, 0xfbff};
    static const uint64_t bf16[] = {0,      0x8000, 0x3f80, 0x7f80, 0xff80, 0x7fc0, 0x7f81,
                                    0xffd5, 1,      0x8001, 0x7f,   0x80,   0x7f7f, 0xff7f};
    static const uint64_t f32[] = {0,          0x80000000, 0x3f800000, 0x7f800000, 0xff800000, 0x7fc00000, 0x7f800001,
                                   0xffc12345, 1,          0x80000001, 0x7fffff,   0x800000,   0x7f7fffff, 0xff7fffff};
    static const uint64_t f64[] = {0,
                                   1ull << 63,
                                   0x3ffull << 52,
                                   0x7ffull << 52,
                                   0xfffull << 52,
                                   0x7ff8ull << 48,
                                   (0x7ffull << 52) + 1,
                                   (0xfff8ull << 48) + 77,
                                   1,
                                   (1ull << 63) + 1,
                                   (1ull << 52) - 1,
                                   1ull << 52,
                                   (0x7ffull << 52) - 1,
                                   (0xfffull << 52) - 1};
    static const uint64_t integers[] = {0,          1,         ~0ull,      0x7f, 0x80, 0x7fff,    0x8000,
                                        0x7fffffff, INT64_MAX, 1ull << 63, 2,    3,    0xffffffff, 0x80000000};
    const uint64_t *pool = dtype == PMR_FLOAT16                               ? f16
                           : dtype == PMR_BFLOAT16                            ? bf16
                           : dtype == PMR_FLOAT32 || dtype == PMR_COMPLEX64   ? f32
                           : dtype == PMR_FLOAT64 || dtype == PMR_COMPLEX128  ? f64
                                                                              : integers;
    return pool[random_below(14)];
}

/* Values near one, so that sums round in interesting ways and products stay finite. */
static uint64_t ordinary_bits(pmr_dtype dtype) {
    double d = 1 + ldexp((double)(random_bits() >> 11), -53);
    d = random_bits() & 1 ? -d : d;
    float f = (float)d;
    uint64_t bits = 0;
    switch (form_of(dtype)) {
    case FORM_FLOAT:
        if (dtype != PMR_FLOAT32)
            return float_to_half(dtype, f);
        memcpy(&bits, &f, 4);
        return bits;
    case FORM_CFLOAT:
        memcpy(&bits, &f, 4);
        return bits;
    case FORM_DOUBLE:
    case FORM_CDOUBLE:
        memcpy(&bits, &d, 8);
        return bits;
    case FORM_BOOL:
        return random_bits() & 1;
    default:
        return random_bits() & 15;
    }
}

static void fill(pmr_dtype dtype, unsigned char *to, size_t count) {
    bool is_complex = form_of(dtype) == FORM_CFLOAT || form_of(dtype) == FORM_CDOUBLE;
    size_t part = pmr_dtype_size(dtype) / (is_complex ? 2 : 1), parts = count * (is_complex ? 2 : 1);
    for (size_t i = 0; i < parts; i++) {
        uint64_t choice = random_bits() % 16;
        uint64_t bits = choice < 2 ? special_bits(dtype) : choice < 4 ? random_bits() : ordinary_bits(dtype);
        memcpy(to + i * part, &bits, part);
    }
}

/* ---- checks ---- */

typedef struct scene {
    pmr_op op;
    pmr_dtype dtype;
    uint32_t nsrc;
    const char *set;
    size_t size;
    unsigned char *wanted;
    unsigned char *dst;                 /* with GUARD bytes after COUNT_MAX elements */
    unsigned char *kept[SOURCES_MAX];   /* the data; never written */
    unsigned char *src[SOURCES_MAX];    /* copies at odd addresses */
} scene;

static void expect(const scene *at, const char *what, const unsigned char *got, size_t count) {
    if (memcmp(got, at->wanted, count * at->size) == 0)
        return;
    size_t i = 0;
    while (memcmp(got + i * at->size, at->wanted + i * at->size, at->size) == 0)
        i++;
    fprintf(stderr, "%s %s, %s, %u sources, %zu elements: %s: element %zu is", pmr_op_name(at->op),
            pmr_dtype_name(at->dtype), at->set, at->nsrc, count, what, i);
    for (size_t b = at->size; b-- > 0;)
        fprintf(stderr, " %02x", got[i * at->size + b]);
    fprintf(stderr, ", not");
    for (size_t b = at->size; b-- > 0;)
        fprintf(stderr, " %02x", at->wanted[i * at->size + b]);
    fprintf(stderr, "\n");
    if (++failures >= 20)
        exit(1);
}

static void refresh(const scene *at, size_t count) {
    for (uint32_t k = 0; k < at->nsrc; k++)
        memcpy(at->src[k], at->kept[k], count * at->size);
}

static void check_separate(const scene *at, pmr_reduce_fn reduce) {
    const void *const *src = (const void *const *)at->src;
    for (size_t c = 0; c < sizeof COUNTS / sizeof *COUNTS; c++) {
        size_t bytes = COUNTS[c] * at->size;
        memset(at->dst, 0xa5, bytes + GUARD);
        reduce(at->dst, src, at->nsrc, COUNTS[c]);
        expect(at, "apart", at->dst, COUNTS[c]);
        for (size_t b = bytes; b < bytes + GUARD; b++)
            if (at->dst[b] != 0xa5) {
                fprintf(stderr, "%s %s, %s: wrote past the end\n", pmr_op_name(at->op),
                        pmr_dtype_name(at->dtype), at->set);
                failures++;
                break;
            }
    }
}

static void check_in_place(const scene *at, pmr_reduce_fn reduce) {
    for (uint32_t k = 0; k < at->nsrc; k++) {
        size_t count = k == at->nsrc / 2 ? COUNT_MAX : 1 + random_below(200);
        refresh(at, count);
        reduce(at->src[k], (const void *const *)at->src, at->nsrc, count);
        expect(at, "in place", at->src[k], count);
    }
    refresh(at, COUNT_MAX);
}

static void check_cut(const scene *at, pmr_reduce_fn reduce) {
    for (size_t done = 0; done < COUNT_MAX;) {
        size_t part = 1 + random_below(700);
        part = part > COUNT_MAX - done ? COUNT_MAX - done : part;
        const void *moved[SOURCES_MAX];
        for (uint32_t k = 0; k < at->nsrc; k++)
            moved[k] = at->src[k] + done * at->size;
        reduce(at->dst + done * at->size, moved, at->nsrc, part);
        done += part;
    }
    expect(at, "cut", at->dst, COUNT_MAX);
}

/* All sources are destinations too (an in-place allreduce), then a few of them and one more. */
static void check_push(const scene *at, pmr_reduce_fn reduce) {
    refresh(at, COUNT_MAX);
    const void *const *src = (const void *const *)at->src;
    pmr_reduce_push(reduce, at->dtype, (void *const *)at->src, at->nsrc, src, at->nsrc, COUNT_MAX);
    for (uint32_t k = 0; k < at->nsrc; k++)
        expect(at, "pushed to all", at->src[k], COUNT_MAX);
    size_t count = 1 + random_below(COUNT_MAX);
    refresh(at, COUNT_MAX);
    void *some[3] = {at->dst, at->src[at->nsrc - 1], at->src[0]};
    uint32_t nsome = at->nsrc == 1 ? 2 : 3;
    pmr_reduce_push(reduce, at->dtype, some, nsome, src, at->nsrc, count);
    for (uint32_t k = 0; k < nsome; k++)
        expect(at, "pushed to some", some[k], count);
    for (uint32_t k = 1; k + 1 < at->nsrc; k++)
        if (memcmp(at->src[k], at->kept[k], COUNT_MAX * at->size) != 0) {
            fprintf(stderr, "%s %s: push touched a source that is no destination\n", pmr_op_name(at->op),
                    pmr_dtype_name(at->dtype));
            failures++;
        }
    refresh(at, COUNT_MAX);
}

static void check_pair(scene *at, pmr_op op, pmr_dtype dtype) {
#if defined(__SANITIZE_THREAD__) /* there for the first look-ups; the kernels know no threads */
    static const uint32_t MANY[] = {2, 5};
#else
    static const uint32_t MANY[] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 33};
#endif
    at->op = op;
    at->dtype = dtype;
    at->size = pmr_dtype_size(dtype);
    for (uint32_t k = 0; k < SOURCES_MAX; k++)
        fill(dtype, at->kept[k], COUNT_MAX);
    for (size_t m = 0; m < sizeof MANY / sizeof *MANY; m++) {
        at->nsrc = MANY[m];
        oracle(op, dtype, at->wanted, at->kept, at->nsrc, COUNT_MAX);
        for (int set = 0; set < PMR_KERNELS_COUNT; set++) {
            if (!pmr_cpu_runs((pmr_kernel_set)set) || pmr_kernels_force(SETS[set]) != PMR_OK)
                continue;
            at->set = SETS[set];
            pmr_reduce_fn reduce = pmr_reduce_lookup(op, dtype);
            refresh(at, COUNT_MAX);
            check_separate(at, reduce);
            check_cut(at, reduce);
            check_in_place(at, reduce);
            check_push(at, reduce);
        }
    }
}

static void check_table(void) {
    for (int set = 0; set < PMR_KERNELS_COUNT; set++) {
        pmr_status status = pmr_kernels_force(SETS[set]);
        if (status != (pmr_cpu_runs((pmr_kernel_set)set) ? PMR_OK : PMR_ERR_UNSUPPORTED)) {
            fprintf(stderr, "forcing %s gave %d\n", SETS[set], status);
            failures++;
        }
        if (status == PMR_OK && strcmp(pmr_kernels_name(), SETS[set]) != 0) {
            fprintf(stderr, "forced %s, but %s is in use\n", SETS[set], pmr_kernels_name());
            failures++;
        }
        for (int op = 0; op < PMR_OP_COUNT; op++)
            for (int dtype = 0; dtype < PMR_DTYPE_COUNT; dtype++)
                if (pmr_op_defined((pmr_op)op, (pmr_dtype)dtype) !=
                    (pmr_reduce_lookup((pmr_op)op, (pmr_dtype)dtype) != NULL)) {
                    fprintf(stderr, "%s: the table and pmr_op_defined disagree on %s %s\n", SETS[set],
                            pmr_op_name((pmr_op)op), pmr_dtype_name((pmr_dtype)dtype));
                    failures++;
                }
    }
    if (pmr_kernels_force("mmx") != PMR_ERR_ARGUMENT || pmr_reduce_lookup(PMR_OP_COUNT, PMR_INT8) ||
        pmr_reduce_lookup(PMR_SUM, PMR_DTYPE_COUNT) || pmr_dtype_size(PMR_DTYPE_COUNT) != 0) {
        fprintf(stderr, "names or values that do not exist were accepted\n");
        failures++;
    }
}

static void *look_up(void *seen) {
    *(pmr_reduce_fn *)seen = pmr_reduce_lookup(PMR_SUM, PMR_FLOAT32);
    return NULL;
}

/* Must be the process's first look-ups. */
static void check_first_use(void) {
    enum { THREADS = 8 };
    pthread_t thread[THREADS];
    pmr_reduce_fn seen[THREADS];
    for (int t = 0; t < THREADS; t++)
        if (pthread_create(&thread[t], NULL, look_up, &seen[t]) != 0)
            abort();
    for (int t = 0; t < THREADS; t++)
        pthread_join(thread[t], NULL);
    pmr_kernels_force(NULL);
    for (int t = 0; t < THREADS; t++)
        if (seen[t] != pmr_reduce_lookup(PMR_SUM, PMR_FLOAT32)) {
            fprintf(stderr, "threads that looked up first saw different kernels\n");
            failures++;
        }
}

static unsigned char *reserve(size_t bytes) {
    unsigned char *block = malloc(bytes);
    if (!block)
        abort();
    return block;
}

int main(int argc, char **argv) {
    random_state = argc > 1 ? strtoull(argv[1], NULL, 0) : 20261122;
    printf("test_reduce_op: seed %llu\n", (unsigned long long)random_state);
    check_first_use();
    check_table();
    enum { BYTES = COUNT_MAX * 16 + GUARD };
    unsigned char *blocks[2 * SOURCES_MAX + 2];
    scene at = {.wanted = blocks[0] = reserve(BYTES)};
    at.dst = (blocks[1] = reserve(BYTES + 64)) + random_below(64);
    for (int k = 0; k < SOURCES_MAX; k++) {
        at.kept[k] = blocks[2 + 2 * k] = reserve(BYTES);
        at.src[k] = (blocks[3 + 2 * k] = reserve(BYTES + 64)) + random_below(64);
    }
    unsigned every = argc > 2 ? (unsigned)strtoul(argv[2], NULL, 0) : 1; /* for machines that are emulated */
    unsigned pair = (unsigned)random_below(every);
    for (int op = 0; op < PMR_OP_COUNT; op++)
        for (int dtype = 0; dtype < PMR_DTYPE_COUNT; dtype++)
            if (pmr_op_defined((pmr_op)op, (pmr_dtype)dtype) && pair++ % every == 0)
                check_pair(&at, (pmr_op)op, (pmr_dtype)dtype);
    for (size_t b = 0; b < sizeof blocks / sizeof *blocks; b++)
        free(blocks[b]);
    printf("test_reduce_op: %s\n", failures ? "FAILED" : "ok");
    return failures != 0;
}
