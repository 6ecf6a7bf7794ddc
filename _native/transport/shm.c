/* SPDX-License-Identifier: Apache-2.0
 *
 * shm.c: one ring per ordered pair of ranks, one inbox per rank.
 *
 * A ring is a power of two of cache lines. A frame takes the first half of a line and its payload goes on from there,
 * around the end where needed, so a message of up to 32 bytes is one line and moves with one transfer. The receiver
 * looks at the `kind` of the line where the next frame will begin: 0 until the frame is whole. The sender therefore
 * clears the `kind` behind a frame before it publishes that frame, and always leaves that one line free.
 *
 * Room comes back through `tail`, a plain store of the receiver. A sender that finds none sets `wanted` and looks
 * again; the receiver looks at `wanted` each time another eighth of the ring was read, with a full fence on both
 * sides. A sender is refused only while more than 5/8 of the ring is occupied (no frame takes more than 3/8), so the
 * receiver has such a look ahead of it before the ring is empty: no wake-up is lost.
 *
 * `senders` is a bit set of who ever wrote to a rank, so that nobody looks at (and so allocates) unused rings.
 * Invariant: lines in [tail, head) belong to the receiver, all others to the sender.
 */
#include "transport/shm.h"

#include <stdalign.h>
#include <stdlib.h>
#include <string.h>

#include "core/status.h"
#include "core/window_layout.h"

#define LINE 64u
#define PAGE 4096u
#define INLINE_BYTES (LINE - (uint32_t)sizeof(pmr_frame))
#define SENDER_WORDS (PMR_WINDOW_RANKS_MAX / 64)

typedef struct inbox {
    alignas(128) pmr_flag raised;
    alignas(128) _Atomic uint64_t senders[SENDER_WORDS];
} inbox;

typedef struct line {
    _Atomic uint32_t kind;
    uint8_t rest_of_frame[sizeof(pmr_frame) - 4];
    uint8_t payload[LINE - sizeof(pmr_frame)];
} line;

_Static_assert(sizeof(line) == LINE, "a line is a cache line");

typedef struct ring {
    alignas(128) _Atomic uint32_t tail;     /* lines read; written by the receiver */
    alignas(128) _Atomic uint32_t wanted;   /* the sender waits for room */
    alignas(128) line lines[];
} ring;

typedef struct lane {           /* our two rings with one peer */
    ring *out;
    uint32_t head;              /* lines written */
    uint32_t tail_seen;
    bool introduced;            /* our bit in the peer's `senders` is set */
    ring *in;
    uint32_t position;          /* lines read */
    uint32_t unlooked;          /* lines read since we looked at `wanted` */
} lane;

typedef struct shm {
    pmr_transport base;
    inbox *inboxes;
    uint32_t ranks;
    uint32_t rank;
    uint32_t ring_lines;
    lane lanes[];
} shm;

/* Larger rings carry large messages somewhat faster; with many ranks what counts is memory: n * n of them. */
static uint32_t lines_for(uint32_t ranks)
{
    return (ranks <= 16 ? 131072u : ranks <= 128 ? 65536u : 32768u) / LINE;
}

static size_t inboxes_bytes(uint32_t ranks)
{
    return (ranks * sizeof(inbox) + PAGE - 1) / PAGE * PAGE;
}

static size_t ring_stride(uint32_t ranks)
{
    return (sizeof(ring) + (size_t)lines_for(ranks) * LINE + PAGE - 1) / PAGE * PAGE;
}

size_t pmr_shm_area_bytes(uint32_t ranks)
{
    return inboxes_bytes(ranks) + (size_t)ranks * ranks * ring_stride(ranks);
}

static uint32_t lines_of(uint32_t payload_bytes)
{
    return payload_bytes <= INLINE_BYTES ? 1 : 1 + (payload_bytes - INLINE_BYTES + LINE - 1) / LINE;
}

/* True: `lines` and the one behind them are free. */
static bool has_room(const shm *self, lane *lane, uint32_t lines)
{
    uint32_t occupied_max = self->ring_lines - lines - 1;
    if (lane->head - lane->tail_seen <= occupied_max)
        return true;
    lane->tail_seen = atomic_load_explicit(&lane->out->tail, memory_order_acquire);
    if (lane->head - lane->tail_seen <= occupied_max)
        return true;
    atomic_store_explicit(&lane->out->wanted, 1, memory_order_seq_cst);
    lane->tail_seen = atomic_load_explicit(&lane->out->tail, memory_order_seq_cst);
    return lane->head - lane->tail_seen <= occupied_max;
}

static void introduce(shm *self, lane *lane, uint32_t peer)
{
    atomic_fetch_or_explicit(&self->inboxes[peer].senders[self->rank / 64], (uint64_t)1 << self->rank % 64,
                             memory_order_seq_cst);
    lane->introduced = true;
}

static bool shm_put(pmr_transport *transport, uint32_t peer, const pmr_frame *frame, const void *payload)
{
    shm *self = (shm *)transport;
    lane *lane = &self->lanes[peer];
    uint32_t bytes = frame->payload_bytes;
    uint32_t lines = lines_of(bytes);
    if (!has_room(self, lane, lines))
        return false;
    if (!lane->introduced)
        introduce(self, lane, peer);
    uint32_t mask = self->ring_lines - 1;
    line *first = &lane->out->lines[lane->head & mask];
    uint8_t *end = (uint8_t *)&lane->out->lines[self->ring_lines];
    size_t until_end = (size_t)(end - first->payload);
    size_t before = bytes < until_end ? bytes : until_end;
    if (bytes)
        memcpy(first->payload, payload, before);
    if (before < bytes)
        memcpy(lane->out->lines, (const uint8_t *)payload + before, bytes - before);
    memcpy(first->rest_of_frame, (const uint8_t *)frame + 4, sizeof first->rest_of_frame);
    atomic_store_explicit(&lane->out->lines[(lane->head + lines) & mask].kind, 0, memory_order_relaxed);
    atomic_store_explicit(&first->kind, frame->kind, memory_order_release);
    lane->head += lines;
    pmr_flag_add(&self->inboxes[peer].raised);
    return true;
}

static bool shm_peek(pmr_transport *transport, uint32_t peer, pmr_frame_view *view_out)
{
    shm *self = (shm *)transport;
    lane *lane = &self->lanes[peer];
    line *first = &lane->in->lines[lane->position & (self->ring_lines - 1)];
    if (atomic_load_explicit(&first->kind, memory_order_acquire) == 0)
        return false;
    size_t until_end = (size_t)((uint8_t *)&lane->in->lines[self->ring_lines] - first->payload);
    const pmr_frame *frame = (const pmr_frame *)(const void *)first;
    *view_out = (pmr_frame_view){
        .frame = frame,
        .first = first->payload,
        .rest = (const uint8_t *)lane->in->lines,
        .first_bytes = frame->payload_bytes < until_end ? frame->payload_bytes : (uint32_t)until_end,
    };
    return true;
}

static void shm_take(pmr_transport *transport, uint32_t peer)
{
    shm *self = (shm *)transport;
    lane *lane = &self->lanes[peer];
    const line *first = &lane->in->lines[lane->position & (self->ring_lines - 1)];
    uint32_t lines = lines_of(((const pmr_frame *)(const void *)first)->payload_bytes);
    lane->position += lines;
    lane->unlooked += lines;
    if (lane->unlooked < self->ring_lines / 8) {
        atomic_store_explicit(&lane->in->tail, lane->position, memory_order_release);
        return;
    }
    lane->unlooked = 0;
    atomic_exchange_explicit(&lane->in->tail, lane->position, memory_order_seq_cst);
    if (atomic_load_explicit(&lane->in->wanted, memory_order_seq_cst) &&
        atomic_exchange_explicit(&lane->in->wanted, 0, memory_order_seq_cst))
        pmr_flag_add(&self->inboxes[peer].raised);
}

static uint32_t shm_sender_from(pmr_transport *transport, uint32_t from)
{
    shm *self = (shm *)transport;
    const inbox *own = &self->inboxes[self->rank];
    while (from < self->ranks) {
        uint64_t later = atomic_load_explicit(&own->senders[from / 64], memory_order_acquire) >> from % 64;
        if (later)
            return from + (uint32_t)__builtin_ctzll(later);
        from = (from / 64 + 1) * 64;
    }
    return PMR_NO_PEER;
}

static void shm_close(pmr_transport *transport)
{
    free(transport);
}

static const pmr_transport_ops shm_ops = {
    .name = "shm",
    .put = shm_put,
    .peek = shm_peek,
    .take = shm_take,
    .sender_from = shm_sender_from,
    .close = shm_close,
};

pmr_status pmr_shm_open(pmr_transport **out, void *area, uint32_t ranks, uint32_t rank, pmr_error *error)
{
    shm *self = calloc(1, sizeof *self + ranks * sizeof(lane));
    if (!self)
        return pmr_fail(error, PMR_ERR_NO_MEMORY, "no memory for the message rings of %u ranks", ranks);
    uint8_t *base = area;
    uint8_t *rings = base + inboxes_bytes(ranks);
    size_t stride = ring_stride(ranks);
    self->inboxes = (inbox *)(void *)base;
    self->ranks = ranks;
    self->rank = rank;
    self->ring_lines = lines_for(ranks);
    for (uint32_t peer = 0; peer < ranks; peer++) {
        self->lanes[peer].out = (ring *)(void *)(rings + ((size_t)peer * ranks + rank) * stride);
        self->lanes[peer].in = (ring *)(void *)(rings + ((size_t)rank * ranks + peer) * stride);
    }
    self->base.ops = &shm_ops;
    self->base.inbox = &self->inboxes[rank].raised;
    self->base.payload_max = self->ring_lines * LINE / 4;
    *out = &self->base;
    return PMR_OK;
}
