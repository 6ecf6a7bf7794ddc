/* SPDX-License-Identifier: Apache-2.0
 *
 * tcp.h: what the parts of the tcp transport share: tcp.c (the contract), tcp_flow.c (one connection), tcp_guest.c
 * (connections that have not proven anything yet).
 *
 * A *flow* is one (peer, lane): IDLE -> DIALING -> PROVING -> OPEN -> ENDED, or IDLE -> OPEN where the peer dialled; a
 * dial that came to nothing is RESTING until it is tried again. Where both dial at once, the dial of the lower rank
 * stands. A *guest* is a connection that was accepted and has not shown that it has the key.
 * Invariant: a flow has a socket in DIALING, PROVING and OPEN and in no other state; packets are put in the outbox in
 * any state; after a peer is lost all its flows are ENDED.
 */
#ifndef PMR_TRANSPORT_TCP_H
#define PMR_TRANSPORT_TCP_H

#include "transport/address.h"
#include "transport/handshake.h"
#include "transport/inlet.h"
#include "transport/outbox.h"

#define PMR_TCP_GUESTS_MAX 128u
#define PMR_TCP_TICK_NS    250000000

typedef enum pmr_flow_state {
    PMR_FLOW_IDLE,
    PMR_FLOW_DIALING,
    PMR_FLOW_PROVING,
    PMR_FLOW_RESTING,
    PMR_FLOW_OPEN,
    PMR_FLOW_ENDED
} pmr_flow_state;

typedef struct pmr_tcp_talk { /* a handshake on a socket */
    pmr_handshake handshake;
    uint8_t message[PMR_HANDSHAKE_MESSAGE_MAX];
    uint32_t bytes; /* of the message that is coming in */
} pmr_tcp_talk;

typedef struct pmr_flow pmr_flow;
struct pmr_flow {
    pmr_flow *next_due; /* list of flows that the next poll looks at without being told by the kernel */
    bool due;
    bool blocked; /* the kernel takes no more now */
    bool mute;    /* writing failed: only what is left to read counts */
    bool resumed; /* the sink is to be asked again */
    pmr_flow_state state;
    int fd;
    int lowest;      /* bytes that must have come before the kernel tells (SO_RCVLOWAT) */
    uint32_t events; /* that the kernel watches; 0: not in the epoll set */
    uint32_t dials;  /* that came to nothing */
    int refusal;     /* what connect said at once, as an errno; the next poll acts on it */
    bool given_up;   /* it could not be abandoned otherwise; the next poll loses the peer */
    uint32_t refusals; /* dials that ended before the key was proven */
    int64_t dialed_ns;
    int64_t rest_until_ns;
    pmr_outbox outbox;
    pmr_inlet inlet; /* peer and lane are in it */
    pmr_tcp_talk talk;
};

typedef struct pmr_tcp_guest {
    int fd; /* -1: free */
    bool screened; /* its HELLO was made with the key */
    int64_t deadline_ns;
    pmr_tcp_talk talk;
} pmr_tcp_guest;

typedef struct pmr_tcp {
    pmr_endpoint base;      /* its descriptor is the epoll set */
    int listener, timer;
    bool listening;         /* the listener is in the epoll set */
    bool ticking;           /* the timer runs */
    bool patient;           /* some flow's `lowest` may be more than 1 */
    uint8_t key[PMR_KEY_BYTES];
    uint32_t socket_bytes;
    uint64_t unsent_bytes;
    uint32_t guest_count;
    pmr_flow *due;
    pmr_address *address;   /* by rank */
    bool *lost;             /* by rank */
    pmr_flow **flows;       /* by rank, then lane; NULL: never used */
    pmr_tcp_guest guests[PMR_TCP_GUESTS_MAX];
} pmr_tcp;

/* What an event of the epoll set is about: the kind above, the index below. */
enum { PMR_TCP_LISTENER, PMR_TCP_TIMER, PMR_TCP_GUEST, PMR_TCP_FLOW };
static inline uint64_t pmr_tcp_about(uint32_t kind, uint32_t index)
{
    return (uint64_t)kind << 32 | index;
}

/* ---- tcp.c ---- */

/* The flow of (peer, lane), made if it was never used; NULL: no memory. */
pmr_flow *pmr_tcp_flow(pmr_tcp *self, uint32_t peer, uint32_t lane);
void pmr_tcp_due(pmr_tcp *self, pmr_flow *flow);
/* The clock of handshakes and of peers that are gone without a word runs while there is a socket. */
void pmr_tcp_start_ticking(pmr_tcp *self);
void pmr_tcp_tune(const pmr_tcp *self, int fd);
/* Ends a peer for good and tells the sink, which may not be inside a call of ours. Returns true. */
bool pmr_tcp_lose(pmr_tcp *self, uint32_t peer, const char *format, ...) __attribute__((format(printf, 3, 4)));

/* ---- tcp_flow.c; true: something moved ---- */

/* Tells the sink nothing: what fails at once is seen by the next poll. */
void pmr_flow_dial(pmr_tcp *self, pmr_flow *flow);
/* Takes over a socket on which the peer has proven itself. */
void pmr_flow_open(pmr_tcp *self, pmr_flow *flow, int fd);
void pmr_flow_close(pmr_flow *flow);
void pmr_flow_watch(pmr_tcp *self, pmr_flow *flow);
/* Asks the kernel to tell of bytes when as many are there as are worth it now. */
void pmr_flow_await(pmr_tcp *self, pmr_flow *flow);
/* Writes what is queued, as far as the kernel takes it. */
bool pmr_flow_push(pmr_tcp *self, pmr_flow *flow);
bool pmr_flow_pull(pmr_tcp *self, pmr_flow *flow);
bool pmr_flow_event(pmr_tcp *self, pmr_flow *flow, uint32_t events);
/* What the kernel does not tell of: something to be written, given back or asked again. */
bool pmr_flow_due(pmr_tcp *self, pmr_flow *flow);
bool pmr_flow_tick(pmr_tcp *self, pmr_flow *flow, int64_t now_ns);

/* ---- the handshake on a socket; tcp_flow.c ---- */

typedef enum pmr_talking { PMR_TALK_WAIT, PMR_TALK_HEARD, PMR_TALK_ENDED } pmr_talking;
/* Reads one message, if it is whole, and answers it. ENDED: the other side closed, or cannot be written to. */
pmr_talking pmr_tcp_talk_on(int fd, pmr_tcp_talk *talk);

/* ---- tcp_guest.c ---- */

bool pmr_tcp_accept(pmr_tcp *self);
bool pmr_tcp_guest_event(pmr_tcp *self, uint32_t index);
void pmr_tcp_guests_tick(pmr_tcp *self, int64_t now_ns);
void pmr_tcp_guests_close(pmr_tcp *self);

#endif
