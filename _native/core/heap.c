/* SPDX-License-Identifier: Apache-2.0
 *
 * heap.c: a rank's allocator over its sparse part of the window.
 *
 * Extents cover the range without a gap, in a list by address; no two neighbours are both free. Free extents
 * also hang in bins by size (eight per power of two), blocks in a hash table by offset. All of it is private
 * memory: the range itself holds nothing but the users' bytes.
 *
 * Under the extents lies a bitmap of steps (256 KiB each): a set bit says that the kernel has given us the
 * step's pages. A block is handed out only when all of its steps are set, so no access to it can fail for
 * want of memory. Free steps stay set, and cost nothing to use again, until the free memory that we hold
 * exceeds CACHE_BYTES; then the extent that was just given goes back to the kernel, as far as needed.
 */
#include "core/heap.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "core/available.h"

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

#define ASK_BYTES ((size_t)16 << 20) /* from here on, first ask whether there is so much memory */
#define GRANULE_BYTES ((size_t)64)
#define LARGE_BYTES ((size_t)64 << 10)
#define STEP_BYTES ((size_t)256 << 10)
#define CACHE_BYTES ((size_t)256 << 20)
#define BINS_PER_POWER 8u
#define BINS (64u * BINS_PER_POWER)
#define BIN_LOOK_MAX 32u
#define BATCH_EXTENTS 64u
#define FIRST_BUCKETS ((size_t)256)

typedef struct extent extent;
struct extent {
    size_t offset, bytes;
    extent *before, *after; /* by address */
    extent *next, *prev;    /* free: in its bin; block: `next` in its bucket; spare: `next` */
    bool is_free;
};

typedef struct batch batch;
struct batch {
    batch *next;
    extent extents[BATCH_EXTENTS];
};

struct pmr_heap {
    pthread_mutex_t mutex;
    unsigned char *base;
    size_t bytes, page_bytes;
    int fd;
    off_t fd_offset;
    extent *first; /* by address */
    extent *bin[BINS];
    uint64_t bin_filled[BINS / 64];
    extent **bucket;
    size_t buckets, blocks;
    batch *batches;
    extent *spare;
    size_t spares;
    uint64_t *step_set;
    size_t set_bytes;
    _Atomic size_t used_bytes; /* written under the mutex */
};

static size_t round_up(size_t value, size_t unit) {
    return (value + unit - 1) / unit * unit;
}

/* ---- spare extents: reserved before anything changes, so that no change can fail half-way ---- */

static bool reserve_extents(pmr_heap *heap, size_t wanted) {
    if (heap->spares >= wanted)
        return true;
    batch *more = malloc(sizeof *more);
    if (!more)
        return false;
    more->next = heap->batches;
    heap->batches = more;
    for (size_t i = 0; i < BATCH_EXTENTS; i++) {
        more->extents[i].next = heap->spare;
        heap->spare = &more->extents[i];
    }
    heap->spares += BATCH_EXTENTS;
    return true;
}

static extent *new_extent(pmr_heap *heap, size_t offset, size_t bytes) {
    extent *e = heap->spare;
    heap->spare = e->next;
    heap->spares--;
    *e = (extent){.offset = offset, .bytes = bytes, .is_free = true};
    return e;
}

static void drop_extent(pmr_heap *heap, extent *e) {
    e->next = heap->spare;
    heap->spare = e;
    heap->spares++;
}

/* ---- bins ---- */

/* Sizes in one bin differ by less than an eighth; bins rise with size. */
static unsigned bin_of(size_t bytes) {
    size_t granules = bytes / GRANULE_BYTES;
    unsigned power = 63u - (unsigned)__builtin_clzll(granules);
    unsigned part = power >= 3 ? (unsigned)(granules >> (power - 3)) : (unsigned)(granules << (3 - power));
    return power * BINS_PER_POWER + (part & (BINS_PER_POWER - 1));
}

static void bin_put(pmr_heap *heap, extent *e) {
    unsigned bin = bin_of(e->bytes);
    e->is_free = true;
    e->prev = NULL;
    e->next = heap->bin[bin];
    if (e->next)
        e->next->prev = e;
    heap->bin[bin] = e;
    heap->bin_filled[bin / 64] |= (uint64_t)1 << bin % 64;
}

static void bin_remove(pmr_heap *heap, extent *e) {
    unsigned bin = bin_of(e->bytes);
    if (e->next)
        e->next->prev = e->prev;
    if (e->prev)
        e->prev->next = e->next;
    else if (!(heap->bin[bin] = e->next))
        heap->bin_filled[bin / 64] &= ~((uint64_t)1 << bin % 64);
    e->is_free = false;
}

/* The first bin from `bin` on that holds something, or BINS. */
static unsigned bin_next_filled(const pmr_heap *heap, unsigned bin) {
    for (unsigned word = bin / 64; word < BINS / 64; word++) {
        uint64_t filled = heap->bin_filled[word];
        if (word == bin / 64)
            filled &= ~(uint64_t)0 << bin % 64;
        if (filled)
            return word * 64 + (unsigned)__builtin_ctzll(filled);
    }
    return BINS;
}

static bool extent_fits(const extent *e, size_t bytes, size_t align) {
    size_t skipped = round_up(e->offset, align) - e->offset;
    return e->bytes >= bytes && e->bytes - bytes >= skipped;
}

/* About the best fit: the smallest bin with an extent that fits, the newest there. Looks at a few extents per
 * bin first, then, rather than to give up, at all. */
static extent *find_extent(const pmr_heap *heap, size_t bytes, size_t align) {
    for (int thorough = 0; thorough < 2; thorough++)
        for (unsigned bin = bin_next_filled(heap, bin_of(bytes)); bin < BINS; bin = bin_next_filled(heap, bin + 1)) {
            unsigned looked = 0;
            for (extent *e = heap->bin[bin]; e && (thorough || looked < BIN_LOOK_MAX); e = e->next, looked++)
                if (extent_fits(e, bytes, align))
                    return e;
        }
    return NULL;
}

/* ---- blocks by offset ---- */

static extent **bucket_of(const pmr_heap *heap, size_t offset) {
    uint64_t mixed = (uint64_t)(offset / GRANULE_BYTES) * 0x9e3779b97f4a7c15u;
    return &heap->bucket[(mixed >> 32) & (heap->buckets - 1)];
}

static void blocks_grow(pmr_heap *heap) {
    extent **old = heap->bucket, **more = calloc(heap->buckets * 2, sizeof *more);
    size_t count = heap->buckets;
    if (!more)
        return; /* chains grow longer instead */
    heap->bucket = more;
    heap->buckets *= 2;
    for (size_t i = 0; i < count; i++)
        for (extent *e = old[i], *next; e; e = next) {
            next = e->next;
            extent **bucket = bucket_of(heap, e->offset);
            e->next = *bucket;
            *bucket = e;
        }
    free(old);
}

static void blocks_put(pmr_heap *heap, extent *e) {
    if (heap->blocks >= heap->buckets)
        blocks_grow(heap);
    extent **bucket = bucket_of(heap, e->offset);
    e->next = *bucket;
    *bucket = e;
    heap->blocks++;
    atomic_fetch_add_explicit(&heap->used_bytes, e->bytes, memory_order_relaxed);
}

/* Where the pointer to the block's extent is kept. A pointer that is no block means that the caller's memory is
 * already wrong: going on would hand one range to two owners. */
static extent **blocks_find(const pmr_heap *heap, const void *block) {
    uintptr_t offset = (uintptr_t)block - (uintptr_t)heap->base;
    extent **link = bucket_of(heap, offset);
    while (*link && (*link)->offset != offset)
        link = &(*link)->next;
    if (!*link) {
        fputs("pmrun: a block of library memory was given back twice, or was none\n", stderr);
        abort();
    }
    return link;
}

static void blocks_remove(pmr_heap *heap, extent **link) {
    extent *e = *link;
    *link = e->next;
    heap->blocks--;
    atomic_fetch_sub_explicit(&heap->used_bytes, e->bytes, memory_order_relaxed);
}

/* ---- extents by address ---- */

/* Cuts e after `bytes`; the rest becomes an extent of its own, in no bin and no bucket. */
static extent *split_extent(pmr_heap *heap, extent *e, size_t bytes) {
    extent *rest = new_extent(heap, e->offset + bytes, e->bytes - bytes);
    e->bytes = bytes;
    rest->before = e;
    rest->after = e->after;
    if (rest->after)
        rest->after->before = rest;
    e->after = rest;
    return rest;
}

/* Adds the extent after e to e. */
static void absorb_after(pmr_heap *heap, extent *e) {
    extent *gone = e->after;
    e->bytes += gone->bytes;
    e->after = gone->after;
    if (e->after)
        e->after->before = e;
    drop_extent(heap, gone);
}

/* Joins e, which is in no bin, with its free neighbours and puts the whole into its bin. */
static extent *free_extent(pmr_heap *heap, extent *e) {
    if (e->after && e->after->is_free) {
        bin_remove(heap, e->after);
        absorb_after(heap, e);
    }
    if (e->before && e->before->is_free) {
        e = e->before;
        bin_remove(heap, e);
        absorb_after(heap, e);
    }
    bin_put(heap, e);
    return e;
}

/* ---- pages ---- */

static bool step_is_set(const pmr_heap *heap, size_t step) {
    return heap->step_set[step / 64] >> step % 64 & 1;
}

/* Takes (mode 0) or returns (FALLOC_FL_PUNCH_HOLE) the pages of the steps [from, to). */
static bool move_steps(pmr_heap *heap, size_t from, size_t to, int mode) {
    size_t start = from * STEP_BYTES, end = to * STEP_BYTES < heap->bytes ? to * STEP_BYTES : heap->bytes;
    int outcome;
    if (!mode && end - start >= ASK_BYTES && !pmr_memory_available(end - start))
        return false;
    do
        outcome = fallocate(heap->fd, mode | FALLOC_FL_KEEP_SIZE, heap->fd_offset + (off_t)start, (off_t)(end - start));
    while (outcome != 0 && errno == EINTR);
    if (outcome != 0)
        return false;
    for (size_t step = from; step < to; step++)
        heap->step_set[step / 64] ^= (uint64_t)1 << step % 64;
    heap->set_bytes = mode ? heap->set_bytes - (end - start) : heap->set_bytes + (end - start);
    return true;
}

/* Returns whole steps inside the free extent, the highest first, while more than `keep` free bytes are held. */
static void return_steps(pmr_heap *heap, const extent *e, size_t keep) {
    size_t low = round_up(e->offset, STEP_BYTES) / STEP_BYTES, high = (e->offset + e->bytes) / STEP_BYTES;
    while (high > low) {
        size_t used = atomic_load_explicit(&heap->used_bytes, memory_order_relaxed);
        size_t held = heap->set_bytes > used ? heap->set_bytes - used : 0;
        if (held <= keep)
            return;
        if (!step_is_set(heap, high - 1)) {
            high--;
            continue;
        }
        size_t most = round_up(held - keep, STEP_BYTES) / STEP_BYTES, from = high - 1;
        while (from > low && high - from < most && step_is_set(heap, from - 1))
            from--;
        if (!move_steps(heap, from, high, FALLOC_FL_PUNCH_HOLE))
            return; /* kept, then: it is only a cache */
        high = from;
    }
}

static bool take_unset_steps(pmr_heap *heap, size_t offset, size_t bytes, bool *fresh) {
    size_t step = offset / STEP_BYTES, end = round_up(offset + bytes, STEP_BYTES) / STEP_BYTES;
    while (step < end) {
        size_t to = step;
        while (to < end && !step_is_set(heap, to))
            to++;
        if (to == step) {
            step++;
            continue;
        }
        if (!move_steps(heap, step, to, 0))
            return false;
        *fresh = true;
        step = to;
    }
    return true;
}

/* Makes sure that the kernel has given all pages of the range; *fresh says whether some were missing. */
static bool take_pages(pmr_heap *heap, size_t offset, size_t bytes, bool *fresh) {
    *fresh = false;
    if (take_unset_steps(heap, offset, bytes, fresh))
        return true;
    for (const extent *e = heap->first; e; e = e->after)
        if (e->is_free)
            return_steps(heap, e, 0);
    return take_unset_steps(heap, offset, bytes, fresh);
}

/* Maps the pages of a large block now, in one call, rather than one by one at the first touch. Old kernels
 * cannot, and then nothing is lost but time; the pages themselves are there. */
static void map_pages(const pmr_heap *heap, void *block, size_t bytes) {
    madvise(block, round_up(bytes, heap->page_bytes), MADV_POPULATE_WRITE);
}

/* ---- the interface ---- */

/* How much a block of `bytes` takes, and at which alignment; false when that overflows. */
static bool block_shape(const pmr_heap *heap, size_t bytes, size_t *rounded, size_t *align) {
    if (bytes > heap->bytes)
        return false;
    *align = bytes >= LARGE_BYTES ? heap->page_bytes : GRANULE_BYTES;
    *rounded = bytes ? round_up(bytes, *align) : GRANULE_BYTES;
    return true;
}

pmr_status pmr_heap_init(pmr_heap **out, void *base, size_t bytes, int fd, uint64_t fd_offset) {
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    if (!base || !bytes || bytes % page || (uintptr_t)base % page || fd_offset % page ||
        fd_offset > INT64_MAX - bytes)
        return PMR_ERR_ARGUMENT;
    pmr_heap *heap = calloc(1, sizeof *heap);
    if (!heap)
        return PMR_ERR_NO_MEMORY;
    size_t steps = round_up(bytes, STEP_BYTES) / STEP_BYTES;
    heap->base = base;
    heap->bytes = bytes;
    heap->page_bytes = page;
    heap->fd = fd;
    heap->fd_offset = (off_t)fd_offset;
    heap->buckets = FIRST_BUCKETS;
    heap->bucket = calloc(heap->buckets, sizeof *heap->bucket);
    heap->step_set = calloc(steps / 64 + 1, sizeof *heap->step_set);
    if (!heap->bucket || !heap->step_set || !reserve_extents(heap, 1) || pthread_mutex_init(&heap->mutex, NULL) != 0) {
        free(heap->batches);
        free(heap->step_set);
        free(heap->bucket);
        free(heap);
        return PMR_ERR_NO_MEMORY;
    }
    heap->first = new_extent(heap, 0, bytes);
    bin_put(heap, heap->first);
    *out = heap;
    return PMR_OK;
}

void pmr_heap_fini(pmr_heap *heap) {
    if (!heap)
        return;
    pthread_mutex_destroy(&heap->mutex);
    for (batch *b = heap->batches, *next; b; b = next) {
        next = b->next;
        free(b);
    }
    free(heap->step_set);
    free(heap->bucket);
    free(heap);
}

/* With the mutex held. */
static extent *take_extent(pmr_heap *heap, size_t bytes, size_t align, bool *fresh) {
    if (!reserve_extents(heap, 2))
        return NULL;
    extent *e = find_extent(heap, bytes, align);
    if (!e)
        return NULL;
    size_t offset = round_up(e->offset, align);
    if (!take_pages(heap, offset, bytes, fresh))
        return NULL;
    bin_remove(heap, e);
    if (offset > e->offset) {
        extent *block = split_extent(heap, e, offset - e->offset);
        bin_put(heap, e);
        block->is_free = false;
        e = block;
    }
    if (e->bytes > bytes)
        bin_put(heap, split_extent(heap, e, bytes));
    blocks_put(heap, e);
    return e;
}

void *pmr_heap_take(pmr_heap *heap, size_t bytes) {
    size_t rounded, align;
    bool fresh = false;
    if (!block_shape(heap, bytes, &rounded, &align))
        return NULL;
    pthread_mutex_lock(&heap->mutex);
    extent *e = take_extent(heap, rounded, align, &fresh);
    void *block = e ? heap->base + e->offset : NULL;
    pthread_mutex_unlock(&heap->mutex);
    if (fresh && block && rounded >= LARGE_BYTES)
        map_pages(heap, block, rounded);
    return block;
}

void pmr_heap_give(pmr_heap *heap, void *block) {
    if (!block)
        return;
    pthread_mutex_lock(&heap->mutex);
    extent **link = blocks_find(heap, block), *e = *link;
    blocks_remove(heap, link);
    return_steps(heap, free_extent(heap, e), CACHE_BYTES);
    pthread_mutex_unlock(&heap->mutex);
}

/* With the mutex held: makes the block `bytes` long where it lies, or leaves it alone and says false. */
static bool resize_in_place(pmr_heap *heap, extent *e, size_t bytes, size_t align, bool *fresh) {
    size_t old = e->bytes, room = e->after && e->after->is_free ? old + e->after->bytes : old;
    if (bytes > room || e->offset % align || !reserve_extents(heap, 1))
        return false;
    if (bytes > old) {
        if (!take_pages(heap, e->offset + old, bytes - old, fresh))
            return false;
        bin_remove(heap, e->after);
        absorb_after(heap, e);
    }
    atomic_fetch_add_explicit(&heap->used_bytes, bytes - old, memory_order_relaxed); /* wraps when it shrinks */
    if (e->bytes > bytes)
        return_steps(heap, free_extent(heap, split_extent(heap, e, bytes)), CACHE_BYTES);
    return true;
}

void *pmr_heap_resize(pmr_heap *heap, void *block, size_t bytes) {
    size_t rounded, align;
    bool fresh = false;
    if (!block)
        return pmr_heap_take(heap, bytes);
    if (!block_shape(heap, bytes, &rounded, &align))
        return NULL;
    pthread_mutex_lock(&heap->mutex);
    extent *e = *blocks_find(heap, block);
    size_t old = e->bytes;
    bool done = resize_in_place(heap, e, rounded, align, &fresh);
    pthread_mutex_unlock(&heap->mutex);
    if (done) {
        size_t mapped = old / heap->page_bytes * heap->page_bytes;
        if (fresh && rounded >= LARGE_BYTES)
            map_pages(heap, (char *)block + mapped, rounded - mapped);
        return block;
    }
    void *moved = pmr_heap_take(heap, bytes);
    if (!moved)
        return NULL;
    memcpy(moved, block, old < rounded ? old : rounded);
    pmr_heap_give(heap, block);
    return moved;
}

size_t pmr_heap_bytes_used(const pmr_heap *heap) {
    return atomic_load_explicit(&heap->used_bytes, memory_order_relaxed);
}
