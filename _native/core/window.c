/* SPDX-License-Identifier: Apache-2.0
 *
 * window.c: mapping the node's memfd, the abort record, the ranks' states.
 *
 * The abort record is claimed by compare and swap, filled, then published by storing `state` with release: a
 * reader that sees a state sees the whole record. Invariant: once published it never changes.
 */
#include "core/window.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/status.h"

#define PAGE            4096u
#define LONE_HEAP_BYTES ((uint64_t)64 << 30)

static size_t round_up(size_t bytes, size_t unit)
{
    return (bytes + unit - 1) / unit * unit;
}

/* A private window for a world of one: the header that an agent would have written. */
static int make_lone_window(pmr_error *error)
{
    int fd = memfd_create("pmrun-window", MFD_CLOEXEC);
    if (fd < 0) {
        pmr_fail_os(error, "cannot create shared memory (memfd_create)");
        return -1;
    }
    pmr_window_header header;
    memset(&header, 0, sizeof header);
    header.magic = PMR_WINDOW_MAGIC;
    header.version = 1;
    header.local_world_size = 1;
    header.world_size = 1;
    header.cpus = 1;
    header.heap_bytes = LONE_HEAP_BYTES;
    if (pwrite(fd, &header, sizeof header, 0) != (ssize_t)sizeof header) {
        pmr_fail_os(error, "cannot write the shared memory's header");
        close(fd);
        return -1;
    }
    return fd;
}

static pmr_status read_header(int fd, uint32_t local_rank, pmr_window_header *header, pmr_error *error)
{
    ssize_t got = pread(fd, header, sizeof *header, 0);
    if (got < 0)
        return pmr_fail_os(error, "cannot read the node's window (descriptor %d)", fd);
    if (got != (ssize_t)sizeof *header || header->magic != PMR_WINDOW_MAGIC)
        return pmr_fail(error, PMR_ERR_ARGUMENT,
                        "descriptor %d is not a pmrun window; it is inherited from the agent: do not close "
                        "descriptors before pm.init()",
                        fd);
    if (header->version != 1)
        return pmr_fail(
            error, PMR_ERR_ARGUMENT,
            "the agent speaks window version %u, this pmrun version 1: install the same pmrun in both",
            header->version);
    if (header->local_world_size == 0 || header->local_world_size > PMR_WINDOW_RANKS_MAX ||
        local_rank >= header->local_world_size || header->heap_bytes % PAGE)
        return pmr_fail(error, PMR_ERR_ARGUMENT,
                        "the node's window holds %u ranks; local rank %u is not one of them",
                        header->local_world_size, local_rank);
    return PMR_OK;
}

/* Takes the last page of that length. Not ftruncate: between a look at the size and setting it, another rank may
 * have grown the file further, for a board of its own, and would lose it. */
static pmr_status grow(int fd, uint64_t length, pmr_error *error)
{
    struct stat now;
    if (fstat(fd, &now))
        return pmr_fail_os(error, "cannot read the window's size");
    if ((uint64_t)now.st_size < length && fallocate(fd, 0, (off_t)(length - PAGE), PAGE))
        return pmr_fail_os(error,
                           "cannot size the node's shared memory to %llu MiB (is a file size limit set? "
                           "'ulimit -f unlimited')",
                           (unsigned long long)(length >> 20));
    return PMR_OK;
}

pmr_status pmr_window_open(pmr_window *window, int fd, uint32_t local_rank,
                           size_t (*shared_bytes)(uint32_t ranks), pmr_error *error)
{
    memset(window, 0, sizeof *window);
    window->fd = fd < 0 ? make_lone_window(error) : fcntl(fd, F_DUPFD_CLOEXEC, 3);
    if (window->fd < 0)
        return fd < 0 ? PMR_ERR_OS : pmr_fail_os(error, "the node's window (descriptor %d) is not open", fd);
    pmr_window_header header;
    pmr_status status = read_header(window->fd, local_rank, &header, error);
    if (status)
        goto err_close;

    window->ranks = header.local_world_size;
    window->local_rank = local_rank;
    window->heap_bytes = header.heap_bytes;
    size_t shared_offset = PMR_WINDOW_HEADER_BYTES + (size_t)window->ranks * PMR_RECORDER_STRIDE;
    size_t heaps_offset = round_up(shared_offset + shared_bytes(window->ranks), (size_t)2 << 20);
    window->mapped_bytes = heaps_offset + (size_t)window->ranks * window->heap_bytes;
    window->pool_offset = window->mapped_bytes;
    status = grow(window->fd, window->mapped_bytes, error);
    if (status)
        goto err_close;
    window->base =
        mmap(NULL, window->mapped_bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, window->fd, 0);
    if (window->base == MAP_FAILED) {
        window->base = NULL;
        status = pmr_fail_os(error,
                             "cannot map %zu MiB of address space for the node's window (is a limit set? "
                             "'ulimit -v unlimited')",
                             window->mapped_bytes >> 20);
        goto err_close;
    }
    madvise(window->base + heaps_offset, window->mapped_bytes - heaps_offset, MADV_DONTDUMP);
    window->header = (pmr_window_header *)(void *)window->base;
    window->shared = window->base + shared_offset;
    window->heaps = window->base + heaps_offset;
    return PMR_OK;

err_close:
    close(window->fd);
    window->fd = -1;
    return status;
}

void pmr_window_close(pmr_window *window)
{
    if (!window->base)
        return;
    close(window->fd);
    window->fd = -1;
}

pmr_recorder *pmr_window_recorder(const pmr_window *window, uint32_t local_rank)
{
    return (pmr_recorder *)(void *)(window->base + PMR_WINDOW_HEADER_BYTES +
                                    (size_t)local_rank * PMR_RECORDER_STRIDE);
}

pmr_status pmr_window_map_pool(const pmr_window *window, uint64_t offset, size_t bytes, void **out,
                               pmr_error *error)
{
    pmr_status status = grow(window->fd, offset + bytes, error);
    if (status)
        return status;
    void *address =
        mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, window->fd, (off_t)offset);
    if (address == MAP_FAILED)
        return pmr_fail_os(error, "cannot map %zu MiB for a communicator", bytes >> 20);
    *out = address;
    return PMR_OK;
}

void pmr_window_unmap_pool(void *address, size_t bytes)
{
    munmap(address, bytes);
}

void pmr_window_drop_pool(const pmr_window *window, uint64_t offset, size_t bytes)
{
    fallocate(window->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)offset, (off_t)bytes);
}

void pmr_window_abort_gang(const pmr_window *window, uint32_t state, int32_t rank, const char *node,
                           const char *text)
{
    pmr_window_abort *record = &window->header->abort;
    uint32_t unclaimed = 0;
    if (!atomic_compare_exchange_strong((_Atomic uint32_t *)(void *)&record->claim, &unclaimed, 1))
        return;
    record->rank = rank;
    strncpy(record->node, node, sizeof record->node - 1);
    strncpy(record->text, text, sizeof record->text - 1);
    atomic_store_explicit((_Atomic uint32_t *)(void *)&record->state, state, memory_order_release);
}

pmr_status pmr_window_abort_status(uint32_t state)
{
    return state == PMR_ABORT_NONE       ? PMR_OK
           : state == PMR_ABORT_MISMATCH ? PMR_ERR_MISMATCH
           : state == PMR_ABORT_STALLED  ? PMR_ERR_STALLED
                                         : PMR_ERR_RANK_FAILED;
}

pmr_status pmr_window_aborted(const pmr_window *window, pmr_error *error)
{
    const pmr_window_abort *record = &window->header->abort;
    uint32_t state = atomic_load_explicit(pmr_window_abort_word(window), memory_order_acquire);
    pmr_status status = pmr_window_abort_status(state);
    if (status && error) {
        error->status = status;
        error->rank = state == PMR_ABORT_STOPPED ? -1 : record->rank;
        memcpy(error->node, record->node, sizeof error->node);
        memcpy(error->text, record->text, sizeof error->text);
    }
    return status;
}

static _Atomic uint32_t *state_word(const pmr_window *window, uint32_t local_rank)
{
    return (_Atomic uint32_t *)(void *)&window->header->rank_state[local_rank];
}

uint32_t pmr_window_rank_state(const pmr_window *window, uint32_t local_rank)
{
    return atomic_load_explicit(state_word(window, local_rank), memory_order_acquire);
}

void pmr_window_rank_state_set(const pmr_window *window, uint32_t local_rank, uint32_t state)
{
    atomic_store_explicit(state_word(window, local_rank), state, memory_order_release);
}
