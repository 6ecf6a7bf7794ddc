/* SPDX-License-Identifier: Apache-2.0
 *
 * zmq_out.c: the sending side: a DEALER per (peer, lane), and what its monitor tells of the connection.
 *
 * Small payloads are copied into the message with the header; larger ones are lent to libzmq, whose thread clears the
 * payload's slot and rings when it has let go. libzmq does not dial again by itself: what was under way would be lost
 * and nobody would know. So a dial that comes to nothing is repeated here, and an end of a connection that was open is
 * the end of the peer.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "core/clock.h"
#include "core/status.h"
#include "transport/zmq.h"

#define DIALS_MAX          20u /* that come to nothing, over about 15 s */
#define REFUSALS_MAX       8u
#define UNANSWERED_MAX     4u /* nobody listens: ports are bound before they are published, so the peer is gone */
#define UNANSWERED_NS      1000000000 /* a connection that fails sooner was refused, and did not time out */
#define PATIENCE_NS        5000000000
#define ANSWER_NS          15000000000
#define REST_MIN_NS        20000000
#define REST_MAX_NS        1000000000
#define CUT_NS             200000000 /* between the end of a connection and that of its peer: goodbyes may be on their way */
#define KEEP_IDLE_S        5
#define KEEP_INTERVAL_S    3
#define KEEP_PROBES        5
#define SILENCE_MS         20000 /* the peer's library reads always, so silence means that it is gone */
#define CONNECT_TIMEOUT_MS 10000
#define ANSWER_BYTES_MAX   512 /* of our handshake, and of CURVE's own before it */
#define HWM                256 /* messages; above the window, so it is never met */
#define EVENTS (PMR_ZMQ_EVENT_CLOSED | PMR_ZMQ_EVENT_DISCONNECTED | PMR_ZMQ_EVENT_FAILED_NO_DETAIL | \
                PMR_ZMQ_EVENT_FAILED_PROTOCOL | PMR_ZMQ_EVENT_FAILED_AUTH)

static uint32_t index_of(const pmr_zmq_endpoint *self, const pmr_zmq_flow *flow)
{
    return flow->peer * self->base.lanes + flow->lane;
}

/* ---- dialling ---- */

static bool prove_with(pmr_zmq_endpoint *self, pmr_zmq_flow *flow, const pmr_answer *hello)
{
    const pmr_zmq *zmq = &self->zmq;
    if (self->encrypt)
        return zmq->setsockopt(flow->socket, PMR_ZMQ_CURVE_SERVERKEY, self->curve_public, 41) == 0 &&
               zmq->setsockopt(flow->socket, PMR_ZMQ_CURVE_PUBLICKEY, self->curve_public, 41) == 0 &&
               zmq->setsockopt(flow->socket, PMR_ZMQ_CURVE_SECRETKEY, self->curve_secret, 41) == 0;
    return zmq->setsockopt(flow->socket, PMR_ZMQ_PLAIN_USERNAME, "pmrun", 5) == 0 &&
           zmq->setsockopt(flow->socket, PMR_ZMQ_PLAIN_PASSWORD, hello->message, hello->bytes) == 0;
}

static bool set_options(pmr_zmq_endpoint *self, pmr_zmq_flow *flow)
{
    void *socket = flow->socket;
    if (self->socket_bytes && !(pmr_zmq_option(self, socket, PMR_ZMQ_SNDBUF, (int)self->socket_bytes) &&
                                pmr_zmq_option(self, socket, PMR_ZMQ_RCVBUF, (int)self->socket_bytes)))
        return false;
    return pmr_zmq_option(self, socket, PMR_ZMQ_IPV6, self->ipv6) &&
           pmr_zmq_option(self, socket, PMR_ZMQ_RECONNECT_IVL, -1) &&
           pmr_zmq_option(self, socket, PMR_ZMQ_CONNECT_TIMEOUT, CONNECT_TIMEOUT_MS) &&
           pmr_zmq_option(self, socket, PMR_ZMQ_LINGER, 0) && pmr_zmq_option(self, socket, PMR_ZMQ_SNDHWM, HWM) &&
           pmr_zmq_option(self, socket, PMR_ZMQ_RCVHWM, HWM) &&
           pmr_zmq_option(self, socket, PMR_ZMQ_MAXMSGSIZE, ANSWER_BYTES_MAX) &&
           pmr_zmq_option(self, socket, PMR_ZMQ_TCP_KEEPALIVE, 1) &&
           pmr_zmq_option(self, socket, PMR_ZMQ_TCP_KEEPALIVE_IDLE, KEEP_IDLE_S) &&
           pmr_zmq_option(self, socket, PMR_ZMQ_TCP_KEEPALIVE_INTVL, KEEP_INTERVAL_S) &&
           pmr_zmq_option(self, socket, PMR_ZMQ_TCP_KEEPALIVE_CNT, KEEP_PROBES) &&
           pmr_zmq_option(self, socket, PMR_ZMQ_TCP_MAXRT, SILENCE_MS);
}

static bool watch_connection(pmr_zmq_endpoint *self, pmr_zmq_flow *flow)
{
    char name[64];
    snprintf(name, sizeof name, "inproc://pmrun-monitor-%u", self->monitors++);
    if (self->zmq.socket_monitor(flow->socket, name, EVENTS) != 0)
        return false;
    flow->monitor = self->zmq.socket(self->context, PMR_ZMQ_PAIR);
    return flow->monitor && pmr_zmq_option(self, flow->monitor, PMR_ZMQ_LINGER, 0) &&
           self->zmq.connect(flow->monitor, name) == 0 &&
           pmr_zmq_watch(self, flow->monitor, PMR_ZMQ_FLOW, index_of(self, flow));
}

void pmr_zmq_hang_up(pmr_zmq_endpoint *self, pmr_zmq_flow *flow, int linger_ms)
{
    if (flow->socket) {
        pmr_zmq_option(self, flow->socket, PMR_ZMQ_LINGER, linger_ms);
        self->zmq.socket_monitor(flow->socket, NULL, 0);
        self->zmq.close(flow->socket);
    }
    if (flow->monitor)
        self->zmq.close(flow->monitor);
    flow->socket = flow->monitor = NULL; /* closing took their descriptors out of the epoll set */
}

/* Tells the sink nothing: what fails is tried again by the clock. */
void pmr_zmq_dial(pmr_zmq_endpoint *self, pmr_zmq_flow *flow)
{
    char address[PMR_ADDRESS_BYTES + 8];
    pmr_answer hello;
    pmr_error error;
    snprintf(address, sizeof address, "tcp://%s", self->peers[flow->peer].address);
    flow->state = PMR_ZMQ_DIALING;
    flow->dialed_ns = pmr_now_ns();
    flow->socket = self->zmq.socket(self->context, PMR_ZMQ_DEALER);
    if (!flow->socket ||
        pmr_handshake_dial(&flow->handshake, self->key, self->base.rank, flow->peer, flow->lane, &hello, &error) ||
        !set_options(self, flow) || !prove_with(self, flow, &hello) || !watch_connection(self, flow) ||
        !pmr_zmq_watch(self, flow->socket, PMR_ZMQ_FLOW, index_of(self, flow)) ||
        self->zmq.connect(flow->socket, address) != 0 ||
        self->zmq.send(flow->socket, hello.message, hello.bytes, PMR_ZMQ_DONTWAIT) < 0) {
        pmr_zmq_hang_up(self, flow, 0);
        flow->state = PMR_ZMQ_RESTING;
        flow->dials++;
        flow->rest_until_ns = pmr_now_ns() + REST_MAX_NS;
    }
    pmr_zmq_due(self, flow);
}

static bool rest(pmr_zmq_endpoint *self, pmr_zmq_flow *flow, const char *why)
{
    pmr_zmq_hang_up(self, flow, 0);
    flow->state = PMR_ZMQ_RESTING;
    if (++flow->dials >= DIALS_MAX)
        return pmr_zmq_lose(self, flow->peer, "cannot connect to rank %u (%s): %s", flow->peer,
                            self->peers[flow->peer].address, why);
    int64_t rest_ns = (int64_t)REST_MIN_NS << (flow->dials < 6 ? flow->dials : 6);
    flow->rest_until_ns = pmr_now_ns() + (rest_ns < REST_MAX_NS ? rest_ns : REST_MAX_NS);
    return true;
}

/* ---- what the connection says ---- */

static bool connection_ended(pmr_zmq_endpoint *self, pmr_zmq_flow *flow, uint16_t event)
{
    pmr_zmq_peer *peer = &self->peers[flow->peer];
    if (flow->state == PMR_ZMQ_OPEN) {
        if (!peer->cut_ns)
            peer->cut_ns = pmr_now_ns();
        return false;
    }
    if (flow->state != PMR_ZMQ_DIALING)
        return false;
    int64_t took_ns = pmr_now_ns() - flow->dialed_ns;
    if (event == PMR_ZMQ_EVENT_CLOSED) {
        if (took_ns < UNANSWERED_NS && ++flow->unanswered == UNANSWERED_MAX)
            return pmr_zmq_lose(self, flow->peer, "rank %u (%s) is gone: nobody listens at its address any more",
                                flow->peer, peer->address);
        return rest(self, flow, "no connection can be made");
    }
    if (took_ns >= PATIENCE_NS)
        flow->dials = 0; /* one of us did not poll for long: no sign of anything */
    else if (++flow->refusals == REFUSALS_MAX)
        flow->dials = DIALS_MAX;
    return rest(self, flow, "it closes each connection before the key is proven (is the secret the same there?)");
}

static bool hear_answer(pmr_zmq_endpoint *self, pmr_zmq_flow *flow, const uint8_t *message, size_t bytes)
{
    pmr_answer answer;
    pmr_zmq_peer *peer = &self->peers[flow->peer];
    if (bytes != pmr_handshake_wanted(&flow->handshake))
        return pmr_zmq_lose(self, flow->peer, "whoever answers at the address of rank %u (%s) does not speak pmrun",
                            flow->peer, peer->address);
    pmr_handshake_take(&flow->handshake, message, &answer);
    if (answer.bytes)
        self->zmq.send(flow->socket, answer.message, answer.bytes, PMR_ZMQ_DONTWAIT);
    if (flow->handshake.stage == PMR_HANDSHAKE_REFUSED) {
        self->base.counts.strangers++;
        return pmr_zmq_lose(self, flow->peer, "whoever answers at the address of rank %u (%s) %s", flow->peer,
                            peer->address, flow->handshake.why);
    }
    if (flow->handshake.stage == PMR_HANDSHAKE_CROSSED)
        return rest(self, flow, "it has a connection from this rank already");
    if (flow->handshake.stage == PMR_HANDSHAKE_TAKEN) {
        flow->state = PMR_ZMQ_OPEN;
        self->base.counts.connections++;
        pmr_zmq_push(self, flow);
    }
    return true;
}

static bool hear_credit(pmr_zmq_endpoint *self, pmr_zmq_flow *flow, const uint8_t *message, size_t bytes)
{
    pmr_zmq_credit credit;
    if (bytes != sizeof credit)
        return pmr_zmq_lose(self, flow->peer, "lost rank %u (%s): it sent a credit that is none", flow->peer,
                            self->peers[flow->peer].address);
    memcpy(&credit, message, sizeof credit);
    bool sound = credit.packets >= flow->consumed.packets && credit.packets <= flow->given.packets &&
                 credit.bytes >= flow->consumed.bytes && credit.bytes <= flow->given.bytes;
    if (!sound)
        return pmr_zmq_lose(self, flow->peer, "lost rank %u (%s): it consumed what it was not sent", flow->peer,
                            self->peers[flow->peer].address);
    flow->consumed = credit;
    return pmr_zmq_push(self, flow);
}

static bool listen_to_monitor(pmr_zmq_endpoint *self, pmr_zmq_flow *flow)
{
    bool moved = false;
    const pmr_zmq *zmq = &self->zmq;
    pmr_zmq_msg message;
    while (flow->monitor) {
        zmq->msg_init(&message);
        int got = zmq->msg_recv(&message, flow->monitor, PMR_ZMQ_DONTWAIT);
        uint16_t event = 0;
        if (got >= 6 && zmq->msg_more(&message)) /* the second part is the address */
            memcpy(&event, zmq->msg_data(&message), sizeof event);
        zmq->msg_close(&message);
        if (got < 0)
            return moved;
        if (event)
            moved |= connection_ended(self, flow, event);
    }
    return moved;
}

bool pmr_zmq_listen(pmr_zmq_endpoint *self, pmr_zmq_flow *flow)
{
    bool moved = false;
    const pmr_zmq *zmq = &self->zmq;
    pmr_zmq_msg message;
    while (flow->socket) {
        zmq->msg_init(&message);
        int got = zmq->msg_recv(&message, flow->socket, PMR_ZMQ_DONTWAIT);
        if (got < 0) {
            zmq->msg_close(&message);
            break;
        }
        uint8_t copy[PMR_HANDSHAKE_MESSAGE_MAX];
        size_t bytes = zmq->msg_size(&message) <= sizeof copy ? zmq->msg_size(&message) : 0;
        memcpy(copy, zmq->msg_data(&message), bytes);
        zmq->msg_close(&message);
        moved |= flow->state == PMR_ZMQ_OPEN ? hear_credit(self, flow, copy, bytes) : hear_answer(self, flow, copy, bytes);
    }
    return listen_to_monitor(self, flow) || moved;
}

/* ---- packets ---- */

static void let_go(void *data, void *hint) /* in libzmq's thread */
{
    (void)data;
    pmr_zmq_slot *slot = hint;
    int wake = slot->wake;
    uint64_t one = 1;
    atomic_store_explicit(&slot->lent, false, memory_order_release);
    ssize_t done = write(wake, &one, sizeof one);
    (void)done; /* it fails only where it was rung already */
}

static bool window_has_room(const pmr_zmq_flow *flow, const pmr_packet *packet)
{
    uint64_t packets = flow->given.packets - flow->consumed.packets;
    uint64_t bytes = flow->given.bytes - flow->consumed.bytes;
    return packets < PMR_ZMQ_WINDOW_PACKETS && (bytes == 0 || bytes + packet->payload_bytes <= PMR_ZMQ_WINDOW_BYTES);
}

static bool hand_copy(pmr_zmq_endpoint *self, pmr_zmq_flow *flow, const pmr_packet *packet, const void *payload)
{
    const pmr_zmq *zmq = &self->zmq;
    pmr_zmq_msg message;
    if (zmq->msg_init_size(&message, sizeof *packet + packet->payload_bytes) != 0)
        return false;
    uint8_t *data = zmq->msg_data(&message);
    memcpy(data, packet, sizeof *packet);
    if (packet->payload_bytes)
        memcpy(data + sizeof *packet, payload, packet->payload_bytes);
    if (zmq->msg_send(&message, flow->socket, PMR_ZMQ_DONTWAIT) >= 0)
        return true;
    zmq->msg_close(&message);
    return false;
}

static bool hand_lent(pmr_zmq_endpoint *self, pmr_zmq_flow *flow, const pmr_packet *packet, const void *payload,
                      pmr_zmq_slot *slot)
{
    const pmr_zmq *zmq = &self->zmq;
    pmr_zmq_msg message;
    atomic_store_explicit(&slot->lent, true, memory_order_relaxed);
    slot->wake = self->wake;
    if (zmq->msg_init_data(&message, (void *)(uintptr_t)payload, packet->payload_bytes, let_go, slot) != 0) {
        atomic_store_explicit(&slot->lent, false, memory_order_relaxed);
        return false;
    }
    /* The queue of a DEALER takes either all parts of a message or none. */
    if (zmq->send(flow->socket, packet, sizeof *packet, PMR_ZMQ_DONTWAIT | PMR_ZMQ_SNDMORE) >= 0 &&
        zmq->msg_send(&message, flow->socket, PMR_ZMQ_DONTWAIT) >= 0)
        return true;
    zmq->msg_close(&message); /* which lets go of the payload */
    return false;
}

bool pmr_zmq_hand(pmr_zmq_endpoint *self, pmr_zmq_flow *flow, const pmr_packet *packet, const void *payload,
                  pmr_zmq_slot *slot)
{
    if (!window_has_room(flow, packet))
        return false;
    if (!(slot ? hand_lent(self, flow, packet, payload, slot) : hand_copy(self, flow, packet, payload)))
        return false;
    flow->given.packets++;
    flow->given.bytes += packet->payload_bytes;
    pmr_zmq_due(self, flow); /* sending may have swallowed the descriptor's signal for what came meanwhile */
    return true;
}

bool pmr_zmq_push(pmr_zmq_endpoint *self, pmr_zmq_flow *flow)
{
    bool moved = false;
    while (flow->state == PMR_ZMQ_OPEN && !pmr_outbox_empty(&flow->outbox)) {
        const pmr_outgoing *entry = &flow->outbox.entry[flow->outbox.written % PMR_OUTBOX_ENTRIES];
        bool lend = entry->cookie && entry->packet.payload_bytes > PMR_PACKET_COPY_MAX;
        pmr_zmq_slot *slot = lend ? &flow->slot[flow->outbox.written % PMR_OUTBOX_ENTRIES] : NULL;
        if (!pmr_zmq_hand(self, flow, &entry->packet, entry->payload, slot))
            break;
        size_t bytes = sizeof entry->packet + entry->packet.payload_bytes;
        self->unsent_bytes -= bytes;
        pmr_outbox_advance(&flow->outbox, bytes);
        if (lend && !flow->lending) {
            flow->lending = true;
            flow->next_lending = self->lending;
            self->lending = flow;
        }
        moved = true;
    }
    return moved;
}

bool pmr_zmq_settle(pmr_zmq_endpoint *self, pmr_zmq_flow *flow)
{
    uint32_t upto = flow->outbox.settled;
    while (upto != flow->outbox.written &&
           !atomic_load_explicit(&flow->slot[upto % PMR_OUTBOX_ENTRIES].lent, memory_order_acquire))
        upto++;
    return pmr_outbox_settle_to(&flow->outbox, upto, &self->base.sink);
}

bool pmr_zmq_out_tick(pmr_zmq_endpoint *self, pmr_zmq_flow *flow, int64_t now_ns)
{
    pmr_zmq_peer *peer = &self->peers[flow->peer];
    if (flow->state == PMR_ZMQ_RESTING && now_ns >= flow->rest_until_ns) {
        if (flow->dials < DIALS_MAX)
            pmr_zmq_dial(self, flow);
        else
            return pmr_zmq_lose(self, flow->peer, "cannot connect to rank %u (%s)", flow->peer, peer->address);
    }
    if (flow->state == PMR_ZMQ_DIALING && now_ns - flow->dialed_ns > ANSWER_NS) {
        flow->dials = 0; /* the peer does not poll, or has forgotten us in a crowd: it is asked anew */
        return rest(self, flow, "it does not answer");
    }
    if (!peer->cut_ns || peer->losing || peer->lost || now_ns - peer->cut_ns < CUT_NS)
        return false;
    for (uint32_t lane = 0; lane < self->base.lanes; lane++) {
        const pmr_zmq_flow *other = self->flows[flow->peer * self->base.lanes + lane];
        if (other && other->goodbye)
            return pmr_zmq_look_for_end(self, flow->peer); /* the last packets may be held back */
    }
    return pmr_zmq_lose(self, flow->peer,
                        "lost rank %u (%s): its connection ended; its process, its node or the network is gone",
                        flow->peer, peer->address);
}
