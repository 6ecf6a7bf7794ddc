/* SPDX-License-Identifier: Apache-2.0
 *
 * probe.c: does data get through between all pairs of nodes?
 *
 * A firewall may let a connection through and no data, an MTU may let small packets through and no large ones. The first
 * rank of each node therefore sends 64 KiB to the first ranks of the others and waits for theirs. Whoever is through
 * first may go on and send other packets: those are held back, and shown to the owner that comes after this.
 */
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/clock.h"
#include "core/status.h"
#include "core/wait.h"
#include "transport/net.h"

#define PROBE_BYTES 65536u
#define PROBE_LANE  1u
#define NAMED_MAX   4u

typedef struct probe {
    pmr_net *net;
    uint8_t *heard; /* by node */
    uint32_t missing; /* nodes not heard of */
    uint32_t unsent;  /* nodes whose data is not on its way */
    pmr_status status; /* of the first peer that was lost */
    pmr_error *error;
} probe;

static pmr_placing place(void *arg, uint32_t peer, uint32_t lane, const pmr_packet *packet, void **into_out)
{
    (void)arg, (void)peer, (void)lane, (void)into_out;
    bool ours = packet->kind == PMR_PACKET_PROBE && packet->payload_bytes == PROBE_BYTES;
    return ours ? PMR_PLACE_SHOW : PMR_PLACE_LATER;
}

static void arrived(void *arg, uint32_t peer, uint32_t lane, const pmr_packet *packet, const void *payload)
{
    (void)lane, (void)packet, (void)payload;
    probe *self = arg;
    uint32_t node = pmr_net_node_of(self->net, peer);
    if (!self->heard[node] && peer == self->net->first_rank[node]) {
        self->heard[node] = true;
        self->missing--;
    }
}

static void sent(void *arg, uint64_t cookie)
{
    (void)cookie;
    ((probe *)arg)->unsent--;
}

static void lost(void *arg, uint32_t peer, const pmr_error *error)
{
    (void)peer;
    probe *self = arg;
    if (self->status == PMR_OK && self->error)
        *self->error = *error;
    self->status = error->status;
}

static uint8_t payload_sent[PROBE_BYTES]; /* zeros, which outlive a probe that fails */

static void send_from(pmr_net *net, uint32_t *next)
{
    for (; *next < net->nodes; ++*next) {
        pmr_packet packet = {.kind = PMR_PACKET_PROBE, .payload_bytes = PROBE_BYTES, .source = (int32_t)net->rank};
        if (*next != net->node && !pmr_endpoint_send(net->endpoint, net->first_rank[*next], PROBE_LANE, &packet,
                                                     payload_sent, 1 + *next))
            return; /* no memory now: tried again behind the next poll */
    }
}

static pmr_status name_missing(const probe *self, int64_t timeout_ns, pmr_error *error)
{
    const pmr_net *net = self->net;
    char nodes[NAMED_MAX * (24 + PMR_ADDRESS_BYTES)] = "";
    uint32_t named = 0;
    for (uint32_t node = 0; node < net->nodes; node++) {
        if (node == net->node || self->heard[node] || ++named > NAMED_MAX)
            continue;
        size_t used = strlen(nodes);
        snprintf(nodes + used, sizeof nodes - used, "%snode %u (%s)", named > 1 ? ", " : "", node, net->addresses[node]);
    }
    if (!named)
        return pmr_fail(error, PMR_ERR_STALLED, "the data of node %u (%s) did not leave it within %.3g s", net->node,
                        net->addresses[net->node], (double)timeout_ns / 1e9);
    return pmr_fail(error, PMR_ERR_STALLED,
                    "no data came to node %u (%s) from %s%s within %.3g s: does a firewall, or an MTU that is too large, "
                    "stand between them?",
                    net->node, net->addresses[net->node], nodes, named > NAMED_MAX ? ", ..." : "",
                    (double)timeout_ns / 1e9);
}

static pmr_status run(probe *self, int64_t timeout_ns, pmr_error *error)
{
    pmr_endpoint *endpoint = self->net->endpoint;
    int64_t deadline_ns = pmr_deadline_ns(timeout_ns);
    uint32_t next = 0;
    while (self->missing || self->unsent) {
        send_from(self->net, &next);
        bool moved = pmr_endpoint_poll(endpoint);
        if (self->status)
            return self->status;
        if (moved)
            continue;
        if (pmr_now_ns() >= deadline_ns)
            return name_missing(self, timeout_ns, error);
        struct pollfd waiting = {.fd = endpoint->descriptor, .events = POLLIN};
        int rc = poll(&waiting, 1, PMR_WAIT_SLICE_NS / 1000000);
        if ((rc == 0 || (rc < 0 && errno == EINTR)) && pmr_interrupted())
            return pmr_fail(error, PMR_ERR_INTERRUPTED, "interrupted while the network was tried");
    }
    return PMR_OK;
}

pmr_status pmr_net_probe(pmr_net *net, int64_t timeout_ns, pmr_error *error)
{
    if (!net->connected)
        return pmr_fail(error, PMR_ERR_ARGUMENT, "the network is not connected yet");
    if (net->nodes == 1 || net->rank != net->first_rank[net->node])
        return PMR_OK;
    probe self = {.net = net, .missing = net->nodes - 1, .unsent = net->nodes - 1, .error = error};
    self.heard = calloc(net->nodes, 1);
    if (!self.heard)
        return pmr_fail(error, PMR_ERR_NO_MEMORY, "out of memory for a network of %u nodes", net->nodes);
    pmr_endpoint *endpoint = net->endpoint;
    endpoint->sink = (pmr_sink){&self, place, arrived, sent, lost};
    pmr_status status = run(&self, timeout_ns, error);
    for (uint32_t peer = 0; peer < net->ranks; peer++)
        for (uint32_t lane = 0; peer != net->rank && lane < endpoint->lanes; lane++)
            pmr_endpoint_resume(endpoint, peer, lane); /* what was held back is for the next sink */
    free(self.heard);
    memset(&endpoint->sink, 0, sizeof endpoint->sink);
    return status;
}
