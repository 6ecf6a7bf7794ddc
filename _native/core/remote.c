/* SPDX-License-Identifier: Apache-2.0
 *
 * remote.c: cross memory attach, tried before it is used.
 *
 * Yama's restricted mode lets only a named tracer and its descendants read a process: each rank names its
 * parent, the agent, and so admits its siblings and nobody else. PMRUN_SINGLE_COPY=0 makes every trial fail.
 * Another number of bytes takes the place of the measured ones.
 */
#include "core/remote.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/uio.h>
#include <unistd.h>

#include "core/status.h"

#define PIECE_BYTES ((size_t)1 << 30)

static const uint64_t known_word = 0x706d72756e303031ull;

/* What the user wants; SIZE_MAX: nothing. */
static size_t wanted_bytes(void)
{
    const char *wanted = getenv("PMRUN_SINGLE_COPY");
    return wanted && *wanted ? strtoull(wanted, NULL, 10) : SIZE_MAX;
}

/* Measured: below these, two copies through the caches are faster than one by the kernel, which has to pin the
 * pages first. With more ranks than CPUs the chunks of two copies also cost switches between ranks. */
size_t pmr_remote_bytes_min(bool crowded)
{
    size_t wanted = wanted_bytes();
    return wanted != SIZE_MAX ? wanted : (size_t)(crowded ? 6 : 24) << 20;
}

void pmr_remote_open(pmr_recorder *recorder)
{
    prctl(PR_SET_PTRACER, (unsigned long)getppid(), 0, 0,
          0); /* fails where there is no Yama: nothing to admit */
    if (wanted_bytes() != 0)
        recorder->known_word_address = (uint64_t)(uintptr_t)&known_word;
}

bool pmr_remote_try(const pmr_recorder *peer)
{
    uint64_t word = 0;
    pmr_error ignored;
    return peer->known_word_address &&
           pmr_remote_read(peer->pid, &word, peer->known_word_address, sizeof word, &ignored) == PMR_OK &&
           word == known_word;
}

pmr_status pmr_remote_read(uint32_t pid, void *to, uint64_t address, size_t bytes, pmr_error *error)
{
    uint8_t *at = to;
    while (bytes) {
        size_t piece = bytes < PIECE_BYTES ? bytes : PIECE_BYTES;
        struct iovec local = {.iov_base = at, .iov_len = piece};
        struct iovec remote = {.iov_base = (void *)(uintptr_t)address, .iov_len = piece};
        ssize_t got = process_vm_readv((pid_t)pid, &local, 1, &remote, 1, 0);
        if (got <= 0 && errno == ESRCH)
            return pmr_fail(error, PMR_ERR_RANK_FAILED, "it died while its data was being read");
        if (got <= 0)
            return pmr_fail_os(error,
                               "cannot read %zu bytes of process %u (PMRUN_SINGLE_COPY=0 avoids such reads)",
                               bytes, pid);
        at += got;
        address += (uint64_t)got;
        bytes -= (size_t)got;
    }
    return PMR_OK;
}
