/* SPDX-License-Identifier: Apache-2.0
 *
 * play.c: what the ranks of a world do, one thing after the other, each when it may and when it has a CPU.
 *
 * A rank has a queue of *jobs*, each of which takes a CPU for a while; what a job makes possible becomes jobs of this
 * rank, or a message. It keeps its CPU until its queue is empty. CPUs are given in the order in which ranks ask.
 * Invariant: a step is done once per call; when no event is left every rank has done all steps of all calls.
 */
#include <math.h>

#include "coll/span_run.h"
#include "play_state.h"

/* ---- what jobs cost ---- */

static double sum_of(const pmr_schedule *schedule, uint32_t table, uint32_t count)
{
    const size_t *counts = (const size_t *)schedule->counts.data + table;
    double sum = 0;
    for (uint32_t i = 0; i < count; i++)
        sum += (double)counts[i];
    return sum;
}

/* Bytes that a member reads and writes in a collective of its node. */
static double node_bytes(const play_state *s, const player *self, uint32_t rank, const pmr_node_call *call)
{
    const pmr_shape *shape = s->world->shape;
    uint32_t members = pmr_shape_members(shape, self->node);
    bool root = call->root == shape->index[rank];
    double unit = call->partial ? (double)s->world->partial_bytes : 1, count = (double)call->count * unit;
    switch (call->kind) {
    case PMR_BARRIER:
        return 0;
    case PMR_GATHER:
        return root ? count * members : count;
    case PMR_REDUCE:
    case PMR_ALLREDUCE:
        return root || call->kind == PMR_ALLREDUCE ? count * (members + 1) : count;
    case PMR_REDUCE_SCATTER:
        return 2 * count * members;
    case PMR_REDUCE_SCATTERV:
        return 2 * unit * sum_of(self->schedule, call->recv_counts, members);
    case PMR_ALLGATHER:
        return count * (members + 1);
    case PMR_ALLGATHERV:
    case PMR_GATHERV:
        return root || call->kind == PMR_ALLGATHERV ? sum_of(self->schedule, call->recv_counts, members)
                                                    : sum_of(self->schedule, call->send_counts, 1);
    case PMR_SCATTERV:
        return root ? sum_of(self->schedule, call->send_counts, members)
                    : sum_of(self->schedule, call->recv_counts, 1);
    case PMR_ALLTOALLV:
        return sum_of(self->schedule, call->send_counts, members) + sum_of(self->schedule, call->recv_counts, members);
    default:
        return count;
    }
}

static double step_us(const play_state *s, uint32_t rank, const pmr_step *step)
{
    const play_model *m = s->model;
    const player *self = &s->players[rank];
    double kib = (double)step->amount / 1024;
    switch (step->kind) {
    case PMR_STEP_SEND:
        return m->send_us + kib * m->send_kib_us;
    case PMR_STEP_RECEIVE:
        return m->receive_us + kib * m->receive_kib_us;
    case PMR_STEP_NODE: {
        const pmr_node_call *call = pmr_schedule_call(self->schedule, step);
        uint32_t members = pmr_shape_members(s->world->shape, self->node);
        return m->node_us * ceil(log2(members)) + node_bytes(s, self, rank, call) / 1024 * m->node_kib_us;
    }
    case PMR_STEP_COPY:
        return m->work_us + kib * m->work_kib_us;
    case PMR_STEP_REDUCE:
        return m->work_us + kib * (double)s->world->partial_bytes * step->sources * m->work_kib_us;
    case PMR_STEP_REDUCE_ALL:
        return m->work_us + kib * (double)s->world->item_bytes * step->sources * m->work_kib_us;
    default:
        return m->work_us + kib * (double)s->world->partial_bytes * m->work_kib_us;
    }
}

static double job_us(const play_state *s, uint32_t rank, const job *job)
{
    switch (job->kind) {
    case JOB_CALL:
        return s->model->call_us;
    case JOB_ENTER:
        return s->model->send_us;
    case JOB_ENTERED:
        return s->model->receive_us;
    default:
        return step_us(s, rank, pmr_schedule_step(s->players[rank].schedule, job->index));
    }
}

/* ---- CPUs ---- */

static cpus *pool_of(const play_state *s, uint32_t rank)
{
    return &s->pools[s->model->shared > 0 ? 0 : s->players[rank].node];
}

static void run_next_job(play_state *s, uint32_t rank, double first_us)
{
    player *self = &s->players[rank];
    job next = ((job *)self->jobs.data)[self->job_next++];
    play_event(s, (event){.at_us = s->now_us + first_us + job_us(s, rank, &next), .kind = EVENT_JOB_DONE,
                              .rank = rank, .job = next});
}

static void ask_for_cpu(play_state *s, uint32_t rank)
{
    cpus *pool = pool_of(s, rank);
    if (pool->free == 0) {
        play_push(s, &pool->queue, sizeof rank, &rank);
        return;
    }
    pool->free--;
    run_next_job(s, rank, s->model->wake_us);
}

static void give_cpu_back(play_state *s, uint32_t rank)
{
    cpus *pool = pool_of(s, rank);
    if (pool->next == pool->queue.count) {
        pool->next = pool->queue.count = 0;
        pool->free++;
        return;
    }
    run_next_job(s, ((uint32_t *)pool->queue.data)[pool->next++], s->model->wake_us);
}

static void add_job(play_state *s, uint32_t rank, job added)
{
    player *self = &s->players[rank];
    if (self->job_next == self->jobs.count)
        self->job_next = self->jobs.count = 0;
    if (!play_push(s, &self->jobs, sizeof added, &added) || self->busy)
        return;
    self->busy = true;
    ask_for_cpu(s, rank);
}

/* ---- messages ---- */

/* In a folded world: the rank of node 0 that stands where `rank` stands in its node. */
static uint32_t folded(const play_state *s, uint32_t rank)
{
    return s->world->folded ? pmr_shape_rank(s->world->shape, 0, s->world->shape->index[rank]) : rank;
}

/* Who a message from `rank` to `to` comes from, for the one who plays its receiver. */
static uint32_t seen_from(const play_state *s, uint32_t rank, uint32_t to)
{
    const pmr_shape *shape = s->world->shape;
    if (!s->world->folded)
        return rank;
    return pmr_shape_rank(shape, (shape->nodes - shape->node[to]) % shape->nodes, shape->index[rank]);
}

static void send_message(play_state *s, uint32_t rank, uint32_t call, const pmr_step *step)
{
    if (step->kind != PMR_STEP_SEND)
        return;
    const pmr_schedule *there = s->players[folded(s, step->peer)].schedule;
    uint32_t peer = pmr_runner_peer(there, seen_from(s, rank, step->peer));
    if (peer == UINT32_MAX || step->number >= there->peers[peer].receives) {
        s->failed = true;
        return;
    }
    uint32_t receive = there->receive_steps[there->peers[peer].receive + step->number];
    play_leave(s, rank, step->source, folded(s, step->peer), step->amount, (job){.kind = JOB_RECEIVE, .call = call, .index = receive});
}

/* The word that this rank has entered. */
static void send_entry(play_state *s, uint32_t rank, uint32_t call, uint32_t peer)
{
    uint32_t to = s->players[rank].schedule->peers[peer].rank;
    uint32_t there = pmr_runner_peer(s->players[folded(s, to)].schedule, seen_from(s, rank, to));
    s->failed = s->failed || there == UINT32_MAX;
    if (there != UINT32_MAX)
        play_leave(s, rank, peer, folded(s, to), 0, (job){.kind = JOB_ENTERED, .call = call, .index = there});
}

/* ---- steps ---- */

static bool brings_entry(const pmr_schedule *schedule, const pmr_step *send)
{
    return send->number == 0 && pmr_schedule_brings_entry(schedule, &schedule->peers[send->source]);
}

static void enable(play_state *s, uint32_t rank, uint32_t number)
{
    player *self = &s->players[rank];
    const pmr_step *step = pmr_schedule_step(self->schedule, number);
    if (step->kind == PMR_STEP_RECEIVE || step->kind == PMR_STEP_NODE)
        return;
    bool waits = step->kind == PMR_STEP_SEND && step->amount > PMR_EAGER_BYTES &&
                 self->entered[step->source] <= self->call && !brings_entry(self->schedule, step);
    if (waits)
        self->held[self->held_count++] = number;
    else
        add_job(s, rank, (job){.kind = JOB_STEP, .call = self->call, .index = number});
}

static const pmr_node_call *present_call(const player *self)
{
    return pmr_schedule_call(self->schedule, pmr_schedule_step(self->schedule, self->node_steps[self->next_node]));
}

static size_t meeting_number(const player *self)
{
    return (size_t)self->call * self->schedule->calls.count + self->next_node;
}

static node_meeting *meeting_of(const play_state *s, const player *self)
{
    return &s->meetings[self->node * s->node_meetings + meeting_number(self)];
}

/* Whether a member that is there may do its part: it waits for those only whose data it takes. */
static bool may_start(const play_state *s, const player *self, uint32_t rank, const pmr_node_call *call)
{
    const node_meeting *meeting = meeting_of(s, self);
    bool root = call->root == s->world->shape->index[rank];
    if (meeting->arrived == pmr_shape_members(s->world->shape, self->node))
        return true;
    if (call->kind == PMR_BROADCAST || call->kind == PMR_SCATTERV)
        return meeting->root_arrived;
    return (call->kind == PMR_REDUCE || call->kind == PMR_GATHER || call->kind == PMR_GATHERV) && !root;
}

/* Members that wait in the node's present collective, and now need not. */
static void start_members(play_state *s, const player *arrived)
{
    const pmr_shape *shape = s->world->shape;
    size_t number = meeting_number(arrived);
    for (uint32_t i = 0; i < pmr_shape_members(shape, arrived->node); i++) {
        uint32_t rank = pmr_shape_rank(shape, arrived->node, i);
        player *self = &s->players[rank];
        if (!self->at_node || meeting_number(self) != number || !may_start(s, self, rank, present_call(self)))
            continue;
        self->at_node = false;
        add_job(s, rank, (job){.kind = JOB_STEP, .call = self->call, .index = self->node_steps[self->next_node]});
    }
}

static void look_at_node(play_state *s, uint32_t rank)
{
    player *self = &s->players[rank];
    if (!self->in_call || self->next_node >= self->schedule->calls.count)
        return;
    uint32_t number = self->node_steps[self->next_node];
    if (self->after[number])
        return;
    self->after[number] = UINT32_MAX; /* it is there */
    node_meeting *meeting = meeting_of(s, self);
    meeting->arrived++;
    meeting->root_arrived = meeting->root_arrived || present_call(self)->root == s->world->shape->index[rank];
    self->at_node = true;
    start_members(s, self);
}

static void end_call(play_state *s, uint32_t rank)
{
    player *self = &s->players[rank];
    s->end_us = s->now_us;
    self->in_call = false;
    if (++self->call < s->world->calls)
        add_job(s, rank, (job){.kind = JOB_CALL, .call = self->call});
}

static void finish(play_state *s, uint32_t rank, uint32_t number)
{
    player *self = &s->players[rank];
    const pmr_step *step = pmr_schedule_step(self->schedule, number);
    self->next_node += step->kind == PMR_STEP_NODE;
    for (uint32_t i = 0; i < step->next_count; i++) {
        uint32_t next = self->schedule->edges[step->next + i];
        if (--self->after[next] == 0)
            enable(s, rank, next);
    }
    look_at_node(s, rank);
    if (--self->left == 0)
        end_call(s, rank);
}

/* ---- calls ---- */

static void begin_call(play_state *s, uint32_t rank)
{
    player *self = &s->players[rank];
    const pmr_schedule *schedule = self->schedule;
    self->in_call = true;
    self->left = schedule->steps.count;
    self->next_node = self->held_count = 0;
    for (uint32_t i = 0; i < schedule->steps.count; i++)
        self->after[i] = pmr_schedule_step(schedule, i)->after;
    for (uint32_t i = 0; i < schedule->peer_count; i++)
        if (!pmr_schedule_brings_entry(schedule, &schedule->peers[i]))
            add_job(s, rank, (job){.kind = JOB_ENTER, .call = self->call, .index = i});
    for (uint32_t i = 0; i < schedule->steps.count; i++)
        if (pmr_schedule_step(schedule, i)->after == 0)
            enable(s, rank, i);
    look_at_node(s, rank);
    job *early = self->early.data;
    uint32_t kept = 0, count = self->early.count, call = self->call;
    self->early.count = 0;
    for (uint32_t i = 0; i < count; i++)
        if (early[i].call == call)
            finish(s, rank, early[i].index);
        else
            early[kept++] = early[i];
    self->early.count = kept;
    if (schedule->steps.count == 0)
        end_call(s, rank);
}

static void hear_entry(play_state *s, uint32_t rank, uint32_t peer)
{
    player *self = &s->players[rank];
    self->entered[peer]++;
    uint32_t kept = 0, count = self->held_count;
    self->held_count = 0;
    for (uint32_t i = 0; i < count; i++) {
        uint32_t number = self->held[i];
        if (pmr_schedule_step(self->schedule, number)->source == peer && self->entered[peer] > self->call)
            add_job(s, rank, (job){.kind = JOB_STEP, .call = self->call, .index = number});
        else
            self->held[kept++] = number;
    }
    self->held_count = kept;
}

/* A message that came may bring the word that its sender has entered. */
static void hear_message(play_state *s, uint32_t rank, uint32_t number)
{
    const pmr_step *step = pmr_schedule_step(s->players[rank].schedule, number);
    const pmr_schedule *there = s->players[folded(s, step->peer)].schedule;
    uint32_t peer = pmr_runner_peer(there, seen_from(s, rank, step->peer));
    s->failed = s->failed || peer == UINT32_MAX;
    if (step->number == 0 && peer != UINT32_MAX && pmr_schedule_brings_entry(there, &there->peers[peer]))
        hear_entry(s, rank, step->source);
}

static void job_done(play_state *s, uint32_t rank, const job *done)
{
    player *self = &s->players[rank];
    switch (done->kind) {
    case JOB_CALL:
        begin_call(s, rank);
        break;
    case JOB_ENTER:
        send_entry(s, rank, done->call, done->index);
        break;
    case JOB_ENTERED:
        hear_entry(s, rank, done->index);
        break;
    case JOB_RECEIVE:
        hear_message(s, rank, done->index);
        if (self->in_call && self->call == done->call)
            finish(s, rank, done->index);
        else
            play_push(s, &self->early, sizeof *done, done);
        break;
    default:
        send_message(s, rank, done->call, pmr_schedule_step(self->schedule, done->index));
        finish(s, rank, done->index);
    }
    if (self->job_next < self->jobs.count) {
        run_next_job(s, rank, 0);
        return;
    }
    self->busy = false;
    give_cpu_back(s, rank);
}

/* ---- the whole ---- */

static bool open_player(play_state *s, uint32_t rank)
{
    player *self = &s->players[rank];
    const pmr_schedule *schedule = self->schedule = &s->world->schedules[rank];
    uint32_t steps = schedule->steps.count, nodes = 0;
    self->node = s->world->shape->node[rank];
    self->after = malloc(((size_t)steps + 1) * sizeof *self->after);
    self->held = malloc(((size_t)schedule->sends + 1) * sizeof *self->held);
    self->entered = calloc((size_t)schedule->peer_count + 1, sizeof *self->entered);
    self->flows = calloc((size_t)schedule->peer_count + 1, sizeof *self->flows);
    self->node_steps = malloc(((size_t)schedule->calls.count + 1) * sizeof *self->node_steps);
    if (!self->after || !self->held || !self->entered || !self->flows || !self->node_steps)
        return false;
    for (uint32_t i = 0; i < steps; i++)
        if (pmr_schedule_step(schedule, i)->kind == PMR_STEP_NODE)
            self->node_steps[nodes++] = i;
    return true;
}

static bool open_state(play_state *s)
{
    uint32_t nodes = s->world->folded ? 1 : s->world->shape->nodes;
    s->count = s->world->folded ? pmr_shape_members(s->world->shape, 0) : s->world->shape->size;
    s->players = calloc(s->count, sizeof *s->players);
    for (uint32_t rank = 0; rank < s->count; rank++) {
        size_t own = (size_t)s->world->calls * s->world->schedules[rank].calls.count;
        s->node_meetings = own > s->node_meetings ? own : s->node_meetings;
    }
    s->meetings = calloc(nodes * s->node_meetings + 1, sizeof *s->meetings);
    s->links = calloc(nodes, sizeof *s->links);
    s->pools = calloc(nodes, sizeof *s->pools);
    bool opened = s->players && s->meetings && s->links && s->pools;
    for (uint32_t node = 0; opened && node < nodes; node++)
        s->pools[node].free = s->model->cpus < 1 ? 1 : (uint32_t)s->model->cpus;
    for (uint32_t rank = 0; opened && rank < s->count; rank++)
        opened = open_player(s, rank);
    return opened;
}

static void close_state(play_state *s)
{
    for (uint32_t rank = 0; s->players && rank < s->count; rank++) {
        player *self = &s->players[rank];
        for (uint32_t peer = 0; self->flows && peer < self->schedule->peer_count; peer++)
            play_free_letters(&self->flows[peer]);
        free(self->flows);
        free(self->after);
        free(self->held);
        free(self->entered);
        free(self->node_steps);
        free(self->jobs.data);
        free(self->early.data);
    }
    for (uint32_t node = 0; s->pools && node < (s->world->folded ? 1 : s->world->shape->nodes); node++)
        free(s->pools[node].queue.data);
    free(s->players);
    free(s->meetings);
    free(s->links);
    free(s->pools);
    free(s->heap.data);
}

double play(const play_world *world, const play_model *model)
{
    play_state s = {.world = world, .model = model};
    bool done = open_state(&s);
    for (uint32_t rank = 0; done && rank < s.count; rank++)
        add_job(&s, rank, (job){.kind = JOB_CALL});
    while (done && !s.failed && s.heap.count) {
        event e = play_next(&s);
        s.now_us = e.at_us;
        if (e.kind == EVENT_JOB_DONE)
            job_done(&s, e.rank, &e.job);
        else if (e.kind == EVENT_OUT)
            play_go_out(&s, e.rank);
        else if (e.kind == EVENT_AT_LINK)
            play_arrive(&s, &e);
        else
            add_job(&s, e.rank, e.job);
    }
    for (uint32_t rank = 0; done && rank < s.count; rank++)
        done = s.players[rank].call == world->calls;
    bool well = done && !s.failed;
    close_state(&s);
    return well ? s.end_us / world->calls : -1;
}
