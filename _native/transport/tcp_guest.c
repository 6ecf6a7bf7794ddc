/* SPDX-License-Identifier: Apache-2.0
 *
 * tcp_guest.c: connections that were accepted and have not proven that they have the key.
 *
 * Strangers must cost next to nothing. The kernel gives a connection to us only when its first bytes are there; those
 * are read at once, and what is no HELLO under the key is closed on the spot. There is a fixed number of places; when
 * they are full the oldest guest goes that has said nothing valid yet. Those that have are never turned out: while they
 * fill all places, nobody else is let in. A guest has some seconds. Invariant: a guest costs its place and one
 * descriptor, no other memory.
 */
#include <errno.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "core/clock.h"
#include "transport/tcp.h"

#define ACCEPTS_PER_TURN 16u
#define GUEST_NS         10000000000

static void listen_again(pmr_tcp *self)
{
    struct epoll_event event = {.events = EPOLLIN, .data.u64 = pmr_tcp_about(PMR_TCP_LISTENER, 0)};
    if (!self->listening)
        self->listening = epoll_ctl(self->base.descriptor, EPOLL_CTL_ADD, self->listener, &event) == 0;
}

/* Until there is a place, or the next tick: the kernel would report waiting connections again and again. */
static void listen_later(pmr_tcp *self)
{
    epoll_ctl(self->base.descriptor, EPOLL_CTL_DEL, self->listener, NULL);
    self->listening = false;
    pmr_tcp_start_ticking(self);
}

static void dismiss(pmr_tcp *self, pmr_tcp_guest *guest, bool stranger)
{
    close(guest->fd);
    guest->fd = -1;
    self->guest_count--;
    self->base.counts.strangers += stranger;
}

/* A place that is free, or whose guest may be turned out; NULL: all are taken by guests that have the key. */
static pmr_tcp_guest *find_place(pmr_tcp *self)
{
    pmr_tcp_guest *oldest = NULL;
    for (uint32_t i = 0; i < PMR_TCP_GUESTS_MAX; i++) {
        pmr_tcp_guest *guest = &self->guests[i];
        if (guest->fd < 0)
            return guest;
        if (!guest->screened && (!oldest || guest->deadline_ns < oldest->deadline_ns))
            oldest = guest;
    }
    return oldest;
}

/* Both may have dialled at once: then the dial of the lower rank stands. */
static bool welcome(const pmr_tcp *self, const pmr_flow *flow)
{
    bool dialing = flow->state == PMR_FLOW_DIALING || flow->state == PMR_FLOW_PROVING;
    return flow->state == PMR_FLOW_IDLE || flow->state == PMR_FLOW_RESTING ||
           (dialing && flow->inlet.peer < self->base.rank);
}

static bool decide(pmr_tcp *self, pmr_tcp_guest *guest)
{
    const pmr_hello *hello = &guest->talk.handshake.hello;
    pmr_flow *flow = pmr_tcp_flow(self, hello->from, hello->lane);
    bool taken = flow && welcome(self, flow);
    int fd = guest->fd;
    pmr_answer verdict;
    pmr_handshake_decide(&guest->talk.handshake, taken, &verdict);
    ssize_t done = send(fd, verdict.message, verdict.bytes, MSG_NOSIGNAL);
    if (!taken || done != (ssize_t)verdict.bytes) {
        dismiss(self, guest, false);
        return true;
    }
    guest->fd = -1;
    self->guest_count--;
    listen_again(self);
    /* Its index in the epoll set is to be the flow's. */
    epoll_ctl(self->base.descriptor, EPOLL_CTL_DEL, fd, NULL);
    pmr_flow_open(self, flow, fd);
    return true;
}

bool pmr_tcp_guest_event(pmr_tcp *self, uint32_t index)
{
    pmr_tcp_guest *guest = &self->guests[index];
    if (guest->fd < 0)
        return false; /* turned out by an event before this one */
    pmr_talking talking = pmr_tcp_talk_on(guest->fd, &guest->talk);
    if (talking == PMR_TALK_WAIT)
        return false;
    if (talking == PMR_TALK_ENDED || guest->talk.handshake.stage == PMR_HANDSHAKE_REFUSED) {
        dismiss(self, guest, !guest->screened);
        return false; /* not what anybody waits for */
    }
    guest->screened = true;
    return guest->talk.handshake.stage == PMR_HANDSHAKE_PROVEN && decide(self, guest);
}

static void receive(pmr_tcp *self, pmr_tcp_guest *guest, int fd)
{
    uint32_t index = (uint32_t)(guest - self->guests);
    if (guest->fd >= 0)
        dismiss(self, guest, true);
    guest->fd = fd;
    guest->screened = false;
    guest->deadline_ns = pmr_now_ns() + GUEST_NS;
    guest->talk.bytes = 0;
    self->guest_count++;
    pmr_handshake_host(&guest->talk.handshake, self->key, self->base.rank, self->base.ranks, self->base.lanes);
    pmr_tcp_guest_event(self, index); /* its first bytes are there already */
    if (guest->fd < 0)
        return;
    struct epoll_event event = {.events = EPOLLIN, .data.u64 = pmr_tcp_about(PMR_TCP_GUEST, index)};
    if (epoll_ctl(self->base.descriptor, EPOLL_CTL_ADD, fd, &event) != 0) {
        dismiss(self, guest, false);
        return;
    }
    pmr_tcp_tune(self, fd);
    pmr_tcp_start_ticking(self);
}

/* False always: nobody waits for strangers. */
bool pmr_tcp_accept(pmr_tcp *self)
{
    for (uint32_t i = 0; i < ACCEPTS_PER_TURN; i++) {
        pmr_tcp_guest *guest = find_place(self);
        int fd = guest ? accept4(self->listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC) : -1;
        if (fd >= 0) {
            receive(self, guest, fd);
        } else if (!guest || errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM) {
            listen_later(self);
            return false;
        } else if (errno == EAGAIN) {
            return false;
        }
    }
    return false;
}

/* Whose time is over goes, unless what we waited for has come and nobody polled. */
void pmr_tcp_guests_tick(pmr_tcp *self, int64_t now_ns)
{
    listen_again(self);
    for (uint32_t i = 0; i < PMR_TCP_GUESTS_MAX && self->guest_count; i++) {
        pmr_tcp_guest *guest = &self->guests[i];
        if (guest->fd < 0 || now_ns < guest->deadline_ns)
            continue;
        pmr_handshake_stage stage = guest->talk.handshake.stage;
        pmr_tcp_guest_event(self, i);
        if (guest->fd >= 0 && guest->talk.handshake.stage == stage)
            dismiss(self, guest, !guest->screened);
    }
}

void pmr_tcp_guests_close(pmr_tcp *self)
{
    for (uint32_t i = 0; i < PMR_TCP_GUESTS_MAX; i++)
        if (self->guests[i].fd >= 0)
            dismiss(self, &self->guests[i], false);
}
