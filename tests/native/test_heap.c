/* SPDX-License-Identifier: Apache-2.0
 *
 * test_heap.c: the heap under random use, at its end, and from many threads.
 *
 * Every live block is filled with a pattern of its own and kept in a shadow list. A step of the fuzz takes, resizes
 * or gives a block; blocks that overlapped, moved without their bytes or lost their pages show as a wrong pattern.
 * The second mapping of the same file stands for a peer: it must see what the owner wrote.
 *
 * Usage: test_heap [seed]
 */
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "core/heap.h"

#define MIB ((size_t)1 << 20)
#if defined(__SANITIZE_THREAD__) /* slow, and what it looks for is in test_threads */
#define FUZZ_STEPS ((size_t)4000)
#else
#define FUZZ_STEPS ((size_t)60000)
#endif
#define FRONT_BYTES ((size_t)64 << 10) /* the heap does not begin where the file does */

static _Atomic int failures;
static uint64_t seed;

static void fail(const char *what, size_t number) {
    fprintf(stderr, "test_heap: %s (%zu)\n", what, number);
    if (++failures >= 20)
        exit(1);
}

static uint64_t random_bits(uint64_t *state) { /* splitmix64 */
    uint64_t z = *state += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

typedef struct room {
    int fd;
    size_t bytes;
    unsigned char *whole, *peer; /* two mappings of the file */
    unsigned char *base;
    pmr_heap *heap;
} room;

/* The heap has `bytes` of addresses; the file has pages for the first `backed` of them and cannot grow. */
static void open_room_of(room *r, size_t bytes, size_t backed) {
    *r = (room){.bytes = bytes, .fd = memfd_create("heap", MFD_ALLOW_SEALING | MFD_CLOEXEC)};
    if (r->fd < 0 || ftruncate(r->fd, (off_t)(FRONT_BYTES + backed)) != 0 ||
        fcntl(r->fd, F_ADD_SEALS, F_SEAL_GROW) != 0)
        abort();
    r->whole = mmap(NULL, FRONT_BYTES + bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, r->fd, 0);
    r->peer = mmap(NULL, FRONT_BYTES + bytes, PROT_READ, MAP_SHARED | MAP_NORESERVE, r->fd, 0);
    if (r->whole == MAP_FAILED || r->peer == MAP_FAILED)
        abort();
    r->base = r->whole + FRONT_BYTES;
    if (pmr_heap_init(&r->heap, r->base, bytes, r->fd, FRONT_BYTES) != PMR_OK)
        abort();
}

static void open_room(room *r, size_t bytes) {
    open_room_of(r, bytes, bytes);
}

static void close_room(room *r) {
    pmr_heap_fini(r->heap);
    munmap(r->peer, FRONT_BYTES + r->bytes);
    munmap(r->whole, FRONT_BYTES + r->bytes);
    close(r->fd);
}

static size_t held_bytes(const room *r) {
    struct stat about;
    if (fstat(r->fd, &about) != 0)
        abort();
    return (size_t)about.st_blocks * 512;
}

/* ---- blocks with a pattern ---- */

typedef struct owned {
    unsigned char *at;
    size_t bytes;
    uint64_t mark;
} owned;

/* Both ends, and a sample between them: a block that overlaps another shares at least a granule of 64 bytes. */
static size_t next_sample(size_t i, size_t bytes) {
    return i < 128 || i + 128 >= bytes ? i + 1 : i + 61;
}

static void paint(const owned *o) {
    for (size_t i = 0; i < o->bytes; i = next_sample(i, o->bytes))
        o->at[i] = (unsigned char)(o->mark * (i + 1) >> 13);
}

static void check_paint(const owned *o, size_t bytes, const char *what) {
    size_t wrong = 0;
    for (size_t i = 0; i < bytes; i = next_sample(i, o->bytes))
        wrong += o->at[i] != (unsigned char)(o->mark * (i + 1) >> 13);
    if (wrong)
        fail(what, wrong);
}

static void check_shape(const room *r, const owned *o) {
    uintptr_t offset = (uintptr_t)o->at - (uintptr_t)r->base, page = (uintptr_t)sysconf(_SC_PAGESIZE);
    if (offset >= r->bytes || o->bytes > r->bytes - offset)
        fail("a block lies outside the heap", o->bytes);
    if ((uintptr_t)o->at % 64 || (o->bytes >= 65536 && (uintptr_t)o->at % page))
        fail("a block is not aligned", o->bytes);
}

static size_t random_size(uint64_t *state, size_t most) {
    uint64_t choice = random_bits(state) % 16;
    size_t limit = choice < 9 ? 2000 : choice < 14 ? 200000 : most;
    return (size_t)(random_bits(state) % limit);
}

static void fuzz(room *r, uint64_t state, size_t steps, size_t most, size_t slots) {
    owned *live = calloc(slots, sizeof *live);
    if (!live)
        abort();
    for (size_t step = 0; step < steps; step++) {
        owned *o = &live[random_bits(&state) % slots];
        size_t bytes = random_size(&state, most), action = (size_t)(random_bits(&state) % 3);
        owned next = {NULL, bytes, random_bits(&state)};
        if (!o->at) {
            next.at = pmr_heap_take(r->heap, bytes);
        } else {
            check_paint(o, o->bytes, "a block changed while it was owned: bytes");
            if (action == 0) {
                next.at = pmr_heap_resize(r->heap, o->at, bytes);
                if (!next.at)
                    continue; /* the old block must still be whole: the next visit looks */
                owned old = {next.at, o->bytes, o->mark};
                check_paint(&old, bytes < o->bytes ? bytes : o->bytes, "a resized block lost bytes");
            } else {
                pmr_heap_give(r->heap, o->at);
            }
        }
        *o = next;
        if (o->at) {
            check_shape(r, o);
            paint(o);
        }
    }
    for (size_t i = 0; i < slots; i++) {
        if (live[i].at)
            check_paint(&live[i], live[i].bytes, "a block changed while it was owned: bytes");
        pmr_heap_give(r->heap, live[i].at);
    }
    free(live);
}

/* After everything was given, the whole range must be one block again. */
static void check_whole_again(room *r) {
    if (pmr_heap_bytes_used(r->heap) != 0)
        fail("bytes in use after all was given", pmr_heap_bytes_used(r->heap));
    void *all = pmr_heap_take(r->heap, r->bytes);
    if (all != r->base)
        fail("free neighbours did not join", 0);
    pmr_heap_give(r->heap, all);
}

static void test_fuzz(void) {
    room r;
    open_room(&r, 24 * MIB);
    fuzz(&r, seed, FUZZ_STEPS, 3 * MIB, 200);
    check_whole_again(&r);
    fuzz(&r, seed + 1, FUZZ_STEPS / 3, 9 * MIB, 40); /* exhausted most of the time */
    check_whole_again(&r);
    close_room(&r);
    /* The kernel often refuses, and then all free steps go back: those alone, or blocks would lose their bytes. */
    open_room_of(&r, 24 * MIB, 12 * MIB);
    fuzz(&r, seed + 2, FUZZ_STEPS / 6, 3 * MIB, 60);
    if (pmr_heap_bytes_used(r.heap) != 0)
        fail("bytes in use after all was given", pmr_heap_bytes_used(r.heap));
    close_room(&r);
}

/* ---- the end of the range, and of memory ---- */

static void test_exhaustion(void) {
    enum { SMALL = 4096, MANY = 4 * 1024 * 1024 / SMALL };
    room r;
    open_room(&r, 4 * MIB);
    static unsigned char *blocks[MANY + 1];
    size_t count = 0;
    while (count <= MANY && (blocks[count] = pmr_heap_take(r.heap, SMALL)))
        memset(blocks[count++], 1, SMALL);
    if (count != MANY || pmr_heap_bytes_used(r.heap) != 4 * MIB)
        fail("blocks of one page did not fill the heap", count);
    if (pmr_heap_take(r.heap, 0) || pmr_heap_resize(r.heap, blocks[0], SMALL + 1) || pmr_heap_take(r.heap, SIZE_MAX))
        fail("a full heap gave a block", 0);
    /* A hole of three blocks, given in an order that joins both sides, holds one of three and nothing larger. */
    pmr_heap_give(r.heap, blocks[10]);
    pmr_heap_give(r.heap, blocks[12]);
    pmr_heap_give(r.heap, blocks[11]);
    if (pmr_heap_take(r.heap, 3 * SMALL + 1))
        fail("a block larger than the hole", 0);
    if (pmr_heap_take(r.heap, 3 * SMALL) != blocks[10])
        fail("the joined hole was not found", 0);
    pmr_heap_give(r.heap, blocks[10]);
    if (pmr_heap_resize(r.heap, blocks[9], 4 * SMALL) != blocks[9])
        fail("a block did not grow into the hole behind it", 0);
    for (size_t i = 0; i < MANY; i++)
        if (i < 10 || i > 12)
            pmr_heap_give(r.heap, blocks[i]);
    check_whole_again(&r);
    close_room(&r);
}

/* The kernel has no more pages: NULL, not SIGBUS (which a child's status would show), and what was there stays. */
static void test_no_pages(void) {
    int status;
    fflush(NULL);
    pid_t child = fork();
    if (child == 0) {
        room r;
        open_room_of(&r, 8 * MIB, MIB);
        pmr_heap *heap = r.heap;
        unsigned char *first = pmr_heap_take(heap, MIB / 2);
        if (!first)
            _exit(3);
        memset(first, 7, MIB / 2);
        if (pmr_heap_take(heap, 2 * MIB) || pmr_heap_resize(heap, first, 4 * MIB))
            _exit(4);
        unsigned char *second = pmr_heap_take(heap, MIB / 4);
        if (!second || first[0] != 7 || first[MIB / 2 - 1] != 7 || pmr_heap_bytes_used(heap) != MIB / 2 + MIB / 4)
            _exit(5);
        memset(second, 8, MIB / 4);
        close_room(&r);
        _exit(0);
    }
    if (child < 0 || waitpid(child, &status, 0) != child)
        abort();
    if (!WIFEXITED(status) || WEXITSTATUS(status) != 0)
        fail("exhausted pages: the child ended with", (size_t)status);
}

static void touch_pages(volatile unsigned char *at, size_t bytes) {
    for (size_t i = 0; i < bytes; i += 4096)
        at[i] = 1;
}

/* Free memory is kept up to the cache and goes back beyond it; a reused block keeps its pages. */
static void test_give_back(void) {
    room r;
    open_room(&r, 1024 * MIB);
    if (held_bytes(&r) != 0)
        fail("an unused heap holds memory", held_bytes(&r));
    unsigned char *small = pmr_heap_take(r.heap, 100);
    size_t little = held_bytes(&r);
    if (!small || little == 0 || little > MIB)
        fail("one small block holds", little);
    unsigned char *large = pmr_heap_take(r.heap, 32 * MIB);
    if (!large || held_bytes(&r) < 32 * MIB)
        fail("a large block was handed out without its pages", held_bytes(&r));
    touch_pages(large, 32 * MIB);
    struct rusage before, after;
    getrusage(RUSAGE_SELF, &before);
    for (int round = 0; round < 3; round++) {
        pmr_heap_give(r.heap, large);
        large = pmr_heap_take(r.heap, 32 * MIB);
        if (!large)
            abort();
        touch_pages(large, 32 * MIB);
    }
    getrusage(RUSAGE_SELF, &after);
    if (after.ru_minflt - before.ru_minflt > 200)
        fail("reuse of a block faulted its pages in again", (size_t)(after.ru_minflt - before.ru_minflt));
    unsigned char *huge = pmr_heap_take(r.heap, 400 * MIB);
    if (!huge || held_bytes(&r) < 432 * MIB)
        fail("a huge block was handed out without its pages", held_bytes(&r));
    huge[0] = huge[400 * MIB - 1] = 9;
    if (r.peer[huge - r.whole] != 9)
        fail("a peer does not see the block", 0);
    pmr_heap_give(r.heap, huge);
    pmr_heap_give(r.heap, large);
    if (held_bytes(&r) > 258 * MIB || held_bytes(&r) < 250 * MIB)
        fail("free memory held, not the cache's size", held_bytes(&r));
    pmr_heap_give(r.heap, small);
    check_whole_again(&r);
    close_room(&r);
}

static void test_arguments(void) {
    room r;
    open_room(&r, MIB);
    pmr_heap *heap = NULL;
    if (pmr_heap_init(&heap, r.base, 0, r.fd, 0) != PMR_ERR_ARGUMENT ||
        pmr_heap_init(&heap, r.base + 1, MIB, r.fd, 0) != PMR_ERR_ARGUMENT ||
        pmr_heap_init(&heap, r.base, MIB - 1, r.fd, 0) != PMR_ERR_ARGUMENT || heap)
        fail("a heap over a range that is not whole pages", 0);
    void *empty = pmr_heap_take(r.heap, 0), *other = pmr_heap_resize(r.heap, NULL, 0);
    if (!empty || !other || empty == other)
        fail("empty blocks are not blocks of their own", 0);
    pmr_heap_give(r.heap, empty);
    pmr_heap_give(r.heap, other);
    pmr_heap_give(r.heap, NULL);
    pmr_heap_fini(NULL);
    check_whole_again(&r);
    close_room(&r);
}

/* A block given twice must stop the process before the range has two owners. */
static void test_given_twice(void) {
    int status;
    fflush(NULL);
    pid_t child = fork();
    if (child == 0) {
        room r;
        open_room(&r, MIB);
        struct rlimit none = {0, 0};
        setrlimit(RLIMIT_CORE, &none);
        void *block = pmr_heap_take(r.heap, 64);
        pmr_heap_give(r.heap, block);
        if (!freopen("/dev/null", "w", stderr))
            _exit(1);
        pmr_heap_give(r.heap, block);
        _exit(0);
    }
    if (child < 0 || waitpid(child, &status, 0) != child)
        abort();
    if (!WIFSIGNALED(status))
        fail("a block was given twice and the child ended with", (size_t)status);
}

/* ---- threads ---- */

typedef struct worker {
    room *r;
    uint64_t seed;
    pthread_t thread;
} worker;

static void *work(void *given) {
    worker *w = given;
    fuzz(w->r, w->seed, 4000, MIB, 30);
    return NULL;
}

static void test_threads(void) {
    enum { WORKERS = 8 };
    room r;
    open_room(&r, 32 * MIB);
    worker workers[WORKERS];
    for (uint64_t t = 0; t < WORKERS; t++) {
        workers[t] = (worker){.r = &r, .seed = seed + 100 + t};
        if (pthread_create(&workers[t].thread, NULL, work, &workers[t]) != 0)
            abort();
    }
    for (int t = 0; t < WORKERS; t++)
        pthread_join(workers[t].thread, NULL);
    check_whole_again(&r);
    close_room(&r);
}

int main(int argc, char **argv) {
    seed = argc > 1 ? strtoull(argv[1], NULL, 0) : 20261122;
    printf("test_heap: seed %llu\n", (unsigned long long)seed);
    test_no_pages(); /* the tests that fork come before those with threads */
    test_given_twice();
    test_arguments();
    test_fuzz();
    test_exhaustion();
    test_give_back();
    test_threads();
    printf("test_heap: %s\n", failures ? "FAILED" : "ok");
    return failures != 0;
}
