/* SPDX-License-Identifier: Apache-2.0
 *
 * trial.c: how fast is the path between two ranks, on this transport?
 *
 * A net of two ranks of its own, which nothing else uses: rank 0 asks, rank 1 answers. First short messages there and
 * back, then several long ones at once, over all lanes, which are answered when all have come; of each kind the first
 * one makes connections and does not count, and the fastest of the others does, since what disturbs only ever adds.
 * Invariant: both ends return within the time limit, whatever the other one does.
 */
#include <errno.h>
#include <poll.h>

#include "core/clock.h"
#include "core/status.h"
#include "core/wait.h"
#include "transport/net.h"

#define SHORT_BYTES 8u
#define LONG_BYTES  65536u
#define LONG_PARTS  4u
#define REPEATS_MAX 64u
#define IDLE_POLLS  100u /* before a wait sleeps */

_Static_assert(LONG_BYTES * LONG_PARTS == PMR_TRIAL_BYTES, "what pmr.h promises");

typedef struct trial {
    pmr_net *net;
    pmr_error *error;
    int64_t deadline_ns, timeout_ns;
    uint32_t unsent;      /* payloads that are not on their way */
    uint32_t heard;       /* rank 0: answers */
    uint32_t parts, idle; /* rank 1: packets of the present question; polls in vain */
    uint32_t owed;        /* rank 1: answers */
    bool ended;           /* rank 1: that was all */
    pmr_status status;    /* the peer was lost */
} trial;

static pmr_placing place(void *arg, uint32_t peer, uint32_t lane, const pmr_packet *packet, void **into_out)
{
    (void)arg, (void)peer, (void)lane, (void)packet, (void)into_out;
    return PMR_PLACE_SHOW;
}

/* A packet's token: of how many a question consists; 0: there is no other one. */
static void arrived(void *arg, uint32_t peer, uint32_t lane, const pmr_packet *packet, const void *payload)
{
    (void)peer, (void)lane, (void)payload;
    trial *self = arg;
    if (packet->kind != PMR_PACKET_TRIAL)
        return;
    if (self->net->rank == 0) {
        self->heard++;
        return;
    }
    self->ended = self->ended || packet->token == 0;
    if (packet->token && ++self->parts == packet->token) {
        self->parts = 0;
        self->owed++;
    }
}

static void sent(void *arg, uint64_t cookie)
{
    (void)cookie;
    ((trial *)arg)->unsent--;
}

static void lost(void *arg, uint32_t peer, const pmr_error *error)
{
    (void)peer;
    trial *self = arg;
    if (self->status == PMR_OK && self->error)
        *self->error = *error;
    self->status = error->status;
}

static const uint8_t payload_sent[LONG_BYTES]; /* zeros, which outlive a trial that fails */

/* One poll, and, where nothing moved for a while, sleep until something may. */
static pmr_status turn(trial *self)
{
    pmr_endpoint *endpoint = self->net->endpoint;
    bool moved = pmr_endpoint_poll(endpoint);
    if (self->status)
        return self->status;
    self->idle = moved ? 0 : self->idle + 1;
    if (self->idle < IDLE_POLLS)
        return PMR_OK;
    if (pmr_now_ns() >= self->deadline_ns)
        return pmr_fail(self->error, PMR_ERR_STALLED, "no answer from %s within %.3g s", endpoint->ops->name,
                        (double)self->timeout_ns / 1e9);
    struct pollfd waiting = {.fd = endpoint->descriptor, .events = POLLIN};
    int rc = poll(&waiting, 1, PMR_WAIT_SLICE_NS / 1000000);
    if ((rc == 0 || (rc < 0 && errno == EINTR)) && pmr_interrupted())
        return pmr_fail(self->error, PMR_ERR_INTERRUPTED, "interrupted while transports were compared");
    return PMR_OK;
}

static pmr_status send_packet(trial *self, uint32_t lane, uint64_t token, uint32_t bytes)
{
    pmr_endpoint *endpoint = self->net->endpoint;
    pmr_packet packet = {.kind = PMR_PACKET_TRIAL,
                         .payload_bytes = bytes,
                         .source = (int32_t)self->net->rank,
                         .token = token};
    pmr_status status = PMR_OK;
    while (!status && !pmr_endpoint_send(endpoint, 1 - self->net->rank, lane, &packet, payload_sent, 1))
        status = turn(self);
    self->unsent += status == PMR_OK;
    return status;
}

/* Everything is in the kernel's hands, or in those of the transport's threads. */
static pmr_status flush(trial *self)
{
    pmr_status status = PMR_OK;
    while (!status && (self->unsent || pmr_endpoint_unsent_bytes(self->net->endpoint)))
        status = turn(self);
    return status;
}

static pmr_status ask(trial *self, uint32_t parts, uint32_t bytes)
{
    uint32_t lanes = self->net->endpoint->lanes, wanted = self->heard + 1;
    pmr_status status = PMR_OK;
    for (uint32_t part = 0; !status && part < parts; part++)
        status = send_packet(self, parts == 1 ? 0 : 1 + part % (lanes - 1), parts, bytes);
    while (!status && self->heard < wanted)
        status = turn(self);
    return status;
}

/* The fastest of several questions, for about that time behind the first one, which makes connections. */
static pmr_status time_questions(trial *self, uint32_t parts, uint32_t bytes, int64_t span_ns, double *us_out)
{
    pmr_status status = ask(self, parts, bytes);
    int64_t best_ns = INT64_MAX, now_ns = pmr_now_ns(), until_ns = now_ns + span_ns;
    for (uint32_t i = 0; !status && i < REPEATS_MAX && (i == 0 || now_ns < until_ns); i++) {
        int64_t start_ns = now_ns;
        status = ask(self, parts, bytes);
        now_ns = pmr_now_ns();
        best_ns = now_ns - start_ns < best_ns ? now_ns - start_ns : best_ns;
    }
    if (!status)
        *us_out = (double)best_ns / 1e3;
    return status;
}

static pmr_status run_asking(trial *self, int64_t budget_ns, pmr_net_figures *figures)
{
    pmr_status status = time_questions(self, 1, SHORT_BYTES, budget_ns / 2, &figures->short_us);
    if (!status && figures->short_us * 1e3 < (double)budget_ns / 2)
        status = time_questions(self, LONG_PARTS, LONG_BYTES, budget_ns / 2, &figures->long_us);
    if (!status)
        status = send_packet(self, 0, 0, SHORT_BYTES);
    return status ? status : flush(self);
}

static pmr_status run_answering(trial *self)
{
    pmr_status status = PMR_OK;
    while (!status && !self->ended) {
        for (; !status && self->owed; self->owed--)
            status = send_packet(self, 0, 0, SHORT_BYTES);
        if (!status)
            status = turn(self);
    }
    return status ? status : flush(self);
}

pmr_status pmr_net_time(pmr_net *net, int64_t budget_ns, int64_t timeout_ns, pmr_net_figures *out, pmr_error *error)
{
    if (!net->connected || net->ranks != 2)
        return pmr_fail(error, PMR_ERR_ARGUMENT, "a network is timed between two ranks, once it is connected");
    trial self = {.net = net, .error = error, .deadline_ns = pmr_deadline_ns(timeout_ns), .timeout_ns = timeout_ns};
    pmr_net_figures figures = {0};
    net->endpoint->sink = (pmr_sink){&self, place, arrived, sent, lost};
    pmr_status status = net->rank == 0 ? run_asking(&self, budget_ns, &figures) : run_answering(&self);
    net->endpoint->sink = pmr_sink_of_closing;
    if (!status)
        *out = figures;
    return status;
}
