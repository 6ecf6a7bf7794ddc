/* SPDX-License-Identifier: Apache-2.0
 *
 * p2p_drive.c: what a pass over the queues does: frames out, frames in.
 *
 * Credits bound what lies unmatched: a sender counts its eager bytes that the peer has not reported as matched, and
 * announces further messages instead of sending them. So a ring can always be drained, whatever it holds: an eager
 * message within the credit, or a few words. Answers that find no room wait in their operation; the peer that they
 * are for has a send open, so it drains its ring.
 * Invariant: messages of one sender to one peer enter the ring in the order in which they were started.
 */
#include <stdlib.h>
#include <string.h>

#include "progress/p2p_net.h"
#include "progress/p2p_state.h"

#define EAGER_BYTES_MAX 16384u
#define HEAP_BYTES_MIN 8192u            /* below, two copies cost less than the peer's answer */
#define FRAMES_PER_PASS 64u             /* of one ring or one send, before the others get their turn */
#define COPY_BYTES_PER_PASS ((size_t)4 << 20)
#define MESSAGE_OVERHEAD_BYTES 128u     /* what keeping a message costs beside its bytes */
#define FAR_EAGER_BYTES_MAX 8192u       /* to another node: one packet that the endpoint copies */
#define FAR_WINDOW_BYTES ((size_t)1 << 20) /* of one message, on their way to another node */

static pmr_transport *transport_to(const pmr_p2p *p2p, uint32_t peer)
{
    return pmr_p2p_is_far(p2p, peer) ? p2p->far : p2p->transport;
}

/* What the transport calls that place. */
static uint32_t peer_at(const pmr_p2p *p2p, uint32_t peer)
{
    return pmr_p2p_is_far(p2p, peer) ? peer - p2p->ranks : peer;
}

static bool put(pmr_p2p *p2p, uint32_t peer, const pmr_frame *frame, const void *payload)
{
    pmr_transport *transport = transport_to(p2p, peer);
    return transport->ops->put(transport, peer_at(p2p, peer), frame, payload);
}

static bool satisfied(const pmr_p2p *p2p)
{
    return p2p->driver && p2p->driver->left == 0;
}

/* ---- out ---- */

static uint64_t heap_offset_of(const pmr_p2p *p2p, const pmr_transfer *op)
{
    const pmr_window *window = p2p->window;
    const uint8_t *end = window->base + window->mapped_bytes;
    if (pmr_p2p_is_far(p2p, op->peer) || op->bytes < HEAP_BYTES_MIN || op->data < window->heaps || op->data >= end ||
        op->bytes > (size_t)(end - op->data))
        return PMR_NOT_IN_HEAP;
    return (uint64_t)(op->data - window->base);
}

/* Nothing of what goes to that place waits for somebody to drive. */
static bool is_out(const pmr_p2p *p2p, uint32_t peer)
{
    return !pmr_p2p_is_far(p2p, peer) || p2p->peers[peer].gone || pmr_p2p_net_is_empty(p2p->far);
}

/* All of it was put. */
static void leave(pmr_p2p *p2p, pmr_transfer *op)
{
    if (is_out(p2p, op->peer))
        pmr_transfer_finish(p2p, op, PMR_OK, NULL);
    else
        pmr_transfer_move(&p2p->todo, op, PMR_TRANSFER_LEAVING);
}

/* False: no room. */
static bool put_whole(pmr_p2p *p2p, pmr_transfer *op, pmr_frame *frame)
{
    frame->kind = PMR_FRAME_EAGER;
    frame->payload_bytes = (uint32_t)op->bytes;
    if (!put(p2p, op->peer, frame, op->data))
        return false;
    p2p->peers[op->peer].unmatched += op->bytes + MESSAGE_OVERHEAD_BYTES;
    leave(p2p, op);
    return true;
}

static bool put_announcement(pmr_p2p *p2p, pmr_transfer *op, pmr_frame *frame, uint64_t heap_offset)
{
    pmr_announcement announcement = {op->bytes, heap_offset};
    frame->kind = PMR_FRAME_ANNOUNCE;
    frame->payload_bytes = sizeof announcement;
    if (!put(p2p, op->peer, frame, &announcement))
        return false;
    pmr_transfer_move(&p2p->parked, op, PMR_TRANSFER_ANNOUNCED);
    return true;
}

/* The first frame of a message. False: no room. */
static bool begin_send(pmr_p2p *p2p, pmr_transfer *op)
{
    const pmr_pattern *envelope = &op->posted.pattern;
    pmr_frame frame = {.comm = envelope->comm, .source = envelope->source, .tag = envelope->tag, .token = op->token};
    uint64_t heap_offset = heap_offset_of(p2p, op);
    uint32_t payload_max = transport_to(p2p, op->peer)->payload_max;
    size_t eager_max = pmr_p2p_is_far(p2p, op->peer) ? FAR_EAGER_BYTES_MAX
                       : payload_max < EAGER_BYTES_MAX ? payload_max
                                                       : EAGER_BYTES_MAX;
    if (heap_offset == PMR_NOT_IN_HEAP && op->bytes <= eager_max &&
        p2p->peers[op->peer].unmatched + op->bytes + MESSAGE_OVERHEAD_BYTES <= p2p->credit_bytes)
        return put_whole(p2p, op, &frame);
    return put_announcement(p2p, op, &frame, heap_offset);
}

void pmr_p2p_start_send(pmr_p2p *p2p, pmr_transfer *op)
{
    op->token = ++p2p->tokens;
    op->state = PMR_TRANSFER_QUEUED;
    if (op->peer == p2p->me) {
        pmr_p2p_self_send(p2p, op);
        return;
    }
    pmr_p2p_peer *peer = &p2p->peers[op->peer];
    if (pmr_list_empty(&peer->queue) && begin_send(p2p, op))
        return;
    pmr_list_remove(&peer->busy_link); /* it may still be there with a queue that was withdrawn */
    pmr_list_append(&p2p->busy, &peer->busy_link);
    pmr_list_append(&peer->queue, &op->link);
}

static bool push_queue(pmr_p2p *p2p, pmr_p2p_peer *peer)
{
    bool moved = false;
    while (!pmr_list_empty(&peer->queue)) {
        if (!begin_send(p2p, PMR_MEMBER_OF(peer->queue.next, pmr_transfer, link)))
            return moved;
        moved = true;
    }
    pmr_list_remove(&peer->busy_link);
    return moved;
}

static bool push_fragments(pmr_p2p *p2p, pmr_transfer *op)
{
    bool moved = false;
    uint32_t most = transport_to(p2p, op->peer)->payload_max;
    size_t end = op->bytes < op->allowed ? op->bytes : op->allowed;
    /* comm and source: this send, for who answers without knowing the message. */
    pmr_frame frame = {.kind = PMR_FRAME_FRAGMENT,
                       .token = op->peer_token,
                       .comm = (uint32_t)op->token,
                       .source = (int32_t)(op->token >> 32)};
    for (uint32_t i = 0; i < FRAMES_PER_PASS && op->moved < end; i++) {
        size_t left = end - op->moved;
        frame.payload_bytes = left < most ? (uint32_t)left : most;
        if (!put(p2p, op->peer, &frame, op->data + op->moved))
            break;
        op->moved += frame.payload_bytes;
        moved = true;
    }
    if (op->moved == op->bytes)
        leave(p2p, op);
    else if (op->moved == op->allowed)
        pmr_transfer_move(&p2p->parked, op, PMR_TRANSFER_PAUSED);
    return moved;
}

static bool push_farewells(pmr_p2p *p2p)
{
    uint32_t kept = 0;
    for (uint32_t i = 0; i < p2p->farewells; i++) {
        pmr_farewell farewell = p2p->farewell[i];
        pmr_frame frame = {.kind = farewell.kind, .token = farewell.token};
        if (!p2p->peers[farewell.peer].gone && !put(p2p, farewell.peer, &frame, NULL))
            p2p->farewell[kept++] = farewell;
    }
    bool moved = kept < p2p->farewells;
    p2p->farewells = kept;
    return moved;
}

/* ---- an announced message ---- */

static bool close_recv(pmr_p2p *p2p, pmr_transfer *op)
{
    pmr_frame frame = {.kind = PMR_FRAME_TAKEN, .token = op->peer_token};
    if (!p2p->peers[op->peer].gone && !put(p2p, op->peer, &frame, NULL))
        return false;
    if (is_out(p2p, op->peer))
        pmr_transfer_finish_recv(p2p, op);
    else
        op->state = PMR_TRANSFER_CLOSED;
    return true;
}

static bool answer(pmr_p2p *p2p, pmr_transfer *op)
{
    pmr_frame frame = {.kind = PMR_FRAME_ANSWER, .payload_bytes = sizeof op->token, .token = op->peer_token};
    if (!put(p2p, op->peer, &frame, &op->token))
        return false;
    pmr_transfer_move(&p2p->parked, op, PMR_TRANSFER_RECEIVING);
    return true;
}

static bool step(pmr_p2p *p2p, pmr_transfer *op)
{
    switch (op->state) {
    case PMR_TRANSFER_SENDING:
        return push_fragments(p2p, op);
    case PMR_TRANSFER_ANSWERING:
        return answer(p2p, op);
    case PMR_TRANSFER_COPYING: {
        size_t left = op->info.bytes - op->moved;
        size_t now = left < COPY_BYTES_PER_PASS ? left : COPY_BYTES_PER_PASS;
        memcpy(op->data + op->moved, op->origin + op->moved, now);
        op->moved += now;
        if (op->moved == op->info.bytes) {
            op->state = PMR_TRANSFER_CLOSING;
            close_recv(p2p, op);
        }
        return true;
    }
    case PMR_TRANSFER_CLOSING:
        return close_recv(p2p, op);
    case PMR_TRANSFER_LEAVING:
        if (!is_out(p2p, op->peer))
            return false;
        pmr_transfer_finish(p2p, op, PMR_OK, NULL);
        return true;
    case PMR_TRANSFER_CLOSED:
        if (!is_out(p2p, op->peer))
            return false;
        pmr_transfer_finish_recv(p2p, op);
        return true;
    default:
        return false;
    }
}

static void accept_announced(pmr_p2p *p2p, pmr_transfer *op, uint32_t peer, const pmr_pattern *envelope, uint64_t token,
                             const pmr_announcement *announcement)
{
    const pmr_window *window = p2p->window;
    uint64_t offset = announcement->heap_offset;
    op->peer = peer;
    op->peer_token = token;
    op->info = (pmr_message_info){envelope->source, envelope->tag, announcement->bytes};
    op->moved = 0;
    op->status = announcement->bytes > op->bytes ? PMR_ERR_TRUNCATED : PMR_OK;
    pmr_transfer_state state = PMR_TRANSFER_ANSWERING;
    if (op->status || announcement->bytes == 0) {
        state = PMR_TRANSFER_CLOSING;
    } else if (offset < window->mapped_bytes && announcement->bytes <= window->mapped_bytes - offset) {
        state = PMR_TRANSFER_COPYING;
        op->origin = window->base + offset;
    }
    pmr_transfer_move(&p2p->todo, op, state);
    step(p2p, op);
}

/* Eager bytes of a peer were matched: it is told now and then. */
static void credit(pmr_p2p *p2p, uint32_t peer, size_t bytes)
{
    size_t *due = &p2p->peers[peer].to_credit;
    *due += bytes + MESSAGE_OVERHEAD_BYTES;
    pmr_frame frame = {.kind = PMR_FRAME_CREDIT, .token = *due};
    if (*due >= p2p->credit_bytes / 4 && put(p2p, peer, &frame, NULL))
        *due = 0;
}

void pmr_p2p_start_recv(pmr_p2p *p2p, pmr_transfer *op)
{
    op->token = ++p2p->tokens;
    op->state = PMR_TRANSFER_POSTED;
    pmr_unexpected *found = pmr_match_find(&p2p->match, &op->posted.pattern);
    if (!found) {
        pmr_match_post(&p2p->match, &op->posted);
        return;
    }
    pmr_match_take(found);
    pmr_kept *kept = PMR_MEMBER_OF(found, pmr_kept, unexpected);
    if (kept->peer == p2p->me) {
        pmr_p2p_self_recv(p2p, op, kept);
        return;
    }
    if (kept->eager) {
        pmr_frame_view view = {.first = kept->payload, .rest = NULL, .first_bytes = (uint32_t)kept->bytes};
        pmr_transfer_deliver(p2p, op, kept->peer, &found->envelope, &view, kept->bytes);
        credit(p2p, kept->peer, kept->bytes);
    } else {
        pmr_announcement announcement = {kept->bytes, kept->heap_offset};
        accept_announced(p2p, op, kept->peer, &found->envelope, kept->token, &announcement);
    }
    free(kept);
}

/* ---- in: each returns false when the frame has to stay where it is ---- */

static bool on_eager(pmr_p2p *p2p, uint32_t peer, const pmr_frame_view *view)
{
    pmr_pattern envelope = {view->frame->comm, view->frame->source, view->frame->tag};
    size_t bytes = view->frame->payload_bytes;
    pmr_posted *posted = pmr_match_arrive(&p2p->match, &envelope);
    if (!posted) {
        bool kept = pmr_kept_add(p2p, peer, &envelope, view, bytes) != NULL;
        p2p->starved |= !kept;
        return kept;
    }
    pmr_transfer_deliver(p2p, PMR_MEMBER_OF(posted, pmr_transfer, posted), peer, &envelope, view, bytes);
    credit(p2p, peer, bytes);
    return true;
}

static bool on_announce(pmr_p2p *p2p, uint32_t peer, const pmr_frame_view *view)
{
    pmr_pattern envelope = {view->frame->comm, view->frame->source, view->frame->tag};
    pmr_announcement announcement;
    memcpy(&announcement, view->first, sizeof announcement);
    if (pmr_p2p_is_far(p2p, peer))
        announcement.heap_offset = PMR_NOT_IN_HEAP;
    pmr_posted *posted = pmr_match_arrive(&p2p->match, &envelope);
    if (posted) {
        accept_announced(p2p, PMR_MEMBER_OF(posted, pmr_transfer, posted), peer, &envelope, view->frame->token,
                         &announcement);
        return true;
    }
    pmr_kept *kept = pmr_kept_add(p2p, peer, &envelope, NULL, announcement.bytes);
    p2p->starved |= !kept;
    if (kept) {
        kept->token = view->frame->token;
        kept->heap_offset = announcement.heap_offset;
    }
    return kept != NULL;
}

static bool on_answer(pmr_p2p *p2p, uint32_t peer, const pmr_frame_view *view)
{
    uint64_t receive;
    memcpy(&receive, view->first, sizeof receive);
    pmr_transfer *op = pmr_transfer_find(p2p, view->frame->token, peer);
    if (!op) { /* the send was withdrawn */
        pmr_frame frame = {.kind = PMR_FRAME_GAVE_UP, .token = receive};
        return put(p2p, peer, &frame, NULL);
    }
    if (op->state != PMR_TRANSFER_ANNOUNCED)
        return true; /* no sound peer answers twice, or what it was not asked */
    pmr_transfer_move(&p2p->todo, op, PMR_TRANSFER_SENDING);
    op->peer_token = receive;
    op->moved = 0;
    op->allowed = pmr_p2p_is_far(p2p, peer) ? FAR_WINDOW_BYTES : SIZE_MAX;
    push_fragments(p2p, op);
    return true;
}

/* The sender on another node may go on. False: no room to say so. */
static bool allow_more(pmr_p2p *p2p, uint32_t peer, const pmr_frame *fragment)
{
    pmr_frame frame = {.kind = PMR_FRAME_MORE,
                       .token = (uint64_t)(uint32_t)fragment->source << 32 | fragment->comm,
                       .reserved = fragment->payload_bytes};
    return !pmr_p2p_is_far(p2p, peer) || put(p2p, peer, &frame, NULL);
}

static void on_more(pmr_p2p *p2p, uint32_t peer, const pmr_frame *frame)
{
    pmr_transfer *op = pmr_transfer_find(p2p, frame->token, peer);
    if (!op || (op->state != PMR_TRANSFER_PAUSED && op->state != PMR_TRANSFER_SENDING))
        return; /* of a send that is done, or was withdrawn */
    op->allowed += frame->reserved;
    if (op->state == PMR_TRANSFER_PAUSED)
        pmr_transfer_move(&p2p->todo, op, PMR_TRANSFER_SENDING);
    push_fragments(p2p, op);
}

static void on_fragment(pmr_p2p *p2p, uint32_t peer, const pmr_frame_view *view)
{
    pmr_transfer *op = pmr_transfer_find(p2p, view->frame->token, peer);
    size_t bytes = view->frame->payload_bytes;
    if (!op || op->state != PMR_TRANSFER_RECEIVING || bytes > op->info.bytes - op->moved)
        return; /* of a receive that was withdrawn */
    memcpy(op->data + op->moved, view->first, view->first_bytes);
    if (bytes > view->first_bytes)
        memcpy(op->data + op->moved + view->first_bytes, view->rest, bytes - view->first_bytes);
    op->moved += bytes;
    if (op->moved == op->info.bytes)
        pmr_transfer_finish(p2p, op, PMR_OK, NULL);
}

/* Bytes that a frame must have to say what it says. */
static size_t least_bytes(uint32_t kind)
{
    return kind == PMR_FRAME_ANNOUNCE ? sizeof(pmr_announcement) : kind == PMR_FRAME_ANSWER ? sizeof(uint64_t) : 0;
}

static bool on_frame(pmr_p2p *p2p, uint32_t peer, const pmr_frame_view *view)
{
    pmr_transfer *op;
    if (view->frame->payload_bytes < least_bytes(view->frame->kind))
        return true; /* no sound peer sends it: dropped */
    switch (view->frame->kind) {
    case PMR_FRAME_EAGER:
        return on_eager(p2p, peer, view);
    case PMR_FRAME_ANNOUNCE:
        return on_announce(p2p, peer, view);
    case PMR_FRAME_ANSWER:
        return on_answer(p2p, peer, view);
    case PMR_FRAME_FRAGMENT:
        if (!allow_more(p2p, peer, view->frame))
            return false;
        on_fragment(p2p, peer, view);
        return true;
    case PMR_FRAME_MORE:
        on_more(p2p, peer, view->frame);
        return true;
    case PMR_FRAME_TAKEN:
        op = pmr_transfer_find(p2p, view->frame->token, peer);
        if (op)
            pmr_transfer_finish(p2p, op, PMR_OK, NULL);
        return true;
    case PMR_FRAME_GAVE_UP:
        op = pmr_transfer_find(p2p, view->frame->token, peer);
        if (op)
            pmr_p2p_fail_given_up(p2p, op);
        return true;
    case PMR_FRAME_CREDIT: {
        size_t *unmatched = &p2p->peers[peer].unmatched;
        *unmatched -= view->frame->token < *unmatched ? view->frame->token : *unmatched;
        return true;
    }
    default:
        return true;
    }
}

bool pmr_p2p_drain(pmr_p2p *p2p, uint32_t peer)
{
    pmr_transport *transport = transport_to(p2p, peer);
    uint32_t at = peer_at(p2p, peer);
    pmr_frame_view view;
    uint32_t taken = 0;
    while (taken < FRAMES_PER_PASS && !satisfied(p2p) && transport->ops->peek(transport, at, &view)) {
        if (!on_frame(p2p, peer, &view))
            break;
        transport->ops->take(transport, at);
        taken++;
    }
    return taken > 0;
}

/* Takes what came by one transport; its peers are the places from `first` on. */
static bool drain_all(pmr_p2p *p2p, pmr_transport *transport, uint32_t first)
{
    bool moved = false;
    for (uint32_t peer = transport->ops->sender_from(transport, 0); peer != PMR_NO_PEER;
         peer = transport->ops->sender_from(transport, peer + 1))
        moved |= pmr_p2p_drain(p2p, first + peer);
    return moved;
}

bool pmr_p2p_drive(pmr_p2p *p2p)
{
    bool moved = p2p->farewells && push_farewells(p2p);
    p2p->starved = false;
    for (pmr_link *link = p2p->todo.next, *next; link != &p2p->todo; link = next) {
        next = link->next;
        moved |= step(p2p, PMR_MEMBER_OF(link, pmr_transfer, link));
    }
    for (pmr_link *link = p2p->busy.next, *next; link != &p2p->busy; link = next) {
        next = link->next;
        moved |= push_queue(p2p, PMR_MEMBER_OF(link, pmr_p2p_peer, busy_link));
    }
    moved |= drain_all(p2p, p2p->transport, 0);
    if (p2p->far && p2p->looks_far) {
        moved |= pmr_p2p_net_poll(p2p->far);
        moved |= drain_all(p2p, p2p->far, p2p->ranks);
    }
    return moved;
}
