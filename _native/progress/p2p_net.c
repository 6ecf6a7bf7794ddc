/* SPDX-License-Identifier: Apache-2.0
 *
 * p2p_net.c: frames between nodes.
 *
 * Short frames go on lane 0, in order, copied by the endpoint. Fragments of long messages are copied to chunks of their
 * own and go on one of the large lanes, the same for all of a message, so that they arrive in order; a chunk is free
 * again when the endpoint has sent it. What arrives is kept, peer by peer, until it is taken: short frames have a bound
 * by the credits of p2p_drive.c, fragments by its window. So nothing here refers to a caller's memory, and an operation
 * can be withdrawn at any time.
 */
#include "progress/p2p_net.h"

#include <stdlib.h>
#include <string.h>

#include "core/status.h"
#include "progress/p2p_state.h"

#define CHUNK_BYTES 131072u
#define CHUNKS      24u

/* A frame that came. */
typedef struct arrival {
    struct arrival *next;
    pmr_frame frame;
    _Alignas(8) uint8_t payload[];
} arrival;

typedef struct queue {
    arrival *first, **end;
} queue;

typedef struct chunk {
    pmr_sending sending; /* its number: which chunk */
    struct chunk *next;  /* free ones */
    uint8_t data[CHUNK_BYTES];
} chunk;

typedef struct far {
    pmr_transport base;
    pmr_channel channel;
    pmr_hub *hub;
    uint32_t waiting; /* peers with arrivals, under the hub's lock */
    chunk *free, *chunks[CHUNKS];
    uint32_t chunk_count;
    queue queues[];
} far;

static far *far_of(pmr_channel *channel)
{
    return (far *)(void *)((char *)channel - offsetof(far, channel));
}

/* ---- arrivals (under the hub's lock) ---- */

static pmr_placing place(pmr_channel *channel, uint32_t peer, uint32_t lane, const pmr_packet *packet, void **into_out)
{
    (void)channel, (void)peer, (void)lane, (void)packet, (void)into_out;
    return PMR_PLACE_SHOW;
}

static void arrived(pmr_channel *channel, uint32_t peer, uint32_t lane, const pmr_packet *packet, const void *payload)
{
    (void)lane;
    far *self = far_of(channel);
    queue *queue = &self->queues[peer];
    arrival *arrival = malloc(sizeof *arrival + packet->payload_bytes);
    if (!arrival)
        return; /* the receive runs into its deadline */
    arrival->next = NULL;
    arrival->frame = (pmr_frame){.kind = packet->kind - PMR_PACKET_MESSAGE,
                                 .payload_bytes = packet->payload_bytes,
                                 .comm = packet->comm,
                                 .source = packet->source,
                                 .tag = packet->tag,
                                 .reserved = packet->seq,
                                 .token = packet->token};
    if (packet->payload_bytes)
        memcpy(arrival->payload, payload, packet->payload_bytes);
    self->waiting += queue->first == NULL;
    *queue->end = arrival;
    queue->end = &arrival->next;
}

static void sent(pmr_channel *channel, pmr_sending *sending)
{
    far *self = far_of(channel);
    chunk *chunk = self->chunks[sending->number];
    chunk->next = self->free;
    self->free = chunk;
}

static void lost(pmr_channel *channel, uint32_t peer, const pmr_error *error)
{
    (void)channel, (void)peer, (void)error; /* the hub remembers */
}

/* ---- the contract of transport.h ---- */

static chunk *take_chunk(far *self)
{
    chunk *chunk = self->free;
    if (chunk) {
        self->free = chunk->next;
        return chunk;
    }
    if (self->chunk_count == CHUNKS)
        return NULL;
    chunk = malloc(sizeof *chunk);
    if (!chunk)
        return NULL;
    chunk->sending = (pmr_sending){.channel = &self->channel, .number = self->chunk_count};
    self->chunks[self->chunk_count++] = chunk;
    return chunk;
}

static bool put_fragment(far *self, uint32_t peer, const pmr_packet *packet, const void *payload)
{
    chunk *chunk = take_chunk(self);
    if (!chunk)
        return false;
    memcpy(chunk->data, payload, packet->payload_bytes);
    pmr_endpoint *endpoint = self->hub->endpoint;
    uint32_t lane = 1 + (uint32_t)(packet->token % (endpoint->lanes - 1));
    if (pmr_endpoint_send(endpoint, peer, lane, packet, chunk->data, (uint64_t)(uintptr_t)&chunk->sending))
        return true;
    chunk->next = self->free;
    self->free = chunk;
    return false;
}

static bool far_put(pmr_transport *transport, uint32_t peer, const pmr_frame *frame, const void *payload)
{
    far *self = (far *)transport;
    pmr_packet packet = {.kind = PMR_PACKET_MESSAGE + frame->kind,
                         .payload_bytes = frame->payload_bytes,
                         .comm = frame->comm,
                         .seq = frame->reserved,
                         .source = frame->source,
                         .tag = frame->tag,
                         .token = frame->token};
    pmr_hub_lock(self->hub);
    bool is_put = frame->kind == PMR_FRAME_FRAGMENT
                      ? put_fragment(self, peer, &packet, payload)
                      : pmr_endpoint_send(self->hub->endpoint, peer, 0, &packet, payload, 0);
    pmr_hub_unlock(self->hub);
    return is_put;
}

static bool far_peek(pmr_transport *transport, uint32_t peer, pmr_frame_view *view_out)
{
    far *self = (far *)transport;
    pmr_hub_lock(self->hub);
    const arrival *arrival = self->queues[peer].first;
    pmr_hub_unlock(self->hub);
    if (!arrival)
        return false;
    *view_out = (pmr_frame_view){.frame = &arrival->frame,
                                 .first = arrival->payload,
                                 .rest = NULL,
                                 .first_bytes = arrival->frame.payload_bytes};
    return true;
}

static void far_take(pmr_transport *transport, uint32_t peer)
{
    far *self = (far *)transport;
    queue *queue = &self->queues[peer];
    pmr_hub_lock(self->hub);
    arrival *arrival = queue->first;
    queue->first = arrival->next;
    if (!queue->first) {
        queue->end = &queue->first;
        self->waiting--;
    }
    pmr_hub_unlock(self->hub);
    free(arrival);
}

static uint32_t far_sender_from(pmr_transport *transport, uint32_t from)
{
    far *self = (far *)transport;
    uint32_t found = PMR_NO_PEER;
    pmr_hub_lock(self->hub);
    for (uint32_t peer = from; self->waiting && found == PMR_NO_PEER && peer < self->hub->net->ranks; peer++)
        found = self->queues[peer].first ? peer : PMR_NO_PEER;
    pmr_hub_unlock(self->hub);
    return found;
}

static void far_close(pmr_transport *transport)
{
    far *self = (far *)transport;
    if (!self)
        return;
    pmr_hub_detach(self->hub, &self->channel);
    for (uint32_t peer = 0; peer < self->hub->net->ranks; peer++)
        while (self->queues[peer].first) {
            arrival *next = self->queues[peer].first->next;
            free(self->queues[peer].first);
            self->queues[peer].first = next;
        }
    uint32_t back = 0;
    for (const chunk *chunk = self->free; chunk; chunk = chunk->next)
        back++;
    if (back < self->chunk_count)
        return; /* a peer does not read: the endpoint still looks at what is on its way */
    for (uint32_t i = 0; i < self->chunk_count; i++)
        free(self->chunks[i]);
    free(self);
}

static const pmr_transport_ops far_ops = {
    .name = "net",
    .put = far_put,
    .peek = far_peek,
    .take = far_take,
    .sender_from = far_sender_from,
    .close = far_close,
};

pmr_status pmr_p2p_net_open(pmr_transport **out, pmr_hub *hub, pmr_error *error)
{
    uint32_t ranks = hub->net->ranks;
    far *self = calloc(1, sizeof *self + ranks * sizeof(queue));
    if (!self)
        return pmr_fail(error, PMR_ERR_NO_MEMORY, "no memory for the messages of %u ranks", ranks);
    for (uint32_t peer = 0; peer < ranks; peer++)
        self->queues[peer].end = &self->queues[peer].first;
    self->hub = hub;
    self->base.ops = &far_ops;
    self->base.inbox = &hub->moves;
    self->base.payload_max = CHUNK_BYTES;
    self->channel = (pmr_channel){
        .comm = PMR_HUB_MESSAGES, .place = place, .arrived = arrived, .sent = sent, .lost = lost};
    pmr_hub_attach(hub, &self->channel);
    *out = &self->base;
    return PMR_OK;
}

bool pmr_p2p_net_poll(pmr_transport *transport)
{
    far *self = (far *)transport;
    pmr_hub_lock(self->hub);
    bool moved = pmr_hub_poll(self->hub);
    pmr_hub_unlock(self->hub);
    return moved;
}

bool pmr_p2p_net_is_empty(pmr_transport *transport)
{
    far *self = (far *)transport;
    pmr_hub_lock(self->hub);
    bool empty = pmr_endpoint_unsent_bytes(self->hub->endpoint) == 0;
    pmr_hub_unlock(self->hub);
    return empty;
}
