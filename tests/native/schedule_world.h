/* SPDX-License-Identifier: Apache-2.0
 *
 * schedule_world.h: all ranks of a world run their schedules in one thread, in a random order.
 *
 * Elements are 64-bit words. Joining two of them mixes their bits, so that a sum shows in which order and in which tree it
 * was made. A message is copied when it is sent, which must be when its place is free (the receive's guards), and lands
 * at any time after; a node's collective runs when all its ranks have come to it, and they must mean the same.
 */
#ifndef PMR_TESTS_SCHEDULE_WORLD_H
#define PMR_TESTS_SCHEDULE_WORLD_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "coll/coll.h"

static char sim_what[256]; /* is being tried */

#define CHECK(condition)                                                                      \
    do {                                                                                      \
        if (!(condition)) {                                                                   \
            fprintf(stderr, "%s:%d: not true: %s (%s)\n", __FILE__, __LINE__, #condition, sim_what); \
            exit(1);                                                                          \
        }                                                                                     \
    } while (0)

typedef uint64_t word;

static inline word mix(word x)
{
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

static inline word join(word a, word b)
{
    return mix(a * 3 + mix(b) * 5 + 1);
}

static inline word widened(word x)
{
    return x ^ 0x5555555555555555u;
}

static inline word finished(word x, uint32_t ranks)
{
    return mix(x + ranks);
}

/* The canonical tree. */
static inline word tree(const word *values, uint32_t count)
{
    if (count == 1)
        return values[0];
    uint32_t half = 1u << (31 - __builtin_clz(count - 1));
    return join(tree(values, half), tree(values + half, count - half));
}

typedef struct sim_rank {
    pmr_schedule schedule;
    pmr_plan plan;
    pmr_call call;
    word *buffer[PMR_BUFFERS];
    size_t bytes[PMR_BUFFERS];
    uint32_t *after;
    bool *done;
    uint32_t left;         /* steps not done */
    uint32_t node_calls;   /* reached so far */
    uint32_t *node_steps;
} sim_rank;

typedef struct sim_event { /* a step to be run, or (payload) a message that lands */
    uint32_t rank, step;
    word *payload;
} sim_event;

typedef struct sim_world {
    const pmr_shape *shape;
    sim_rank *ranks;
    sim_event *bag;
    size_t events, room;
    uint32_t *waiting; /* by node: ranks that reached the node's current call */
    uint64_t state;
} sim_world;

static inline uint64_t sim_draw(uint64_t *state, uint64_t below)
{
    *state = *state * 6364136223846793005u + 1442695040888963407u;
    return (*state >> 33) % below;
}

static inline void sim_add(sim_world *world, uint32_t rank, uint32_t step, word *payload)
{
    if (world->events == world->room) {
        world->room = world->room * 2 + 64;
        world->bag = realloc(world->bag, world->room * sizeof *world->bag);
    }
    world->bag[world->events++] = (sim_event){rank, step, payload};
}

static inline word *sim_at(const sim_rank *self, pmr_place place, uint64_t bytes)
{
    CHECK(place.at % sizeof(word) == 0 && place.at + bytes <= self->bytes[place.buffer]);
    return self->buffer[place.buffer] + place.at / sizeof(word);
}

static inline void sim_finish(sim_world *world, uint32_t rank, uint32_t number);

/* ---- a node's collective ---- */

static inline const size_t *sim_table(const sim_rank *self, uint32_t table)
{
    return (const size_t *)self->schedule.counts.data + table;
}

static inline const pmr_node_call *sim_call(const sim_rank *self, uint32_t number)
{
    return pmr_schedule_call(&self->schedule, pmr_schedule_step(&self->schedule, number));
}

/* Bytes from one member to another, where they lie and where they go. */
static inline uint64_t sim_route(const sim_rank *from, const pmr_node_call *out, uint32_t from_index,
                                 const sim_rank *to, const pmr_node_call *in, uint32_t to_index,
                                 const word **source, word **target)
{
    uint64_t bytes = 0, send_at = 0, recv_at = 0;
    switch (out->kind) {
    case PMR_GATHER:
    case PMR_ALLGATHER:
        CHECK(out->count == in->count);
        bytes = out->count;
        recv_at = from_index * bytes;
        break;
    case PMR_GATHERV:
    case PMR_ALLGATHERV:
        bytes = sim_table(from, out->send_counts)[0];
        CHECK(bytes == sim_table(to, in->recv_counts)[from_index]);
        recv_at = sim_table(to, in->recv_displs)[from_index];
        break;
    case PMR_SCATTERV:
        bytes = sim_table(from, out->send_counts)[to_index];
        CHECK(bytes == sim_table(to, in->recv_counts)[0]);
        send_at = sim_table(from, out->send_displs)[to_index];
        break;
    case PMR_ALLTOALLV:
        bytes = sim_table(from, out->send_counts)[to_index];
        CHECK(bytes == sim_table(to, in->recv_counts)[from_index]);
        send_at = sim_table(from, out->send_displs)[to_index];
        recv_at = sim_table(to, in->recv_displs)[from_index];
        break;
    default:
        CHECK((out->kind == PMR_BROADCAST || out->kind == PMR_BARRIER) && out->count == in->count);
        bytes = out->count;
    }
    *source = bytes ? sim_at(from, pmr_place_plus(out->send, send_at), bytes) : NULL;
    *target = bytes ? sim_at(to, pmr_place_plus(in->recv, recv_at), bytes) : NULL;
    return bytes;
}

typedef struct sim_members {
    sim_rank *rank[64];
    const pmr_node_call *call[64];
    uint32_t count;
} sim_members;

static inline void sim_move(const sim_members *m)
{
    bool rooted = m->call[0]->kind == PMR_GATHER || m->call[0]->kind == PMR_GATHERV ||
                  m->call[0]->kind == PMR_SCATTERV || m->call[0]->kind == PMR_BROADCAST;
    bool from_root = m->call[0]->kind == PMR_SCATTERV || m->call[0]->kind == PMR_BROADCAST;
    word *copy[64][64];
    word *target[64][64];
    uint64_t bytes[64][64];
    for (int pass = 0; pass < 2; pass++) /* all is read before anything is written */
        for (uint32_t from = 0; from < m->count; from++)
            for (uint32_t to = 0; to < m->count; to++) {
                uint32_t root = m->call[0]->root;
                if (rooted && (from_root ? from : to) != root)
                    continue;
                if (m->call[0]->kind == PMR_BROADCAST && from == to)
                    continue;
                if (pass == 0) {
                    const word *source;
                    bytes[from][to] = sim_route(m->rank[from], m->call[from], from, m->rank[to], m->call[to], to,
                                                &source, &target[from][to]);
                    copy[from][to] = malloc(bytes[from][to] + 1);
                    if (bytes[from][to])
                        memcpy(copy[from][to], source, bytes[from][to]);
                } else {
                    if (bytes[from][to])
                        memcpy(target[from][to], copy[from][to], bytes[from][to]);
                    free(copy[from][to]);
                }
            }
}

/* Items of the reduction that `to` gets: where they begin in what everyone sends. */
static inline uint64_t sim_share(const sim_members *m, uint32_t to, uint64_t *first)
{
    const pmr_node_call *call = m->call[to];
    *first = 0;
    if (call->kind == PMR_REDUCE_SCATTER)
        *first = to * call->count;
    if (call->kind != PMR_REDUCE_SCATTERV)
        return call->kind == PMR_REDUCE && to != call->root ? 0 : call->count;
    const size_t *counts = sim_table(m->rank[to], call->recv_counts);
    for (uint32_t i = 0; i < to; i++)
        *first += counts[i];
    return counts[to];
}

static inline void sim_reduce_node(const sim_members *m)
{
    word *result[64];
    for (uint32_t to = 0; to < m->count; to++) {
        uint64_t first, items = sim_share(m, to, &first);
        result[to] = malloc((items + 1) * sizeof(word));
        uint32_t sources = m->call[to]->kind == PMR_SCAN     ? to + 1
                           : m->call[to]->kind == PMR_EXSCAN ? to
                                                             : m->count;
        for (uint64_t i = 0; i < items && sources; i++) {
            word values[64];
            for (uint32_t from = 0; from < sources; from++)
                values[from] = *sim_at(m->rank[from], pmr_place_plus(m->call[from]->send, (first + i) * sizeof(word)),
                                       sizeof(word));
            result[to][i] = tree(values, sources);
        }
        if (!sources)
            continue;
    }
    for (uint32_t to = 0; to < m->count; to++) {
        uint64_t first, items = sim_share(m, to, &first);
        bool has = m->call[to]->kind != PMR_EXSCAN || to > 0;
        if (items && has)
            memcpy(sim_at(m->rank[to], m->call[to]->recv, items * sizeof(word)), result[to], items * sizeof(word));
        free(result[to]);
    }
}

static inline void sim_node(sim_world *world, uint32_t node)
{
    sim_members m = {.count = pmr_shape_members(world->shape, node)};
    uint32_t number = 0;
    for (uint32_t i = 0; i < m.count; i++) {
        m.rank[i] = &world->ranks[pmr_shape_rank(world->shape, node, i)];
        number = m.rank[i]->node_steps[m.rank[i]->node_calls];
        m.call[i] = sim_call(m.rank[i], number);
        CHECK(m.call[i]->kind == m.call[0]->kind && m.call[i]->root == m.call[0]->root &&
              m.call[i]->partial == m.call[0]->partial);
    }
    if (m.call[0]->partial)
        sim_reduce_node(&m);
    else
        sim_move(&m);
    world->waiting[node] = 0;
    for (uint32_t i = 0; i < m.count; i++) {
        uint32_t step = m.rank[i]->node_steps[m.rank[i]->node_calls++];
        sim_finish(world, pmr_shape_rank(world->shape, node, i), step);
    }
}

/* ---- steps ---- */

/* The rank's next node call may run. */
static inline void sim_look_at_node(sim_world *world, uint32_t rank)
{
    sim_rank *self = &world->ranks[rank];
    if (self->node_calls >= self->schedule.calls.count)
        return;
    uint32_t number = self->node_steps[self->node_calls];
    if (self->after[number])
        return;
    self->after[number] = UINT32_MAX; /* it waits for the others */
    uint32_t node = world->shape->node[rank];
    if (++world->waiting[node] == pmr_shape_members(world->shape, node))
        sim_node(world, node);
}

static inline void sim_finish(sim_world *world, uint32_t rank, uint32_t number)
{
    sim_rank *self = &world->ranks[rank];
    const pmr_step *step = pmr_schedule_step(&self->schedule, number);
    CHECK(!self->done[number]);
    self->done[number] = true;
    self->left--;
    for (uint32_t i = 0; i < step->next_count; i++) {
        uint32_t next = self->schedule.edges[step->next + i];
        CHECK(next > number);
        if (--self->after[next] == 0) {
            pmr_step_kind kind = pmr_schedule_step(&self->schedule, next)->kind;
            CHECK(kind != PMR_STEP_RECEIVE);
            if (kind != PMR_STEP_NODE)
                sim_add(world, rank, next, NULL);
        }
    }
    sim_look_at_node(world, rank);
}

static inline uint32_t sim_receive_of(const sim_rank *self, uint32_t peer, uint32_t number)
{
    for (uint32_t i = 0; i < self->schedule.peer_count; i++)
        if (self->schedule.peers[i].rank == peer) {
            CHECK(number < self->schedule.peers[i].receives);
            return self->schedule.receive_steps[self->schedule.peers[i].receive + number];
        }
    CHECK(!"the receiver knows the sender");
    return 0;
}

static inline void sim_send(sim_world *world, uint32_t rank, const pmr_step *step)
{
    sim_rank *self = &world->ranks[rank], *peer = &world->ranks[step->peer];
    CHECK(world->shape->node[rank] != world->shape->node[step->peer]);
    CHECK(step->amount <= self->plan.fragment_bytes);
    uint32_t receive = sim_receive_of(peer, rank, step->number);
    CHECK(pmr_schedule_step(&peer->schedule, receive)->amount == step->amount);
    const pmr_schedule_link *guard = peer->schedule.guards.data;
    for (uint32_t i = 0; i < peer->schedule.guards.count; i++)
        CHECK(guard[i].after != receive || peer->done[guard[i].before]);
    word *payload = malloc(step->amount + 1);
    if (step->amount)
        memcpy(payload, sim_at(self, step->from, step->amount), step->amount);
    sim_add(world, step->peer, receive, payload);
}

static inline void sim_work(const sim_rank *self, const pmr_step *step)
{
    uint64_t bytes = step->kind == PMR_STEP_COPY ? step->amount : step->amount * sizeof(word);
    word *to = bytes ? sim_at(self, step->to, bytes) : NULL;
    const pmr_place *places = (const pmr_place *)self->schedule.sources.data + step->source;
    bool reduces = step->kind == PMR_STEP_REDUCE || step->kind == PMR_STEP_REDUCE_ALL;
    word *values = reduces ? malloc(step->sources * sizeof *values) : NULL;
    for (uint64_t i = 0; i < bytes / sizeof(word); i++) {
        if (reduces) {
            for (uint32_t source = 0; source < step->sources; source++)
                values[source] = *sim_at(self, pmr_place_plus(places[source], i * sizeof(word)), sizeof(word));
            to[i] = tree(values, step->sources);
            continue;
        }
        word from = *sim_at(self, pmr_place_plus(step->from, i * sizeof(word)), sizeof(word));
        to[i] = step->kind == PMR_STEP_WIDEN    ? widened(from)
                : step->kind == PMR_STEP_FINISH ? finished(from, step->peer)
                                                : from;
    }
    free(values);
}

static inline void sim_event_run(sim_world *world, sim_event event)
{
    sim_rank *self = &world->ranks[event.rank];
    const pmr_step *step = pmr_schedule_step(&self->schedule, event.step);
    if (event.payload) {
        if (step->amount)
            memcpy(sim_at(self, step->to, step->amount), event.payload, step->amount);
        free(event.payload);
    } else if (step->kind == PMR_STEP_SEND) {
        sim_send(world, event.rank, step);
    } else {
        sim_work(self, step);
    }
    sim_finish(world, event.rank, event.step);
}

/* Early steps, then whatever may run. */
static inline void sim_begin(sim_world *world, uint32_t rank)
{
    sim_rank *self = &world->ranks[rank];
    uint32_t steps = self->schedule.steps.count, nodes = 0;
    self->after = malloc((steps + 1u) * sizeof *self->after);
    self->done = calloc(steps + 1u, sizeof *self->done);
    self->node_steps = malloc((self->schedule.calls.count + 1u) * sizeof *self->node_steps);
    self->left = steps;
    for (uint32_t i = 0; i < steps; i++) {
        const pmr_step *step = pmr_schedule_step(&self->schedule, i);
        self->after[i] = step->after;
        if (step->kind == PMR_STEP_NODE)
            self->node_steps[nodes++] = i;
        CHECK(i >= self->schedule.early || (step->after == 0 && step->kind != PMR_STEP_RECEIVE));
    }
}

static inline void sim_run(sim_world *world)
{
    uint32_t size = world->shape->size;
    world->waiting = calloc(world->shape->nodes, sizeof *world->waiting);
    for (uint32_t rank = 0; rank < size; rank++)
        sim_begin(world, rank);
    for (uint32_t rank = 0; rank < size; rank++) {
        sim_rank *self = &world->ranks[rank];
        for (uint32_t i = 0; i < self->schedule.early; i++) {
            sim_work(self, pmr_schedule_step(&self->schedule, i));
            sim_finish(world, rank, i);
        }
        for (uint32_t i = self->schedule.early; i < self->schedule.steps.count; i++) {
            const pmr_step *step = pmr_schedule_step(&self->schedule, i);
            if (step->after == 0 && step->kind != PMR_STEP_RECEIVE && step->kind != PMR_STEP_NODE)
                sim_add(world, rank, i, NULL);
        }
    }
    for (uint32_t rank = 0; rank < size; rank++)
        sim_look_at_node(world, rank);
    while (world->events) {
        size_t at = sim_draw(&world->state, world->events);
        sim_event event = world->bag[at];
        world->bag[at] = world->bag[--world->events];
        sim_event_run(world, event);
    }
    for (uint32_t rank = 0; rank < size; rank++) {
        CHECK(world->ranks[rank].left == 0);
        free(world->ranks[rank].after);
        free(world->ranks[rank].done);
        free(world->ranks[rank].node_steps);
    }
    free(world->waiting);
    free(world->bag);
}

#endif
