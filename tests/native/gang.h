/* SPDX-License-Identifier: Apache-2.0
 *
 * gang.h: a gang of forked processes over a window of its own, for plain C tests of the core.
 *
 * gang_run(ranks, cpus, body) forks `ranks` children, each with an open context; a child's non-zero result or
 * death fails the gang. Invariant: no child outlives gang_run.
 */
#ifndef PMR_TESTS_GANG_H
#define PMR_TESTS_GANG_H

#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "core/window_layout.h"
#include "include/pmr.h"

typedef int (*gang_body)(pmr_context *context, void *arg);

static inline int gang_window(uint32_t ranks, uint32_t cpus, uint64_t heap_bytes)
{
    int fd = memfd_create("pmrun-test", 0);
    pmr_window_header header;
    memset(&header, 0, sizeof header);
    header.magic = PMR_WINDOW_MAGIC;
    header.version = 1;
    header.local_world_size = header.world_size = ranks;
    header.cpus = cpus;
    header.heap_bytes = heap_bytes;
    if (fd < 0 || pwrite(fd, &header, sizeof header, 0) != (ssize_t)sizeof header) {
        perror("window");
        exit(1);
    }
    return fd;
}

static inline int gang_child(int fd, uint32_t rank, gang_body body, void *arg)
{
    pmr_context *context;
    pmr_error error;
    pmr_context_options options = {.window_fd = fd, .local_rank = rank};
    if (pmr_context_open(&options, &context, &error)) {
        fprintf(stderr, "rank %u: %s\n", rank, error.text);
        return 1;
    }
    int result = body(context, arg);
    pmr_context_close(context);
    return result;
}

/* Number of children that failed. */
static inline int gang_run(uint32_t ranks, uint32_t cpus, gang_body body, void *arg)
{
    int fd = gang_window(ranks, cpus, (uint64_t)1 << 30);
    pid_t child[PMR_WINDOW_RANKS_MAX];
    fflush(NULL);
    for (uint32_t rank = 0; rank < ranks; rank++) {
        child[rank] = fork();
        if (child[rank] == 0) {
            prctl(PR_SET_PDEATHSIG, SIGKILL);
            _exit(gang_child(fd, rank, body, arg));
        }
    }
    int failed = 0;
    for (uint32_t rank = 0; rank < ranks; rank++) {
        int status;
        waitpid(child[rank], &status, 0);
        if (!WIFEXITED(status) || WEXITSTATUS(status)) {
            fprintf(stderr, "rank %u of %u: status %#x\n", rank, ranks, (unsigned)status);
            failed++;
        }
    }
    close(fd);
    return failed;
}

#endif
