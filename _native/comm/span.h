/* SPDX-License-Identifier: Apache-2.0
 *
 * span.h: what a communicator has when it spans nodes: its shape, the communicator of its ranks on this node, and the
 * protocol by which its ranks enter calls together.
 *
 * In each call a rank tells those it exchanges messages with that it has *entered*, with the call's fingerprint.
 * Short messages go with that or soon after, and are kept where the receiver has not come so far; so may one long
 * message, to a rank that is hardly behind. Other long ones are sent when the receiver has entered and has a place
 * for them. Of the calls that two ranks share, one may be at most PMR_AHEAD_MAX ahead of the other, so what is kept
 * has a bound. A rank that only gets short messages in a call owes its entry: one packet tells of several calls. Who
 * runs the call (coll/span_run.c) *opens* it here; packets then find their places through it.
 * Invariant: no byte of a message reaches the caller's memory before its fingerprint was compared.
 */
#ifndef PMR_COMM_SPAN_H
#define PMR_COMM_SPAN_H

#include "comm/communicator.h"
#include "progress/hub.h"

#define PMR_AHEAD_MAX     16u
#define PMR_AHEAD_EARLY   2u /* of those, how many may bring a long message */
#define PMR_OWED_MAX      (PMR_AHEAD_MAX / 2) /* who runs ahead hears of its partner's entries in time */
#define PMR_KEPT_BYTES    65536u /* of a message that may come before its call */
#define PMR_HISTORY_CALLS 64u /* whose fingerprints are remembered */

typedef struct pmr_span_member {
    uint32_t shared_sent;     /* calls that both take part in, which this rank has entered ... */
    uint32_t shared_received; /* ... and which the member has */
    uint32_t owed;            /* calls that the member has not been told this rank has entered */
    uint32_t seen;            /* the newest call that the member was seen in */
    bool lost;
    bool told;                /* it was told this rank's calls */
} pmr_span_member;

/* A call that packets are for. Its functions are called under the hub's lock. */
typedef struct pmr_span_call {
    uint32_t seq;
    uint64_t fingerprint;
    /* Where a message is to be written; NULL: this call expects none of that number and length. */
    void *(*place)(struct pmr_span_call *call, uint32_t rank, uint64_t number, uint64_t bytes);
    void (*arrived)(struct pmr_span_call *call, uint32_t rank, uint64_t number);
    /* The member entered and will send so many bytes. False: that is not what this rank expects. */
    bool (*entered)(struct pmr_span_call *call, uint32_t rank, uint64_t bytes);
    /* The payload of step `number` left. */
    void (*sent)(struct pmr_span_call *call, uint32_t number);
    /* The member is one that has to enter, and has not. */
    bool (*awaits)(const struct pmr_span_call *call, uint32_t rank);
    /* This rank still waits for something of that member. */
    bool (*needs)(const struct pmr_span_call *call, uint32_t rank);
} pmr_span_call;

typedef struct pmr_span {
    pmr_channel channel;
    pmr_comm *comm;
    pmr_comm *inner;             /* of this node's ranks */
    pmr_hub *hub;
    pmr_shape shape;
    /* under the hub's lock */
    pmr_span_member *members;    /* by rank */
    pmr_span_call *call;         /* open now; NULL: none */
    struct pmr_span_early *early, **early_end, *pool;
    uint32_t differs_rank;       /* a rank that calls something else, or UINT32_MAX ... */
    uint32_t differs_seq;        /* ... in this call */
    uint32_t told_rank;          /* who sent `told` */
    struct pmr_span_tale *told;  /* its last calls */
    struct pmr_span_census *census; /* a question about who has entered is out */
    /* the owner's */
    uint64_t history[PMR_HISTORY_CALLS]; /* fingerprints by call; written under the lock */
    uint32_t seen;               /* hub->moves, after the last poll that moved nothing */
    int64_t ask_due_ns;
    uint32_t asks;
    void *runner;                /* what coll/span_run.c keeps from call to call */
    bool (*runner_free)(void *runner); /* false: the transport still knows it, and this span */
} pmr_span;

/* `inner` becomes the span's on success. */
pmr_status pmr_span_open(pmr_comm *comm, pmr_comm *inner, pmr_error *error);
/* Accepts NULL. Closes the inner communicator too. */
void pmr_span_close(pmr_span *span);

/* ---- under the hub's lock ---- */

/* Whether this rank may enter another call together with that one. */
static inline bool pmr_span_may_enter(const pmr_span *span, uint32_t rank)
{
    const pmr_span_member *member = &span->members[rank];
    return (int32_t)(member->shared_sent - member->shared_received) < (int32_t)PMR_AHEAD_MAX;
}

/* The member is so little behind that it may be sent a long message before it enters. */
static inline bool pmr_span_is_near(const pmr_span *span, uint32_t rank)
{
    const pmr_span_member *member = &span->members[rank];
    return (int32_t)(member->shared_sent - member->shared_received) < (int32_t)PMR_AHEAD_EARLY;
}

/* Packets for this call find it from now on; hands over what came early. */
void pmr_span_open_call(pmr_span *span, pmr_span_call *call);
void pmr_span_close_call(pmr_span *span);

/* What this rank says to another in the open call. */
typedef struct pmr_span_word {
    uint32_t kind;
    bool message;        /* of ENTER: the first message comes with it */
    uint64_t token;      /* of ENTER: bytes that this rank sends in the call; of DATA: the message's number */
    const void *payload;
    uint32_t bytes;
    uint64_t cookie;     /* 0: the payload is copied */
} pmr_span_word;

/* On lane 0. False: no room now. */
bool pmr_span_send(pmr_span *span, uint32_t rank, const pmr_span_word *word);
/* Instead of an ENTER, to a rank that gets nothing from this one and sends it short messages alone: a later one tells of it,
 * or every PMR_OWED_MAX-th does. False: no room now. */
bool pmr_span_owe(pmr_span *span, uint32_t rank);

static inline uint32_t pmr_span_world_rank(const pmr_span *span, uint32_t rank)
{
    return span->comm->members[rank];
}

/* ---- trouble: span_trouble.c ---- */

/* What may end a wait of this call, besides what is waited for. */
pmr_status pmr_span_check(pmr_comm *comm, pmr_error *error);
/* Ranks call different things: ends the gang, naming both calls. */
pmr_status pmr_span_mismatch(pmr_span *span, pmr_error *error);
pmr_status pmr_span_stalled(const pmr_task *task, pmr_error *error);
/* TELL, WHERE and HERE, and members that are lost. Under the hub's lock. */
void pmr_span_hear(pmr_span *span, uint32_t rank, const pmr_packet *packet, const void *payload);

#endif
