/* SPDX-License-Identifier: Apache-2.0
 *
 * p2p.h: messages between two ranks.
 *
 * One `pmr_p2p` per process serves all its communicators. It knows *places*: of this node's ranks those in the window, of
 * others the number of this node's ranks plus their world rank; and, as part of the envelope, what the communicator calls
 * the sender. Translating is the caller's part (comm/). Several threads
 * may use one handle. Blocking calls and the progress engine drive the same queues under one lock, so each of them
 * also moves everything else that is under way in this process.
 *
 * Three ways to travel, chosen by the sender:
 *   eager        small, and the peer has not too much of ours unmatched: copied into the ring; complete at once.
 *   by fragments larger, from private memory or to another node: announced; once the receive matches, copied through
 *                the ring, or sent in packets, some of which are on their way at a time.
 *   in place     larger, from the window's heap: announced with its offset; the receiver copies from there; the send
 *                completes when that is done.
 * Only eager messages take memory before they match: at most about 64 MiB per rank; and since rings are always drained,
 * a receive reaches every message that was announced, whatever lies before it.
 *
 * Statuses of all calls: PMR_OK; PMR_ERR_TIMEOUT: the deadline passed, nothing was touched and the call is withdrawn;
 * PMR_ERR_STALLED: it passed after the message had been announced or in its middle, the message is lost on both sides;
 * PMR_ERR_RANK_FAILED with error.rank (world): the peer is gone; PMR_ERR_TRUNCATED (receives): the message did not
 * fit and is gone, the buffer is untouched; PMR_ERR_NO_MEMORY; PMR_ERR_ARGUMENT: it could never end (a message to
 * this rank itself, see below); PMR_ERR_SHUTDOWN: the handle was closed; whatever the watch's `check` returned.
 * Ranks and tags are not checked here.
 */
#ifndef PMR_PROGRESS_P2P_H
#define PMR_PROGRESS_P2P_H

#include "core/wait.h"
#include "core/window.h"
#include "progress/engine.h"
#include "progress/hub.h"

typedef struct pmr_p2p pmr_p2p;

/* Bytes of the shared area for that many local ranks: sparse, a multiple of the page size, zero at the start. */
size_t pmr_p2p_area_bytes(uint32_t ranks);

/* `window` tells this rank's place, the heaps, and who is gone; `area` is page aligned; `hub` is the way to other nodes, or
 * NULL. All, and `engine`, must outlive the handle. `engine` may be NULL where nobody starts nonblocking operations. */
pmr_status pmr_p2p_open(pmr_p2p **out, const pmr_window *window, void *area, pmr_hub *hub, pmr_engine *engine,
                        pmr_error *error);

/* Ends open requests with PMR_ERR_SHUTDOWN. No blocking call may be under way; the engine's thread must have stopped.
 * Accepts NULL. */
void pmr_p2p_close(pmr_p2p *p2p);

/* What is sent, and as what. */
typedef struct pmr_p2p_out {
    const void *data;
    size_t bytes;
    uint32_t comm;          /* the communicator's id */
    uint32_t dest;          /* its place */
    int32_t source;         /* this rank as the communicator numbers it: what the receiver matches */
    int32_t tag;            /* 0..PMR_TAG_MAX; library tags lie above and are never matched by PMR_ANY_TAG */
} pmr_p2p_out;

/* What is received, and into what. */
typedef struct pmr_p2p_in {
    void *data;
    size_t bytes;           /* room */
    uint32_t comm;
    uint32_t source_place;  /* of `source`; anything when source is PMR_ANY_SOURCE */
    int32_t source;         /* rank in the communicator, or PMR_ANY_SOURCE */
    int32_t tag;            /* or PMR_ANY_TAG */
} pmr_p2p_in;

/* How a blocking call waits. All of it stays the caller's. */
typedef struct pmr_p2p_wait {
    const pmr_watch *watch;     /* with a `check`; called without any lock held */
    pmr_wait_policy *policy;    /* one thread at a time */
    int64_t deadline_ns;
} pmr_p2p_wait;

/* Returns when the buffer may be reused. To this rank itself: a message is handed to a receive that is posted
 * already, or kept if at most 64 MiB are; else PMR_ERR_ARGUMENT, since nobody could ever take it. */
pmr_status pmr_p2p_send(pmr_p2p *p2p, const pmr_p2p_out *out, const pmr_p2p_wait *wait, pmr_error *error);

/* `info_out` may be NULL. From this rank itself: PMR_ERR_ARGUMENT when nothing that fits was sent. */
pmr_status pmr_p2p_recv(pmr_p2p *p2p, const pmr_p2p_in *in, const pmr_p2p_wait *wait, pmr_message_info *info_out,
                        pmr_error *error);

/* Both at once: cannot deadlock, needs no engine. The receive is posted first. */
pmr_status pmr_p2p_sendrecv(pmr_p2p *p2p, const pmr_p2p_out *out, const pmr_p2p_in *in, const pmr_p2p_wait *wait,
                            pmr_message_info *info_out, pmr_error *error);

/* deadline_ns 0: only looks (PMR_PENDING when there is none). `in->data` and `in->bytes` are not used. */
pmr_status pmr_p2p_probe(pmr_p2p *p2p, const pmr_p2p_in *in, const pmr_p2p_wait *wait, pmr_message_info *info_out,
                         pmr_error *error);

/* The buffer belongs to the operation until the request completed. What can be done at once is done at once, and then
 * the engine is not even started. */
pmr_status pmr_p2p_isend(pmr_p2p *p2p, const pmr_p2p_out *out, pmr_request **request_out, pmr_error *error);
pmr_status pmr_p2p_irecv(pmr_p2p *p2p, const pmr_p2p_in *in, pmr_request **request_out, pmr_error *error);

#endif
