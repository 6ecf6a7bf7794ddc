/* SPDX-License-Identifier: Apache-2.0
 *
 * span_run.h: a schedule being run, as span_run.c (the steps) and span_call.c (packets and memory) share it.
 *
 * A communicator runs one call at a time, so it has one runner, whose arrays are used again from call to call; schedules
 * of the last few calls are kept, so that calling the same again builds and allocates nothing. What packets change
 * (`landed`, `entered`, `left`) is under the hub's lock; all else is the owner's.
 */
#ifndef PMR_COLL_SPAN_RUN_H
#define PMR_COLL_SPAN_RUN_H

#include "coll/coll.h"
#include "comm/span.h"

#define PMR_SPAN_KEPT 8u /* schedules */

/* A schedule and what it was built for. */
typedef struct pmr_span_kept {
    pmr_schedule schedule;
    const pmr_algorithm *algorithm;
    pmr_kind kind;
    pmr_dtype dtype;
    pmr_op op;
    int32_t root;
    size_t count;
    bool in_place, uneven, used;
    uint32_t *after;    /* of each step, at the start */
    uint32_t *node;     /* the node steps, in order */
} pmr_span_kept;

typedef struct pmr_runner {
    pmr_span_call call;  /* first: what packets find it by */
    pmr_span *span;
    pmr_task *task;
    pmr_span_kept *now;
    uint8_t *base[PMR_BUFFERS];
    uint8_t *scratch;
    size_t scratch_bytes;
    uint32_t room, peers_room; /* of the arrays, in steps and in peers */
    uint32_t *after;     /* of each step: steps that are not done yet */
    uint32_t *work, works;
    uint32_t *sends, send_count;
    uint32_t *held, held_count; /* sends to peers that have not entered */
    pmr_sending *sending;
    uint8_t *brings;     /* by peer: the first message to it goes with the entry */
    uint32_t done, sends_left, next_node, enter_next;
    bool node_runs;
    pmr_task inner;
    pmr_call inner_call;
    /* under the hub's lock */
    uint32_t *landed, landed_count;
    uint32_t *left;      /* by peer: messages that have not come */
    uint8_t *entered;    /* by peer */
    bool entered_new;
    uint32_t leaving;    /* payloads that have not left the caller's memory */
    pmr_span_kept kept[PMR_SPAN_KEPT];
    uint32_t next_kept;
} pmr_runner;

/* The communicator's runner, made at the first call. NULL: out of memory. */
pmr_runner *pmr_runner_of(pmr_span *span);
/* The schedule of the task's call, kept or built, and all memory that it takes. */
pmr_status pmr_runner_prepare(pmr_runner *runner, pmr_task *task, pmr_error *error);

static inline void *pmr_runner_at(const pmr_runner *runner, pmr_place place)
{
    uint8_t *base = runner->base[place.buffer];
    return base ? base + place.at : NULL;
}

/* Index of a rank among the peers of the call; UINT32_MAX: it is none. */
uint32_t pmr_runner_peer(const pmr_schedule *schedule, uint32_t rank);

#endif
