/* SPDX-License-Identifier: Apache-2.0
 *
 * inlet.h: the packets in one incoming stream of bytes.
 *
 * It knows no socket: whoever has the bytes asks where to put them (`room`), and says how many came (`take`). The rest
 * of a large payload is read straight to the place that the sink named; everything else passes through a small buffer,
 * so that one read brings many small packets. After a large payload the next read asks for no more than the next
 * header, so that the payload behind it is read in place, too.
 * Invariant: no byte of a packet is written anywhere before its header was found to be sound and the sink was asked.
 */
#ifndef PMR_TRANSPORT_INLET_H
#define PMR_TRANSPORT_INLET_H

#include <sys/uio.h>

#include "transport/endpoint.h"

#define PMR_INLET_BUFFER_BYTES 16384u

typedef struct pmr_inlet {
    uint32_t peer, lane;
    uint32_t payload_max;
    bool goodbye;           /* the other side will send no more */
    bool held;              /* the sink said LATER: nothing is read until it is asked again */
    bool large;             /* the last payload was one */
    bool showing;           /* `packet` is shown once its payload is in the buffer */
    pmr_packet packet;      /* whose payload is being read, while `place` or `showing` is set */
    uint8_t *place;
    bool nowhere;           /* the place was abandoned: the rest is read into `show`, again and again */
    uint32_t placed;        /* bytes of the payload that are there */
    uint8_t *show;          /* PMR_PACKET_SHOW_MAX bytes for payloads that the buffer cannot hold; from the first on */
    uint8_t *buffer;        /* PMR_INLET_BUFFER_BYTES, aligned to 8; from the first `room` on */
    uint32_t start, end;    /* what of it is not used up */
} pmr_inlet;

void pmr_inlet_init(pmr_inlet *inlet, uint32_t peer, uint32_t lane, uint32_t payload_max);
void pmr_inlet_fini(pmr_inlet *inlet);

/* Up to two places, in order, for what comes next. 0: nothing may be read now (held), or there is no memory. */
int pmr_inlet_room(pmr_inlet *inlet, struct iovec vector[2]);

/* `bytes` came, in the places that `room` gave. Tells the sink of all packets among them. False: what came is no
 * packet; *why_out says what was wrong, and the stream is good for nothing any more. */
bool pmr_inlet_take(pmr_inlet *inlet, size_t bytes, const pmr_sink *sink, pmr_endpoint_counts *counts,
                    const char **why_out);

/* After `held`: asks again for what lies in the buffer. As take(0). */
static inline bool pmr_inlet_resume(pmr_inlet *inlet, const pmr_sink *sink, pmr_endpoint_counts *counts,
                                    const char **why_out)
{
    inlet->held = false;
    return pmr_inlet_take(inlet, 0, sink, counts, why_out);
}

/* Of the payload that is being read to its place: what has not come. */
static inline uint32_t pmr_inlet_rest(const pmr_inlet *inlet)
{
    return inlet->place ? inlet->packet.payload_bytes - inlet->placed : 0;
}

/* [data, data + bytes) is touched no more. False: there is no memory to read the rest of a payload into. */
bool pmr_inlet_abandon(pmr_inlet *inlet, const void *data, size_t bytes);

/* The stream ended in the middle of a packet. */
static inline bool pmr_inlet_torn(const pmr_inlet *inlet)
{
    return inlet->place || inlet->showing || inlet->start != inlet->end;
}

#endif
