/* SPDX-License-Identifier: Apache-2.0
 *
 * endpoint.h: the contract of a data path between ranks of different nodes.
 *
 * An endpoint carries *packets*: 40 bytes that say what follows, and up to `payload_max` bytes of payload, between any
 * two ranks. Each pair has `lanes` lanes. Packets of one (peer, lane) arrive once, whole and in order; different lanes
 * overtake each other. Lane 0 is for what must be fast and is small; large payloads belong on the others, each of which
 * is a flow of its own, so that 8 bytes never wait behind a megabyte. Payloads are neither copied nor looked into: the
 * sender keeps them unchanged until it is told, and the receiver says where they go before they are read.
 *
 * The owner drives: everything happens inside `poll`, by the thread that calls it, and is told through the *sink*.
 * `send` and `resume` may be called inside a sink's functions, `poll` and `close` may not. An owner that has nothing to
 * do sleeps until `descriptor` is readable, but only after a poll that returned false with no send or resume since.
 * Nothing here waits (but `close`, until its deadline), and every queue has a bound.
 *
 * Connections are made at the first use, or accepted in poll; both sides prove the job's key before the first packet is
 * read. A peer is *lost* once and for good. Then the payloads of all sends to it are given back (`sent`), the places
 * that were named for its packets are touched no more, and `lost` tells why; later sends to it are taken, dropped and
 * given back. A peer is never our own rank. Not thread-safe: the owner's lock covers an endpoint.
 *
 * An implementation is one file, which no other file names: it registers its ops and is found by name.
 */
#ifndef PMR_TRANSPORT_ENDPOINT_H
#define PMR_TRANSPORT_ENDPOINT_H

#include "include/pmr.h"

#define PMR_LANES_MAX 16u
#define PMR_PACKET_COPY_MAX 8192u           /* payload that a send with cookie 0 may have */
#define PMR_PACKET_SHOW_MAX (256u * 1024u)  /* payload that a sink may ask to be shown */
#define PMR_PATIENT_BYTES   (256u * 1024u)
#define PMR_PACKET_KIND_OWN 0xffff0000u     /* kinds from here on are the transport's own */
#define PMR_PACKET_GOODBYE PMR_PACKET_KIND_OWN /* the last one of a lane; no sink sees it */

typedef struct pmr_packet {
    uint32_t kind;              /* of the sender's choice, but never 0 and below PMR_PACKET_KIND_OWN */
    uint32_t payload_bytes;
    uint32_t comm;
    uint32_t seq;
    int32_t source;
    int32_t tag;
    uint64_t token;
    uint64_t fingerprint;
} pmr_packet;

_Static_assert(sizeof(pmr_packet) == 40, "the layout on the wire");
_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "headers travel as they lie in memory");

typedef enum pmr_placing {
    PMR_PLACE_INTO,     /* the payload is to be written to *into_out, which is the endpoint's until `arrived` */
    PMR_PLACE_SHOW,     /* the endpoint keeps it and shows it in `arrived`; up to PMR_PACKET_SHOW_MAX bytes */
    PMR_PLACE_LATER     /* not now: nothing more of that (peer, lane) until `resume`; then `place` is asked again */
} pmr_placing;

typedef struct pmr_sink {
    void *arg;
    /* A header came; asked for every packet, also for those without a payload. */
    pmr_placing (*place)(void *arg, uint32_t peer, uint32_t lane, const pmr_packet *packet, void **into_out);
    /* The packet is whole. `payload`: where it was placed, or a view that ends when this returns (aligned to 8); NULL if
     * its place was abandoned. */
    void (*arrived)(void *arg, uint32_t peer, uint32_t lane, const pmr_packet *packet, const void *payload);
    /* The payload that was sent with that cookie may be reused. It need not have arrived. */
    void (*sent)(void *arg, uint64_t cookie);
    /* No more will come from that peer or go to it. `error`: PMR_ERR_RANK_FAILED with the rank and one line. */
    void (*lost)(void *arg, uint32_t peer, const pmr_error *error);
} pmr_sink;

typedef struct pmr_endpoint pmr_endpoint;

typedef struct pmr_endpoint_options {
    const char *bind_address;   /* of this node, without a port; what a transport binds to and publishes */
    uint32_t rank;              /* in the world; peers are named by theirs */
    uint32_t ranks;
    const uint8_t *key;         /* PMR_KEY_BYTES that all ranks of this attempt share */
    uint32_t flows;             /* wanted lanes besides lane 0; 0: the transport's choice */
    bool encrypt;               /* refused by a transport that cannot */
    uint32_t socket_bytes;      /* of the kernel's buffers per connection; 0: as the system adapts them */
    const char *library;        /* of transports that load one: its path; else NULL */
} pmr_endpoint_options;

typedef struct pmr_endpoint_ops {
    const char *name;

    /* Binds and listens. After failure nothing is held. `options` need not outlive the call. */
    pmr_status (*open)(const pmr_endpoint_options *options, pmr_endpoint **out, pmr_error *error);

    /* Takes the addresses of all ranks, in rank order (our own is not looked at). Once, before anything is sent. */
    pmr_status (*connect)(pmr_endpoint *endpoint, const char *const *addresses, pmr_error *error);

    /* Hands a packet to a lane. cookie 0: payload (at most PMR_PACKET_COPY_MAX) is copied before this returns. Else it
     * stays the caller's and unchanged until `sent(cookie)`, which comes inside a later poll. False: the lane's queue
     * is full, nothing was taken; poll and try again. */
    bool (*send)(pmr_endpoint *endpoint, uint32_t peer, uint32_t lane, const pmr_packet *packet, const void *payload,
                 uint64_t cookie);

    /* Does all it can without waiting (but not without end: a busy peer starves no other). True: something moved. */
    bool (*poll)(pmr_endpoint *endpoint);

    void (*resume)(pmr_endpoint *endpoint, uint32_t peer, uint32_t lane);

    /* [data, data + bytes) is touched no more, from now on: a packet that is being read into it is read on into nowhere,
     * and `arrived` then shows NULL; what is still to be written out of it is copied, and `sent` comes as ever. For a
     * caller that gives up in the middle: may be slow, and where it cannot be done otherwise the peer is lost. */
    void (*abandon)(pmr_endpoint *endpoint, const void *data, size_t bytes);

    /* Of packets that were sent and are not in the kernel's (or the library's) hands yet. */
    uint64_t (*unsent_bytes)(const pmr_endpoint *endpoint);

    /* Sends what is queued, until the deadline, and ends. The sink is told nothing any more. Accepts NULL. */
    void (*close)(pmr_endpoint *endpoint, int64_t deadline_ns);
} pmr_endpoint_ops;

typedef struct pmr_endpoint_counts {
    uint64_t packets_sent, packets_received;
    uint64_t bytes_sent, bytes_received;    /* payloads */
    uint64_t connections;                   /* that were proven */
    uint64_t strangers;                     /* that were refused: no key, garbage, or too slow to prove it */
} pmr_endpoint_counts;

struct pmr_endpoint {
    const pmr_endpoint_ops *ops;
    pmr_sink sink;              /* set by the owner before its first poll */
    uint32_t rank, ranks;
    uint32_t lanes;             /* at least 2 */
    uint32_t payload_max;       /* of one packet */
    uint32_t fragment_bytes;    /* payload at which large data is carried best */
    bool patient;               /* set by the owner: waking it costs more than a long payload's delay, so its descriptor may
                                 * stay silent until PMR_PATIENT_BYTES of one, or its rest, have come */
    bool threaded;              /* moves data in threads of its own: who spins takes their CPU */
    int descriptor;             /* readable when poll may have something to do */
    char address[PMR_ADDRESS_BYTES]; /* what others connect to: text, published as it is */
    pmr_endpoint_counts counts;
};

/* Whether two pieces of memory have a byte in common. */
static inline bool pmr_overlap(const void *one, size_t one_bytes, const void *other, size_t other_bytes)
{
    uintptr_t a = (uintptr_t)one, b = (uintptr_t)other;
    return a < b + other_bytes && b < a + one_bytes;
}

/* What an endpoint tells while it closes: nothing, and all that comes waits. */
extern const pmr_sink pmr_sink_of_closing;

/* A connection takes descriptors, and the limit that a process begins with is often only a default: raises it to
 * `needed`, as far as the system lets us. */
void pmr_endpoint_raise_descriptors(uint64_t needed);

/* The transport of that name; NULL: there is none. */
const pmr_endpoint_ops *pmr_endpoint_find(const char *name);

/* Names in the registry's order; NULL past the end. */
const char *pmr_endpoint_name(size_t index);

/* Puts a pointer in an ELF section that endpoint.c walks. */
#define PMR_REGISTER_ENDPOINT(ops)                                                                           \
    static const pmr_endpoint_ops *const pmr_registered_##ops                                                \
        __attribute__((section("pmr_endpoints"), used)) = &(ops)

static inline bool pmr_endpoint_send(pmr_endpoint *endpoint, uint32_t peer, uint32_t lane, const pmr_packet *packet,
                                     const void *payload, uint64_t cookie)
{
    return endpoint->ops->send(endpoint, peer, lane, packet, payload, cookie);
}

static inline bool pmr_endpoint_poll(pmr_endpoint *endpoint)
{
    return endpoint->ops->poll(endpoint);
}

static inline void pmr_endpoint_resume(pmr_endpoint *endpoint, uint32_t peer, uint32_t lane)
{
    endpoint->ops->resume(endpoint, peer, lane);
}

static inline void pmr_endpoint_abandon(pmr_endpoint *endpoint, const void *data, size_t bytes)
{
    endpoint->ops->abandon(endpoint, data, bytes);
}

static inline uint64_t pmr_endpoint_unsent_bytes(const pmr_endpoint *endpoint)
{
    return endpoint->ops->unsent_bytes(endpoint);
}

static inline void pmr_endpoint_close(pmr_endpoint *endpoint, int64_t deadline_ns)
{
    if (endpoint)
        endpoint->ops->close(endpoint, deadline_ns);
}

#endif
