/* SPDX-License-Identifier: Apache-2.0
 *
 * p2p_self.c: messages of a rank to itself: no transport, one copy into a receive that waits, two otherwise.
 *
 * A blocking send can only be kept (its caller is the one who would receive), so what is kept has a bound; a request
 * may instead wait where it is until its receive comes. Invariant: self_bytes is what the kept copies hold.
 */
#include <stdlib.h>

#include "core/status.h"
#include "progress/p2p_state.h"

#define SELF_BYTES_MAX ((size_t)64 << 20)
#define COPY_BYTES_MAX 65536u   /* a request's message is copied up to this size: cheaper than to keep the request open */

/* A view's first piece is counted in 32 bits; what is longer goes on in `rest`. */
static pmr_frame_view view_of(const uint8_t *data, size_t bytes)
{
    uint32_t first_bytes = bytes < UINT32_MAX ? (uint32_t)bytes : UINT32_MAX;
    return (pmr_frame_view){.frame = NULL, .first = data, .rest = data ? data + first_bytes : NULL, .first_bytes = first_bytes};
}

void pmr_p2p_self_send(pmr_p2p *p2p, pmr_transfer *op)
{
    const pmr_pattern *envelope = &op->posted.pattern;
    pmr_frame_view view = view_of(op->data, op->bytes);
    pmr_posted *posted = pmr_match_arrive(&p2p->match, envelope);
    if (posted) {
        pmr_transfer_deliver(p2p, PMR_MEMBER_OF(posted, pmr_transfer, posted), p2p->me, envelope, &view, op->bytes);
        pmr_transfer_finish(p2p, op, PMR_OK, NULL);
        return;
    }
    pmr_error error;
    size_t cost = op->bytes + sizeof(pmr_kept);
    bool fits = cost <= SELF_BYTES_MAX && p2p->self_bytes <= SELF_BYTES_MAX - cost;
    bool copies = fits && (op->waiter || op->bytes <= COPY_BYTES_MAX);
    if (!copies && op->waiter) {
        pmr_fail(&error, PMR_ERR_ARGUMENT,
                 "a blocking send of %zu bytes from rank %d to itself would never end (%zu MiB are kept at most): "
                 "start the receive first, or use isend", op->bytes, envelope->source, SELF_BYTES_MAX >> 20);
        pmr_transfer_finish(p2p, op, PMR_ERR_ARGUMENT, &error);
        return;
    }
    pmr_kept *kept = pmr_kept_add(p2p, p2p->me, envelope, copies ? &view : NULL, op->bytes);
    if (!kept) {
        pmr_fail(&error, PMR_ERR_NO_MEMORY, "no memory to keep a message of %zu bytes", op->bytes);
        pmr_transfer_finish(p2p, op, PMR_ERR_NO_MEMORY, &error);
    } else if (copies) {
        p2p->self_bytes += cost;
        pmr_transfer_finish(p2p, op, PMR_OK, NULL);
    } else {
        kept->token = op->token;
        op->state = PMR_TRANSFER_ANNOUNCED;
        pmr_list_append(&p2p->outgoing, &op->link);
    }
}

void pmr_p2p_self_recv(pmr_p2p *p2p, pmr_transfer *op, pmr_kept *kept)
{
    const uint8_t *data = kept->payload;
    pmr_transfer *send = NULL;
    if (kept->eager) {
        p2p->self_bytes -= kept->bytes + sizeof *kept;
    } else {
        send = pmr_transfer_find(&p2p->outgoing, kept->token, p2p->me);
        data = send->data;
    }
    pmr_frame_view view = view_of(data, kept->bytes);
    pmr_transfer_deliver(p2p, op, p2p->me, &kept->unexpected.envelope, &view, kept->bytes);
    if (send)
        pmr_transfer_finish(p2p, send, PMR_OK, NULL);
    free(kept);
}
