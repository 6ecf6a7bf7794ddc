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

/* The ranks of this node, around the board in the shared area. */
static pmr_status open_node(pmr_context *context, pmr_comm **out, pmr_error *error)
{
    pmr_window *window = &context->window;
    context->pool = (pmr_pool *)(void *)window->shared;
    context->p2p_area = window->shared + POOL_HEAD_BYTES;
    pmr_board *board = (pmr_board *)(void *)(window->shared + POOL_HEAD_BYTES + p2p_bytes(window->ranks));
    uint32_t members[PMR_WINDOW_RANKS_MAX];
    for (uint32_t i = 0; i < window->ranks; i++)
        members[i] = context->first_rank + i;
    return pmr_comm_open(context, board, 0, window->local_rank, window->ranks, members, PMR_BOARDS_MAX, out,
                         error);
}

static pmr_status open_world(pmr_context *context, pmr_error *error)
{
    pmr_comm *node = NULL;
    pmr_status status = open_node(context, &node, error);
    context->next_comm = 1;
    if (status || !context->hub) {
        context->world = node;
        return status;
    }
    const pmr_net *net = context->hub->net;
    uint32_t *members = malloc(net->ranks * sizeof *members);
    if (!members)
        status = pmr_fail(error, PMR_ERR_NO_MEMORY, "out of memory for a communicator of %u ranks", net->ranks);
    for (uint32_t rank = 0; members && rank < net->ranks; rank++)
        members[rank] = rank;
    if (!status)
        status = pmr_comm_open_span(context, 0, net->rank, net->ranks, members, node, PMR_BOARDS_MAX,
                                    &context->world, error);
    free(members);
    if (status)
        pmr_comm_close(node);
    else
        pmr_hub_comms_made(context->hub, context->next_comm);
    return status;
}

/* The network, where there is more than this node. */
static pmr_status open_hub(pmr_context *context, const pmr_context_options *options, pmr_error *error)
{
    pmr_net *net = options->net;
    if (!net || net->nodes < 2)
        return PMR_OK;
    uint32_t rank = context->first_rank + context->window.local_rank;
    if (net->rank != rank || pmr_net_node_size(net, net->node) != context->window.ranks)
        return pmr_fail(error, PMR_ERR_ARGUMENT,
                        "the network was opened for rank %u of a node with %u ranks, and the node's window says rank %u "
                        "of %u: start all nodes with one pmrun",
                        net->rank, pmr_net_node_size(net, net->node), rank, context->window.ranks);
    return pmr_hub_open(&context->hub, net, &context->window, context->crowded, error);
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
    context->reproducible = options->reproducible;
    status = open_hub(context, options, error);
    if (status)
        goto err_engine;
    status = open_world(context, error);
    if (status)
        goto err_hub;
    status = pmr_p2p_open(&context->p2p, window, context->p2p_area, context->hub, context->engine, error);
    if (status)
        goto err_world;
    pmr_window_rank_state_set(window, window->local_rank, PMR_RANK_ATTACHED);
    *out = context;
    return PMR_OK;

err_world:
    pmr_comm_close(context->world);
err_hub:
    pmr_hub_close(context->hub);
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
    pmr_hub_close(context->hub);
    context->hub = NULL;
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
