/* SPDX-License-Identifier: Apache-2.0
 *
 * p2p_transfer.c: how an operation ends, is found, and is taken back; and the messages that are kept for later.
 *
 * Ends are told to exactly one place: the waiter of a blocking caller or the request. A withdrawn operation leaves a
 * farewell for a peer that has seen it, so that the peer does not wait for the rest.
 * Invariant: after pmr_transfer_finish or pmr_transfer_withdraw nothing here refers to the operation.
 */
#include <stdlib.h>
#include <string.h>

#include "core/status.h"
#include "progress/p2p_state.h"

void pmr_transfer_finish(pmr_p2p *p2p, pmr_transfer *op, pmr_status status, const pmr_error *error)
{
    pmr_list_remove(&op->link);
    op->state = PMR_TRANSFER_DONE;
    if (op->waiter) {
        pmr_p2p_waiter *waiter = op->waiter;
        waiter->left--;
        if (status && !waiter->status) {
            waiter->status = status;
            if (waiter->error && error)
                *waiter->error = *error;
        }
        if (waiter != p2p->driver)
            p2p->wake_others = true;
        return;
    }
    pmr_request *request = op->request;
    op->request = NULL;
    request->info = op->info;
    if (op->counted) { /* the engine hears of it in its next poll, and tells those who wait for any request */
        p2p->ended++;
        p2p->wake_others |= !p2p->polling;
    }
    pmr_list_append(&p2p->pool, &op->link);
    pmr_request_complete(request, status, error);
}

void pmr_transfer_finish_recv(pmr_p2p *p2p, pmr_transfer *op)
{
    if (!op->status) {
        pmr_transfer_finish(p2p, op, PMR_OK, NULL);
        return;
    }
    pmr_error error;
    pmr_fail(&error, PMR_ERR_TRUNCATED,
             "a message of %zu bytes from rank %d (tag %d) does not fit the receive buffer of %zu bytes; it is gone: "
             "receive into a larger buffer, or probe first", op->info.bytes, op->info.source, op->info.tag, op->bytes);
    pmr_transfer_finish(p2p, op, PMR_ERR_TRUNCATED, &error);
}

static void add_farewell(pmr_p2p *p2p, uint32_t peer, uint32_t kind, uint64_t token)
{
    if (p2p->farewells < PMR_FAREWELLS_MAX) /* beyond: the peer's own deadline ends its wait */
        p2p->farewell[p2p->farewells++] = (pmr_farewell){peer, kind, token};
}

void pmr_transfer_withdraw(pmr_p2p *p2p, pmr_transfer *op)
{
    switch (op->state) {
    case PMR_TRANSFER_POSTED:
        pmr_match_withdraw(&op->posted);
        break;
    case PMR_TRANSFER_SENDING:
    case PMR_TRANSFER_PAUSED:
        add_farewell(p2p, op->peer, PMR_FRAME_GAVE_UP, op->peer_token);
        break;
    case PMR_TRANSFER_ANSWERING:
    case PMR_TRANSFER_COPYING:
    case PMR_TRANSFER_CLOSING:
        add_farewell(p2p, op->peer, PMR_FRAME_TAKEN, op->peer_token);
        break;
    case PMR_TRANSFER_QUEUED:
    case PMR_TRANSFER_LEAVING:
    case PMR_TRANSFER_CLOSED:
    case PMR_TRANSFER_ANNOUNCED:  /* the peer's answer will find nobody, and be told so */
    case PMR_TRANSFER_RECEIVING:  /* its fragments will find nobody */
    case PMR_TRANSFER_DONE:
        break;
    }
    pmr_list_remove(&op->link);
    op->state = PMR_TRANSFER_DONE;
}

static void copy_view(uint8_t *into, const pmr_frame_view *view, size_t bytes)
{
    size_t first = bytes < view->first_bytes ? bytes : view->first_bytes;
    if (first)
        memcpy(into, view->first, first);
    if (bytes > first)
        memcpy(into + first, view->rest, bytes - first);
}

void pmr_transfer_deliver(pmr_p2p *p2p, pmr_transfer *op, uint32_t peer, const pmr_pattern *envelope,
                          const pmr_frame_view *view, size_t bytes)
{
    op->peer = peer;
    op->info = (pmr_message_info){envelope->source, envelope->tag, bytes};
    op->status = bytes > op->bytes ? PMR_ERR_TRUNCATED : PMR_OK;
    if (!op->status)
        copy_view(op->data, view, bytes);
    pmr_transfer_finish_recv(p2p, op);
}

void pmr_transfer_move(pmr_link *list, pmr_transfer *op, pmr_transfer_state state)
{
    pmr_list_remove(&op->link);
    pmr_list_append(list, &op->link);
    op->state = state;
}

static pmr_transfer *find_in(pmr_link *list, uint64_t token, uint32_t peer)
{
    for (pmr_link *link = list->next; link != list; link = link->next) {
        pmr_transfer *op = PMR_MEMBER_OF(link, pmr_transfer, link);
        if (op->token == token && op->peer == peer)
            return op;
    }
    return NULL;
}

pmr_transfer *pmr_transfer_find(pmr_p2p *p2p, uint64_t token, uint32_t peer)
{
    pmr_transfer *op = find_in(&p2p->parked, token, peer);
    if (op)
        return op;
    op = find_in(&p2p->todo, token, peer);
    return op && op->state == PMR_TRANSFER_SENDING ? op : NULL;
}

pmr_kept *pmr_kept_add(pmr_p2p *p2p, uint32_t peer, const pmr_pattern *envelope, const pmr_frame_view *view,
                       size_t bytes)
{
    pmr_kept *kept = malloc(sizeof *kept + (view ? bytes : 0));
    if (!kept)
        return NULL;
    kept->unexpected.envelope = *envelope;
    kept->peer = peer;
    kept->eager = view != NULL;
    kept->token = 0;
    kept->heap_offset = PMR_NOT_IN_HEAP;
    kept->bytes = bytes;
    if (view)
        copy_view(kept->payload, view, bytes);
    pmr_match_keep(&p2p->match, &kept->unexpected);
    return kept;
}
