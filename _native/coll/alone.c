/* SPDX-License-Identifier: Apache-2.0
 *
 * alone.c: collectives of a communicator of one rank: a copy, or nothing.
 *
 * Steps: none. Bytes: the message, copied once unless the call is in place. Invariant: exscan leaves its
 * result alone, as on rank 0 of any world.
 */
#include "coll/coll.h"

static size_t limit(const pmr_comm *comm, pmr_kind kind)
{
    (void)kind;
    return comm->size == 1 ? SIZE_MAX : 0;
}

static void copy(const pmr_call *call, size_t send_at, size_t recv_at, size_t count)
{
    size_t item = pmr_dtype_size(call->dtype);
    const uint8_t *from = (const uint8_t *)call->send + send_at * item;
    uint8_t *to = (uint8_t *)call->recv + recv_at * item;
    if (call->recv && count && from != to)
        memmove(to, from, count * item);
}

static pmr_status step(pmr_task *task, pmr_error *error)
{
    (void)error;
    const pmr_call *call = task->call;
    switch (call->kind) {
    case PMR_BARRIER:
    case PMR_EXSCAN:
        break;
    case PMR_GATHERV:
    case PMR_ALLGATHERV:
        copy(call, 0, call->recv_displs[0], call->send_counts[0]);
        break;
    case PMR_SCATTERV:
        copy(call, call->send_displs[0], 0, call->recv_counts[0]);
        break;
    case PMR_REDUCE_SCATTERV:
        copy(call, 0, 0, call->recv_counts[0]);
        break;
    case PMR_ALLTOALLV:
        copy(call, call->send_displs[0], call->recv_displs[0], call->recv_counts[0]);
        break;
    default:
        copy(call, 0, 0, call->count);
        break;
    }
    return PMR_OK;
}

static const pmr_algorithm alone = {
    .name = "alone",
    .kinds = (1u << PMR_SEND) - 1,
    .limit = limit,
    .bytes_max = 0,
    .step = step,
};
PMR_REGISTER_ALGORITHM(alone);
