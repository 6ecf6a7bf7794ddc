/* SPDX-License-Identifier: Apache-2.0
 *
 * context.c: this process's place in the node's gang.
 *
 * Opening maps the window, opens this rank's recorder and heap, the engine (its thread starts later) and the
 * world communicator, in this order; closing goes backwards. The shared area holds the pool's head, the
 * point-to-point rings and the world's board. Invariant: a rank that is ATTACHED in the window has everything
 * open.
 */
#include <errno.h>
#include <stdlib.h>

#include "comm/communicator.h"
#include "core/copy.h"
#include "core/remote.h"
#include "progress/p2p.h"

#define POOL_HEAD_BYTES 4096u

static size_t p2p_bytes(uint32_t ranks)
{
    return (pmr_p2p_area_bytes(ranks) + 4095) / 4096 * 4096;
}

size_t pmr_shared_area_bytes(uint32_t ranks)
{
    return POOL_HEAD_BYTES + p2p_bytes(ranks) + pmr_board_layout_of(ranks).bytes;
}

static pmr_status open_world(pmr_context *context, pmr_error *error)
{
    pmr_window *window = &context->window;
    context->pool = (pmr_pool *)(void *)window->shared;
    context->p2p_area = window->shared + POOL_HEAD_BYTES;
    pmr_board *board = (pmr_board *)(void *)(window->shared + POOL_HEAD_BYTES + p2p_bytes(window->ranks));
    uint16_t *local = malloc(window->ranks * sizeof *local);
    if (!local)
        return pmr_fail(error, PMR_ERR_NO_MEMORY, "out of memory for a communicator of %u ranks",
                        window->ranks);
    for (uint32_t i = 0; i < window->ranks; i++)
        local[i] = (uint16_t)i;
    pmr_status status = pmr_comm_open(context, board, 0, window->local_rank, window->ranks, local,
                                      PMR_BOARDS_MAX, &context->world, error);
    free(local);
    return status;
}

pmr_status pmr_context_open(const pmr_context_options *options, pmr_context **out, pmr_error *error)
{
    pmr_context *context = calloc(1, sizeof *context);
    if (!context)
        return pmr_fail(error, PMR_ERR_NO_MEMORY, "out of memory");
    pmr_status status = pmr_window_open(&context->window, options->window_fd, options->local_rank,
                                        pmr_shared_area_bytes, error);
    if (status)
        goto err_free;
    pmr_window *window = &context->window;
    const char *node = getenv("PMRUN_NODE_NAME");
    strncpy(context->node, node ? node : "", sizeof context->node - 1);
    context->first_rank = window->header->first_rank;
    context->crowded = window->header->cpus < window->ranks;
    context->cache_bytes = pmr_cache_bytes_find();
    context->recorder = pmr_window_recorder(window, window->local_rank);
    pmr_recorder_open(context->recorder);
    pmr_remote_open(context->recorder);
    context->remote_bytes_min[false] = pmr_remote_bytes_min(false);
    context->remote_bytes_min[true] = pmr_remote_bytes_min(true);
    status =
        pmr_heap_init(&context->heap, pmr_window_heap(window, window->local_rank), window->heap_bytes,
                      window->fd, (uint64_t)(pmr_window_heap(window, window->local_rank) - window->base));
    if (status) {
        pmr_fail(error, status, "out of memory for the shared heap's bookkeeping");
        goto err_window;
    }
    status = pmr_engine_open(&context->engine, context->crowded, error);
    if (status)
        goto err_heap;
    status = open_world(context, error);
    if (status)
        goto err_engine;
    status = pmr_p2p_open(&context->p2p, window, context->p2p_area, context->engine, error);
    if (status)
        goto err_world;
    pmr_window_rank_state_set(window, window->local_rank, PMR_RANK_ATTACHED);
    *out = context;
    return PMR_OK;

err_world:
    pmr_comm_close(context->world);
err_engine:
    pmr_engine_close(context->engine);
err_heap:
    pmr_heap_fini(context->heap);
err_window:
    pmr_window_close(window);
err_free:
    free(context);
    return status;
}

/* The heap's bookkeeping and the mapping stay: arrays may outlive the context, and are freed through it. */
void pmr_context_close(pmr_context *context)
{
    if (!context || !context->world)
        return;
    pmr_engine_close(context->engine); /* its thread; the communicators still take themselves out of its list */
    pmr_p2p_close(context->p2p);
    context->p2p = NULL;
    pmr_comm_close(context->world);
    context->world = NULL;
    context->engine = NULL;
    pmr_window_rank_state_set(&context->window, context->window.local_rank, PMR_RANK_FINISHED);
    pmr_window_close(&context->window);
}

pmr_comm *pmr_context_world(pmr_context *context)
{
    return context->world;
}

uint32_t pmr_site_intern(pmr_context *context, const char *text)
{
    return pmr_recorder_site(context->recorder, text);
}

void pmr_context_fail(pmr_context *context, const char *text)
{
    pmr_window_abort_gang(&context->window, PMR_ABORT_RANK_FAILED,
                          (int32_t)(context->first_rank + context->window.local_rank), context->node, text);
}

void *pmr_heap_alloc(pmr_context *context, size_t bytes)
{
    return pmr_heap_take(context->heap, bytes);
}

void *pmr_heap_realloc(pmr_context *context, void *block, size_t bytes)
{
    return pmr_heap_resize(context->heap, block, bytes);
}

void pmr_heap_free(pmr_context *context, void *block)
{
    pmr_heap_give(context->heap, block);
}

bool pmr_heap_covers(const pmr_context *context, const void *data, size_t bytes)
{
    return pmr_window_covers(&context->window, data, bytes);
}

uint64_t pmr_window_offset(const pmr_context *context, const void *data)
{
    return (uint64_t)((const uint8_t *)data - context->window.base);
}

void *pmr_window_address(const pmr_context *context, uint64_t offset)
{
    return context->window.base + offset;
}
