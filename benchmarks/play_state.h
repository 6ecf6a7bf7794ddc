/* SPDX-License-Identifier: Apache-2.0
 *
 * play_state.h: a world while it is played: events in the order of their time, ranks, and the links of nodes.
 *
 * play.c has what ranks do, play_link.c what the links between nodes do; events of both are in one heap. Invariant: an
 * event is never earlier than the one that caused it, and where two are at the same time the one added first is first.
 */
#ifndef PMR_BENCHMARKS_PLAY_STATE_H
#define PMR_BENCHMARKS_PLAY_STATE_H

#include <stdlib.h>
#include <string.h>

#include "play.h"

typedef enum job_kind { JOB_NONE, JOB_CALL, JOB_ENTER, JOB_STEP, JOB_RECEIVE, JOB_ENTERED } job_kind;

typedef struct job {
    job_kind kind;
    uint32_t call;
    uint32_t index;      /* step; of JOB_ENTER and JOB_ENTERED: in the schedule's peers */
} job;

typedef enum event_kind { EVENT_JOB_DONE, EVENT_OUT, EVENT_AT_LINK, EVENT_DELIVERED } event_kind;

typedef struct event {
    double at_us;
    uint64_t number;     /* earlier ones first where times are equal */
    event_kind kind;
    uint32_t rank;       /* who is played; of EVENT_OUT: the node */
    uint32_t bytes;      /* of EVENT_AT_LINK */
    job job;             /* what it means for that rank; JOB_NONE: a part of a message that is not the last */
} event;

typedef struct letter { /* a message that is not wholly on the wire */
    struct letter *next;
    uint64_t left;       /* bytes */
    uint32_t to;         /* who is played */
    job job;
} letter;

typedef struct flow {    /* from a rank to one of its peers */
    letter *first, *last;
    struct flow *next;   /* that has something to send from this node */
} flow;

typedef struct node_link {
    flow *first, *last;  /* take turns */
    bool busy;
    double out_us, in_us; /* how far the link's two directions are taken */
} node_link;

typedef struct player {
    const pmr_schedule *schedule;
    uint32_t *after;     /* of each step: steps that are not done yet */
    uint32_t *node_steps;
    uint32_t *entered;   /* by peer: calls that it has entered */
    uint32_t *held, held_count; /* sends to peers that have not */
    flow *flows;         /* by peer */
    uint32_t node;
    uint32_t call, left, next_node;
    bool in_call, at_node, busy;
    pmr_list jobs;
    uint32_t job_next;
    pmr_list early;      /* receives of calls that this rank has not entered */
} player;

typedef struct node_meeting { /* one collective of a node */
    uint32_t arrived;
    bool root_arrived;
} node_meeting;

typedef struct cpus {
    uint32_t free;
    pmr_list queue;      /* of ranks */
    uint32_t next;
} cpus;

typedef struct play_state {
    const play_world *world;
    const play_model *model;
    player *players;
    uint32_t count;      /* of players */
    node_meeting *meetings; /* of all calls, node by node */
    size_t node_meetings;
    node_link *links;    /* by node */
    cpus *pools;
    pmr_list heap;       /* of events */
    uint64_t events;
    double now_us;
    double end_us;       /* when the last rank ended its last call */
    bool failed;
} play_state;

/* ---- play_link.c ---- */

/* On its way: `job` is what its receiver, who is played as `to`, will have to do. */
void play_leave(play_state *s, uint32_t rank, uint32_t peer, uint32_t to, uint64_t bytes, job job);
/* EVENT_OUT: a part of a message is through the node's link. */
void play_go_out(play_state *s, uint32_t node);
/* EVENT_AT_LINK: it is at the receiver's. */
void play_arrive(play_state *s, const event *e);
/* What a flow has not sent is forgotten. */
void play_free_letters(flow *via);

/* ---- lists and the heap ---- */

static inline void *play_push(play_state *s, pmr_list *list, size_t item_bytes, const void *item)
{
    if (list->count == list->room) {
        uint32_t room = list->room ? list->room * 2 : 8;
        void *data = realloc(list->data, room * item_bytes);
        s->failed = s->failed || !data;
        if (!data)
            return NULL;
        list->data = data;
        list->room = room;
    }
    return memcpy((char *)list->data + list->count++ * item_bytes, item, item_bytes);
}

static inline bool play_sooner(const event *a, const event *b)
{
    return a->at_us < b->at_us || (a->at_us == b->at_us && a->number < b->number);
}

static inline void play_event(play_state *s, event added)
{
    added.number = s->events++;
    if (!play_push(s, &s->heap, sizeof added, &added))
        return;
    event *heap = s->heap.data;
    uint32_t at = s->heap.count - 1;
    for (; at > 0 && play_sooner(&added, &heap[(at - 1) / 2]); at = (at - 1) / 2)
        heap[at] = heap[(at - 1) / 2];
    heap[at] = added;
}

static inline event play_next(play_state *s)
{
    event *heap = s->heap.data, first = heap[0], last = heap[--s->heap.count];
    uint32_t at = 0, count = s->heap.count;
    for (uint32_t child = 1; child < count; child = 2 * at + 1) {
        if (child + 1 < count && play_sooner(&heap[child + 1], &heap[child]))
            child++;
        if (!play_sooner(&heap[child], &last))
            break;
        heap[at] = heap[child];
        at = child;
    }
    heap[at] = last;
    return first;
}

#endif
