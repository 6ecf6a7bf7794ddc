/* SPDX-License-Identifier: Apache-2.0
 *
 * span.c: the packets of a communicator that spans nodes: who sent them, for which call, and where they go.
 *
 * A packet names its sender as a rank of the communicator; one that is not who it says is dropped. Packets of later
 * calls are kept in memory that is used again, those of closed calls dropped. Each packet's fingerprint is compared with
 * what this rank called under that number, now or when it does.
 */
#include "comm/span.h"

#include <stdlib.h>
#include <string.h>

#define POOLED_BYTES PMR_PACKET_COPY_MAX /* room for a payload in memory that is used again; what holds more is given back */

/* A packet that came before its call. */
typedef struct pmr_span_early {
    struct pmr_span_early *next;
    uint32_t rank;
    pmr_packet packet;
    _Alignas(8) uint8_t payload[];
} pmr_span_early;

/* ---- fingerprints ---- */

static void note_difference(pmr_span *span, uint32_t rank, uint32_t seq)
{
    if (span->differs_rank != UINT32_MAX)
        return;
    span->differs_rank = rank;
    span->differs_seq = seq;
}

static bool is_past(const pmr_span *span, uint32_t seq)
{
    return span->call && (int32_t)(seq - span->call->seq) < 0;
}

/* Calls before that of an ENTER which it tells of, too. */
static uint32_t owed(const pmr_packet *packet)
{
    uint32_t calls = packet->kind == PMR_PACKET_ENTER ? (uint32_t)packet->tag >> 1 : 0;
    return calls < PMR_OWED_MAX ? calls : 0;
}

/* The member may be beyond the open call. Its entries come in order: unless the first one behind that call pays for calls
 * that it owed, it never was in it. */
static void see_beyond(pmr_span *span, uint32_t rank, const pmr_packet *packet)
{
    pmr_span_call *call = span->call;
    if (packet->kind != PMR_PACKET_ENTER || (int32_t)(packet->seq - call->seq) <= 0 || !call->awaits(call, rank))
        return;
    if (!owed(packet) || !call->entered(call, rank, 0))
        note_difference(span, rank, call->seq);
}

/* The member is in that call. Calls that this rank has not entered are compared when it does. */
static void see(pmr_span *span, uint32_t rank, const pmr_packet *packet)
{
    pmr_span_member *member = &span->members[rank];
    uint32_t seq = packet->seq, entered = span->comm->entered;
    if ((int32_t)(seq - member->seen) > 0)
        member->seen = seq;
    bool remembered = (int32_t)(entered - seq) >= 0 && entered - seq < PMR_HISTORY_CALLS;
    if (remembered && span->history[seq % PMR_HISTORY_CALLS] != packet->fingerprint)
        note_difference(span, rank, seq);
    if (span->call)
        see_beyond(span, rank, packet);
}

/* ---- arrivals ---- */

static bool is_member(const pmr_span *span, uint32_t peer, const pmr_packet *packet)
{
    return (uint32_t)packet->source < span->comm->size && span->comm->members[packet->source] == peer;
}

static bool is_message(const pmr_packet *packet)
{
    return packet->kind == PMR_PACKET_DATA || (packet->kind == PMR_PACKET_ENTER && (packet->tag & 1));
}

static uint64_t number_of(const pmr_packet *packet)
{
    return packet->kind == PMR_PACKET_ENTER ? 0 : packet->token;
}

static bool is_now(const pmr_span *span, const pmr_packet *packet)
{
    return span->call && span->call->seq == packet->seq && span->call->fingerprint == packet->fingerprint;
}

static pmr_placing place(pmr_channel *channel, uint32_t peer, uint32_t lane, const pmr_packet *packet, void **into_out)
{
    (void)lane;
    pmr_span *span = (pmr_span *)channel;
    if (!is_member(span, peer, packet) || !is_message(packet) || !is_now(span, packet))
        return PMR_PLACE_SHOW;
    *into_out = span->call->place(span->call, (uint32_t)packet->source, number_of(packet), packet->payload_bytes);
    return *into_out ? PMR_PLACE_INTO : PMR_PLACE_SHOW;
}

static void keep(pmr_span *span, uint32_t rank, const pmr_packet *packet, const void *payload)
{
    if (packet->payload_bytes > PMR_KEPT_BYTES || (packet->payload_bytes && !payload) || is_past(span, packet->seq))
        return;
    bool pooled = packet->payload_bytes <= POOLED_BYTES;
    pmr_span_early *early = pooled ? span->pool : NULL;
    if (early)
        span->pool = early->next;
    else
        early = malloc(sizeof *early + (pooled ? POOLED_BYTES : packet->payload_bytes));
    if (!early)
        return; /* the call that waits for it runs into its deadline */
    early->next = NULL;
    early->rank = rank;
    early->packet = *packet;
    if (packet->payload_bytes)
        memcpy(early->payload, payload, packet->payload_bytes);
    *span->early_end = early;
    span->early_end = &early->next;
}

static void forget(pmr_span *span, pmr_span_early *early)
{
    if (early->packet.payload_bytes > POOLED_BYTES) {
        free(early);
        return;
    }
    early->next = span->pool;
    span->pool = early;
}

/* A packet of the open call. `placed`: its payload is where it belongs. */
static void deliver(pmr_span *span, uint32_t rank, const pmr_packet *packet, bool placed)
{
    pmr_span_call *call = span->call;
    bool enters = packet->kind == PMR_PACKET_ENTER;
    bool expected = !enters || call->entered(call, rank, packet->token);
    if (is_message(packet) && placed)
        call->arrived(call, rank, number_of(packet));
    else if (is_message(packet))
        expected = false;
    if (!expected)
        note_difference(span, rank, packet->seq);
}

static void arrived(pmr_channel *channel, uint32_t peer, uint32_t lane, const pmr_packet *packet, const void *payload)
{
    (void)lane;
    pmr_span *span = (pmr_span *)channel;
    if (!is_member(span, peer, packet))
        return;
    uint32_t rank = (uint32_t)packet->source;
    if (packet->kind > PMR_PACKET_ASK) {
        pmr_span_hear(span, rank, packet, payload);
        return;
    }
    if (packet->kind == PMR_PACKET_ENTER)
        span->members[rank].shared_received += 1 + owed(packet);
    see(span, rank, packet);
    if (!is_now(span, packet)) {
        keep(span, rank, packet, payload);
        return;
    }
    void *at = NULL;
    if (is_message(packet) && (payload || packet->payload_bytes == 0))
        at = span->call->place(span->call, rank, number_of(packet), packet->payload_bytes);
    if (at && packet->payload_bytes && at != payload) /* the call was opened between the header and the end */
        memcpy(at, payload, packet->payload_bytes);
    deliver(span, rank, packet, at != NULL);
}

static void sent(pmr_channel *channel, pmr_sending *sending)
{
    pmr_span *span = (pmr_span *)channel;
    if (span->call)
        span->call->sent(span->call, sending->number);
}

static void lost(pmr_channel *channel, uint32_t peer, const pmr_error *error)
{
    (void)error;
    pmr_span *span = (pmr_span *)channel;
    for (uint32_t rank = 0; rank < span->comm->size; rank++)
        if (span->comm->members[rank] == peer)
            span->members[rank].lost = true;
}

/* ---- calls ---- */

void pmr_span_open_call(pmr_span *span, pmr_span_call *call)
{
    span->call = call;
    span->comm->entered = call->seq;
    span->history[call->seq % PMR_HISTORY_CALLS] = call->fingerprint;
    pmr_span_early **at = &span->early;
    while (*at) {
        pmr_span_early *early = *at;
        const pmr_packet *packet = &early->packet;
        if ((int32_t)(packet->seq - call->seq) > 0) {
            see_beyond(span, early->rank, packet);
            at = &early->next;
            continue;
        }
        *at = early->next;
        if (is_now(span, packet)) {
            void *into = is_message(packet)
                             ? call->place(call, early->rank, number_of(packet), packet->payload_bytes)
                             : NULL;
            if (into && packet->payload_bytes)
                memcpy(into, early->payload, packet->payload_bytes);
            deliver(span, early->rank, packet, into != NULL);
        } else if (packet->seq == call->seq) {
            note_difference(span, early->rank, call->seq);
        }
        forget(span, early);
    }
    span->early_end = at;
}

void pmr_span_close_call(pmr_span *span)
{
    span->call = NULL;
    span->asks = 0;
}

bool pmr_span_send(pmr_span *span, uint32_t rank, const pmr_span_word *word)
{
    const pmr_comm *comm = span->comm;
    pmr_span_member *member = &span->members[rank];
    bool enters = word->kind == PMR_PACKET_ENTER;
    pmr_packet packet = {.kind = word->kind,
                         .payload_bytes = word->bytes,
                         .comm = comm->id,
                         .seq = comm->entered,
                         .source = (int32_t)comm->rank,
                         .tag = enters ? (int32_t)(member->owed << 1 | word->message) : 0,
                         .token = word->token,
                         .fingerprint = span->history[comm->entered % PMR_HISTORY_CALLS]};
    if (!pmr_endpoint_send(span->hub->endpoint, comm->members[rank], 0, &packet, word->payload, word->cookie))
        return false;
    if (enters) {
        member->shared_sent++;
        member->owed = 0;
    }
    return true;
}

bool pmr_span_owe(pmr_span *span, uint32_t rank)
{
    pmr_span_member *member = &span->members[rank];
    if (member->owed + 1 >= PMR_OWED_MAX)
        return pmr_span_send(span, rank, &(pmr_span_word){.kind = PMR_PACKET_ENTER});
    member->shared_sent++;
    member->owed++;
    return true;
}

/* ---- open and close ---- */

pmr_status pmr_span_open(pmr_comm *comm, pmr_comm *inner, pmr_error *error)
{
    pmr_hub *hub = comm->context->hub;
    pmr_span *span = calloc(1, sizeof *span);
    uint32_t *node = malloc(comm->size * sizeof *node);
    pmr_span_member *members = calloc(comm->size, sizeof *members);
    pmr_status status = span && node && members
                            ? PMR_OK
                            : pmr_fail(error, PMR_ERR_NO_MEMORY, "out of memory for a communicator of %u ranks",
                                       comm->size);
    for (uint32_t rank = 0; !status && rank < comm->size; rank++)
        node[rank] = pmr_net_node_of(hub->net, comm->members[rank]);
    if (!status)
        status = pmr_shape_init(&span->shape, node, comm->size, error);
    free(node);
    if (status) {
        free(members);
        free(span);
        return status;
    }
    span->comm = comm;
    span->inner = inner;
    span->hub = hub;
    span->members = members;
    span->early_end = &span->early;
    span->differs_rank = UINT32_MAX;
    span->channel = (pmr_channel){
        .comm = comm->id, .place = place, .arrived = arrived, .sent = sent, .lost = lost};
    inner->outer = comm;
    pmr_wait_policy_init(&inner->policy, true); /* yields: others of this node may be at work on the network */
    comm->span = span;
    pmr_hub_attach(hub, &span->channel);
    return PMR_OK;
}

static void free_early(pmr_span_early *early)
{
    while (early) {
        pmr_span_early *next = early->next;
        free(early);
        early = next;
    }
}

void pmr_span_close(pmr_span *span)
{
    if (!span)
        return;
    pmr_hub_detach(span->hub, &span->channel);
    bool forgotten = !span->runner || span->runner_free(span->runner);
    pmr_comm_close(span->inner);
    free_early(span->early);
    free_early(span->pool);
    free(span->told);
    pmr_shape_fini(&span->shape);
    free(span->members);
    span->call = NULL;
    if (forgotten)
        free(span);
}
