/* SPDX-License-Identifier: Apache-2.0
 *
 * communicator.h: a communicator and the operation it runs, as the collectives see them.
 *
 * Calls of one communicator are numbered from 1 (`seq`) in the order they were made, on every member alike.
 * One thread at a time runs its operations: the caller, or, while nonblocking ones are queued, whoever drives
 * the engine. `floor` is what this rank knows for certain: every member has completed all calls up to it; so
 * memory that only those calls used may be written again. Invariant: floor < seq of the running call.
 */
#ifndef PMR_COMM_COMMUNICATOR_H
#define PMR_COMM_COMMUNICATOR_H

#include <pthread.h>
#include <string.h>

#include "comm/board.h"
#include "comm/shape.h"
#include "core/heap.h"
#include "core/recorder.h"
#include "core/reduce_op.h"
#include "core/status.h"
#include "core/wait.h"
#include "core/window.h"
#include "progress/engine.h"
#include "progress/hub.h"

#define PMR_BOARDS_MAX 256u /* communicators alive at once on a node, the world not counted */

struct pmr_algorithm;
struct pmr_span;
typedef struct pmr_task pmr_task;

/* The head of the shared area: which boards of the pool are taken. */
typedef struct pmr_pool {
    _Atomic uint64_t taken[PMR_BOARDS_MAX / 64];
} pmr_pool;

struct pmr_context {
    pmr_window window;
    pmr_recorder *recorder;
    pmr_heap *heap;
    pmr_engine *engine;
    pmr_pool *pool;
    void *p2p_area;
    struct pmr_p2p *p2p;
    pmr_comm *world;
    pmr_hub *hub; /* NULL: the world is one node */
    char node[PMR_NODE_NAME_BYTES];
    uint32_t first_rank;
    uint32_t next_comm; /* ids from here on are free on this rank */
    bool reproducible;  /* the same bits on any layout */
    bool crowded; /* more local ranks than CPUs */
    size_t cache_bytes;
    size_t remote_bytes_min[2]; /* where its ranks have CPUs of their own, and where not */
    /* Whether ranks may read each other's private memory: found out at the first use. */
    enum { PMR_READS_UNKNOWN = 0, PMR_READS_POSSIBLE, PMR_READS_REFUSED } remote_reads;
};

/* The algorithms of one kind, smallest messages first: the first whose limit is not exceeded runs. */
#define PMR_CHOICES_MAX 8 /* more than a communicator has of any kind, and one that is forced: none may be pushed out */
typedef struct pmr_choices {
    const struct pmr_algorithm *algorithm[PMR_CHOICES_MAX];
    size_t bytes_max[PMR_CHOICES_MAX];
} pmr_choices;

struct pmr_comm {
    /* hot */
    pmr_board *board;
    pmr_member *me;
    pmr_recorder *recorder;
    uint32_t rank, size;
    uint32_t seq, floor;
    uint64_t history;  /* of all calls so far: a call's fingerprint covers those before it */
    uint32_t meetings; /* of PMR_GATE_MEET, so far */
    uint32_t rounds;   /* second meetings, so far */
    bool crowded;
    _Atomic bool broken;       /* a call was left half way: nothing can follow */
    bool chosen;       /* choices are filled */
    bool queue_open;   /* the engine knows the source */
    pmr_source source; /* queue of nonblocking operations */
    pmr_task *queue_head, *queue_tail;
    pmr_task *running;
    pmr_wait_policy policy;
    pmr_watch watch;
    /* cold */
    pmr_context *context;
    struct pmr_span *span; /* of a communicator that spans nodes: it has no board; else NULL */
    pmr_comm *outer;       /* that this one does the node's part for; else NULL */
    uint32_t entered;      /* the newest call that was entered; spans only */
    uint32_t outer_seq[PMR_ENTRY_SLOTS]; /* of the outer's call that a call is part of */
    uint8_t *slots, *staging, *rings, *turn_chunks, *pairs, *benches, *results;
    uint32_t half_busy[2];              /* last call that used that half of this rank's staging */
    size_t slots_head;                  /* where this rank's next slot may begin */
    uint32_t ring_busy[PMR_RING_SLOTS]; /* last call that used that slot of this rank's ring */
    uint32_t turns;                     /* chunks shown by every member, so far */
    uint32_t exchanges;                 /* chunks exchanged by every pair, so far */
    uint32_t slice_meetings;            /* chunks whose slices were claimed, so far */
    uint32_t chunk_meetings[2];
    int64_t next_check_ns;
    uint32_t id;
    uint32_t *members;    /* rank -> world rank */
    uint32_t board_index; /* in the pool; PMR_BOARDS_MAX: the world's own */
    size_t board_bytes;
    pmr_choices choices[PMR_KIND_COUNT];
};

struct pmr_task {
    pmr_comm *comm;
    const pmr_call *call;
    const struct pmr_algorithm *algorithm;
    uint64_t fingerprint;
    pmr_record *record;
    uint64_t record_number;
    pmr_flag_target want; /* set when a step returns PMR_PENDING */
    bool want_network;    /* the same: or the network; spans only */
    pmr_reduce_fn reduce;
    size_t item_bytes; /* of one element */
    size_t bytes;      /* of the message: what choices are made by */
    uint32_t seq;
    uint32_t phase;
    uint32_t cursor; /* the member that a poll goes on with */
    uint32_t meeting;
    uint32_t first_slices;      /* number of the first chunk among all that were ever claimed */
    uint32_t step, steps;       /* chunks */
    uint32_t staged, published; /* chunks this rank staged; steps it consumed */
    size_t chunk_items;
    bool exposed;   /* all buffers of the call lie in the heap */
    bool streaming; /* more than the caches hold: results are written past them */
    /* nonblocking only */
    pmr_task *next;
    pmr_request *request;
};

static inline uint32_t pmr_comm_local(const pmr_comm *comm, uint32_t rank)
{
    return comm->members[rank] - comm->context->first_rank;
}

/* ---- finding things on the board ---- */

static inline pmr_member *pmr_comm_member(const pmr_comm *comm, uint32_t rank)
{
    return &comm->board->member[rank];
}

static inline pmr_entry *pmr_comm_entry(const pmr_comm *comm, uint32_t rank, uint32_t seq)
{
    return &comm->board->member[rank].entry[seq % PMR_ENTRY_SLOTS];
}

static inline uint8_t *pmr_comm_slot(const pmr_comm *comm, uint32_t rank, uint64_t at)
{
    return comm->slots + (size_t)rank * PMR_SLOTS_BYTES + at;
}

/* Chunk `step` of call `seq`, staged by `rank`. */
static inline uint8_t *pmr_comm_chunk(const pmr_comm *comm, uint32_t rank, uint32_t seq, uint32_t step)
{
    return comm->staging + ((size_t)rank * 2 + seq % 2) * PMR_HALF_BYTES +
           (size_t)(step % PMR_CHUNK_SLOTS) * PMR_CHUNK_BYTES_MAX;
}

static inline uint8_t *pmr_comm_ring(const pmr_comm *comm, uint32_t rank, uint32_t slot)
{
    return comm->rings + ((size_t)rank * PMR_RING_SLOTS + slot) * PMR_RING_BYTES;
}

/* The n-th chunk, over all calls, that `rank` shows. Two ranks exchange their buffers each time: a rank
 * writes where it read last, into lines that its own cache holds. Lines that the other side read last cost
 * about six times as much to write. */
static inline uint8_t *pmr_comm_turn(const pmr_comm *comm, uint32_t rank, uint32_t number)
{
    size_t buffer = comm->size == 2 ? (rank + number) % 2 : (size_t)rank * 2 + number % 2;
    return comm->turn_chunks + buffer * PMR_TURN_BYTES;
}

/* The n-th chunk, over all calls, that `maker` shows `taker`; blocks of `block_bytes`. Each pair has two
 * buffers and exchanges them each time, as two ranks do in pmr_comm_turn. */
static inline uint8_t *pmr_comm_pair(const pmr_comm *comm, uint32_t maker, uint32_t taker, uint32_t number,
                                     size_t block_bytes)
{
    uint32_t owner = number % 2 ? taker : maker, other = number % 2 ? maker : taker;
    return comm->pairs + (size_t)owner * PMR_PAIRS_BYTES + other * block_bytes;
}

/* What `rank` brings to the gate of a chunk, and what is fetched behind it. */
static inline uint8_t *pmr_comm_bench(const pmr_comm *comm, uint32_t rank, uint32_t chunk)
{
    return comm->benches + ((size_t)rank * 2 + chunk % 2) * PMR_CHUNK_BYTES_MAX;
}

static inline uint8_t *pmr_comm_result(const pmr_comm *comm, uint32_t chunk)
{
    return comm->results + (size_t)(chunk % 2) * PMR_CHUNK_BYTES_MAX;
}

static inline uint64_t pmr_comm_offset(const pmr_comm *comm, const void *data)
{
    return (uint64_t)((const uint8_t *)data - comm->context->window.base);
}

static inline void *pmr_comm_address(const pmr_comm *comm, uint64_t offset)
{
    return comm->context->window.base + offset;
}

static inline bool pmr_comm_covers(const pmr_comm *comm, const void *data, size_t bytes)
{
    return pmr_window_covers(&comm->context->window, data, bytes);
}

/* ---- made and ended in communicator.c ---- */

/* `members`: world ranks. Without a board nothing can run on it: pmr_comm_open_span begins so. */
pmr_status pmr_comm_open(pmr_context *context, pmr_board *board, uint32_t id, uint32_t rank, uint32_t size,
                         const uint32_t *members, uint32_t board_index, pmr_comm **out, pmr_error *error);
/* One that spans nodes, around that of its ranks on this node, which becomes its own on success. */
pmr_status pmr_comm_open_span(pmr_context *context, uint32_t id, uint32_t rank, uint32_t size, const uint32_t *members,
                              pmr_comm *inner, uint32_t board_index, pmr_comm **out, pmr_error *error);
void pmr_comm_close(pmr_comm *comm);
size_t pmr_shared_area_bytes(uint32_t ranks);

/* The watch of a call: abort record, members who left or called something else, the interrupt hook. trouble.c
 */
pmr_status pmr_comm_check(void *comm, pmr_error *error);
/* The same without the interrupt hook: for the engine's thread. */
pmr_status pmr_comm_check_quiet(pmr_comm *comm, pmr_error *error);
/* `rank` is in call `task->seq` with another fingerprint: ends the gang, naming both calls. */
pmr_status pmr_comm_mismatch(const pmr_task *task, uint32_t rank, pmr_error *error);
/* pmr_comm_check_quiet, but for the abort record at most once a slice. */
pmr_status pmr_comm_check_sometimes(pmr_comm *comm, pmr_error *error);
/* The call's deadline passed: ends the gang, naming who has not entered. */
pmr_status pmr_comm_stalled(const pmr_task *task, pmr_error *error);
/* The gang ends for this reason, here and on other nodes; answers what the abort record says. */
pmr_status pmr_comm_end_gang(const pmr_comm *comm, uint32_t state, int32_t rank, const char *node, const char *text,
                             pmr_error *error);
/* "rank 3: allreduce(float32, 4000 bytes, sum) at train.py:44 in main", of a rank of this node. */
void pmr_comm_describe(const pmr_comm *comm, uint32_t rank, uint32_t seq, char *out, size_t out_bytes);

/* The shape of a communicator that spans nodes. */
const pmr_shape *pmr_comm_shape(const pmr_comm *comm);

/* Sums of nodes must not be used: the result's bits would not be those of one node. */
static inline bool pmr_comm_sums_raw(const pmr_comm *comm)
{
    return comm->context->reproducible && !pmr_comm_shape(comm)->canonical;
}

#endif
