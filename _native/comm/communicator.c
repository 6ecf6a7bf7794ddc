/* SPDX-License-Identifier: Apache-2.0
 *
 * communicator.c: a communicator's object in this process, around a board that its caller found.
 *
 * Invariant: closing ends every queued operation, so that no request waits for an operation that cannot run.
 */
#include "comm/communicator.h"

#include <stdlib.h>

#include "comm/span.h"

static void lay_out(pmr_comm *comm, pmr_board *board, uint32_t rank, uint32_t size)
{
    pmr_board_layout layout = pmr_board_layout_of(size);
    uint8_t *base = (uint8_t *)board;
    comm->board = board;
    comm->me = &board->member[rank];
    comm->slots = base + layout.slots;
    comm->staging = base + layout.staging;
    comm->rings = base + layout.rings;
    comm->turn_chunks = base + layout.turns;
    comm->pairs = base + layout.pairs;
    comm->benches = base + layout.benches;
    comm->results = base + layout.results;
    comm->board_bytes = layout.bytes;
}

pmr_status pmr_comm_open(pmr_context *context, pmr_board *board, uint32_t id, uint32_t rank, uint32_t size,
                         const uint32_t *members, uint32_t board_index, pmr_comm **out, pmr_error *error)
{
    pmr_comm *comm = aligned_alloc(PMR_LINE, (sizeof *comm + PMR_LINE - 1) / PMR_LINE * PMR_LINE);
    uint32_t *own = malloc(size * sizeof *own);
    if (!comm || !own) {
        free(own);
        free(comm);
        return pmr_fail(error, PMR_ERR_NO_MEMORY, "out of memory for a communicator of %u ranks", size);
    }
    memset(comm, 0, sizeof *comm);
    memcpy(own, members, size * sizeof *own);
    comm->context = context;
    comm->recorder = context->recorder;
    if (board)
        lay_out(comm, board, rank, size);
    comm->board_index = board_index;
    comm->id = id;
    comm->rank = rank;
    comm->size = size;
    comm->members = own;
    comm->crowded = context->window.header->cpus < size;
    pmr_wait_policy_init(&comm->policy, context->crowded);
    comm->watch = (pmr_watch){
        .abort_state = pmr_window_abort_word(&context->window), .check = pmr_comm_check, .arg = comm};
    pmr_recorder_join(context->recorder, id, size, members);
    *out = comm;
    return PMR_OK;
}

pmr_status pmr_comm_open_span(pmr_context *context, uint32_t id, uint32_t rank, uint32_t size, const uint32_t *members,
                              pmr_comm *inner, uint32_t board_index, pmr_comm **out, pmr_error *error)
{
    pmr_comm *comm = NULL;
    pmr_status status = pmr_comm_open(context, NULL, id, rank, size, members, board_index, &comm, error);
    if (status)
        return status;
    status = pmr_span_open(comm, inner, error);
    if (status) {
        pmr_comm_close(comm);
        return status;
    }
    *out = comm;
    return PMR_OK;
}

void pmr_comm_close(pmr_comm *comm)
{
    if (!comm)
        return;
    if (comm->queue_open)
        pmr_engine_remove(comm->context->engine, &comm->source);
    pmr_error error;
    pmr_fail(&error, PMR_ERR_SHUTDOWN, "the communicator was closed before the operation ended");
    for (pmr_task *task = comm->queue_head; task;) {
        pmr_task *next = task->next;
        pmr_request_complete(task->request, PMR_ERR_SHUTDOWN, &error);
        free(task);
        task = next;
    }
    pmr_recorder_part(comm->recorder, comm->id, comm->size, comm->members);
    pmr_span_close(comm->span);
    free(comm->members);
    free(comm);
}

uint32_t pmr_comm_rank(const pmr_comm *comm)
{
    return comm->rank;
}

uint32_t pmr_comm_size(const pmr_comm *comm)
{
    return comm->size;
}

uint32_t pmr_comm_id(const pmr_comm *comm)
{
    return comm->id;
}

uint32_t pmr_comm_world_rank(const pmr_comm *comm, uint32_t rank)
{
    return comm->members[rank];
}

const pmr_shape *pmr_comm_shape(const pmr_comm *comm)
{
    return &comm->span->shape;
}
