/* SPDX-License-Identifier: Apache-2.0
 *
 * tcp.c: packets over TCP, driven by whoever polls.
 *
 * Each (peer, lane) is a connection of its own (tcp_flow.c), so the kernel orders what must be ordered and nothing else.
 * One epoll set holds all of them, the listener and a clock; a poll asks it once, without waiting. A small packet on an
 * idle flow is written by `send` itself: one system call there, and one read for all packets that came, here.
 * Invariant: the sink is called from poll alone; `unsent_bytes` is the sum over all outboxes.
 */
#include "transport/tcp.h"

#include <errno.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/timerfd.h>
#include <linux/sockios.h>
#include <unistd.h>

#include "core/clock.h"
#include "core/status.h"

#define FLOWS_DEFAULT      3u
#define PAYLOAD_MAX        (64u << 20)
#define FRAGMENT_BYTES     (256u * 1024u)
#define EVENTS_PER_POLL    64
#define BACKLOG            1024
#define KEEP_IDLE_S        5  /* a silent peer is asked after this, */
#define KEEP_INTERVAL_S    3  /* then at this interval, */
#define KEEP_PROBES        5  /* so often: gone after 20 s */
#define FIRST_BYTES_S      10 /* the kernel keeps a connection from us until something came, or so long */
#define CLOSE_SLICE_MS     20
#define CONGESTION_NAME_BYTES 16 /* as the kernel's */

pmr_flow *pmr_tcp_flow(pmr_tcp *self, uint32_t peer, uint32_t lane)
{
    pmr_flow **place = &self->flows[peer * self->base.lanes + lane];
    if (!*place) {
        pmr_flow *flow = calloc(1, sizeof *flow);
        if (!flow)
            return NULL;
        flow->fd = -1;
        flow->lowest = 1;
        flow->state = self->lost[peer] ? PMR_FLOW_ENDED : PMR_FLOW_IDLE;
        pmr_inlet_init(&flow->inlet, peer, lane, PAYLOAD_MAX);
        *place = flow;
    }
    return *place;
}

void pmr_tcp_due(pmr_tcp *self, pmr_flow *flow)
{
    if (flow->due)
        return;
    flow->due = true;
    flow->next_due = self->due;
    self->due = flow;
}

void pmr_tcp_start_ticking(pmr_tcp *self)
{
    struct itimerspec interval = {{0, PMR_TCP_TICK_NS}, {0, PMR_TCP_TICK_NS}};
    if (!self->ticking)
        self->ticking = timerfd_settime(self->timer, 0, &interval, NULL) == 0;
}

static void set_option(int fd, int level, int option, int value)
{
    /* None of these options is needed for a right result, so a kernel without one is no error. */
    setsockopt(fd, level, option, &value, sizeof value);
}

/* BBR sends at the rate that was acknowledged over the last ten round trips, which last microseconds between near nodes. A
 * peer that reads late, since it computes or has no CPU, looks like a slow network then: the next message trickles for
 * tens of milliseconds. Comes before there is a connection, as a socket that BBR began to pace stays paced. */
static void avoid_bbr(int fd)
{
    char name[CONGESTION_NAME_BYTES] = "";
    socklen_t bytes = sizeof name;
    if (getsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, name, &bytes) != 0 || strncmp(name, "bbr", 3) != 0)
        return;
    if (setsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, "cubic", strlen("cubic")) != 0)
        setsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, "reno", strlen("reno")); /* which everybody may choose */
}

void pmr_tcp_tune(const pmr_tcp *self, int fd)
{
    avoid_bbr(fd);
    set_option(fd, IPPROTO_TCP, TCP_NODELAY, 1);
    set_option(fd, SOL_SOCKET, SO_KEEPALIVE, 1);
    set_option(fd, IPPROTO_TCP, TCP_KEEPIDLE, KEEP_IDLE_S);
    set_option(fd, IPPROTO_TCP, TCP_KEEPINTVL, KEEP_INTERVAL_S);
    set_option(fd, IPPROTO_TCP, TCP_KEEPCNT, KEEP_PROBES);
    if (self->socket_bytes) {
        set_option(fd, SOL_SOCKET, SO_SNDBUF, (int)self->socket_bytes);
        set_option(fd, SOL_SOCKET, SO_RCVBUF, (int)self->socket_bytes);
    }
}

bool pmr_tcp_lose(pmr_tcp *self, uint32_t peer, const char *format, ...)
{
    if (self->lost[peer])
        return true;
    self->lost[peer] = true;
    char text[PMR_ERROR_TEXT_BYTES];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    for (uint32_t lane = 0; lane < self->base.lanes; lane++) {
        pmr_flow *flow = self->flows[peer * self->base.lanes + lane];
        if (!flow)
            continue;
        pmr_flow_close(flow);
        flow->state = PMR_FLOW_ENDED;
        flow->inlet.place = NULL;
        self->unsent_bytes -= flow->outbox.unsent_bytes;
        pmr_outbox_drop(&flow->outbox);
        pmr_outbox_settle(&flow->outbox, &self->base.sink);
    }
    pmr_error error;
    pmr_fail(&error, PMR_ERR_RANK_FAILED, "%s", text);
    error.rank = (int32_t)peer;
    self->base.sink.lost(self->base.sink.arg, peer, &error);
    return true;
}

/* ---- sending ---- */

/* As much as the kernel takes of a packet on a flow where nothing waits. */
static uint32_t write_now(pmr_flow *flow, const pmr_packet *packet, const void *payload)
{
    struct iovec vector[2] = {{(void *)(uintptr_t)packet, sizeof *packet},
                              {(void *)(uintptr_t)payload, packet->payload_bytes}};
    struct msghdr message = {.msg_iov = vector, .msg_iovlen = packet->payload_bytes ? 2 : 1};
    ssize_t done = sendmsg(flow->fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
    return done > 0 ? (uint32_t)done : 0; /* an error shows again when the rest is pushed */
}

static bool tcp_send(pmr_endpoint *base, uint32_t peer, uint32_t lane, const pmr_packet *packet, const void *payload,
                     uint64_t cookie)
{
    pmr_tcp *self = (pmr_tcp *)base;
    pmr_flow *flow = pmr_tcp_flow(self, peer, lane);
    if (!flow || !pmr_outbox_room(&flow->outbox, cookie ? 0 : packet->payload_bytes))
        return false;
    base->counts.packets_sent++;
    base->counts.bytes_sent += packet->payload_bytes;
    uint32_t bytes = (uint32_t)sizeof *packet + packet->payload_bytes, moved = 0;
    bool at_once = flow->state == PMR_FLOW_OPEN && pmr_outbox_empty(&flow->outbox) && !flow->mute;
    if (at_once) {
        moved = write_now(flow, packet, payload);
        if (moved == bytes && !cookie)
            return true;
    }
    pmr_outbox_put(&flow->outbox, packet, payload, cookie, moved);
    self->unsent_bytes += bytes - moved;
    if (flow->state == PMR_FLOW_ENDED) {
        self->unsent_bytes -= flow->outbox.unsent_bytes;
        pmr_outbox_drop(&flow->outbox);
    }
    if (flow->state == PMR_FLOW_IDLE) {
        pmr_flow_dial(self, flow);
    } else if (at_once && moved < bytes) {
        flow->blocked = true;
        pmr_flow_watch(self, flow);
    }
    if (pmr_outbox_unsettled(&flow->outbox))
        pmr_tcp_due(self, flow);
    return true;
}

static void tcp_resume(pmr_endpoint *base, uint32_t peer, uint32_t lane)
{
    pmr_tcp *self = (pmr_tcp *)base;
    pmr_flow *flow = self->flows[peer * base->lanes + lane];
    if (flow && flow->state == PMR_FLOW_OPEN) {
        flow->resumed = true;
        pmr_tcp_due(self, flow);
    }
}

static void tcp_abandon(pmr_endpoint *base, const void *data, size_t bytes)
{
    pmr_tcp *self = (pmr_tcp *)base;
    for (uint32_t i = 0; i < base->ranks * base->lanes; i++) {
        pmr_flow *flow = self->flows[i];
        if (!flow || flow->state == PMR_FLOW_ENDED)
            continue;
        bool copied = pmr_outbox_abandon(&flow->outbox, data, bytes);
        if (pmr_inlet_abandon(&flow->inlet, data, bytes) && copied)
            continue;
        pmr_flow_close(flow); /* so that nothing is read or written any more */
        flow->given_up = flow->mute = true;
        pmr_tcp_due(self, flow);
    }
}

static uint64_t tcp_unsent_bytes(const pmr_endpoint *base)
{
    return ((const pmr_tcp *)base)->unsent_bytes;
}

/* ---- polling ---- */

static bool tick(pmr_tcp *self)
{
    uint64_t expired;
    if (read(self->timer, &expired, sizeof expired) != (ssize_t)sizeof expired)
        return false;
    int64_t now_ns = pmr_now_ns();
    bool moved = false;
    pmr_tcp_guests_tick(self, now_ns);
    for (uint32_t i = 0; i < self->base.ranks * self->base.lanes; i++)
        if (self->flows[i])
            moved |= pmr_flow_tick(self, self->flows[i], now_ns);
    return moved;
}

static bool handle(pmr_tcp *self, const struct epoll_event *event)
{
    uint32_t index = (uint32_t)event->data.u64;
    switch (event->data.u64 >> 32) {
    case PMR_TCP_LISTENER:
        return pmr_tcp_accept(self);
    case PMR_TCP_TIMER:
        return tick(self);
    case PMR_TCP_GUEST:
        return pmr_tcp_guest_event(self, index);
    default:
        return pmr_flow_event(self, self->flows[index], event->events);
    }
}

static bool work_off_due(pmr_tcp *self)
{
    bool moved = false;
    pmr_flow *next = self->due;
    self->due = NULL; /* what becomes due meanwhile waits for the next poll */
    while (next) {
        pmr_flow *flow = next;
        next = flow->next_due;
        flow->due = false;
        moved |= pmr_flow_due(self, flow);
    }
    return moved;
}

/* What waits for more than its first byte is no longer to. */
static void end_patience(pmr_tcp *self)
{
    self->patient = false;
    for (uint32_t i = 0; i < self->base.ranks * self->base.lanes; i++)
        if (self->flows[i])
            pmr_flow_await(self, self->flows[i]);
}

static bool tcp_poll(pmr_endpoint *base)
{
    pmr_tcp *self = (pmr_tcp *)base;
    if (self->patient && !base->patient)
        end_patience(self);
    struct epoll_event events[EVENTS_PER_POLL];
    int count = epoll_wait(base->descriptor, events, EVENTS_PER_POLL, 0);
    bool moved = false;
    for (int i = 0; i < count; i++)
        moved |= handle(self, &events[i]);
    if (self->due)
        moved |= work_off_due(self);
    return moved || self->due;
}

/* ---- opening and closing ---- */

static void free_tcp(pmr_tcp *self)
{
    pmr_tcp_guests_close(self);
    for (uint32_t i = 0; self->flows && i < self->base.ranks * self->base.lanes; i++) {
        pmr_flow *flow = self->flows[i];
        if (!flow)
            continue;
        pmr_flow_close(flow);
        pmr_outbox_fini(&flow->outbox);
        pmr_inlet_fini(&flow->inlet);
        free(flow);
    }
    if (self->listener >= 0)
        close(self->listener);
    if (self->timer >= 0)
        close(self->timer);
    if (self->base.descriptor >= 0)
        close(self->base.descriptor);
    free(self->flows);
    free(self->lost);
    free(self->address);
    explicit_bzero(self->key, sizeof self->key);
    free(self);
}

/* The peer reset the connection. A flow of which nothing is read any more does not learn it otherwise. */
static bool is_reset(const pmr_flow *flow)
{
    struct tcp_info info;
    socklen_t bytes = sizeof info;
    return getsockopt(flow->fd, IPPROTO_TCP, TCP_INFO, &info, &bytes) == 0 && info.tcpi_state == TCP_CLOSE;
}

/* All that was written has reached the other kernels, or never will: a reset could not destroy it any more. */
static bool acknowledged(const pmr_tcp *self)
{
    for (uint32_t i = 0; i < self->base.ranks * self->base.lanes; i++) {
        const pmr_flow *flow = self->flows[i];
        int waiting = 0;
        if (flow && flow->state == PMR_FLOW_OPEN && ioctl(flow->fd, SIOCOUTQ, &waiting) == 0 && waiting &&
            !is_reset(flow))
            return false;
    }
    return true;
}

static bool flush(pmr_tcp *self, int64_t deadline_ns)
{
    for (;;) {
        while (tcp_poll(&self->base) && pmr_now_ns() < deadline_ns)
            continue;
        bool unsent = self->unsent_bytes > 0;
        if (!unsent && acknowledged(self))
            return true;
        if (pmr_now_ns() >= deadline_ns)
            return false;
        struct pollfd waiting = {.fd = self->base.descriptor, .events = POLLIN};
        poll(&waiting, 1, unsent ? CLOSE_SLICE_MS : 1);
    }
}

static void tcp_close(pmr_endpoint *base, int64_t deadline_ns)
{
    static const pmr_packet goodbye = {.kind = PMR_PACKET_GOODBYE};
    pmr_tcp *self = (pmr_tcp *)base;
    base->sink = pmr_sink_of_closing;
    if (flush(self, deadline_ns)) {
        for (uint32_t i = 0; i < base->ranks * base->lanes; i++)
            if (self->flows[i] && self->flows[i]->state == PMR_FLOW_OPEN)
                tcp_send(base, i / base->lanes, i % base->lanes, &goodbye, NULL, 0);
        flush(self, deadline_ns);
    }
    free_tcp(self);
}

static pmr_status tcp_connect(pmr_endpoint *base, const char *const *addresses, pmr_error *error)
{
    pmr_tcp *self = (pmr_tcp *)base;
    for (uint32_t rank = 0; rank < base->ranks; rank++) {
        pmr_status status = rank == base->rank ? PMR_OK
                                               : pmr_address_take(addresses[rank], base->ops->name, rank,
                                                                  &self->address[rank], error);
        if (status)
            return status;
    }
    return PMR_OK;
}

static pmr_status listen_on(pmr_tcp *self, const char *host, pmr_error *error)
{
    pmr_address address;
    pmr_status status = pmr_address_parse(host, &address, error);
    if (status)
        return status;
    self->listener = socket(address.any.sa_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (self->listener < 0)
        return pmr_fail_os(error, "cannot make a socket for %s", host);
    avoid_bbr(self->listener); /* inherited by what is accepted */
    if (self->socket_bytes) /* inherited, and needed before the window's scale is agreed on */
        set_option(self->listener, SOL_SOCKET, SO_RCVBUF, (int)self->socket_bytes);
    set_option(self->listener, IPPROTO_TCP, TCP_DEFER_ACCEPT, FIRST_BYTES_S);
    if (bind(self->listener, &address.any, address.bytes) != 0)
        return pmr_fail_os(error, "cannot listen on %s (is it an address of this node?)", host);
    if (listen(self->listener, BACKLOG) != 0 || getsockname(self->listener, &address.any, &address.bytes) != 0)
        return pmr_fail_os(error, "cannot listen on %s", host);
    char text[PMR_ADDRESS_BYTES];
    pmr_address_text(&address, text);
    snprintf(self->base.address, sizeof self->base.address, "tcp %.*s", PMR_ADDRESS_BYTES - 5, text);
    return PMR_OK;
}

static bool watch(pmr_tcp *self, int fd, uint32_t kind)
{
    struct epoll_event event = {.events = EPOLLIN, .data.u64 = pmr_tcp_about(kind, 0)};
    return epoll_ctl(self->base.descriptor, EPOLL_CTL_ADD, fd, &event) == 0;
}

static const pmr_endpoint_ops tcp_ops;

static pmr_status tcp_open(const pmr_endpoint_options *options, pmr_endpoint **out, pmr_error *error)
{
    if (options->encrypt)
        return pmr_fail(error, PMR_ERR_UNSUPPORTED,
                        "the tcp transport does not encrypt: use --transport zmq, which can, or leave --encrypt out");
    uint32_t flows = options->flows ? options->flows : FLOWS_DEFAULT;
    if (flows >= PMR_LANES_MAX)
        return pmr_fail(error, PMR_ERR_ARGUMENT, "%u connections per pair of ranks: at most %u", flows, PMR_LANES_MAX - 1);
    pmr_tcp *self = calloc(1, sizeof *self);
    if (!self)
        return pmr_fail(error, PMR_ERR_NO_MEMORY, "out of memory for a network of %u ranks", options->ranks);
    self->base = (pmr_endpoint){
        .ops = &tcp_ops,
        .rank = options->rank,
        .ranks = options->ranks,
        .lanes = 1 + flows,
        .payload_max = PAYLOAD_MAX,
        .fragment_bytes = FRAGMENT_BYTES,
    };
    self->listener = self->timer = -1;
    for (uint32_t i = 0; i < PMR_TCP_GUESTS_MAX; i++)
        self->guests[i].fd = -1;
    memcpy(self->key, options->key, sizeof self->key);
    self->socket_bytes = options->socket_bytes;
    uint32_t count = options->ranks * self->base.lanes;
    self->address = calloc(options->ranks, sizeof *self->address);
    self->lost = calloc(options->ranks, sizeof *self->lost);
    self->flows = calloc(count, sizeof *self->flows);
    self->base.descriptor = epoll_create1(EPOLL_CLOEXEC);
    self->timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
    pmr_endpoint_raise_descriptors((uint64_t)count + 1024);
    pmr_status status = PMR_OK;
    if (!self->address || !self->lost || !self->flows)
        status = pmr_fail(error, PMR_ERR_NO_MEMORY, "out of memory for a network of %u ranks", options->ranks);
    else if (self->base.descriptor < 0 || self->timer < 0)
        status = pmr_fail_os(error, "cannot make what connections are watched with");
    else
        status = listen_on(self, options->bind_address, error);
    if (!status && !(watch(self, self->listener, PMR_TCP_LISTENER) && watch(self, self->timer, PMR_TCP_TIMER)))
        status = pmr_fail_os(error, "cannot watch connections");
    self->listening = true;
    if (status) {
        free_tcp(self);
        return status;
    }
    *out = &self->base;
    return PMR_OK;
}

static const pmr_endpoint_ops tcp_ops = {
    .name = "tcp",
    .open = tcp_open,
    .connect = tcp_connect,
    .send = tcp_send,
    .poll = tcp_poll,
    .resume = tcp_resume,
    .abandon = tcp_abandon,
    .unsent_bytes = tcp_unsent_bytes,
    .close = tcp_close,
};
PMR_REGISTER_ENDPOINT(tcp_ops);
