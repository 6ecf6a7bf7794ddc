/* SPDX-License-Identifier: Apache-2.0
 *
 * p2p_state.h: operations under way and the queues they stand in: shared by p2p.c (callers) and p2p_drive.c (frames).
 *
 * A send goes QUEUED -> done when eager, else -> ANNOUNCED -> SENDING -> done. A receive goes POSTED -> done when
 * eager, else -> ANSWERING -> RECEIVING -> done, or -> COPYING -> CLOSING -> done. Where a state leaves the next step
 * to the peer the operation is `parked`, where it is ours it is in `todo`: a pass walks only the latter.
 * Operations of blocking callers live on their stacks, those of requests in a pool.
 * Invariant: an operation stands in exactly the list that its state names, and in none once it is done.
 */
#ifndef PMR_PROGRESS_P2P_STATE_H
#define PMR_PROGRESS_P2P_STATE_H

#include <pthread.h>

#include "progress/match.h"
#include "progress/p2p.h"
#include "transport/transport.h"

enum pmr_frame_kind {
    PMR_FRAME_EAGER = 1,    /* a whole message */
    PMR_FRAME_ANNOUNCE,     /* token: the send; payload: pmr_announcement */
    PMR_FRAME_ANSWER,       /* token: the send; payload: the receive's token. "Send the fragments" */
    PMR_FRAME_FRAGMENT,     /* token: the receive */
    PMR_FRAME_TAKEN,        /* token: the send. "I have it all, or want none of it" */
    PMR_FRAME_GAVE_UP,      /* token: the receive. "The rest will not come" */
    PMR_FRAME_CREDIT,       /* token: bytes of eager messages that were matched */
    PMR_FRAME_MORE          /* token: the send; reserved: bytes of fragments that came. Between nodes only */
};

#define PMR_NOT_IN_HEAP UINT64_MAX

typedef struct pmr_announcement {
    uint64_t bytes;
    uint64_t heap_offset;   /* from the window's start, or PMR_NOT_IN_HEAP */
} pmr_announcement;

typedef enum pmr_transfer_state {
    PMR_TRANSFER_QUEUED,      /* send, in its peer's queue (which keeps the order): not announced yet */
    PMR_TRANSFER_ANNOUNCED,   /* send, parked: until the peer answers, or has taken it */
    PMR_TRANSFER_SENDING,     /* send, todo: fragments, as there is room */
    PMR_TRANSFER_PAUSED,      /* send, parked: too many of its fragments are on their way */
    PMR_TRANSFER_LEAVING,     /* send, todo: the endpoint has it all, and the kernel not yet: somebody has to drive */
    PMR_TRANSFER_POSTED,      /* receive, in match */
    PMR_TRANSFER_ANSWERING,   /* receive, todo: the answer waits for room */
    PMR_TRANSFER_RECEIVING,   /* receive, parked: fragments arrive */
    PMR_TRANSFER_COPYING,     /* receive, todo: from the sender's heap */
    PMR_TRANSFER_CLOSING,     /* receive, todo: the sender is to be told; `status` is decided */
    PMR_TRANSFER_CLOSED,      /* receive, todo: as LEAVING, for what the sender is told */
    PMR_TRANSFER_DONE
} pmr_transfer_state;

/* What one blocking caller waits for: changed under the lock. */
typedef struct pmr_p2p_waiter {
    uint32_t left;          /* operations */
    pmr_status status;      /* of the first that failed */
    pmr_error *error;
} pmr_p2p_waiter;

typedef struct pmr_transfer {
    pmr_link link;
    pmr_transfer_state state;
    uint32_t peer;          /* place of the other side; PMR_NO_PEER: any source, until it matched */
    pmr_p2p_waiter *waiter; /* of a blocking caller, else NULL */
    pmr_request *request;   /* else */
    bool counted;           /* in source.active */
    pmr_status status;
    uint64_t token;         /* names it to the peer; unique in this process */
    uint64_t peer_token;
    uint8_t *data;          /* a send only reads it */
    size_t bytes;           /* of the message; of a receive: its room */
    size_t moved;
    size_t allowed;         /* SENDING: so far it may go now */
    const uint8_t *origin;  /* COPYING: from here */
    pmr_posted posted;      /* its pattern; a send's envelope */
    pmr_message_info info;  /* of a receive, once it matched */
} pmr_transfer;

/* A message that came before its receive. */
typedef struct pmr_kept {
    pmr_unexpected unexpected;
    uint32_t peer;
    bool eager;             /* the payload follows this struct */
    uint64_t token;         /* else: of the send */
    uint64_t heap_offset;
    size_t bytes;
    uint8_t payload[];
} pmr_kept;

typedef struct pmr_p2p_peer {
    pmr_link queue;         /* sends not announced yet, in order */
    pmr_link busy_link;     /* in p2p.busy while the queue is not empty */
    size_t unmatched;       /* bytes of eager messages it was sent and has not told to be matched */
    size_t to_credit;       /* bytes of its eager messages that were matched here and not told yet */
    bool gone;              /* nothing more will come from it but what is in its ring */
} pmr_p2p_peer;

#define PMR_FAREWELLS_MAX 64u

typedef struct pmr_farewell {   /* what a peer is to be told about an operation that was withdrawn */
    uint32_t peer;
    uint32_t kind;
    uint64_t token;
} pmr_farewell;

struct pmr_p2p {
    pthread_mutex_t lock;       /* everything below */
    pmr_transport *transport;
    pmr_transport *far;         /* to the ranks of other nodes; NULL: there are none */
    pmr_hub *hub;               /* the same */
    bool looks_far;             /* a pass polls the network: somebody waits for it */
    const pmr_window *window;
    pmr_engine *engine;
    uint32_t ranks, me;         /* of this node */
    uint32_t places;            /* this node's ranks, then all ranks of the world as those of other nodes */
    int32_t first_rank;
    pmr_p2p_waiter *driver;     /* the blocking caller who drives now: stop when it has what it waits for */
    uint32_t ended;             /* requests that completed and are still in source.active: poll takes them off */
    bool polling;               /* the engine drives now */
    bool wake_others;           /* somebody else's operation ended: raise our own inbox after the lock is free */
    bool starved;               /* a message had to stay in its ring: no memory for it */
    uint64_t tokens;
    size_t credit_bytes;        /* how much of ours may lie unmatched at one peer */
    size_t self_bytes;          /* messages to ourselves that are kept */
    int64_t sweep_due_ns;
    pmr_link busy;              /* peers with a queue */
    pmr_link todo;
    pmr_link parked;
    pmr_link pool;              /* operations for requests */
    uint32_t farewells;
    pmr_farewell farewell[PMR_FAREWELLS_MAX];
    pmr_source source;
    pmr_match match;
    pmr_p2p_peer peers[];
};

/* Is the place that of a rank of another node? */
static inline bool pmr_p2p_is_far(const pmr_p2p *p2p, uint32_t peer)
{
    return peer >= p2p->ranks && peer != PMR_NO_PEER;
}

static inline int32_t pmr_p2p_world_rank(const pmr_p2p *p2p, uint32_t peer)
{
    return pmr_p2p_is_far(p2p, peer) ? (int32_t)(peer - p2p->ranks) : p2p->first_rank + (int32_t)peer;
}

/* ---- all under the lock ---- */

/* p2p_drive.c */

/* Does what can be done now; true: something moved. Stops early when p2p->driver has what it waits for. */
bool pmr_p2p_drive(pmr_p2p *p2p);
/* Takes frames of one peer; true: there were some. */
bool pmr_p2p_drain(pmr_p2p *p2p, uint32_t peer);
/* Sends now if possible, else queues. Needs: peer, data, bytes, posted.pattern, waiter or request. */
void pmr_p2p_start_send(pmr_p2p *p2p, pmr_transfer *op);
/* Takes a message that is here already, else posts. Needs the same. */
void pmr_p2p_start_recv(pmr_p2p *p2p, pmr_transfer *op);

/* p2p_transfer.c */

/* Takes the operation out of its list and tells whoever waits for it. `error` may be NULL when status is PMR_OK. */
void pmr_transfer_finish(pmr_p2p *p2p, pmr_transfer *op, pmr_status status, const pmr_error *error);
/* A receive's end: PMR_OK, or the truncation that was noted in `status`. */
void pmr_transfer_finish_recv(pmr_p2p *p2p, pmr_transfer *op);
/* Takes an unfinished operation out, wherever it stands, and lets the peer know if that waits for it. */
void pmr_transfer_withdraw(pmr_p2p *p2p, pmr_transfer *op);
/* A whole message that lies in memory, perhaps in two pieces, meets its receive: copies and finishes. */
void pmr_transfer_deliver(pmr_p2p *p2p, pmr_transfer *op, uint32_t peer, const pmr_pattern *envelope,
                          const pmr_frame_view *view, size_t bytes);
/* The parked operation of that token and peer, or one that sends; NULL: none. */
pmr_transfer *pmr_transfer_find(pmr_p2p *p2p, uint64_t token, uint32_t peer);
/* Its next step is ours, or the peer's. */
void pmr_transfer_move(pmr_link *list, pmr_transfer *op, pmr_transfer_state state);
/* Keeps a message that no receive waits for: `bytes` of payload, or none if view is NULL. NULL: out of memory. */
pmr_kept *pmr_kept_add(pmr_p2p *p2p, uint32_t peer, const pmr_pattern *envelope, const pmr_frame_view *view,
                       size_t bytes);

/* p2p_self.c: messages of this rank to itself */

void pmr_p2p_self_send(pmr_p2p *p2p, pmr_transfer *op);
/* `kept` was taken out of `match`, and is freed. */
void pmr_p2p_self_recv(pmr_p2p *p2p, pmr_transfer *op, pmr_kept *kept);

/* p2p_lost.c: peers that are gone, or gave up */

bool pmr_p2p_peer_gone(const pmr_p2p *p2p, uint32_t peer);  /* needs no lock; PMR_NO_PEER: all but this rank */
/* Ends the operations that a departed peer leaves without an end, and requests once the gang is broken. */
void pmr_p2p_sweep(pmr_p2p *p2p);
void pmr_p2p_end_requests(pmr_p2p *p2p, pmr_status status, const pmr_error *error);
void pmr_p2p_fail_given_up(pmr_p2p *p2p, pmr_transfer *op);
/* Fills the error for a peer that is gone; returns PMR_ERR_RANK_FAILED. */
pmr_status pmr_p2p_fail_gone(const pmr_p2p *p2p, uint32_t peer, const char *what, int32_t tag, pmr_error *error);

#endif
