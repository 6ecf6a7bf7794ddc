/* SPDX-License-Identifier: Apache-2.0
 *
 * p2p_ranks.h: a gang for the point-to-point tests: ranks as processes or threads over one window.
 *
 * The parent is the agent: it makes the window and, as each process ends, writes LEFT or FAILED into it. As threads
 * (under the thread sanitizer) all ranks use one mapping, so that the sanitizer sees both sides of every access.
 */
#ifndef P2P_RANKS_H
#define P2P_RANKS_H

#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "check.h"
#include "core/clock.h"
#include "progress/p2p.h"

#define HEAP_BYTES ((uint64_t)64 << 20)
#define SECOND ((int64_t)1000000000)
#define FAR (60 * SECOND)

#define CHECK_OK(call)                                                                                             \
    do {                                                                                                           \
        pmr_status status_ = (call);                                                                               \
        if (status_) {                                                                                             \
            fprintf(stderr, "%s:%d: %s: %s: %s\n", __FILE__, __LINE__, #call, pmr_status_name(status_), error.text); \
            abort();                                                                                               \
        }                                                                                                          \
    } while (0)

typedef struct rank_env {
    uint32_t rank, ranks;
    pmr_window window;
    pmr_engine *engine;
    pmr_p2p *p2p;
    pmr_wait_policy policy;
    pmr_watch watch;
    uint64_t random;
    size_t heap_used;
} rank_env;

typedef void (*body_fn)(rank_env *env);

static bool as_threads;

static inline uint32_t draw(uint64_t *state, uint32_t below)
{
    *state = *state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(*state >> 33) % below;
}

static pmr_status check_abort(void *arg, pmr_error *error)
{
    return pmr_window_aborted(arg, error);
}

static inline pmr_p2p_wait within(rank_env *env, int64_t timeout_ns)
{
    return (pmr_p2p_wait){.watch = &env->watch, .policy = &env->policy, .deadline_ns = pmr_now_ns() + timeout_ns};
}

/* Heap memory of this rank, without an allocator: given back by nobody. */
static inline void *take_heap(rank_env *env, size_t bytes)
{
    env->heap_used = (env->heap_used + 63) / 64 * 64;
    CHECK(env->heap_used + bytes <= HEAP_BYTES);
    void *block = pmr_window_heap(&env->window, env->rank) + env->heap_used;
    env->heap_used += bytes;
    return block;
}

static inline int make_window(uint32_t ranks)
{
    int fd = memfd_create("test-window", MFD_CLOEXEC);
    CHECK(fd >= 0);
    pmr_window_header header;
    memset(&header, 0, sizeof header);
    header.magic = PMR_WINDOW_MAGIC;
    header.version = 1;
    header.local_world_size = ranks;
    header.world_size = ranks;
    header.cpus = 2;
    header.heap_bytes = HEAP_BYTES;
    CHECK(pwrite(fd, &header, sizeof header, 0) == (ssize_t)sizeof header);
    return fd;
}

static inline void run_rank(rank_env *env, body_fn body)
{
    pmr_error error = {.text = ""};
    bool crowded = env->ranks > 2;
    CHECK_OK(pmr_engine_open(&env->engine, crowded, &error));
    CHECK_OK(pmr_p2p_open(&env->p2p, &env->window, env->window.shared, NULL, env->engine, &error));
    pmr_wait_policy_init(&env->policy, crowded);
    env->watch = (pmr_watch){pmr_window_abort_word(&env->window), check_abort, &env->window};
    pmr_window_rank_state_set(&env->window, env->rank, PMR_RANK_ATTACHED);
    body(env);
    pmr_engine_close(env->engine);
    pmr_p2p_close(env->p2p);
    pmr_window_rank_state_set(&env->window, env->rank, PMR_RANK_FINISHED);
}

struct thread_start {
    rank_env env;
    body_fn body;
    pthread_t thread;
};

static void *thread_main(void *arg)
{
    struct thread_start *start = arg;
    run_rank(&start->env, start->body);
    return NULL;
}

static inline void run_as_threads(const pmr_window *window, uint32_t ranks, body_fn body, uint64_t seed)
{
    struct thread_start *starts = calloc(ranks, sizeof *starts);
    CHECK(starts);
    for (uint32_t rank = 0; rank < ranks; rank++) {
        starts[rank].env = (rank_env){.rank = rank, .ranks = ranks, .window = *window, .random = seed};
        starts[rank].env.window.local_rank = rank;
        starts[rank].body = body;
        CHECK(pthread_create(&starts[rank].thread, NULL, thread_main, &starts[rank]) == 0);
    }
    for (uint32_t rank = 0; rank < ranks; rank++)
        pthread_join(starts[rank].thread, NULL);
    free(starts);
}

/* Status 0: fine; 17: a death that the test wants. */
static inline void run_as_processes(const pmr_window *window, uint32_t ranks, body_fn body, uint64_t seed)
{
    pid_t pids[8];
    CHECK(ranks <= 8);
    fflush(stdout);
    for (uint32_t rank = 0; rank < ranks; rank++) {
        pids[rank] = fork();
        CHECK(pids[rank] >= 0);
        if (pids[rank] == 0) {
            alarm(100); /* the last resort against a hang: the parent sees the signal */
            pmr_error error = {.text = ""};
            rank_env env = {.rank = rank, .ranks = ranks, .random = seed};
            CHECK_OK(pmr_window_open(&env.window, window->fd, rank, pmr_p2p_area_bytes, &error));
            run_rank(&env, body);
            exit(0);
        }
    }
    for (uint32_t ended = 0; ended < ranks; ended++) {
        int status;
        pid_t pid = wait(&status);
        for (uint32_t rank = 0; rank < ranks; rank++)
            if (pids[rank] == pid)
                pmr_window_rank_state_set(window, rank, status ? PMR_RANK_FAILED : PMR_RANK_LEFT);
        CHECK(WIFEXITED(status) && (WEXITSTATUS(status) == 0 || WEXITSTATUS(status) == 17));
    }
}

static inline void run_gang(const char *name, uint32_t ranks, body_fn body, uint64_t seed)
{
    printf("%s, %u ranks\n", name, ranks);
    int fd = make_window(ranks);
    pmr_error error = {.text = ""};
    pmr_window window;
    CHECK_OK(pmr_window_open(&window, fd, 0, pmr_p2p_area_bytes, &error));
    if (as_threads)
        run_as_threads(&window, ranks, body, seed);
    else
        run_as_processes(&window, ranks, body, seed);
    munmap(window.base, window.mapped_bytes);
    pmr_window_close(&window);
    close(fd);
}

#endif
