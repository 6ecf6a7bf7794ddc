/* SPDX-License-Identifier: Apache-2.0
 *
 * reduce_op.c: which kernel set is in use, and the owner's step of an in-place allreduce.
 *
 * The tables are constants; the only state is one atomic pointer to the table in use, NULL until the first
 * lookup chooses the best one. Threads that race there store the same pointer.
 */
#include "core/reduce_op.h"

#include <stdatomic.h>
#include <string.h>

#include "core/reduce_tree.h"

#define PUSH_BYTES 8192u

static const struct kernel_set {
    const char *name;
    const pmr_reduce_table *table;
} SETS[PMR_KERNELS_COUNT] = {
    [PMR_KERNELS_PORTABLE] = {"portable", &pmr_reduce_table_portable},
#if defined(__x86_64__)
    [PMR_KERNELS_AVX2] = {"avx2", &pmr_reduce_table_avx2},
    [PMR_KERNELS_AVX512] = {"avx512", &pmr_reduce_table_avx512},
#else
    [PMR_KERNELS_AVX2] = {"avx2", NULL},
    [PMR_KERNELS_AVX512] = {"avx512", NULL},
#endif
};

static _Atomic(const pmr_reduce_table *) table_in_use;

static const pmr_reduce_table *best_table(void) {
    return SETS[pmr_cpu_best()].table;
}

pmr_status pmr_kernels_force(const char *name) {
    if (!name) {
        atomic_store_explicit(&table_in_use, best_table(), memory_order_release);
        return PMR_OK;
    }
    for (int set = 0; set < PMR_KERNELS_COUNT; set++) {
        if (strcmp(name, SETS[set].name) != 0)
            continue;
        if (!pmr_cpu_runs((pmr_kernel_set)set))
            return PMR_ERR_UNSUPPORTED;
        atomic_store_explicit(&table_in_use, SETS[set].table, memory_order_release);
        return PMR_OK;
    }
    return PMR_ERR_ARGUMENT;
}

static const pmr_reduce_table *table_now(void) {
    const pmr_reduce_table *table = atomic_load_explicit(&table_in_use, memory_order_acquire);
    if (!table) {
        /* Not a plain store: a set that another thread forced meanwhile must stay. */
        const pmr_reduce_table *best = best_table();
        if (atomic_compare_exchange_strong(&table_in_use, &table, best))
            table = best;
    }
    return table;
}

const char *pmr_kernels_name(void) {
    const pmr_reduce_table *table = table_now();
    int set = PMR_KERNELS_PORTABLE;
    while (SETS[set].table != table)
        set++;
    return SETS[set].name;
}

pmr_reduce_fn pmr_reduce_lookup(pmr_op op, pmr_dtype dtype) {
    if ((unsigned)op >= (unsigned)PMR_OP_COUNT || (unsigned)dtype >= (unsigned)PMR_DTYPE_COUNT)
        return NULL;
    return (*table_now())[op][dtype];
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
