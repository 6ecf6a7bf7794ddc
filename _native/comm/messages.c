/* SPDX-License-Identifier: Apache-2.0
 *
 * messages.c: point-to-point calls of a communicator: checks, ranks translated, recorded.
 *
 * The messages themselves travel in progress/p2p. Invariant: a rank and a tag that reach p2p are valid.
 */
#include "comm/communicator.h"
#include "core/clock.h"
#include "progress/p2p.h"
#include "progress/request.h"

static pmr_status check_rank(const pmr_comm *comm, const char *what, int32_t rank, bool any, pmr_error *error)
{
    if (rank == PMR_ANY_SOURCE && any)
        return PMR_OK;
    if (rank < 0 || (uint32_t)rank >= comm->size)
        return pmr_fail(error, PMR_ERR_ARGUMENT, "%s %d is not a rank of this communicator: 0 to %u are",
                        what, rank, comm->size - 1);
    return PMR_OK;
}

static pmr_status check_tag(int32_t tag, bool any, pmr_error *error)
{
    if (tag == PMR_ANY_TAG && any)
        return PMR_OK;
    if (tag < 0)
        return pmr_fail(error, PMR_ERR_ARGUMENT, "tag %d is negative: tags are 0 to %d", tag, PMR_TAG_MAX);
    return PMR_OK;
}

static uint32_t place_of(const pmr_comm *comm, uint32_t rank)
{
    uint32_t local = pmr_comm_local(comm, rank), ranks = comm->context->window.ranks;
    return local < ranks ? local : ranks + comm->members[rank];
}

static pmr_status fill_out(pmr_comm *comm, const void *data, size_t bytes, int32_t dest, int32_t tag,
                           pmr_p2p_out *out, pmr_error *error)
{
    pmr_status status = check_rank(comm, "destination", dest, false, error);
    if (!status)
        status = check_tag(tag, false, error);
    if (!status)
        *out = (pmr_p2p_out){.data = data,
                             .bytes = bytes,
                             .comm = comm->id,
                             .dest = place_of(comm, (uint32_t)dest),
                             .source = (int32_t)comm->rank,
                             .tag = tag};
    return status;
}

static pmr_status fill_in(pmr_comm *comm, void *data, size_t bytes, int32_t source, int32_t tag,
                          pmr_p2p_in *in, pmr_error *error)
{
    pmr_status status = check_rank(comm, "source", source, true, error);
    if (!status)
        status = check_tag(tag, true, error);
    if (!status)
        *in = (pmr_p2p_in){.data = data,
                           .bytes = bytes,
                           .comm = comm->id,
                           .source_place = source >= 0 ? place_of(comm, (uint32_t)source) : 0,
                           .source = source,
                           .tag = tag};
    return status;
}

static pmr_record *record(pmr_comm *comm, pmr_kind kind, int32_t peer, size_t bytes, uint32_t site)
{
    return pmr_recorder_add(comm->recorder, (pmr_record){.bytes = bytes,
                                                         .entered_ticks = pmr_ticks(),
                                                         .comm = comm->id,
                                                         .site = site,
                                                         .peer = peer,
                                                         .kind = (uint8_t)kind,
                                                         .dtype = PMR_UINT8,
                                                         .op = 0xff,
                                                         .form = PMR_FORM_PLAIN,
                                                         .mode = PMR_RECORD_CALL});
}

static pmr_p2p_wait wait_of(pmr_comm *comm, int64_t timeout_ns)
{
    return (pmr_p2p_wait){
        .watch = &comm->watch, .policy = &comm->policy, .deadline_ns = pmr_deadline_ns(timeout_ns)};
}

pmr_status pmr_send(pmr_comm *comm, const void *data, size_t bytes, int32_t dest, int32_t tag, uint32_t site,
                    int64_t timeout_ns, pmr_error *error)
{
    pmr_p2p_out out;
    pmr_status status = fill_out(comm, data, bytes, dest, tag, &out, error);
    if (status)
        return status;
    pmr_record *entered = record(comm, PMR_SEND, dest, bytes, site);
    pmr_p2p_wait wait = wait_of(comm, timeout_ns);
    status = pmr_p2p_send(comm->context->p2p, &out, &wait, error);
    pmr_recorder_done(entered);
    return status;
}

pmr_status pmr_recv(pmr_comm *comm, void *data, size_t bytes, int32_t source, int32_t tag, uint32_t site,
                    int64_t timeout_ns, pmr_message_info *info_out, pmr_error *error)
{
    pmr_p2p_in in;
    pmr_status status = fill_in(comm, data, bytes, source, tag, &in, error);
    if (status)
        return status;
    pmr_record *entered = record(comm, PMR_RECV, source, bytes, site);
    pmr_p2p_wait wait = wait_of(comm, timeout_ns);
    status = pmr_p2p_recv(comm->context->p2p, &in, &wait, info_out, error);
    pmr_recorder_done(entered);
    return status;
}

pmr_status pmr_sendrecv(pmr_comm *comm, const void *send_data, size_t send_bytes, int32_t dest,
                        int32_t send_tag, void *recv_data, size_t recv_bytes, int32_t source,
                        int32_t recv_tag, uint32_t site, int64_t timeout_ns, pmr_message_info *info_out,
                        pmr_error *error)
{
    pmr_p2p_out out;
    pmr_p2p_in in;
    pmr_status status = fill_out(comm, send_data, send_bytes, dest, send_tag, &out, error);
    if (!status)
        status = fill_in(comm, recv_data, recv_bytes, source, recv_tag, &in, error);
    if (status)
        return status;
    pmr_record *entered = record(comm, PMR_SEND, dest, send_bytes, site);
    pmr_p2p_wait wait = wait_of(comm, timeout_ns);
    status = pmr_p2p_sendrecv(comm->context->p2p, &out, &in, &wait, info_out, error);
    pmr_recorder_done(entered);
    return status;
}

pmr_status pmr_isend(pmr_comm *comm, const void *data, size_t bytes, int32_t dest, int32_t tag, uint32_t site,
                     pmr_request **out, pmr_error *error)
{
    pmr_p2p_out message;
    pmr_status status = fill_out(comm, data, bytes, dest, tag, &message, error);
    if (status)
        return status;
    pmr_record *entered = record(comm, PMR_SEND, dest, bytes, site);
    status = pmr_p2p_isend(comm->context->p2p, &message, out, error);
    if (!status)
        pmr_request_note(*out, comm->recorder, entered);
    pmr_recorder_done(entered); /* the call returned; the request's end is not recorded */
    return status;
}

pmr_status pmr_irecv(pmr_comm *comm, void *data, size_t bytes, int32_t source, int32_t tag, uint32_t site,
                     pmr_request **out, pmr_error *error)
{
    pmr_p2p_in in;
    pmr_status status = fill_in(comm, data, bytes, source, tag, &in, error);
    if (status)
        return status;
    pmr_record *entered = record(comm, PMR_RECV, source, bytes, site);
    status = pmr_p2p_irecv(comm->context->p2p, &in, out, error);
    if (!status)
        pmr_request_note(*out, comm->recorder, entered);
    pmr_recorder_done(entered);
    return status;
}

pmr_status pmr_probe(pmr_comm *comm, int32_t source, int32_t tag, uint32_t site, int64_t timeout_ns,
                     pmr_message_info *info_out, pmr_error *error)
{
    pmr_p2p_in in;
    pmr_status status = fill_in(comm, NULL, 0, source, tag, &in, error);
    if (status)
        return status;
    pmr_p2p_wait wait = wait_of(comm, timeout_ns);
    int64_t deadline_ns = wait.deadline_ns;
    wait.deadline_ns = 0;
    status = pmr_p2p_probe(comm->context->p2p, &in, &wait, info_out, error);
    if (status != PMR_PENDING || timeout_ns == 0)
        return status;
    wait.deadline_ns = deadline_ns;
    pmr_record *entered = record(comm, PMR_RECV, source, 0, site); /* only a wait is worth one */
    status = pmr_p2p_probe(comm->context->p2p, &in, &wait, info_out, error);
    pmr_recorder_done(entered);
    return status;
}
