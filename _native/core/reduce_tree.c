/* SPDX-License-Identifier: Apache-2.0
 *
 * reduce_tree.c: the canonical tree over any number of sources.
 *
 * A tree over n sources splits at the largest power of two below n: that is what pairing neighbours again and
 * again gives, the odd one passing up. So every aligned group of 2, 4 or 8 sources is a subtree, which a kernel
 * evaluates in registers; the rest goes through blocks on the stack, small enough to stay in the first-level
 * cache, one per level. Only the last step of a block writes to dst, when all sources of that block have been
 * read: dst may be any of them.
 */
#include "core/reduce_tree.h"

#include <string.h>

#define BLOCK_BYTES 4096u

typedef struct block {
    _Alignas(64) unsigned char bytes[BLOCK_BYTES];
} block;

/* The part of all sources that one block covers. */
typedef struct slice {
    const pmr_reduce_kernel *kernel;
    size_t offset; /* in bytes of the sources */
    size_t count;
} slice;

static uint32_t split_point(uint32_t nsrc) {
    return 1u << (31 - __builtin_clz(nsrc - 1));
}

static pmr_reduce_body body_for(const pmr_reduce_bodies *bodies, uint32_t nsrc) {
    return nsrc == 2 ? bodies->two : nsrc == 4 ? bodies->four : nsrc == 8 ? bodies->eight : NULL;
}

/* Evaluates the tree over src[0..nsrc) as partials and says where they are: in *out, or, for a single source
 * whose elements are their own partials, where they were. */
static const void *subtree(const slice *at, block *out, const void *const *src, uint32_t nsrc) {
    const pmr_reduce_kernel *kernel = at->kernel;
    if (nsrc == 1) {
        const void *one = (const char *)src[0] + at->offset;
        if (!kernel->widen)
            return one;
        kernel->widen(out->bytes, &one, at->count);
        return out->bytes;
    }
    pmr_reduce_body leaf = body_for(&kernel->leaf, nsrc);
    if (leaf) {
        const void *moved[8];
        for (uint32_t i = 0; i < nsrc; i++)
            moved[i] = (const char *)src[i] + at->offset;
        leaf(out->bytes, moved, at->count);
        return out->bytes;
    }
    block right;
    uint32_t left = split_point(nsrc);
    const void *halves[2];
    halves[0] = subtree(at, out, src, left);
    halves[1] = subtree(at, &right, src + left, nsrc - left);
    kernel->join(out->bytes, halves, at->count);
    return out->bytes;
}

static void reduce_slice(const slice *at, void *dst, const void *const *src, uint32_t nsrc, uint32_t divisor) {
    const pmr_reduce_kernel *kernel = at->kernel;
    block out, right;
    if (divisor == 1 && !kernel->narrow) {
        uint32_t left = split_point(nsrc);
        const void *halves[2];
        halves[0] = subtree(at, &out, src, left);
        halves[1] = subtree(at, &right, src + left, nsrc - left);
        kernel->join(dst, halves, at->count);
        return;
    }
    const void *sum = subtree(at, &out, src, nsrc);
    if (divisor != 1) {
        void *mean = kernel->narrow ? out.bytes : dst;
        kernel->divide(mean, sum, divisor, at->count);
        sum = mean;
    }
    if (kernel->narrow)
        kernel->narrow(dst, &sum, at->count);
}

static void reduce_blocks(const pmr_reduce_kernel *kernel, void *dst, const void *const *src, uint32_t nsrc,
                          size_t count, uint32_t divisor) {
    size_t most = BLOCK_BYTES / kernel->partial_bytes;
    for (size_t done = 0; done < count; done += most) {
        size_t rest = count - done;
        slice at = {kernel, done * kernel->unit_bytes, rest < most ? rest : most};
        reduce_slice(&at, (char *)dst + at.offset, src, nsrc, divisor);
    }
}

static void copy_units(const pmr_reduce_kernel *kernel, void *dst, const void *src, size_t count) {
    if (dst != src && count)
        memcpy(dst, src, count * kernel->unit_bytes);
}

void pmr_reduce_tree(const pmr_reduce_kernel *kernel, void *dst, const void *const *src, uint32_t nsrc, size_t count) {
    if (nsrc == 1) {
        copy_units(kernel, dst, src[0], count);
        return;
    }
    pmr_reduce_body whole = body_for(&kernel->whole, nsrc);
    if (whole)
        whole(dst, src, count);
    else
        reduce_blocks(kernel, dst, src, nsrc, count, 1);
}

void pmr_reduce_tree_mean(const pmr_reduce_kernel *kernel, void *dst, const void *const *src, uint32_t nsrc,
                          size_t count) {
    if (nsrc == 1)
        copy_units(kernel, dst, src[0], count);
    else
        reduce_blocks(kernel, dst, src, nsrc, count, nsrc);
}
