/* SPDX-License-Identifier: Apache-2.0
 *
 * reduce_tree.h: between the kernels (a few sources, one loop, compiled once per kernel set) and the
 * reductions that callers see (any number of sources, any operation).
 */
#ifndef PMR_CORE_REDUCE_TREE_H
#define PMR_CORE_REDUCE_TREE_H

#include "core/cpu.h"
#include "core/reduce_op.h"

/* Reads as many sources as its place in pmr_reduce_kernel says, `count` units each, and writes `count` units.
 * Pointers need no alignment; dst may equal a source exactly. */
typedef void (*pmr_reduce_body)(void *dst, const void *const *src, size_t count);
typedef void (*pmr_reduce_divide)(void *dst, const void *src, uint32_t divisor, size_t count);

/* Bodies for 2, 4 and 8 sources; 4 and 8 are NULL where they would not pay for their code. */
typedef struct pmr_reduce_bodies {
    pmr_reduce_body two, four, eight;
} pmr_reduce_bodies;

/* One operation on one unit. A unit is an element, or part of one where the parts do not meet (bytes of a
 * bitwise operation, halves of a complex sum). A kernel with `narrow` adds 16-bit floats up in float32:
 * `leaf` and `widen` write float32 units, `join` works on them, `narrow` rounds; `whole` does it all at once. */
typedef struct pmr_reduce_kernel {
    size_t unit_bytes;
    size_t partial_bytes;
    pmr_reduce_bodies whole;
    pmr_reduce_bodies leaf;
    pmr_reduce_body join;
    pmr_reduce_body widen, narrow;
    pmr_reduce_divide divide; /* of partials; floats' sum only */
} pmr_reduce_kernel;

void pmr_reduce_tree(const pmr_reduce_kernel *kernel, void *dst, const void *const *src, uint32_t nsrc, size_t count);
void pmr_reduce_tree_mean(const pmr_reduce_kernel *kernel, void *dst, const void *const *src, uint32_t nsrc,
                          size_t count);

typedef pmr_reduce_fn pmr_reduce_table[PMR_OP_COUNT][PMR_DTYPE_COUNT];

/* The ends of a reduction whose partial sums are seen: into float32 and out of it, by type (float16, bfloat16), and
 * the mean, by width (float32, float64). */
typedef struct pmr_reduce_ends {
    pmr_reduce_body widen[2], narrow[2];
    pmr_reduce_divide divide[2];
} pmr_reduce_ends;

/* What a kernel set consists of. */
typedef struct pmr_reduce_set {
    pmr_reduce_table table;
    pmr_reduce_ends ends;
} pmr_reduce_set;

extern const pmr_reduce_set pmr_reduce_set_portable;
#if defined(__x86_64__)
extern const pmr_reduce_set pmr_reduce_set_avx2, pmr_reduce_set_avx512;
#endif

#endif
