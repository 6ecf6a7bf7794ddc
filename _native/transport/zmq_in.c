/* SPDX-License-Identifier: Apache-2.0
 *
 * zmq_in.c: the receiving side: the ROUTER, who is let in, and what comes from them.
 *
 * Strangers are kept out before they can send a message: libzmq asks us (ZAP) about each connection, and what it says
 * for itself must be a HELLO made with the key, or under CURVE the key pair that follows from the key. Then each
 * connection proves by our own challenge that it has the key now. From then on its name, which the ROUTER gave it,
 * stands for a (peer, lane). Packets that are to wait stay in libzmq's memory, as many as the window allows.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/clock.h"
#include "core/status.h"
#include "transport/zmq.h"

#define BACKLOG          1024
#define HWM              256
#define HANDSHAKE_MS     10000 /* of a connection, until we answered libzmq's question */
#define GUEST_NS         10000000000
#define MESSAGES_PER_TURN 64u
#define PARTS_MAX        4u
#define ZAP_FRAMES       9u
#define ZAP_FRAME_BYTES  256u

/* ---- binding ---- */

static bool set_options(pmr_zmq_endpoint *self)
{
    const pmr_zmq *zmq = &self->zmq;
    void *router = self->router;
    bool screened = self->encrypt ? pmr_zmq_option(self, router, PMR_ZMQ_CURVE_SERVER, 1) &&
                                        zmq->setsockopt(router, PMR_ZMQ_CURVE_SECRETKEY, self->curve_secret, 41) == 0
                                  : pmr_zmq_option(self, router, PMR_ZMQ_PLAIN_SERVER, 1);
    if (self->socket_bytes && !(pmr_zmq_option(self, router, PMR_ZMQ_SNDBUF, (int)self->socket_bytes) &&
                                pmr_zmq_option(self, router, PMR_ZMQ_RCVBUF, (int)self->socket_bytes)))
        return false;
    return screened && zmq->setsockopt(router, PMR_ZMQ_ZAP_DOMAIN, "pmrun", 5) == 0 &&
           pmr_zmq_option(self, router, PMR_ZMQ_IPV6, self->ipv6) &&
           pmr_zmq_option(self, router, PMR_ZMQ_BACKLOG, BACKLOG) && pmr_zmq_option(self, router, PMR_ZMQ_LINGER, 0) &&
           pmr_zmq_option(self, router, PMR_ZMQ_HANDSHAKE_IVL, HANDSHAKE_MS) &&
           pmr_zmq_option(self, router, PMR_ZMQ_SNDHWM, HWM) && pmr_zmq_option(self, router, PMR_ZMQ_RCVHWM, HWM) &&
           pmr_zmq_option(self, router, PMR_ZMQ_MAXMSGSIZE,
                          PMR_ZMQ_PAYLOAD_MAX + PMR_ZMQ_CURVE_BYTES + (int)sizeof(pmr_packet));
}

pmr_status pmr_zmq_bind(pmr_zmq_endpoint *self, const char *host, pmr_error *error)
{
    const pmr_zmq *zmq = &self->zmq;
    pmr_address address;
    pmr_status status = pmr_address_parse(host, &address, error);
    if (status)
        return status;
    self->ipv6 = address.any.sa_family == AF_INET6;
    self->zap = zmq->socket(self->context, PMR_ZMQ_REP);
    self->router = zmq->socket(self->context, PMR_ZMQ_ROUTER);
    if (!self->zap || !self->router || !pmr_zmq_option(self, self->zap, PMR_ZMQ_LINGER, 0) ||
        zmq->bind(self->zap, "inproc://zeromq.zap.01") != 0 || !set_options(self))
        return pmr_fail(error, PMR_ERR_OS, "cannot prepare libzmq's sockets: %s", zmq->text_of(zmq->last_errno()));
    char text[PMR_ADDRESS_BYTES + 16];
    snprintf(text, sizeof text, self->ipv6 ? "tcp://[%s]:*" : "tcp://%s:*", host);
    if (zmq->bind(self->router, text) != 0)
        return pmr_fail(error, PMR_ERR_OS, "cannot listen on %s (is it an address of this node?): %s", host,
                        zmq->text_of(zmq->last_errno()));
    size_t bytes = sizeof text;
    if (zmq->getsockopt(self->router, PMR_ZMQ_LAST_ENDPOINT, text, &bytes) != 0 || strncmp(text, "tcp://", 6) != 0)
        return pmr_fail(error, PMR_ERR_OS, "libzmq does not tell its port on %s", host);
    snprintf(self->base.address, sizeof self->base.address, "zmq %.*s", PMR_ADDRESS_BYTES - 5, text + 6);
    if (!pmr_zmq_watch(self, self->zap, PMR_ZMQ_ZAP, 0) || !pmr_zmq_watch(self, self->router, PMR_ZMQ_ROUTE, 0))
        return pmr_fail_os(error, "cannot watch libzmq's sockets");
    return PMR_OK;
}

/* ---- libzmq's question about a connection ---- */

typedef struct zap_frame {
    size_t bytes;
    uint8_t data[ZAP_FRAME_BYTES];
} zap_frame;

static bool may_enter(const pmr_zmq_endpoint *self, const zap_frame *frame, uint32_t frames)
{
    if (self->encrypt) { /* the mechanism, and the key that the other side has shown to hold the secret of */
        char text[41];
        return frames == 7 && frame[5].bytes == 5 && memcmp(frame[5].data, "CURVE", 5) == 0 && frame[6].bytes == 32 &&
               self->zmq.z85_encode(text, frame[6].data, 32) &&
               pmr_equal((const uint8_t *)text, (const uint8_t *)self->curve_public, 40);
    }
    if (frames != 8 || frame[5].bytes != 5 || memcmp(frame[5].data, "PLAIN", 5) != 0 ||
        frame[7].bytes != sizeof(pmr_hello))
        return false;
    pmr_handshake handshake;
    pmr_answer answer;
    pmr_handshake_host(&handshake, self->key, self->base.rank, self->base.ranks, self->base.lanes);
    pmr_handshake_take(&handshake, frame[7].data, &answer);
    return handshake.stage == PMR_HANDSHAKE_PROOF;
}

static void reply(const pmr_zmq_endpoint *self, const zap_frame *request, bool yes)
{
    const pmr_zmq *zmq = &self->zmq;
    zmq->send(self->zap, "1.0", 3, PMR_ZMQ_SNDMORE | PMR_ZMQ_DONTWAIT);
    zmq->send(self->zap, request[1].data, request[1].bytes, PMR_ZMQ_SNDMORE | PMR_ZMQ_DONTWAIT);
    zmq->send(self->zap, yes ? "200" : "400", 3, PMR_ZMQ_SNDMORE | PMR_ZMQ_DONTWAIT);
    zmq->send(self->zap, yes ? "OK" : "no key", yes ? 2 : 6, PMR_ZMQ_SNDMORE | PMR_ZMQ_DONTWAIT);
    zmq->send(self->zap, "", 0, PMR_ZMQ_SNDMORE | PMR_ZMQ_DONTWAIT);
    zmq->send(self->zap, "", 0, PMR_ZMQ_DONTWAIT);
}

bool pmr_zmq_admit(pmr_zmq_endpoint *self)
{
    const pmr_zmq *zmq = &self->zmq;
    for (uint32_t turn = 0; turn < MESSAGES_PER_TURN; turn++) {
        zap_frame frame[ZAP_FRAMES];
        uint32_t frames = 0;
        bool more = true;
        while (more) {
            pmr_zmq_msg message;
            zmq->msg_init(&message);
            if (zmq->msg_recv(&message, self->zap, PMR_ZMQ_DONTWAIT) < 0) {
                zmq->msg_close(&message);
                self->zap_due = false;
                return false; /* not what anybody waits for */
            }
            size_t bytes = zmq->msg_size(&message);
            if (frames < ZAP_FRAMES) {
                frame[frames].bytes = bytes <= ZAP_FRAME_BYTES ? bytes : 0;
                memcpy(frame[frames].data, zmq->msg_data(&message), frame[frames].bytes);
            }
            frames++;
            more = zmq->msg_more(&message);
            zmq->msg_close(&message);
        }
        bool yes = frames >= 2 && frames <= ZAP_FRAMES && may_enter(self, frame, frames);
        self->base.counts.strangers += !yes;
        reply(self, frame, yes);
    }
    self->zap_due = true;
    return false;
}

/* ---- names of connections ---- */

static uint32_t number_of(const uint8_t id[PMR_ZMQ_ID_BYTES])
{
    uint32_t number;
    memcpy(&number, id + 1, sizeof number);
    return number;
}

static pmr_zmq_named *find_named(pmr_zmq_endpoint *self, uint32_t number)
{
    uint32_t at = number * 2654435761u & self->named_mask;
    while (self->named[at].flow && self->named[at].number != number)
        at = (at + 1) & self->named_mask;
    return &self->named[at];
}

static void answer_to(pmr_zmq_endpoint *self, const uint8_t id[PMR_ZMQ_ID_BYTES], const void *message, size_t bytes)
{
    /* A ROUTER drops what is for a connection that is gone, and that is right. */
    self->zmq.send(self->router, id, PMR_ZMQ_ID_BYTES, PMR_ZMQ_SNDMORE | PMR_ZMQ_DONTWAIT);
    self->zmq.send(self->router, message, bytes, PMR_ZMQ_DONTWAIT);
    self->router_due = true;
}

static pmr_zmq_guest *guest_of(pmr_zmq_endpoint *self, const uint8_t id[PMR_ZMQ_ID_BYTES])
{
    pmr_zmq_guest *oldest = &self->guests[0];
    for (uint32_t i = 0; i < PMR_ZMQ_GUESTS_MAX; i++) {
        pmr_zmq_guest *guest = &self->guests[i];
        if (guest->taken && memcmp(guest->id, id, PMR_ZMQ_ID_BYTES) == 0)
            return guest;
        if (!guest->taken ? oldest->taken : oldest->taken && guest->deadline_ns < oldest->deadline_ns)
            oldest = guest;
    }
    self->base.counts.strangers += oldest->taken;
    oldest->taken = true;
    memcpy(oldest->id, id, PMR_ZMQ_ID_BYTES);
    oldest->deadline_ns = pmr_now_ns() + GUEST_NS;
    pmr_handshake_host(&oldest->handshake, self->key, self->base.rank, self->base.ranks, self->base.lanes);
    return oldest;
}

/* The peer has proven itself. A second time it may come only if nothing came by the first. */
static void decide(pmr_zmq_endpoint *self, pmr_zmq_guest *guest)
{
    const pmr_hello *hello = &guest->handshake.hello;
    pmr_zmq_flow *flow = pmr_zmq_flow_of(self, hello->from, hello->lane);
    bool taken = flow && !self->peers[hello->from].lost && !self->peers[hello->from].losing &&
                 (!flow->heard || (flow->taken.packets == 0 && flow->kept_count == 0));
    if (taken) {
        pmr_zmq_named *named = find_named(self, number_of(guest->id));
        named->number = number_of(guest->id);
        named->flow = hello->from * self->base.lanes + hello->lane + 1;
        memcpy(flow->id, guest->id, sizeof flow->id);
        flow->heard = true;
    }
    pmr_answer verdict;
    pmr_handshake_decide(&guest->handshake, taken, &verdict);
    answer_to(self, guest->id, verdict.message, verdict.bytes);
    pmr_zmq_flow *watch = taken ? pmr_zmq_flow_of(self, hello->from, 0) : NULL;
    if (watch && watch->state == PMR_ZMQ_IDLE)
        pmr_zmq_dial(self, watch); /* its end will be the peer's */
}

static bool hear_guest(pmr_zmq_endpoint *self, const uint8_t id[PMR_ZMQ_ID_BYTES], const void *message, size_t bytes)
{
    pmr_zmq_guest *guest = guest_of(self, id);
    pmr_answer answer = {.bytes = 0};
    if (guest->handshake.stage == PMR_HANDSHAKE_REFUSED || bytes != pmr_handshake_wanted(&guest->handshake)) {
        guest->handshake.stage = PMR_HANDSHAKE_REFUSED; /* its place stays taken until the deadline: it is not heard again */
        return false;
    }
    pmr_handshake_take(&guest->handshake, message, &answer);
    if (answer.bytes)
        answer_to(self, id, answer.message, answer.bytes);
    if (guest->handshake.stage != PMR_HANDSHAKE_PROVEN)
        return false;
    decide(self, guest);
    guest->taken = false;
    return true;
}

/* ---- packets ---- */

static void consume(pmr_zmq_endpoint *self, pmr_zmq_flow *flow, const pmr_packet *packet)
{
    flow->taken.packets++;
    flow->taken.bytes += packet->payload_bytes;
    if (flow->taken.packets - flow->told.packets < PMR_ZMQ_WINDOW_PACKETS / 4 &&
        flow->taken.bytes - flow->told.bytes < PMR_ZMQ_WINDOW_BYTES / 4)
        return;
    flow->told = flow->taken;
    answer_to(self, flow->id, &flow->told, sizeof flow->told);
}

static bool garbage(pmr_zmq_endpoint *self, pmr_zmq_flow *flow, const char *what)
{
    return pmr_zmq_lose(self, flow->peer, "lost rank %u (%s): it sent %s", flow->peer, self->peers[flow->peer].address,
                        what);
}

/* False: it is to wait. */
static bool deliver(pmr_zmq_endpoint *self, pmr_zmq_flow *flow, const pmr_packet *packet, const uint8_t *payload)
{
    const pmr_sink *sink = &self->base.sink;
    if (packet->kind == PMR_PACKET_GOODBYE) {
        flow->goodbye = true;
        consume(self, flow, packet);
        pmr_zmq_look_for_end(self, flow->peer);
        return true;
    }
    void *into = NULL;
    pmr_placing placing = sink->place(sink->arg, flow->peer, flow->lane, packet, &into);
    if (placing == PMR_PLACE_LATER)
        return false;
    if (placing == PMR_PLACE_INTO) {
        if (packet->payload_bytes)
            memcpy(into, payload, packet->payload_bytes);
        payload = into;
    } else if ((uintptr_t)payload % 8 && packet->payload_bytes <= PMR_PACKET_COPY_MAX) {
        payload = memcpy(self->aligned, payload, packet->payload_bytes);
    }
    self->base.counts.packets_received++;
    self->base.counts.bytes_received += packet->payload_bytes;
    sink->arrived(sink->arg, flow->peer, flow->lane, packet, payload);
    consume(self, flow, packet);
    return true;
}

/* Takes the message over where it returns true. */
static bool keep(pmr_zmq_flow *flow, const pmr_packet *packet, pmr_zmq_msg *payload, uint32_t payload_at)
{
    if (!flow->kept && !(flow->kept = calloc(PMR_ZMQ_WINDOW_PACKETS, sizeof *flow->kept)))
        return false;
    if (flow->kept_count == PMR_ZMQ_WINDOW_PACKETS)
        return false;
    uint32_t at = (flow->kept_first + flow->kept_count++) % PMR_ZMQ_WINDOW_PACKETS;
    flow->kept[at] = (pmr_zmq_kept){.packet = *packet, .payload = *payload, .payload_at = payload_at};
    return true;
}

bool pmr_zmq_resume_kept(pmr_zmq_endpoint *self, pmr_zmq_flow *flow)
{
    bool moved = false;
    flow->held = false;
    while (flow->kept_count && !self->peers[flow->peer].losing && !self->peers[flow->peer].lost) {
        pmr_zmq_kept *kept = &flow->kept[flow->kept_first];
        const uint8_t *payload = (const uint8_t *)self->zmq.msg_data(&kept->payload) + kept->payload_at;
        if (!deliver(self, flow, &kept->packet, payload)) {
            flow->held = true;
            break;
        }
        self->zmq.msg_close(&kept->payload);
        flow->kept_first = (flow->kept_first + 1) % PMR_ZMQ_WINDOW_PACKETS;
        flow->kept_count--;
        moved = true;
    }
    return moved;
}

void pmr_zmq_drop_kept(pmr_zmq_endpoint *self, pmr_zmq_flow *flow)
{
    for (; flow->kept_count; flow->kept_count--) {
        self->zmq.msg_close(&flow->kept[flow->kept_first].payload);
        flow->kept_first = (flow->kept_first + 1) % PMR_ZMQ_WINDOW_PACKETS;
    }
}

bool pmr_zmq_look_for_end(pmr_zmq_endpoint *self, uint32_t peer)
{
    for (uint32_t lane = 0; lane < self->base.lanes; lane++) {
        const pmr_zmq_flow *flow = self->flows[peer * self->base.lanes + lane];
        if (flow && flow->heard && !flow->goodbye)
            return false;
    }
    return pmr_zmq_lose(self, peer, "rank %u (%s) closed its connections", peer, self->peers[peer].address);
}

/* A message of a connection that has proven itself: part[1], and part[2] if the payload is large. */
static bool hear_flow(pmr_zmq_endpoint *self, pmr_zmq_flow *flow, pmr_zmq_msg *part, uint32_t parts)
{
    const pmr_zmq *zmq = &self->zmq;
    pmr_packet packet;
    if (self->peers[flow->peer].losing || self->peers[flow->peer].lost)
        return false;
    size_t bytes = zmq->msg_size(&part[1]), rest = parts == 3 ? zmq->msg_size(&part[2]) : 0;
    if (parts > 3 || bytes < sizeof packet || (rest && bytes > sizeof packet))
        return garbage(self, flow, "what is no packet");
    memcpy(&packet, zmq->msg_data(&part[1]), sizeof packet);
    bool own = packet.kind >= PMR_PACKET_KIND_OWN;
    if (packet.kind == 0 || (own && (packet.kind != PMR_PACKET_GOODBYE || packet.payload_bytes)) || flow->goodbye ||
        packet.payload_bytes != bytes - sizeof packet + rest)
        return garbage(self, flow, "a header that is none");
    uint32_t holder = rest ? 2 : 1, at = rest ? 0 : (uint32_t)sizeof packet;
    const uint8_t *payload = (const uint8_t *)zmq->msg_data(&part[holder]) + at;
    if (!flow->held && !flow->kept_count && deliver(self, flow, &packet, payload))
        return true;
    flow->held = flow->held || !flow->kept_count; /* the sink said so just now */
    if (!keep(flow, &packet, &part[holder], at))
        return garbage(self, flow, "more than it was allowed to, or there is no memory for it");
    zmq->msg_init(&part[holder]);
    return true;
}

static bool hear(pmr_zmq_endpoint *self, pmr_zmq_msg *part, uint32_t parts)
{
    const pmr_zmq *zmq = &self->zmq;
    uint8_t id[PMR_ZMQ_ID_BYTES];
    if (parts < 2 || zmq->msg_size(&part[0]) != sizeof id)
        return false;
    memcpy(id, zmq->msg_data(&part[0]), sizeof id);
    if (id[0] != 0)
        return false; /* a name that the other side chose: none of ours does */
    pmr_zmq_named *named = find_named(self, number_of(id));
    if (!named->flow)
        return parts == 2 && hear_guest(self, id, zmq->msg_data(&part[1]), zmq->msg_size(&part[1]));
    pmr_zmq_flow *flow = self->flows[named->flow - 1];
    return memcmp(flow->id, id, sizeof id) == 0 && hear_flow(self, flow, part, parts);
}

/* One message from the ROUTER. False: there was none. */
static bool take_one(pmr_zmq_endpoint *self, bool *moved)
{
    const pmr_zmq *zmq = &self->zmq;
    pmr_zmq_msg part[PARTS_MAX];
    uint32_t parts = 0;
    bool more = true, there = true;
    while (more) {
        pmr_zmq_msg *next = &part[parts < PARTS_MAX ? parts : PARTS_MAX - 1];
        if (parts >= PARTS_MAX)
            zmq->msg_close(next);
        zmq->msg_init(next);
        there = zmq->msg_recv(next, self->router, PMR_ZMQ_DONTWAIT) >= 0;
        more = there && zmq->msg_more(next);
        parts++;
    }
    if (there)
        *moved |= hear(self, part, parts);
    for (uint32_t i = 0; i < parts && i < PARTS_MAX; i++)
        zmq->msg_close(&part[i]);
    return there;
}

bool pmr_zmq_route(pmr_zmq_endpoint *self)
{
    bool moved = false;
    self->router_due = true;
    for (uint32_t turn = 0; turn < MESSAGES_PER_TURN; turn++)
        if (!take_one(self, &moved)) {
            self->router_due = false;
            break;
        }
    return moved;
}
