/* SPDX-License-Identifier: Apache-2.0
 *
 * outbox.h: packets that wait to be written to one stream, in order.
 *
 * A ring of entries, each a header and a payload that is the sender's or, up to PMR_PACKET_COPY_MAX bytes, a copy in
 * the outbox's own ring of bytes. Who owns the stream asks for the bytes to write (`gather`), says how many it wrote
 * (`advance`), and gives finished payloads back when the owner of the endpoint may be told (`settle`).
 * Invariant: entries are finished in the order in which they were put, and each cookie is given back exactly once. What
 * has no cookie needs no settling, unless something with one is before it.
 */
#ifndef PMR_TRANSPORT_OUTBOX_H
#define PMR_TRANSPORT_OUTBOX_H

#include <sys/uio.h>

#include "transport/endpoint.h"

#define PMR_OUTBOX_ENTRIES 64u  /* a power of two */
#define PMR_OUTBOX_COPY_BYTES 65536u

typedef struct pmr_outgoing {
    pmr_packet packet;
    const uint8_t *payload;
    uint64_t cookie;
    uint32_t copy_bytes; /* of the ring of bytes, with what was left free at its end */
    uint8_t *owned;      /* the payload, if its owner abandoned it: freed with the entry */
} pmr_outgoing;

typedef struct pmr_outbox {
    uint32_t put;       /* entries ever put; the ring's index is the number modulo its size */
    uint32_t written;   /* of those, wholly written */
    uint32_t settled;   /* of those, forgotten */
    uint32_t moved;     /* bytes written of entry `written` */
    uint32_t copy_head; /* where the next copy goes */
    uint32_t copy_used;
    uint64_t unsent_bytes; /* headers and payloads that are not written */
    uint8_t *copies;       /* PMR_OUTBOX_COPY_BYTES, from the first copy on */
    pmr_outgoing entry[PMR_OUTBOX_ENTRIES];
} pmr_outbox;

void pmr_outbox_fini(pmr_outbox *outbox);

/* Whether a packet, and a copy of `copy_bytes`, can be put. */
bool pmr_outbox_room(pmr_outbox *outbox, uint32_t copy_bytes);

/* `moved`: bytes of it that were written already (then the outbox must be empty). False: no room. */
bool pmr_outbox_put(pmr_outbox *outbox, const pmr_packet *packet, const void *payload, uint64_t cookie,
                    uint32_t moved);

static inline bool pmr_outbox_empty(const pmr_outbox *outbox)
{
    return outbox->put == outbox->written;
}

/* Fills up to `count` vectors with what is to be written next, at most about `bytes_max` bytes; returns how many. */
int pmr_outbox_gather(const pmr_outbox *outbox, struct iovec *vector, int count, size_t bytes_max);

void pmr_outbox_advance(pmr_outbox *outbox, size_t bytes);

/* Copies what is still to be written out of [data, data + bytes). False: there is no memory, and some is not copied. */
bool pmr_outbox_abandon(pmr_outbox *outbox, const void *data, size_t bytes);

/* The rest will never be written: all entries count as written. */
void pmr_outbox_drop(pmr_outbox *outbox);

/* Something is written and not settled. */
static inline bool pmr_outbox_unsettled(const pmr_outbox *outbox)
{
    return outbox->settled != outbox->written;
}

/* Tells the sink of payloads that were written, of entries before `upto`. True: there was one. */
bool pmr_outbox_settle_to(pmr_outbox *outbox, uint32_t upto, const pmr_sink *sink);

static inline bool pmr_outbox_settle(pmr_outbox *outbox, const pmr_sink *sink)
{
    return pmr_outbox_settle_to(outbox, outbox->written, sink);
}

#endif
