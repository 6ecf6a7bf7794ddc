/* SPDX-License-Identifier: Apache-2.0
 *
 * communicator.c: a communicator's object in this process, around a board that its caller found.
 *
 * Invariant: closing ends every queued operation, so that no request waits for an operation that cannot run.
 */
#include "comm/communicator.h"

#include <stdlib.h>

pmr_status pmr_comm_open(pmr_context *context, pmr_board *board, uint32_t id, uint32_t rank, uint32_t size,
                         const uint16_t *local, uint32_t board_index, pmr_comm **out, pmr_error *error)
{
    pmr_comm *comm = aligned_alloc(PMR_LINE, (sizeof *comm + PMR_LINE - 1) / PMR_LINE * PMR_LINE);
    uint16_t *members = malloc(size * sizeof *members);
    if (!comm || !members) {
        free(members);
        free(comm);
        return pmr_fail(error, PMR_ERR_NO_MEMORY, "out of memory for a communicator of %u ranks", size);
    }
    memset(comm, 0, sizeof *comm);
    memcpy(members, local, size * sizeof *members);
    pmr_board_layout layout = pmr_board_layout_of(size);
    uint8_t *base = (uint8_t *)board;
    comm->context = context;
    comm->recorder = context->recorder;
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
    comm->board_index = board_index;
    comm->id = id;
    comm->rank = rank;
    comm->size = size;
    comm->local = members;
    comm->crowded = context->window.header->cpus < size;
    pmr_wait_policy_init(&comm->policy, context->crowded);
    comm->watch = (pmr_watch){
        .abort_state = pmr_window_abort_word(&context->window), .check = pmr_comm_check, .arg = comm};
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
    free(comm->local);
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
    return comm->context->first_rank + comm->local[rank];
}
