/* SPDX-License-Identifier: Apache-2.0
 *
 * play_link.c: the links between nodes: messages go out in pieces, in turns, and come in as they arrive.
 *
 * Each direction of a node's link carries one piece after the other. TCP shares a link among its connections, so those
 * that have something to send take turns, and a message waits for earlier ones of its own connection only. Invariant: a
 * flow is in its node's queue exactly while it has letters.
 */
#include "play_state.h"

#define QUANTUM_BYTES 65536u /* of one message, before the next flow of the node has its turn: what TCP hands down at once */

/* Takes so many bytes' time of a link's direction; answers when they are through. Time that was not used, as much as the
 * burst takes, may be used now; at the start, as in the midst of many calls, there is none. */
static double take_link(const play_state *s, double *taken_us, uint64_t bytes)
{
    const play_model *m = s->model;
    double earliest_us = s->now_us - m->burst_kib * m->link_kib_us;
    *taken_us = (*taken_us > earliest_us ? *taken_us : earliest_us) + (double)bytes / 1024 * m->link_kib_us;
    return *taken_us > s->now_us ? *taken_us : s->now_us;
}

static void send_quantum(play_state *s, uint32_t node)
{
    node_link *link = &s->links[node];
    link->busy = link->first != NULL;
    if (!link->busy)
        return;
    uint64_t left = link->first->first->left, bytes = left < QUANTUM_BYTES ? left : QUANTUM_BYTES;
    play_event(s, (event){.at_us = take_link(s, &link->out_us, bytes), .kind = EVENT_OUT, .rank = node});
}

static void add_flow(node_link *link, flow *added)
{
    added->next = NULL;
    if (link->first)
        link->last->next = added;
    else
        link->first = added;
    link->last = added;
}

void play_leave(play_state *s, uint32_t rank, uint32_t peer, uint32_t to, uint64_t bytes, job job)
{
    if (s->model->link_kib_us <= 0) {
        play_event(s, (event){.at_us = s->now_us + s->model->latency_us, .kind = EVENT_DELIVERED, .rank = to, .job = job});
        return;
    }
    letter *added = malloc(sizeof *added);
    s->failed = s->failed || !added;
    if (!added)
        return;
    *added = (letter){.left = bytes, .to = to, .job = job};
    uint32_t node = s->players[rank].node;
    flow *via = &s->players[rank].flows[peer];
    if (via->first)
        via->last->next = added;
    else
        via->first = added;
    via->last = added;
    if (via->first == added)
        add_flow(&s->links[node], via);
    if (!s->links[node].busy)
        send_quantum(s, node);
}

/* A part of the first flow's message is through; the next flow has its turn. */
void play_go_out(play_state *s, uint32_t node)
{
    node_link *link = &s->links[node];
    flow *via = link->first;
    letter *sent = via->first;
    uint32_t bytes = sent->left < QUANTUM_BYTES ? (uint32_t)sent->left : QUANTUM_BYTES;
    sent->left -= bytes;
    event arrival = {.at_us = s->now_us + s->model->latency_us, .kind = EVENT_AT_LINK, .rank = sent->to, .bytes = bytes};
    link->first = via->next;
    if (sent->left == 0) {
        arrival.job = sent->job;
        via->first = sent->next;
        free(sent);
    }
    if (via->first)
        add_flow(link, via);
    play_event(s, arrival);
    send_quantum(s, node);
}

void play_arrive(play_state *s, const event *e)
{
    double at_us = take_link(s, &s->links[s->players[e->rank].node].in_us, e->bytes);
    if (e->job.kind != JOB_NONE)
        play_event(s, (event){.at_us = at_us, .kind = EVENT_DELIVERED, .rank = e->rank, .job = e->job});
}

void play_free_letters(flow *via)
{
    while (via->first) {
        letter *next = via->first->next;
        free(via->first);
        via->first = next;
    }
}
