/* SPDX-License-Identifier: Apache-2.0
 *
 * p2p_lost.c: operations whose other side is gone.
 *
 * A rank that is FINISHED, LEFT or FAILED in the window, or lost on the network, sends nothing more, but what it sent
 * before lies whole in its ring, or has arrived. So a sweep first notes who is gone, then takes everything that is there, and only then ends what still waits.
 * Invariant: no operation fails for a peer's absence while the message it waits for lies in the ring.
 */
#include "core/status.h"
#include "progress/p2p_state.h"

bool pmr_p2p_peer_gone(const pmr_p2p *p2p, uint32_t peer)
{
    if (pmr_p2p_is_far(p2p, peer))
        return p2p->hub->lost[peer - p2p->ranks];
    if (peer != PMR_NO_PEER)
        return peer != p2p->me && pmr_window_rank_state(p2p->window, peer) >= PMR_RANK_FINISHED;
    for (uint32_t i = 0; i < p2p->ranks; i++)
        if (i != p2p->me && !pmr_p2p_peer_gone(p2p, i))
            return false;
    for (uint32_t i = 0; p2p->hub && i < p2p->hub->net->ranks; i++)
        if (pmr_net_node_of(p2p->hub->net, i) != p2p->hub->net->node && !p2p->hub->lost[i])
            return false;
    return true;
}

pmr_status pmr_p2p_fail_gone(const pmr_p2p *p2p, uint32_t peer, const char *what, int32_t tag, pmr_error *error)
{
    if (peer == PMR_NO_PEER)
        return pmr_fail(error, PMR_ERR_RANK_FAILED,
                        "no other rank is left that could send what a receive from any source (tag %d) waits for",
                        tag);
    int32_t rank = pmr_p2p_world_rank(p2p, peer);
    uint32_t state = pmr_p2p_is_far(p2p, peer) ? PMR_RANK_FINISHED : pmr_window_rank_state(p2p->window, peer);
    pmr_fail(error, PMR_ERR_RANK_FAILED, "rank %d %s %s (tag %d)", rank,
             state == PMR_RANK_FAILED ? "died" : state == PMR_RANK_LEFT ? "left" : "ended", what, tag);
    if (error)
        error->rank = rank;
    return PMR_ERR_RANK_FAILED;
}

void pmr_p2p_fail_given_up(pmr_p2p *p2p, pmr_transfer *op)
{
    pmr_error error;
    pmr_fail(&error, PMR_ERR_STALLED,
             "rank %d gave up sending a message of %zu bytes (tag %d): its own time limit passed or it was interrupted",
             pmr_p2p_world_rank(p2p, op->peer), op->info.bytes, op->info.tag);
    pmr_transfer_finish(p2p, op, PMR_ERR_STALLED, &error);
}

/* ---- walking over all operations ---- */

typedef void (*visit_fn)(pmr_p2p *p2p, pmr_transfer *op, void *arg);

static void visit_list(pmr_p2p *p2p, pmr_link *list, visit_fn visit, void *arg)
{
    for (pmr_link *link = list->next, *next; link != list; link = next) {
        next = link->next;
        visit(p2p, PMR_MEMBER_OF(link, pmr_transfer, link), arg);
    }
}

static void visit_posted(pmr_p2p *p2p, pmr_link *list, visit_fn visit, void *arg)
{
    for (pmr_link *link = list->next, *next; link != list; link = next) {
        next = link->next;
        visit(p2p, PMR_MEMBER_OF(PMR_MEMBER_OF(link, pmr_posted, link), pmr_transfer, posted), arg);
    }
}

static void visit_all(pmr_p2p *p2p, visit_fn visit, void *arg)
{
    for (uint32_t peer = 0; peer < p2p->places; peer++)
        visit_list(p2p, &p2p->peers[peer].queue, visit, arg);
    visit_list(p2p, &p2p->todo, visit, arg);
    visit_list(p2p, &p2p->parked, visit, arg);
    for (uint32_t bin = 0; bin < PMR_MATCH_BINS; bin++)
        visit_posted(p2p, &p2p->match.posted[bin], visit, arg);
    visit_posted(p2p, &p2p->match.wild, visit, arg);
}

static void end(pmr_p2p *p2p, pmr_transfer *op, pmr_status status, const pmr_error *error)
{
    pmr_transfer_withdraw(p2p, op);
    pmr_transfer_finish(p2p, op, status, error);
}

struct verdict {
    pmr_status status;
    const pmr_error *error;
};

static void end_request(pmr_p2p *p2p, pmr_transfer *op, void *arg)
{
    const struct verdict *verdict = arg;
    if (op->request)
        end(p2p, op, verdict->status, verdict->error);
}

void pmr_p2p_end_requests(pmr_p2p *p2p, pmr_status status, const pmr_error *error)
{
    visit_all(p2p, end_request, &(struct verdict){status, error});
}

static void end_if_lost(pmr_p2p *p2p, pmr_transfer *op, void *arg)
{
    (void)arg;
    const char *what = "before it took a message from this rank";
    switch (op->state) {
    case PMR_TRANSFER_COPYING: /* its heap outlives it */
    case PMR_TRANSFER_LEAVING: /* the next pass ends it */
    case PMR_TRANSFER_CLOSED:
        return;
    case PMR_TRANSFER_POSTED:
        what = "without sending the message that is waited for";
        break;
    case PMR_TRANSFER_ANSWERING:
    case PMR_TRANSFER_RECEIVING:
        what = "in the middle of sending a message";
        break;
    default:
        break;
    }
    if (op->peer == PMR_NO_PEER ? !pmr_p2p_peer_gone(p2p, PMR_NO_PEER)
                                : op->peer == p2p->me || !p2p->peers[op->peer].gone)
        return;
    if (op->state == PMR_TRANSFER_CLOSING) { /* nobody is left to be told */
        pmr_transfer_finish_recv(p2p, op);
        return;
    }
    pmr_error error;
    pmr_status status = pmr_p2p_fail_gone(p2p, op->peer, what, op->posted.pattern.tag, &error);
    end(p2p, op, status, &error);
}

void pmr_p2p_sweep(pmr_p2p *p2p)
{
    pmr_error error;
    pmr_status broken = pmr_window_aborted(p2p->window, &error);
    if (broken) /* first: the gang's own story says more than a peer's absence */
        pmr_p2p_end_requests(p2p, broken, &error);
    pmr_p2p_waiter *driver = p2p->driver;
    p2p->driver = NULL; /* take everything, not just what the driver waits for */
    bool any = false;
    for (uint32_t peer = 0; peer < p2p->places; peer++) {
        if (!p2p->peers[peer].gone && pmr_p2p_peer_gone(p2p, peer)) {
            p2p->peers[peer].gone = true;
            while (pmr_p2p_drain(p2p, peer))
                continue;
        }
        any |= p2p->peers[peer].gone;
    }
    p2p->driver = driver;
    if (any)
        visit_all(p2p, end_if_lost, NULL);
}
