/* SPDX-License-Identifier: Apache-2.0
 *
 * tcp_flow.c: one connection: dialling, proving, writing, reading, ending.
 *
 * Writing is tried at once; the kernel is asked to say when it takes more only after it took less than all. Reading goes
 * to two places in one call: the rest of a payload, and the buffer for what comes behind it.
 *
 * How a flow ends decides what its peer is. A goodbye and then the end: this flow is over, and the peer is lost when its
 * last one is. An end without goodbye, an error, or bytes that are no packet: the peer is lost, after what has arrived
 * on its other flows was read. Peers that are gone without a word (power, network) are found by keep-alive when nothing
 * is under way, and by acknowledgements that do not come when something is: not by TCP_USER_TIMEOUT, which would also
 * end a connection whose peer is well and only busy with other things than reading.
 */
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/uio.h>
#include <unistd.h>

#include "core/clock.h"
#include "core/status.h"
#include "transport/tcp.h"

#define VECTORS        16
#define WRITE_BYTES    (1u << 20) /* asked of the kernel at a time */
#define READS_PER_TURN 4u         /* of one flow, before others have their turn */
#define LAST_READS     64u /* turns of each other flow of a peer that ended badly */
#define DIALS_MAX      24u        /* that come to nothing, over about 20 s */
#define REFUSALS_MAX   8u         /* the peer is there and does not want us */
#define PATIENCE_NS    5000000000 /* who was turned out after this was too slow, not refused */
#define REST_MIN_NS    20000000
#define REST_MAX_NS    1000000000
#define SILENCE_MS     20000u /* after which a peer that should have acknowledged something is gone */
#define SILENT_TRIES   4u

static const char *name_of(const pmr_tcp *self, uint32_t peer, char text[PMR_ADDRESS_BYTES])
{
    pmr_address_text(&self->address[peer], text);
    return text;
}

/* ---- the epoll set ---- */

static uint32_t wanted_events(const pmr_flow *flow)
{
    switch (flow->state) {
    case PMR_FLOW_DIALING:
        return EPOLLOUT;
    case PMR_FLOW_PROVING:
        return EPOLLIN;
    case PMR_FLOW_OPEN:
        return (flow->inlet.held ? 0u : (uint32_t)EPOLLIN) | (flow->blocked && !flow->mute ? (uint32_t)EPOLLOUT : 0u);
    default:
        return 0;
    }
}

/* A flow of which nothing is wanted is taken out: the kernel would report its end again and again. */
void pmr_flow_watch(pmr_tcp *self, pmr_flow *flow)
{
    uint32_t events = wanted_events(flow);
    if (events == flow->events)
        return;
    uint32_t index = flow->inlet.peer * self->base.lanes + flow->inlet.lane;
    struct epoll_event event = {.events = events, .data.u64 = pmr_tcp_about(PMR_TCP_FLOW, index)};
    int what = !events ? EPOLL_CTL_DEL : flow->events ? EPOLL_CTL_MOD : EPOLL_CTL_ADD;
    if (epoll_ctl(self->base.descriptor, what, flow->fd, &event) == 0)
        flow->events = events;
    else
        pmr_tcp_due(self, flow); /* out of memory: the next poll looks at it, and comes here again */
}

void pmr_flow_close(pmr_flow *flow)
{
    if (flow->fd >= 0)
        close(flow->fd); /* which takes it out of the epoll set */
    flow->fd = -1;
    flow->lowest = 1;
    flow->events = 0;
    flow->blocked = false;
}

/* ---- ending ---- */

/* Whether the peer said on any flow that it ends. */
static bool said_goodbye(const pmr_tcp *self, uint32_t peer)
{
    for (uint32_t lane = 0; lane < self->base.lanes; lane++) {
        const pmr_flow *flow = self->flows[peer * self->base.lanes + lane];
        if (flow && flow->inlet.goodbye)
            return true;
    }
    return false;
}

/* Nothing more is to come on this flow, as the peer said. Lost with the last flow. */
static bool end_well(pmr_tcp *self, pmr_flow *flow)
{
    uint32_t peer = flow->inlet.peer;
    pmr_flow_close(flow);
    flow->state = PMR_FLOW_ENDED;
    self->unsent_bytes -= flow->outbox.unsent_bytes;
    pmr_outbox_drop(&flow->outbox);
    pmr_tcp_due(self, flow);
    for (uint32_t lane = 0; lane < self->base.lanes; lane++) {
        const pmr_flow *other = self->flows[peer * self->base.lanes + lane];
        if (other && other->state == PMR_FLOW_OPEN)
            return true;
    }
    char name[PMR_ADDRESS_BYTES];
    return pmr_tcp_lose(self, peer, "rank %u (%s) closed its connections", peer, name_of(self, peer, name));
}

static const char *text_of(int problem)
{
    if (problem == 0)
        return "its connection ended, so its process did";
    return problem == ETIMEDOUT ? "nothing was heard of it for 20 s; its node or the network is down" : strerror(problem);
}

/* `problem`: an errno, or 0 for an end of the stream. */
static bool end_badly(pmr_tcp *self, pmr_flow *flow, int problem)
{
    uint32_t peer = flow->inlet.peer;
    pmr_flow_close(flow);
    flow->state = PMR_FLOW_ENDED;
    for (uint32_t lane = 0; lane < self->base.lanes; lane++) {
        pmr_flow *other = self->flows[peer * self->base.lanes + lane];
        for (uint32_t turn = 0; other && turn < LAST_READS && other->state == PMR_FLOW_OPEN; turn++)
            if (!pmr_flow_pull(self, other))
                break;
    }
    char name[PMR_ADDRESS_BYTES];
    return pmr_tcp_lose(self, peer, "lost rank %u (%s): %s", peer, name_of(self, peer, name), text_of(problem));
}

/* ---- dialling ---- */

/* A dial came to nothing; another may do better. */
static bool rest(pmr_tcp *self, pmr_flow *flow, const char *why)
{
    uint32_t peer = flow->inlet.peer;
    char name[PMR_ADDRESS_BYTES];
    pmr_flow_close(flow);
    flow->state = PMR_FLOW_RESTING;
    if (said_goodbye(self, peer))
        return end_well(self, flow);
    if (++flow->dials >= DIALS_MAX)
        return pmr_tcp_lose(self, peer, "cannot connect to rank %u (%s): %s", peer, name_of(self, peer, name), why);
    int64_t rest_ns = (int64_t)REST_MIN_NS << (flow->dials < 6 ? flow->dials : 6);
    flow->rest_until_ns = pmr_now_ns() + (rest_ns < REST_MAX_NS ? rest_ns : REST_MAX_NS);
    return true;
}

/* What connect said: some of it will not change. */
static bool dial_failed(pmr_tcp *self, pmr_flow *flow, int problem)
{
    uint32_t peer = flow->inlet.peer;
    char name[PMR_ADDRESS_BYTES];
    if (problem != ECONNREFUSED || said_goodbye(self, peer))
        return rest(self, flow, strerror(problem));
    return pmr_tcp_lose(self, peer, "rank %u (%s) is gone: nobody listens at its address any more", peer,
                        name_of(self, peer, name));
}

void pmr_flow_dial(pmr_tcp *self, pmr_flow *flow)
{
    const pmr_address *address = &self->address[flow->inlet.peer];
    pmr_tcp_start_ticking(self);
    flow->dialed_ns = pmr_now_ns();
    flow->state = PMR_FLOW_DIALING;
    flow->fd = socket(address->any.sa_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (flow->fd >= 0)
        pmr_tcp_tune(self, flow->fd);
    if (flow->fd < 0 || (connect(flow->fd, &address->any, address->bytes) != 0 && errno != EINPROGRESS)) {
        flow->refusal = errno;
        pmr_tcp_due(self, flow);
    } else {
        pmr_flow_watch(self, flow);
    }
}

static bool connected(pmr_tcp *self, pmr_flow *flow)
{
    int problem = 0;
    socklen_t bytes = sizeof problem;
    if (getsockopt(flow->fd, SOL_SOCKET, SO_ERROR, &problem, &bytes) != 0)
        problem = errno;
    if (problem)
        return dial_failed(self, flow, problem);
    pmr_answer hello;
    pmr_error error;
    flow->talk.bytes = 0;
    if (pmr_handshake_dial(&flow->talk.handshake, self->key, self->base.rank, flow->inlet.peer, flow->inlet.lane, &hello,
                           &error))
        return rest(self, flow, error.text);
    if (send(flow->fd, hello.message, hello.bytes, MSG_NOSIGNAL) != (ssize_t)hello.bytes)
        return rest(self, flow, "it closed the connection at once");
    flow->state = PMR_FLOW_PROVING;
    pmr_flow_watch(self, flow);
    return true;
}

pmr_talking pmr_tcp_talk_on(int fd, pmr_tcp_talk *talk)
{
    uint32_t wanted = pmr_handshake_wanted(&talk->handshake);
    ssize_t got = recv(fd, talk->message + talk->bytes, wanted - talk->bytes, 0);
    if (got < 0 && (errno == EAGAIN || errno == EINTR))
        return PMR_TALK_WAIT;
    if (got <= 0)
        return PMR_TALK_ENDED;
    talk->bytes += (uint32_t)got;
    if (talk->bytes < wanted)
        return PMR_TALK_WAIT;
    pmr_answer answer;
    talk->bytes = 0;
    pmr_handshake_take(&talk->handshake, talk->message, &answer);
    if (answer.bytes && send(fd, answer.message, answer.bytes, MSG_NOSIGNAL) != (ssize_t)answer.bytes)
        return PMR_TALK_ENDED; /* so few bytes fit into any socket's buffer, unless it is broken */
    return PMR_TALK_HEARD;
}

/* The other side closed in the middle. */
static bool refused(pmr_tcp *self, pmr_flow *flow)
{
    if (pmr_now_ns() - flow->dialed_ns >= PATIENCE_NS)
        flow->dials = 0; /* one of us did not poll for long: no sign of anything */
    else if (++flow->refusals == REFUSALS_MAX)
        flow->dials = DIALS_MAX;
    return rest(self, flow, "it closes each connection before the key is proven (is the secret the same there?)");
}

static bool prove(pmr_tcp *self, pmr_flow *flow)
{
    char name[PMR_ADDRESS_BYTES];
    uint32_t peer = flow->inlet.peer;
    switch (pmr_tcp_talk_on(flow->fd, &flow->talk)) {
    case PMR_TALK_WAIT:
        return false;
    case PMR_TALK_ENDED:
        return refused(self, flow);
    case PMR_TALK_HEARD:
        break;
    }
    if (flow->talk.handshake.stage == PMR_HANDSHAKE_TAKEN) {
        pmr_flow_open(self, flow, flow->fd);
    } else if (flow->talk.handshake.stage == PMR_HANDSHAKE_CROSSED) {
        /* The peer's own dial is under way; should it fail, we dial again. */
        return rest(self, flow, "it refuses a connection while it makes one, which does not come");
    } else if (flow->talk.handshake.stage == PMR_HANDSHAKE_REFUSED) {
        self->base.counts.strangers++;
        return pmr_tcp_lose(self, peer, "whoever answers at the address of rank %u (%s) %s", peer,
                            name_of(self, peer, name), flow->talk.handshake.why);
    }
    return true;
}

void pmr_flow_open(pmr_tcp *self, pmr_flow *flow, int fd)
{
    if (flow->fd != fd) {
        pmr_flow_close(flow); /* our own dial, which crossed */
        flow->fd = fd;
    }
    flow->refusal = 0;
    flow->state = PMR_FLOW_OPEN;
    self->base.counts.connections++;
    pmr_flow_watch(self, flow);
    pmr_tcp_due(self, flow);
}

/* ---- moving ---- */

bool pmr_flow_push(pmr_tcp *self, pmr_flow *flow)
{
    bool moved = false;
    while (flow->state == PMR_FLOW_OPEN && !flow->mute && !pmr_outbox_empty(&flow->outbox)) {
        struct iovec vector[VECTORS];
        size_t wanted = 0;
        int count = pmr_outbox_gather(&flow->outbox, vector, VECTORS, WRITE_BYTES);
        for (int i = 0; i < count; i++)
            wanted += vector[i].iov_len;
        struct msghdr message = {.msg_iov = vector, .msg_iovlen = (size_t)count};
        ssize_t done = sendmsg(flow->fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (done < 0) {
            if (errno == EINTR)
                continue;
            flow->blocked = true;
            flow->mute = errno != EAGAIN && errno != ENOBUFS; /* what the peer said before it ended is still read */
            break;
        }
        moved = true;
        flow->blocked = (size_t)done < wanted;
        self->unsent_bytes -= (uint64_t)done;
        pmr_outbox_advance(&flow->outbox, (size_t)done);
        if (flow->blocked)
            break;
    }
    if (pmr_outbox_empty(&flow->outbox))
        flow->blocked = false;
    if (pmr_outbox_unsettled(&flow->outbox))
        pmr_tcp_due(self, flow);
    if (flow->state == PMR_FLOW_OPEN)
        pmr_flow_watch(self, flow);
    return moved;
}

/* What take said to bytes that are no packets. */
static bool garbage(pmr_tcp *self, pmr_flow *flow, const char *why)
{
    char name[PMR_ADDRESS_BYTES];
    uint32_t peer = flow->inlet.peer;
    return pmr_tcp_lose(self, peer, "lost rank %u (%s): it sent %s", peer, name_of(self, peer, name), why);
}

void pmr_flow_await(pmr_tcp *self, pmr_flow *flow)
{
    uint32_t rest = self->base.patient && !flow->inlet.nowhere ? pmr_inlet_rest(&flow->inlet) : 0;
    int most = rest < PMR_PATIENT_BYTES ? (int)rest : (int)PMR_PATIENT_BYTES;
    most = most ? most : 1;
    bool worth = most >= (int)PMR_PATIENT_BYTES / 4 && flow->lowest < (int)PMR_PATIENT_BYTES / 4;
    if (flow->fd < 0 || (flow->lowest <= most && !worth))
        return;
    if (setsockopt(flow->fd, SOL_SOCKET, SO_RCVLOWAT, &most, sizeof most) == 0)
        flow->lowest = most;
    self->patient = self->patient || flow->lowest > 1;
}

bool pmr_flow_pull(pmr_tcp *self, pmr_flow *flow)
{
    bool moved = false;
    for (uint32_t turn = 0; turn < READS_PER_TURN && flow->state == PMR_FLOW_OPEN; turn++) {
        struct iovec vector[2];
        struct msghdr message = {.msg_iov = vector};
        message.msg_iovlen = (size_t)pmr_inlet_room(&flow->inlet, vector);
        if (!message.msg_iovlen)
            break;
        size_t room = vector[0].iov_len + (message.msg_iovlen == 2 ? vector[1].iov_len : 0);
        ssize_t done = recvmsg(flow->fd, &message, MSG_DONTWAIT);
        if (done < 0 && (errno == EAGAIN || errno == EINTR))
            break;
        if (done <= 0 && flow->inlet.goodbye)
            return end_well(self, flow);
        if (done <= 0)
            return end_badly(self, flow, done < 0 ? errno : 0);
        moved = true;
        const char *why;
        if (!pmr_inlet_take(&flow->inlet, (size_t)done, &self->base.sink, &self->base.counts, &why))
            return garbage(self, flow, why);
        if ((size_t)done < room)
            break;
    }
    if (flow->state == PMR_FLOW_OPEN) {
        pmr_flow_await(self, flow);
        pmr_flow_watch(self, flow);
    }
    return moved;
}

bool pmr_flow_event(pmr_tcp *self, pmr_flow *flow, uint32_t events)
{
    bool moved = false;
    if (flow->state == PMR_FLOW_DIALING)
        return connected(self, flow);
    if (flow->state == PMR_FLOW_PROVING)
        return prove(self, flow);
    if (flow->state == PMR_FLOW_OPEN && (events & (EPOLLIN | EPOLLHUP | EPOLLERR)))
        moved = pmr_flow_pull(self, flow);
    if (flow->state == PMR_FLOW_OPEN && (events & (EPOLLOUT | EPOLLHUP | EPOLLERR)))
        moved = pmr_flow_push(self, flow) || moved;
    return moved;
}

bool pmr_flow_due(pmr_tcp *self, pmr_flow *flow)
{
    bool moved = false;
    const char *why;
    if (flow->given_up)
        return end_badly(self, flow, ENOMEM);
    if (flow->refusal) {
        int problem = flow->refusal;
        flow->refusal = 0;
        return dial_failed(self, flow, problem);
    }
    if (flow->resumed && flow->state == PMR_FLOW_OPEN) {
        uint64_t before = self->base.counts.packets_received;
        if (!pmr_inlet_resume(&flow->inlet, &self->base.sink, &self->base.counts, &why))
            return garbage(self, flow, why);
        moved = before != self->base.counts.packets_received;
        moved = pmr_flow_pull(self, flow) || moved;
    }
    flow->resumed = false;
    if (!flow->blocked)
        moved = pmr_flow_push(self, flow) || moved;
    return pmr_outbox_settle(&flow->outbox, &self->base.sink) || moved;
}

/* Four times a second. */
bool pmr_flow_tick(pmr_tcp *self, pmr_flow *flow, int64_t now_ns)
{
    if (flow->state == PMR_FLOW_RESTING && now_ns >= flow->rest_until_ns)
        pmr_flow_dial(self, flow);
    struct tcp_info info;
    socklen_t bytes = sizeof info;
    if (flow->state != PMR_FLOW_OPEN || getsockopt(flow->fd, IPPROTO_TCP, TCP_INFO, &info, &bytes) != 0)
        return false;
    bool tried = info.tcpi_retransmits >= SILENT_TRIES || info.tcpi_probes >= SILENT_TRIES;
    return tried && info.tcpi_last_ack_recv >= SILENCE_MS && end_badly(self, flow, ETIMEDOUT);
}
