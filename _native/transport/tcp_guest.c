/* SPDX-License-Identifier: Apache-2.0
 *
 * tcp_guest.c: connections that were accepted and have not proven that they have the key.
 *
 * Strangers must cost next to nothing. The kernel gives a connection to us only when its first bytes are there; those
 * are read at once, and what is no HELLO under the key is closed on the spot. There is a fixed number of places; when
 * they are full the oldest guest goes, first among those that said nothing valid. A guest has some seconds. A rank that
 * was turned out in the crowd dials again. Invariant: a guest costs its place and one descriptor, no other memory.
 */
#include <errno.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "core/clock.h"
#include "transport/tcp.h"

#define ACCEPTS_PER_TURN 16u
#define GUEST_NS         10000000000

static void dismiss(pmr_tcp *self, pmr_tcp_guest *guest, bool stranger)
{
    close(guest->fd);
    guest->fd = -1;
    self->guest_count--;
    self->base.counts.strangers += stranger;
}

/* A free place, made if need be. */
static uint32_t place(pmr_tcp *self)
{
    uint32_t oldest = 0;
    for (uint32_t i = 0; i < PMR_TCP_GUESTS_MAX; i++) {
        const pmr_tcp_guest *guest = &self->guests[i], *other = &self->guests[oldest];
        if (guest->fd < 0)
            return i;
        if (guest->screened != other->screened ? other->screened : guest->deadline_ns < other->deadline_ns)
            oldest = i;
    }
    dismiss(self, &self->guests[oldest], !self->guests[oldest].screened);
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

static void receive(pmr_tcp *self, int fd)
{
    uint32_t index = place(self);
    pmr_tcp_guest *guest = &self->guests[index];
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

bool pmr_tcp_accept(pmr_tcp *self)
{
    for (uint32_t i = 0; i < ACCEPTS_PER_TURN; i++) {
        int fd = accept4(self->listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd >= 0) {
            receive(self, fd);
        } else if (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM) {
            /* It would be reported again and again: the next tick listens anew. */
            epoll_ctl(self->base.descriptor, EPOLL_CTL_DEL, self->listener, NULL);
            self->listening = false;
            pmr_tcp_start_ticking(self);
            return false;
        } else if (errno == EAGAIN) {
            return false;
        }
    }
    return false;
}

void pmr_tcp_guests_tick(pmr_tcp *self, int64_t now_ns)
{
    if (!self->listening) {
        struct epoll_event event = {.events = EPOLLIN, .data.u64 = pmr_tcp_about(PMR_TCP_LISTENER, 0)};
        self->listening = epoll_ctl(self->base.descriptor, EPOLL_CTL_ADD, self->listener, &event) == 0;
    }
    for (uint32_t i = 0; i < PMR_TCP_GUESTS_MAX && self->guest_count; i++)
        if (self->guests[i].fd >= 0 && now_ns >= self->guests[i].deadline_ns)
            dismiss(self, &self->guests[i], !self->guests[i].screened);
}

void pmr_tcp_guests_close(pmr_tcp *self)
{
    for (uint32_t i = 0; i < PMR_TCP_GUESTS_MAX; i++)
        if (self->guests[i].fd >= 0)
            dismiss(self, &self->guests[i], false);
}
