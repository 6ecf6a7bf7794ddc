/* SPDX-License-Identifier: Apache-2.0
 *
 * schedule.h: what one rank does in a collective that spans nodes, as data.
 *
 * A schedule is a list of *steps*: messages to and from ranks of other nodes, work on memory, and collectives of the
 * ranks of this rank's node. A step runs when those it comes *after* are done; node steps also run in their order,
 * which is the same on all ranks of a node. Memory is named by *places*: an offset in the call's send or receive buffer
 * or in the schedule's scratch memory. *Builders* (one file per algorithm) are pure functions of a plan, which all
 * ranks of a call know alike but for the rank; the executor (span_run.c) and the simulator (tests) run what they build.
 *
 * Messages of a pair are numbered in the order in which both sides add them. A receive has its place from the start:
 * where a place is used again, the sender must come after a message that this rank sends when the place is free.
 * `pmr_schedule_guard` writes down what must be done by then; only the simulator looks at it.
 */
#ifndef PMR_COLL_SCHEDULE_H
#define PMR_COLL_SCHEDULE_H

#include "comm/shape.h"

#define PMR_NO_STEP     UINT32_MAX
#define PMR_NO_TABLE    UINT32_MAX
#define PMR_EAGER_BYTES 8192u /* messages up to here are sent before the receiver has entered the call */
#define PMR_EARLY_BYTES 65536u /* the first one to a rank, up to here, may be sent at once as well */

typedef enum pmr_buffer { PMR_BUFFER_SEND, PMR_BUFFER_RECV, PMR_BUFFER_SCRATCH, PMR_BUFFERS } pmr_buffer;

typedef struct pmr_place {
    uint64_t at; /* bytes */
    pmr_buffer buffer;
} pmr_place;

static inline pmr_place pmr_place_at(pmr_buffer buffer, uint64_t at)
{
    return (pmr_place){.at = at, .buffer = buffer};
}

static inline pmr_place pmr_place_plus(pmr_place place, uint64_t bytes)
{
    place.at += bytes;
    return place;
}

typedef enum pmr_step_kind {
    PMR_STEP_SEND,
    PMR_STEP_RECEIVE,
    PMR_STEP_REDUCE,     /* partial sums, by the canonical tree over the sources */
    PMR_STEP_REDUCE_ALL, /* what ranks contributed: the whole operation at once */
    PMR_STEP_COPY,
    PMR_STEP_WIDEN,      /* the call's 16-bit floats to partial sums */
    PMR_STEP_FINISH,     /* partial sums, which are lost, to the call's type */
    PMR_STEP_NODE
} pmr_step_kind;

typedef struct pmr_step {
    pmr_step_kind kind;
    uint32_t after;      /* steps that must be done before */
    uint32_t next;       /* in `edges`: those that come after this one ... */
    uint32_t next_count;
    uint32_t peer;       /* send, receive: a rank; finish: how many ranks are summed up */
    uint32_t number;     /* send, receive: of the pair's messages in that direction; node: in `calls` */
    uint32_t source;     /* reduce: first in `sources`; send, receive: the peer, in `peers` */
    uint32_t sources;
    pmr_place from, to;
    uint64_t amount;     /* bytes; of reductions, widen and finish: items */
} pmr_step;

/* A collective of the node's ranks; tables, in `counts`, have an entry for each of them. */
typedef struct pmr_node_call {
    pmr_kind kind;
    bool partial;        /* partial sums, joined; else bytes */
    uint32_t root;
    pmr_place send, recv;
    size_t count;
    uint32_t send_counts, send_displs, recv_counts, recv_displs;
    uint32_t sends_behind; /* sends of this rank that come after it: when no others are left it waits for nobody else */
} pmr_node_call;

typedef struct pmr_schedule_peer {
    uint32_t rank;
    uint32_t sends, receives;
    uint32_t receive;        /* in `receive_steps`: its receives by number */
    uint32_t first_send;     /* step, or PMR_NO_STEP */
    uint64_t send_bytes, receive_bytes;
    uint64_t longest;        /* message, either way */
} pmr_schedule_peer;

typedef struct pmr_list {    /* an array that grows */
    void *data;
    size_t item_bytes;
    uint32_t count, room;
} pmr_list;

typedef struct pmr_schedule {
    pmr_list steps;          /* of pmr_step */
    pmr_list sources;        /* of pmr_place */
    pmr_list calls;          /* of pmr_node_call */
    pmr_list counts;         /* of size_t */
    pmr_list links;          /* of pmr_schedule_link: while it is built */
    pmr_list guards;         /* of pmr_schedule_link */
    uint32_t *edges;
    uint32_t *receive_steps;
    pmr_schedule_peer *peers; /* ascending by rank */
    uint32_t peer_count;
    uint32_t early;          /* the first so many steps run before the call is entered; they wait for nothing */
    uint32_t sends;
    bool large;              /* some message is longer than PMR_EAGER_BYTES */
    bool failed;             /* out of memory */
    uint64_t scratch_bytes;
} pmr_schedule;

typedef struct pmr_schedule_link {
    uint32_t before, after;
} pmr_schedule_link;

/* What a builder may know. All ranks have the same but for `rank`, the buffers, and the tables that differ by design. */
typedef struct pmr_plan {
    const pmr_shape *shape;
    uint32_t rank;
    const pmr_call *call;
    size_t item_bytes;         /* of the call's type */
    size_t partial_bytes;      /* of a partial sum */
    bool widens;               /* partial sums have another type */
    bool finishes;             /* they are not the result yet */
    bool in_place;
    uint32_t fragment_bytes;   /* the longest message; a multiple of 64 */
    uint32_t window;           /* segments under way at once, at least 1 */
} pmr_plan;

typedef void (*pmr_builder)(const pmr_plan *plan, pmr_schedule *schedule);

/* ---- building: after a failed allocation everything does nothing, and pmr_schedule_end says so ---- */

void pmr_schedule_init(pmr_schedule *schedule);
void pmr_schedule_fini(pmr_schedule *schedule);
/* Ends the building: edges, peers. */
pmr_status pmr_schedule_end(pmr_schedule *schedule, pmr_error *error);

/* One message of at most fragment_bytes. */
uint32_t pmr_schedule_send(pmr_schedule *schedule, uint32_t peer, pmr_place from, uint64_t bytes);
uint32_t pmr_schedule_receive(pmr_schedule *schedule, uint32_t peer, pmr_place to, uint64_t bytes);
/* dst may be one of the sources. */
uint32_t pmr_schedule_reduce(pmr_schedule *schedule, pmr_step_kind kind, pmr_place to, const pmr_place *sources,
                             uint32_t count, uint64_t items);
/* COPY (bytes), WIDEN, FINISH (items; `ranks` are summed up). */
uint32_t pmr_schedule_work(pmr_schedule *schedule, pmr_step_kind kind, pmr_place to, pmr_place from, uint64_t amount,
                           uint32_t ranks);
uint32_t pmr_schedule_node(pmr_schedule *schedule, const pmr_node_call *call);
/* A table of the node call: `count` entries to be filled. NULL: out of memory. */
size_t *pmr_schedule_table(pmr_schedule *schedule, uint32_t count, uint32_t *table_out);

/* `step` comes after `earlier`, which may be PMR_NO_STEP. */
void pmr_schedule_after(pmr_schedule *schedule, uint32_t step, uint32_t earlier);
/* When a message arrives for `receive`, `earlier` is done. */
void pmr_schedule_guard(pmr_schedule *schedule, uint32_t receive, uint32_t earlier);

/* `bytes` of scratch memory, aligned to a cache line. */
pmr_place pmr_schedule_scratch(pmr_schedule *schedule, uint64_t bytes);

static inline pmr_step *pmr_schedule_step(const pmr_schedule *schedule, uint32_t step)
{
    return (pmr_step *)schedule->steps.data + step;
}

/* The first message to that peer goes with the word that this rank has entered: where all are short, or, so that no long one
 * waits for that word, where it can go at once. */
static inline bool pmr_schedule_brings_entry(const pmr_schedule *schedule, const pmr_schedule_peer *peer)
{
    if (peer->first_send == PMR_NO_STEP)
        return false;
    const pmr_step *first = pmr_schedule_step(schedule, peer->first_send);
    return peer->longest <= PMR_EAGER_BYTES || (first->after == 0 && first->amount <= PMR_EARLY_BYTES);
}

static inline const pmr_node_call *pmr_schedule_call(const pmr_schedule *schedule, const pmr_step *step)
{
    return (const pmr_node_call *)schedule->calls.data + step->number;
}

#endif
