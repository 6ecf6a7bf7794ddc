/* SPDX-License-Identifier: Apache-2.0
 *
 * reduce_op.h: elementwise reductions in canonical order.
 *
 * Canonical order is a fixed balanced binary tree over the sources: (0+1), (2+3), ... then pairs of pairs;
 * the odd one passes up unchanged. 16-bit floats are widened to float32 first, the whole tree runs in
 * float32, and the result is rounded once. So the bits of an element depend on the sources' values and their
 * number alone: not on `count`, alignment, the kernel set (portable, AVX2, AVX-512) or how a caller cuts the array.
 */
#ifndef PMR_CORE_REDUCE_OP_H
#define PMR_CORE_REDUCE_OP_H

#include "include/pmr.h"

/* dst[i] = src[0][i] op src[1][i] op ... in canonical order, i < count. `dst` may be one of the sources
 * (exactly equal pointer) or disjoint from all. nsrc >= 1 (nsrc == 1 copies; avg over one is the value).
 * PMR_AVG divides the sum by nsrc (16-bit: in float32 before the one rounding). */
typedef void (*pmr_reduce_fn)(void *dst, const void *const *src, uint32_t nsrc, size_t count);

/* NULL when the operation is not defined for the dtype. Reads a table filled at first use; cheap. */
pmr_reduce_fn pmr_reduce_lookup(pmr_op op, pmr_dtype dtype);

/* The same, with every result stored to all of `dst[0..ndst)`; each dst may equal a source. Works through the
 * arrays in blocks that stay in the first-level cache, reading all sources of a block before it writes any
 * destination of that block. This is the owner's step of an in-place allreduce. */
void pmr_reduce_push(pmr_reduce_fn reduce, pmr_dtype dtype, void *const *dst, uint32_t ndst,
                     const void *const *src, uint32_t nsrc, size_t count);

/* ---- a reduction in parts, by those who cannot see all sources ----
 *
 * Partial sums of neighbouring groups of sources are joined two by two, with pmr_reduce_lookup(pmr_partial_op(op),
 * pmr_partial_dtype(op, dtype)); 16-bit floats are widened before, and the result is finished once. Where the groups
 * are subtrees of the canonical tree the bits are those of the whole reduction at once. */
pmr_dtype pmr_partial_dtype(pmr_op op, pmr_dtype dtype);
pmr_op pmr_partial_op(pmr_op op);
/* float16 or bfloat16 to float32. */
void pmr_partial_widen(pmr_dtype dtype, void *dst, const void *src, size_t count);
/* Divides (PMR_AVG, by `ranks`) and rounds (16-bit floats); for those alone. dst may be `partial`, whose contents are
 * lost in any case. */
void pmr_partial_finish(pmr_op op, pmr_dtype dtype, void *dst, void *partial, uint32_t ranks, size_t count);

#endif
