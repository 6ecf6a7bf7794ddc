/* SPDX-License-Identifier: Apache-2.0
 *
 * reduce_op.c: which kernel set is in use, the ends of a reduction in parts, and the owner's step of an in-place
 * allreduce.
 *
 * The sets are constants; the only state is one atomic pointer to the one in use, NULL until the first
 * lookup chooses the best one. Threads that race there store the same pointer.
 */
#include "core/reduce_op.h"

#include <stdatomic.h>
#include <string.h>

#include "core/reduce_tree.h"

#define PUSH_BYTES 8192u

static const struct kernel_set {
    const char *name;
    const pmr_reduce_set *set;
} SETS[PMR_KERNELS_COUNT] = {
    [PMR_KERNELS_PORTABLE] = {"portable", &pmr_reduce_set_portable},
#if defined(__x86_64__)
    [PMR_KERNELS_AVX2] = {"avx2", &pmr_reduce_set_avx2},
    [PMR_KERNELS_AVX512] = {"avx512", &pmr_reduce_set_avx512},
#else
    [PMR_KERNELS_AVX2] = {"avx2", NULL},
    [PMR_KERNELS_AVX512] = {"avx512", NULL},
#endif
};

static _Atomic(const pmr_reduce_set *) set_in_use;

static const pmr_reduce_set *best_set(void) {
    return SETS[pmr_cpu_best()].set;
}

pmr_status pmr_kernels_force(const char *name) {
    if (!name) {
        atomic_store_explicit(&set_in_use, best_set(), memory_order_release);
        return PMR_OK;
    }
    for (int set = 0; set < PMR_KERNELS_COUNT; set++) {
        if (strcmp(name, SETS[set].name) != 0)
            continue;
        if (!pmr_cpu_runs((pmr_kernel_set)set))
            return PMR_ERR_UNSUPPORTED;
        atomic_store_explicit(&set_in_use, SETS[set].set, memory_order_release);
        return PMR_OK;
    }
    return PMR_ERR_ARGUMENT;
}

static const pmr_reduce_set *set_now(void) {
    const pmr_reduce_set *set = atomic_load_explicit(&set_in_use, memory_order_acquire);
    if (!set) {
        /* Not a plain store: a set that another thread forced meanwhile must stay. */
        const pmr_reduce_set *best = best_set();
        if (atomic_compare_exchange_strong(&set_in_use, &set, best))
            set = best;
    }
    return set;
}

const char *pmr_kernels_name(void) {
    const pmr_reduce_set *now = set_now();
    int set = PMR_KERNELS_PORTABLE;
    while (SETS[set].set != now)
        set++;
    return SETS[set].name;
}

pmr_reduce_fn pmr_reduce_lookup(pmr_op op, pmr_dtype dtype) {
    if ((unsigned)op >= (unsigned)PMR_OP_COUNT || (unsigned)dtype >= (unsigned)PMR_DTYPE_COUNT)
        return NULL;
    return set_now()->table[op][dtype];
}

void pmr_reduce_push(pmr_reduce_fn reduce, pmr_dtype dtype, void *const *dst, uint32_t ndst,
                     const void *const *src, uint32_t nsrc, size_t count) {
    if (ndst == 0 || nsrc == 0)
        return;
    if (ndst == 1) {
        reduce(dst[0], src, nsrc, count);
        return;
    }
    size_t unit = pmr_dtype_size(dtype), most = PUSH_BYTES / unit;
    const void *moved[nsrc];
    for (size_t done = 0; done < count; done += most) {
        size_t part = count - done < most ? count - done : most;
        for (uint32_t i = 0; i < nsrc; i++)
            moved[i] = (const char *)src[i] + done * unit;
        /* The block lands in the first destination and is copied on from there, while it is in the cache:
         * all sources of the block have been read by then. */
        char *first = (char *)dst[0] + done * unit;
        reduce(first, moved, nsrc, part);
        for (uint32_t i = 1; i < ndst; i++)
            if (dst[i] != dst[0])
                memcpy((char *)dst[i] + done * unit, first, part * unit);
    }
}

/* ---- partial sums ---- */

static bool is_half(pmr_dtype dtype) {
    return dtype == PMR_FLOAT16 || dtype == PMR_BFLOAT16;
}

pmr_dtype pmr_partial_dtype(pmr_op op, pmr_dtype dtype) {
    bool rounds = op == PMR_SUM || op == PMR_PROD || op == PMR_AVG;
    return is_half(dtype) && rounds ? PMR_FLOAT32 : dtype;
}

pmr_op pmr_partial_op(pmr_op op) {
    return op == PMR_AVG ? PMR_SUM : op;
}

void pmr_partial_widen(pmr_dtype dtype, void *dst, const void *src, size_t count) {
    set_now()->ends.widen[dtype == PMR_BFLOAT16](dst, &src, count);
}

void pmr_partial_finish(pmr_op op, pmr_dtype dtype, void *dst, void *partial, uint32_t ranks, size_t count) {
    const pmr_reduce_ends *ends = &set_now()->ends;
    if (op == PMR_AVG) {
        bool wide = dtype == PMR_FLOAT64 || dtype == PMR_COMPLEX128;
        bool complex = dtype == PMR_COMPLEX64 || dtype == PMR_COMPLEX128;
        void *mean = is_half(dtype) ? partial : dst;
        ends->divide[wide](mean, partial, ranks, complex ? 2 * count : count);
    }
    if (is_half(dtype)) {
        const void *source = partial;
        ends->narrow[dtype == PMR_BFLOAT16](dst, &source, count);
    }
}
