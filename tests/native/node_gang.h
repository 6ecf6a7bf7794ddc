/* SPDX-License-Identifier: Apache-2.0
 *
 * node_gang.h: a gang of forked processes on several "nodes" of one machine: a window for each node, and a transport
 * between them.
 *
 * Invariant: as gang.h's; no child outlives node_gang_run.
 */
#ifndef PMR_TESTS_NODE_GANG_H
#define PMR_TESTS_NODE_GANG_H

#include <sched.h>
#include <stdatomic.h>

#include "gang.h"
#include "transport/loopback.h"

#define NODES_MAX 8u
#define NODE_RANKS_MAX 64u

typedef struct node_layout {
    uint32_t nodes;
    uint32_t sizes[NODES_MAX]; /* ranks of each */
    uint32_t cpus;             /* that each node believes to have */
    const char *transport;
    bool reproducible;
} node_layout;

/* How ranks find each other: shared by all. */
typedef struct node_board {
    _Atomic uint32_t ready, finished;
    char hub[PMR_ADDRESS_BYTES];
    char address[NODE_RANKS_MAX][PMR_ADDRESS_BYTES];
} node_board;

/* One of all that can run here, in turn. */
static inline const char *node_transport(uint64_t number)
{
    static const char *const names[] = {"tcp", "loopback", "zmq"};
#ifdef __SANITIZE_THREAD__
    return names[number % 2]; /* libzmq is not instrumented */
#else
    return names[number % (getenv("LIBZMQ") ? 3 : 2)];
#endif
}

static inline uint32_t node_ranks(const node_layout *layout)
{
    uint32_t ranks = 0;
    for (uint32_t node = 0; node < layout->nodes; node++)
        ranks += layout->sizes[node];
    return ranks;
}

static inline pmr_net *node_net(const node_layout *layout, node_board *board, uint32_t rank, pmr_error *error)
{
    static const uint8_t key[PMR_KEY_BYTES] = {1, 2, 3};
    bool loops = strcmp(layout->transport, "loopback") == 0;
    pmr_net_options options = {.transport = layout->transport,
                               .bind_address = loops ? board->hub : "127.0.0.1",
                               .rank = rank,
                               .nodes = layout->nodes,
                               .local_sizes = layout->sizes,
                               .key = key,
                               .library = getenv("LIBZMQ")};
    pmr_net *net;
    if (pmr_net_open(&options, &net, error))
        return NULL;
    const char *addresses[NODE_RANKS_MAX];
    uint32_t ranks = node_ranks(layout);
    snprintf(board->address[rank], sizeof board->address[rank], "%s", pmr_net_address(net));
    atomic_fetch_add(&board->ready, 1);
    while (atomic_load(&board->ready) < ranks)
        sched_yield();
    for (uint32_t i = 0; i < ranks; i++)
        addresses[i] = board->address[i];
    if (pmr_net_connect(net, addresses, error)) {
        pmr_net_close(net, 0);
        return NULL;
    }
    return net;
}

static inline int node_child(const node_layout *layout, node_board *board, int fd, uint32_t rank, uint32_t local_rank,
                             gang_body body, void *arg)
{
    pmr_error error;
    pmr_context *context;
    pmr_net *net = node_net(layout, board, rank, &error);
    pmr_context_options options = {
        .window_fd = fd, .local_rank = local_rank, .net = net, .reproducible = layout->reproducible};
    if (!net || pmr_context_open(&options, &context, &error)) {
        fprintf(stderr, "rank %u: %s\n", rank, error.text);
        return 1;
    }
    int result = body(context, arg);
    pmr_context_close(context);
    pmr_net_close(net, 2000000000ll);
    return result;
}

static inline void node_window_header(int fd, const node_layout *layout, uint32_t node, uint32_t first_rank)
{
    pmr_window_header header;
    if (pread(fd, &header, sizeof header, 0) != (ssize_t)sizeof header)
        exit(1);
    header.local_world_size = layout->sizes[node];
    header.world_size = node_ranks(layout);
    header.first_rank = first_rank;
    if (pwrite(fd, &header, sizeof header, 0) != (ssize_t)sizeof header)
        exit(1);
}

/* Number of children that failed; `status_out`, if any: how each ended, by rank. */
static inline int node_gang_run_all(const node_layout *layout, gang_body body, void *arg, int *status_out)
{
    uint32_t ranks = node_ranks(layout), rank = 0;
    node_board *board = mmap(NULL, sizeof *board, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    pmr_error error;
    if (board == MAP_FAILED || pmr_loopback_hub_open(ranks, 1, board->hub, &error)) {
        fprintf(stderr, "no world: %s\n", error.text);
        exit(1);
    }
    pid_t child[NODE_RANKS_MAX];
    fflush(NULL);
    for (uint32_t node = 0; node < layout->nodes; node++) {
        int fd = gang_window(layout->sizes[node], layout->cpus, (uint64_t)1 << 30);
        node_window_header(fd, layout, node, rank);
        for (uint32_t i = 0; i < layout->sizes[node]; i++, rank++) {
            child[rank] = fork();
            if (child[rank] == 0) {
                prctl(PR_SET_PDEATHSIG, SIGKILL);
                char name[16];
                snprintf(name, sizeof name, "node%u", node);
                setenv("PMRUN_NODE_NAME", name, 1);
                _exit(node_child(layout, board, fd, rank, i, body, arg));
            }
        }
        close(fd);
    }
    int failed = 0;
    for (uint32_t i = 0; i < ranks; i++) {
        int status;
        waitpid(child[i], &status, 0);
        if (status_out)
            status_out[i] = status;
        if (!WIFEXITED(status) || WEXITSTATUS(status)) {
            if (!status_out)
                fprintf(stderr, "rank %u of %u: status %#x\n", i, ranks, (unsigned)status);
            failed++;
        }
    }
    pmr_loopback_hub_close(board->hub);
    munmap(board, sizeof *board);
    return failed;
}

static inline int node_gang_run(const node_layout *layout, gang_body body, void *arg)
{
    return node_gang_run_all(layout, body, arg, NULL);
}

#endif
