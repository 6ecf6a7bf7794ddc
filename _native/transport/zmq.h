/* SPDX-License-Identifier: Apache-2.0
 *
 * zmq.h: what the parts of the zmq transport share: zmq.c (the contract), zmq_out.c (sending), zmq_in.c (receiving).
 *
 * Each rank binds one ROUTER, on which everything arrives, and dials a DEALER for each (peer, lane) that it sends on: a
 * connection carries packets one way, and what the receiver has to say about them the other: the handshake's answers,
 * then *credits*, how much it has consumed so far. A sender is never ahead by more than the credit window, which bounds
 * what libzmq holds. A rank that receives from a peer also dials its lane 0, so that it learns of the peer's death.
 * Invariant: packets are handed to libzmq in state OPEN only; a payload that was lent to libzmq is the lender's again
 * after its slot was cleared by libzmq's thread.
 */
#ifndef PMR_TRANSPORT_ZMQ_H
#define PMR_TRANSPORT_ZMQ_H

#include <stdatomic.h>

#include "transport/address.h"
#include "transport/handshake.h"
#include "transport/outbox.h"
#include "transport/zmq_library.h"

#define PMR_ZMQ_WINDOW_PACKETS 64u
#define PMR_ZMQ_WINDOW_BYTES   (2u << 20)
#define PMR_ZMQ_PAYLOAD_MAX    (1u << 20)
#define PMR_ZMQ_CURVE_BYTES    64 /* more than CURVE adds to a message */
#define PMR_ZMQ_GUESTS_MAX     64u
#define PMR_ZMQ_TICK_NS        250000000
#define PMR_ZMQ_ID_BYTES       5u /* of the names that a ROUTER gives to connections: 0, then a number */

typedef enum pmr_zmq_state {
    PMR_ZMQ_IDLE,
    PMR_ZMQ_DIALING, /* has a socket; the handshake is under way */
    PMR_ZMQ_RESTING, /* a dial came to nothing */
    PMR_ZMQ_OPEN,
    PMR_ZMQ_ENDED
} pmr_zmq_state;

typedef struct pmr_zmq_credit { /* consumed since the connection was made */
    uint64_t packets, bytes;
} pmr_zmq_credit;

typedef struct pmr_zmq_slot { /* a payload that libzmq may still read */
    _Atomic bool lent;
    int wake; /* eventfd */
} pmr_zmq_slot;

typedef struct pmr_zmq_kept { /* a packet whose place is asked for later */
    pmr_packet packet;
    pmr_zmq_msg payload; /* with the header before it, if they came in one part */
    uint32_t payload_at;
} pmr_zmq_kept;

typedef struct pmr_zmq_flow {
    uint32_t peer, lane;
    struct pmr_zmq_flow *next_due, *next_lending;
    bool due, lending;
    /* out */
    pmr_zmq_state state;
    void *socket, *monitor;
    int64_t dialed_ns, rest_until_ns;
    uint32_t dials, refusals, unanswered;
    pmr_handshake handshake;
    pmr_outbox outbox;
    pmr_zmq_credit given, consumed; /* by us to libzmq, by the peer */
    pmr_zmq_slot slot[PMR_OUTBOX_ENTRIES];
    /* in */
    bool heard, goodbye, held, resumed;
    uint8_t id[PMR_ZMQ_ID_BYTES];
    pmr_zmq_credit taken, told; /* consumed by us, and what the peer knows of it */
    pmr_zmq_kept *kept;         /* PMR_ZMQ_WINDOW_PACKETS; from the first one on */
    uint32_t kept_first, kept_count;
} pmr_zmq_flow;

typedef struct pmr_zmq_guest { /* a connection that has not proven the key */
    bool taken;
    uint8_t id[PMR_ZMQ_ID_BYTES];
    int64_t deadline_ns;
    pmr_handshake handshake;
} pmr_zmq_guest;

typedef struct pmr_zmq_peer {
    char address[PMR_ADDRESS_BYTES]; /* "10.0.0.1:4711" */
    bool losing, lost;
    int64_t cut_ns; /* when a connection to it ended; 0: none did */
    char *why;      /* while losing */
} pmr_zmq_peer;

typedef struct pmr_zmq_named { /* the table from names of connections to flows */
    uint32_t number, flow; /* flow + 1; 0: free */
} pmr_zmq_named;

typedef struct pmr_zmq_endpoint {
    pmr_endpoint base; /* its descriptor is the epoll set */
    pmr_zmq zmq;
    void *context, *router, *zap;
    int wake, timer;
    bool encrypt, ipv6;
    bool router_due, zap_due; /* used since it was last found empty: its descriptor may stay silent */
    uint8_t key[PMR_KEY_BYTES];
    char curve_public[41], curve_secret[41];
    uint32_t socket_bytes;
    uint32_t named_mask;
    uint32_t losing;
    uint32_t monitors; /* ever made: each has a name of its own */
    uint64_t unsent_bytes;
    pmr_zmq_flow *due, *lending;
    pmr_zmq_peer *peers;
    pmr_zmq_flow **flows;
    pmr_zmq_named *named;
    uint8_t *aligned; /* PMR_PACKET_COPY_MAX bytes: views are aligned */
    pmr_zmq_guest guests[PMR_ZMQ_GUESTS_MAX];
} pmr_zmq_endpoint;

enum { PMR_ZMQ_WAKE, PMR_ZMQ_TIMER, PMR_ZMQ_ROUTE, PMR_ZMQ_ZAP, PMR_ZMQ_FLOW };

/* ---- zmq.c ---- */

pmr_zmq_flow *pmr_zmq_flow_of(pmr_zmq_endpoint *self, uint32_t peer, uint32_t lane);
void pmr_zmq_due(pmr_zmq_endpoint *self, pmr_zmq_flow *flow);
bool pmr_zmq_watch(pmr_zmq_endpoint *self, void *socket, uint32_t kind, uint32_t index);
bool pmr_zmq_option(const pmr_zmq_endpoint *self, void *socket, int option, int value);
/* Begins to end a peer: `lost` is told when libzmq has let go of all payloads. Returns true. */
bool pmr_zmq_lose(pmr_zmq_endpoint *self, uint32_t peer, const char *format, ...) __attribute__((format(printf, 3, 4)));

/* ---- zmq_out.c ---- */

void pmr_zmq_dial(pmr_zmq_endpoint *self, pmr_zmq_flow *flow);
void pmr_zmq_hang_up(pmr_zmq_endpoint *self, pmr_zmq_flow *flow, int linger_ms);
/* Hands a packet to libzmq, if the window has room. `slot`: where a lent payload is noted, or NULL: it is copied. */
bool pmr_zmq_hand(pmr_zmq_endpoint *self, pmr_zmq_flow *flow, const pmr_packet *packet, const void *payload,
                  pmr_zmq_slot *slot);
bool pmr_zmq_push(pmr_zmq_endpoint *self, pmr_zmq_flow *flow);
/* Gives back what libzmq has let go of. */
bool pmr_zmq_settle(pmr_zmq_endpoint *self, pmr_zmq_flow *flow);
/* What came on the DEALER and its monitor. */
bool pmr_zmq_listen(pmr_zmq_endpoint *self, pmr_zmq_flow *flow);
bool pmr_zmq_out_tick(pmr_zmq_endpoint *self, pmr_zmq_flow *flow, int64_t now_ns);

/* ---- zmq_in.c ---- */

pmr_status pmr_zmq_bind(pmr_zmq_endpoint *self, const char *host, pmr_error *error);
bool pmr_zmq_route(pmr_zmq_endpoint *self);
bool pmr_zmq_admit(pmr_zmq_endpoint *self);
bool pmr_zmq_resume_kept(pmr_zmq_endpoint *self, pmr_zmq_flow *flow);
void pmr_zmq_drop_kept(pmr_zmq_endpoint *self, pmr_zmq_flow *flow);
/* Lost, if it said goodbye on all flows on which it ever sent. */
bool pmr_zmq_look_for_end(pmr_zmq_endpoint *self, uint32_t peer);

#endif
