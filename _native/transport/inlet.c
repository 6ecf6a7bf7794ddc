/* SPDX-License-Identifier: Apache-2.0
 *
 * inlet.c: from bytes to packets.
 *
 * The buffer holds what was read ahead. A header in it is looked at when it is whole. Its payload is then shown where
 * it lies, if all of it is there; or copied to its place as far as it is there, and the rest of it read past the buffer.
 * Before a read the rest in the buffer moves to its start, so that headers and payloads shown are aligned to 8 where
 * payloads are multiples of 8; a view that is not aligned is moved first.
 */
#include "transport/inlet.h"

#include <stdlib.h>
#include <string.h>

#define HEADER ((uint32_t)sizeof(pmr_packet))
#define LARGE  8192u /* from here on the next read stops behind the next header */

void pmr_inlet_init(pmr_inlet *inlet, uint32_t peer, uint32_t lane, uint32_t payload_max)
{
    memset(inlet, 0, sizeof *inlet);
    inlet->peer = peer;
    inlet->lane = lane;
    inlet->payload_max = payload_max;
}

void pmr_inlet_fini(pmr_inlet *inlet)
{
    free(inlet->show);
    free(inlet->buffer);
    memset(inlet, 0, sizeof *inlet);
}

static uint32_t buffered(const pmr_inlet *inlet)
{
    return inlet->end - inlet->start;
}

static void to_start(pmr_inlet *inlet)
{
    if (inlet->start) {
        memmove(inlet->buffer, inlet->buffer + inlet->start, buffered(inlet));
        inlet->end -= inlet->start;
        inlet->start = 0;
    }
}

int pmr_inlet_room(pmr_inlet *inlet, struct iovec vector[2])
{
    if (inlet->held)
        return 0;
    if (!inlet->buffer && !(inlet->buffer = aligned_alloc(64, PMR_INLET_BUFFER_BYTES)))
        return 0;
    to_start(inlet);
    int used = 0;
    if (inlet->nowhere && pmr_inlet_rest(inlet) > PMR_PACKET_SHOW_MAX) {
        vector[0] = (struct iovec){inlet->show, PMR_PACKET_SHOW_MAX};
        return 1;
    }
    if (inlet->place)
        vector[used++] = (struct iovec){inlet->nowhere ? inlet->show : inlet->place + inlet->placed, pmr_inlet_rest(inlet)};
    uint32_t room = PMR_INLET_BUFFER_BYTES - inlet->end;
    if (inlet->large && !inlet->showing && inlet->end < HEADER)
        room = HEADER - inlet->end;
    vector[used++] = (struct iovec){inlet->buffer + inlet->end, room};
    return used;
}

static void arrived(pmr_inlet *inlet, const pmr_packet *packet, const void *payload, const pmr_sink *sink,
                    pmr_endpoint_counts *counts)
{
    counts->packets_received++;
    counts->bytes_received += packet->payload_bytes;
    sink->arrived(sink->arg, inlet->peer, inlet->lane, packet, payload);
}

/* A payload that goes past the buffer is whole. */
static void finish_place(pmr_inlet *inlet, const pmr_sink *sink, pmr_endpoint_counts *counts)
{
    const uint8_t *place = inlet->nowhere ? NULL : inlet->place;
    inlet->place = NULL;
    inlet->placed = 0;
    inlet->nowhere = false;
    arrived(inlet, &inlet->packet, place, sink, counts);
}

/* The payload is to go to `place`: takes what of it is in the buffer. */
static void begin_place(pmr_inlet *inlet, uint8_t *place, const pmr_sink *sink, pmr_endpoint_counts *counts)
{
    uint32_t bytes = inlet->packet.payload_bytes;
    uint32_t here = buffered(inlet) < bytes ? buffered(inlet) : bytes;
    if (here)
        memcpy(place, inlet->buffer + inlet->start, here);
    inlet->start += here;
    inlet->place = place;
    inlet->placed = here;
    if (here == bytes)
        finish_place(inlet, sink, counts);
}

/* A payload that is shown where it lies. False: not all of it is there. */
static bool finish_show(pmr_inlet *inlet, const pmr_sink *sink, pmr_endpoint_counts *counts)
{
    uint32_t bytes = inlet->packet.payload_bytes;
    if (buffered(inlet) < bytes)
        return false;
    if (bytes && inlet->start % 8)
        to_start(inlet);
    const uint8_t *view = inlet->buffer + inlet->start;
    inlet->showing = false;
    inlet->start += bytes;
    arrived(inlet, &inlet->packet, view, sink, counts);
    return true;
}

static const char *begin_show(pmr_inlet *inlet, const pmr_sink *sink, pmr_endpoint_counts *counts)
{
    uint32_t bytes = inlet->packet.payload_bytes;
    if (bytes > PMR_PACKET_SHOW_MAX)
        return "a payload longer than what can be shown";
    inlet->showing = bytes <= PMR_INLET_BUFFER_BYTES;
    if (inlet->showing)
        return NULL;
    if (!inlet->show && !(inlet->show = aligned_alloc(64, PMR_PACKET_SHOW_MAX)))
        return "a payload that there is no memory for";
    begin_place(inlet, inlet->show, sink, counts);
    return NULL;
}

/* A whole header is in the buffer. */
static const char *begin(pmr_inlet *inlet, const pmr_sink *sink, pmr_endpoint_counts *counts)
{
    pmr_packet *packet = &inlet->packet;
    memcpy(packet, inlet->buffer + inlet->start, HEADER);
    if (packet->kind == 0)
        return "a header without a kind";
    if (packet->payload_bytes > inlet->payload_max)
        return "a payload longer than any that is sent";
    if (inlet->goodbye)
        return "a packet behind its last one";
    if (packet->kind >= PMR_PACKET_KIND_OWN) {
        inlet->goodbye = packet->kind == PMR_PACKET_GOODBYE && packet->payload_bytes == 0;
        inlet->start += HEADER;
        return inlet->goodbye ? NULL : "a packet of an unknown kind";
    }
    void *into = NULL;
    pmr_placing placing = sink->place(sink->arg, inlet->peer, inlet->lane, packet, &into);
    if (placing == PMR_PLACE_LATER) {
        inlet->held = true;
        return NULL;
    }
    inlet->start += HEADER;
    inlet->large = packet->payload_bytes >= LARGE;
    if (placing == PMR_PLACE_SHOW)
        return begin_show(inlet, sink, counts);
    begin_place(inlet, into, sink, counts);
    return NULL;
}

bool pmr_inlet_abandon(pmr_inlet *inlet, const void *data, size_t bytes)
{
    if (!inlet->place || inlet->place == inlet->show ||
        !pmr_overlap(inlet->place, inlet->packet.payload_bytes, data, bytes))
        return true;
    if (!inlet->show && !(inlet->show = aligned_alloc(64, PMR_PACKET_SHOW_MAX)))
        return false;
    inlet->nowhere = true;
    return true;
}

bool pmr_inlet_take(pmr_inlet *inlet, size_t bytes, const pmr_sink *sink, pmr_endpoint_counts *counts,
                    const char **why_out)
{
    if (inlet->place) {
        size_t rest = pmr_inlet_rest(inlet);
        size_t here = bytes < rest ? bytes : rest;
        inlet->placed += (uint32_t)here;
        bytes -= here;
        if (here == rest)
            finish_place(inlet, sink, counts);
    }
    inlet->end += (uint32_t)bytes;
    const char *why = NULL;
    while (!why && !inlet->held && !inlet->place) {
        if (inlet->showing) {
            if (!finish_show(inlet, sink, counts))
                break;
        } else if (buffered(inlet) < HEADER) {
            break;
        } else {
            why = begin(inlet, sink, counts);
        }
    }
    if (inlet->start == inlet->end)
        inlet->start = inlet->end = 0;
    if (why)
        *why_out = why;
    return !why;
}
