/* SPDX-License-Identifier: Apache-2.0
 *
 * loopback.c: streams through memory that the ranks share.
 *
 * The hub is one anonymous shared mapping: a state per rank, and for each ordered pair and lane a small ring of bytes,
 * with one writer and one reader. Each rank has a bell, an eventfd, which others ring when they moved anything that it
 * may wait for. Bytes are made and taken apart as for a socket (outbox.h, inlet.h). On top of that the seed plays the
 * network: the order of (peer, lane), short reads and writes, and turns in which a lane does not move at all; then the
 * own bell is rung, so that nobody sleeps over it.
 * Invariant: bytes in [tail, head) of a ring belong to its reader, all others to its writer.
 */
#include "transport/loopback.h"

#include <errno.h>
#include <poll.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include "core/clock.h"
#include "core/status.h"
#include "transport/inlet.h"
#include "transport/outbox.h"

#define NAME_PREFIX "loopback hub "
#define LANES 4u
#define RING_BYTES 8192u
#define PAYLOAD_MAX (64u << 20)

typedef struct ring {
    _Atomic uint64_t head, tail; /* bytes ever written, ever read */
    uint8_t bytes[RING_BYTES];
} ring;

enum rank_state { ABSENT, OPEN, CLOSED, KILLED };

typedef struct shared { /* what all ranks see */
    _Atomic uint32_t state[4096];
    ring ring[]; /* of (from, to, lane) */
} shared;

typedef struct hub {
    shared *shared; /* NULL: free */
    uint32_t ranks;
    uint64_t seed;
    int *bell; /* one eventfd per rank */
} hub;

typedef struct stream { /* one (peer, lane), both directions */
    ring *out, *in;
    pmr_outbox outbox;
    pmr_inlet inlet;
} stream;

typedef struct loopback {
    pmr_endpoint base;
    hub *hub;
    uint64_t random;
    bool *lost;      /* by rank */
    bool *given_up;  /* by rank: the next poll loses it */
    stream *streams; /* by rank, then lane */
    uint32_t *order;
} loopback;

static hub hubs[PMR_LOOPBACK_HUBS_MAX];

static size_t shared_bytes(uint32_t ranks)
{
    return sizeof(shared) + (size_t)ranks * ranks * LANES * sizeof(ring);
}

static hub *hub_of(const char *name)
{
    size_t prefix = strlen(NAME_PREFIX);
    if (strncmp(name, NAME_PREFIX, prefix) != 0)
        return NULL;
    unsigned long number = strtoul(name + prefix, NULL, 10);
    return number < PMR_LOOPBACK_HUBS_MAX && hubs[number].shared ? &hubs[number] : NULL;
}

static void free_hub(hub *hub)
{
    for (uint32_t i = 0; hub->bell && i < hub->ranks; i++)
        if (hub->bell[i] >= 0)
            close(hub->bell[i]);
    free(hub->bell);
    if (hub->shared)
        munmap(hub->shared, shared_bytes(hub->ranks));
    memset(hub, 0, sizeof *hub);
}

pmr_status pmr_loopback_hub_open(uint32_t ranks, uint64_t seed, char name_out[PMR_ADDRESS_BYTES], pmr_error *error)
{
    uint32_t number = 0;
    while (number < PMR_LOOPBACK_HUBS_MAX && hubs[number].shared)
        number++;
    if (number == PMR_LOOPBACK_HUBS_MAX || ranks == 0 || ranks > 4096)
        return pmr_fail(error, PMR_ERR_ARGUMENT, "no loop-back for %u ranks: at most 4096, and %u at a time", ranks,
                        PMR_LOOPBACK_HUBS_MAX);
    hub *new = &hubs[number];
    void *memory = mmap(NULL, shared_bytes(ranks), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE,
                        -1, 0);
    if (memory == MAP_FAILED)
        return pmr_fail_os(error, "cannot map a loop-back for %u ranks", ranks);
    new->shared = memory;
    new->ranks = ranks;
    new->seed = seed;
    new->bell = malloc(ranks * sizeof *new->bell);
    bool good = new->bell != NULL;
    for (uint32_t i = 0; new->bell && i < ranks; i++) {
        new->bell[i] = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
        good = good && new->bell[i] >= 0;
    }
    if (!good) {
        pmr_status status = pmr_fail_os(error, "cannot make the bells of a loop-back for %u ranks", ranks);
        free_hub(new);
        return status;
    }
    snprintf(name_out, PMR_ADDRESS_BYTES, NAME_PREFIX "%u", number);
    return PMR_OK;
}

void pmr_loopback_hub_close(const char *name)
{
    hub *hub = hub_of(name);
    if (hub)
        free_hub(hub);
}

static void ring_bell(hub *hub, uint32_t rank)
{
    uint64_t one = 1;
    ssize_t done = write(hub->bell[rank], &one, sizeof one);
    (void)done; /* it fails only where the bell is rung already */
}

static void silence(loopback *self)
{
    uint64_t rung;
    ssize_t done = read(self->base.descriptor, &rung, sizeof rung);
    (void)done; /* it fails only where the bell is not rung */
}

static void state_set(hub *hub, uint32_t rank, enum rank_state state)
{
    atomic_store_explicit(&hub->shared->state[rank], state, memory_order_release);
    for (uint32_t i = 0; i < hub->ranks; i++)
        ring_bell(hub, i);
}

void pmr_loopback_kill(const char *name, uint32_t rank)
{
    hub *hub = hub_of(name);
    if (hub && rank < hub->ranks)
        state_set(hub, rank, KILLED);
}

static uint32_t draw(loopback *self, uint32_t below)
{
    self->random = self->random * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(self->random >> 33) % below;
}

/* ---- moving bytes ---- */

static size_t ring_write(ring *ring, const uint8_t *bytes, size_t count)
{
    uint64_t head = atomic_load_explicit(&ring->head, memory_order_relaxed);
    size_t room = RING_BYTES - (size_t)(head - atomic_load_explicit(&ring->tail, memory_order_acquire));
    count = count < room ? count : room;
    for (size_t done = 0, step; done < count; done += step) {
        size_t at = (size_t)((head + done) % RING_BYTES);
        step = count - done < RING_BYTES - at ? count - done : RING_BYTES - at;
        memcpy(ring->bytes + at, bytes + done, step);
    }
    atomic_store_explicit(&ring->head, head + count, memory_order_release);
    return count;
}

static size_t ring_read(ring *ring, uint8_t *bytes, size_t count)
{
    uint64_t tail = atomic_load_explicit(&ring->tail, memory_order_relaxed);
    size_t there = (size_t)(atomic_load_explicit(&ring->head, memory_order_acquire) - tail);
    count = count < there ? count : there;
    for (size_t done = 0, step; done < count; done += step) {
        size_t at = (size_t)((tail + done) % RING_BYTES);
        step = count - done < RING_BYTES - at ? count - done : RING_BYTES - at;
        memcpy(bytes + done, ring->bytes + at, step);
    }
    atomic_store_explicit(&ring->tail, tail + count, memory_order_release);
    return count;
}

static bool ring_empty(ring *ring)
{
    return atomic_load_explicit(&ring->head, memory_order_acquire) ==
           atomic_load_explicit(&ring->tail, memory_order_acquire);
}

/* Up to `limit` bytes from the outbox into the ring. */
static bool push(stream *stream, size_t limit)
{
    struct iovec vector[8];
    int count = pmr_outbox_gather(&stream->outbox, vector, 8, limit);
    size_t moved = 0;
    for (int i = 0; i < count && moved < limit; i++) {
        size_t want = vector[i].iov_len < limit - moved ? vector[i].iov_len : limit - moved;
        size_t done = ring_write(stream->out, vector[i].iov_base, want);
        moved += done;
        if (done < want)
            break;
    }
    pmr_outbox_advance(&stream->outbox, moved);
    return moved > 0;
}

/* Takes a peer off, for good. */
static void lose(loopback *self, uint32_t peer, const char *why)
{
    if (self->lost[peer])
        return;
    self->lost[peer] = true;
    for (uint32_t lane = 0; lane < LANES; lane++) {
        stream *stream = &self->streams[peer * LANES + lane];
        pmr_outbox_drop(&stream->outbox);
        pmr_outbox_settle(&stream->outbox, &self->base.sink);
        stream->inlet.place = NULL;
    }
    pmr_error error;
    pmr_fail(&error, PMR_ERR_RANK_FAILED, "rank %u (%s) %s", peer, self->base.address, why);
    error.rank = (int32_t)peer;
    self->base.sink.lost(self->base.sink.arg, peer, &error);
}

static void take(loopback *self, stream *stream, size_t bytes)
{
    const char *why;
    if (!pmr_inlet_take(&stream->inlet, bytes, &self->base.sink, &self->base.counts, &why))
        lose(self, stream->inlet.peer, why);
}

/* Up to `limit` bytes from the ring into the inlet. */
static bool pull(loopback *self, stream *stream, size_t limit)
{
    struct iovec vector[2];
    int count = pmr_inlet_room(&stream->inlet, vector);
    size_t moved = 0;
    for (int i = 0; i < count && moved < limit; i++) {
        size_t want = vector[i].iov_len < limit - moved ? vector[i].iov_len : limit - moved;
        size_t done = ring_read(stream->in, vector[i].iov_base, want);
        moved += done;
        if (done < want)
            break;
    }
    if (moved)
        take(self, stream, moved);
    return moved > 0;
}

/* ---- the contract ---- */

static stream *stream_of(loopback *self, uint32_t peer, uint32_t lane)
{
    return &self->streams[peer * LANES + lane];
}

static bool loopback_send(pmr_endpoint *base, uint32_t peer, uint32_t lane, const pmr_packet *packet,
                          const void *payload, uint64_t cookie)
{
    loopback *self = (loopback *)base;
    stream *stream = stream_of(self, peer, lane);
    if (!pmr_outbox_put(&stream->outbox, packet, payload, cookie, 0))
        return false;
    base->counts.packets_sent++;
    base->counts.bytes_sent += packet->payload_bytes;
    if (self->lost[peer])
        pmr_outbox_drop(&stream->outbox);
    ring_bell(self->hub, base->rank);
    return true;
}

static void loopback_resume(pmr_endpoint *base, uint32_t peer, uint32_t lane)
{
    loopback *self = (loopback *)base;
    stream_of(self, peer, lane)->inlet.held = false;
    ring_bell(self->hub, base->rank);
}

/* A peer whose last bytes were read, and who is gone. */
static bool look_for_loss(loopback *self, uint32_t peer)
{
    uint32_t state = atomic_load_explicit(&self->hub->shared->state[peer], memory_order_acquire);
    if (self->lost[peer] || state < CLOSED)
        return false;
    for (uint32_t lane = 0; lane < LANES && state == CLOSED; lane++)
        if (!ring_empty(stream_of(self, peer, lane)->in) || stream_of(self, peer, lane)->inlet.held)
            return false;
    lose(self, peer, state == CLOSED ? "closed its connections" : "is gone");
    return true;
}

static void shuffle(loopback *self, uint32_t count)
{
    for (uint32_t i = count; i > 1; i--) {
        uint32_t other = draw(self, i), kept = self->order[i - 1];
        self->order[i - 1] = self->order[other];
        self->order[other] = kept;
    }
}

/* One turn of one (peer, lane). *idle_out is cleared where more may be done at once. */
static bool turn(loopback *self, uint32_t index, bool *idle_out)
{
    uint32_t peer = index / LANES;
    stream *stream = &self->streams[index];
    bool moved = pmr_outbox_settle(&stream->outbox, &self->base.sink);
    if (peer == self->base.rank || self->lost[peer])
        return moved;
    if (draw(self, 4) == 0) { /* not this time */
        *idle_out = *idle_out && pmr_outbox_empty(&stream->outbox) && ring_empty(stream->in);
        return moved;
    }
    static const uint32_t limits[] = {1, 39, 41, 700, RING_BYTES, 3 * RING_BYTES};
    bool pushed = push(stream, limits[draw(self, 6)]);
    bool pulled = pull(self, stream, limits[draw(self, 6)]);
    if (pushed || pulled) {
        ring_bell(self->hub, peer);
        *idle_out = false;
    }
    return moved || pushed || pulled;
}

static bool loopback_poll(pmr_endpoint *base)
{
    loopback *self = (loopback *)base;
    silence(self);
    uint32_t count = base->ranks * LANES;
    shuffle(self, count);
    uint64_t before = base->counts.packets_received;
    bool moved = false, idle = true;
    for (uint32_t i = 0; i < count; i++) {
        stream *stream = &self->streams[self->order[i]];
        if (!stream->inlet.held && !self->lost[stream->inlet.peer])
            take(self, stream, 0); /* what was held before */
        moved |= turn(self, self->order[i], &idle);
    }
    moved |= before != base->counts.packets_received;
    for (uint32_t peer = 0; peer < base->ranks; peer++) {
        if (self->given_up[peer])
            lose(self, peer, "was given up: there was no memory to take it out of a call in the middle");
        moved |= peer != base->rank && look_for_loss(self, peer);
    }
    if (!idle)
        ring_bell(self->hub, base->rank);
    return moved;
}

static void loopback_abandon(pmr_endpoint *base, const void *data, size_t bytes)
{
    loopback *self = (loopback *)base;
    for (uint32_t i = 0; i < base->ranks * LANES; i++) {
        stream *stream = &self->streams[i];
        bool copied = pmr_outbox_abandon(&stream->outbox, data, bytes);
        if (!pmr_inlet_abandon(&stream->inlet, data, bytes) || !copied) {
            pmr_outbox_drop(&stream->outbox);
            stream->inlet.place = NULL;
            self->given_up[stream->inlet.peer] = true;
        }
    }
}

static uint64_t loopback_unsent_bytes(const pmr_endpoint *base)
{
    const loopback *self = (const loopback *)base;
    uint64_t bytes = 0;
    for (uint32_t i = 0; i < base->ranks * LANES; i++)
        bytes += self->streams[i].outbox.unsent_bytes;
    return bytes;
}

static void free_loopback(loopback *self)
{
    for (uint32_t i = 0; self->streams && i < self->base.ranks * LANES; i++) {
        pmr_outbox_fini(&self->streams[i].outbox);
        pmr_inlet_fini(&self->streams[i].inlet);
    }
    free(self->streams);
    free(self->order);
    free(self->lost);
    free(self->given_up);
    free(self);
}

/* Nothing is read any more: only what is queued goes out, and a peer that does not read it is not waited for. */
static void flush(loopback *self, int64_t deadline_ns)
{
    while (loopback_unsent_bytes(&self->base) && pmr_now_ns() < deadline_ns) {
        bool moved = false;
        for (uint32_t i = 0; i < self->base.ranks * LANES; i++) {
            uint32_t peer = i / LANES;
            if (atomic_load(&self->hub->shared->state[peer]) >= CLOSED || peer == self->base.rank)
                pmr_outbox_drop(&self->streams[i].outbox);
            if (push(&self->streams[i], RING_BYTES)) {
                ring_bell(self->hub, peer);
                moved = true;
            }
        }
        if (!moved) {
            struct pollfd bell = {.fd = self->base.descriptor, .events = POLLIN};
            poll(&bell, 1, 1);
            silence(self);
        }
    }
}

static void loopback_close(pmr_endpoint *base, int64_t deadline_ns)
{
    loopback *self = (loopback *)base;
    if (atomic_load(&self->hub->shared->state[base->rank]) == OPEN) {
        flush(self, deadline_ns);
        state_set(self->hub, base->rank, CLOSED);
    }
    free_loopback(self);
}

static pmr_status loopback_connect(pmr_endpoint *base, const char *const *addresses, pmr_error *error)
{
    for (uint32_t rank = 0; rank < base->ranks; rank++)
        if (strcmp(addresses[rank], base->address) != 0)
            return pmr_fail(error, PMR_ERR_ARGUMENT, "rank %u has the address '%s', which is not that of this hub: '%s'",
                            rank, addresses[rank], base->address);
    return PMR_OK;
}

static const pmr_endpoint_ops loopback_ops;

static pmr_status loopback_open(const pmr_endpoint_options *options, pmr_endpoint **out, pmr_error *error)
{
    hub *hub = hub_of(options->bind_address);
    if (!hub || hub->ranks != options->ranks || options->rank >= options->ranks)
        return pmr_fail(error, PMR_ERR_ARGUMENT, "no loop-back for %u ranks is named '%s'", options->ranks,
                        options->bind_address);
    uint32_t count = options->ranks * LANES;
    loopback *self = calloc(1, sizeof *self);
    if (self) {
        self->streams = calloc(count, sizeof *self->streams);
        self->lost = calloc(options->ranks, sizeof *self->lost);
        self->given_up = calloc(options->ranks, sizeof *self->given_up);
        self->order = calloc(count, sizeof *self->order);
    }
    if (!self || !self->streams || !self->lost || !self->given_up || !self->order) {
        if (self)
            free_loopback(self);
        return pmr_fail(error, PMR_ERR_NO_MEMORY, "out of memory for an endpoint of %u ranks", options->ranks);
    }
    self->hub = hub;
    self->random = hub->seed * 4096 + options->rank;
    self->base = (pmr_endpoint){
        .ops = &loopback_ops,
        .rank = options->rank,
        .ranks = options->ranks,
        .lanes = LANES,
        .payload_max = PAYLOAD_MAX,
        .fragment_bytes = 65536,
        .descriptor = hub->bell[options->rank],
    };
    strncpy(self->base.address, options->bind_address, sizeof self->base.address - 1);
    for (uint32_t i = 0; i < count; i++) {
        uint32_t peer = i / LANES, lane = i % LANES, rank = options->rank;
        self->order[i] = i;
        self->streams[i].out = &hub->shared->ring[((size_t)rank * hub->ranks + peer) * LANES + lane];
        self->streams[i].in = &hub->shared->ring[((size_t)peer * hub->ranks + rank) * LANES + lane];
        pmr_inlet_init(&self->streams[i].inlet, peer, lane, PAYLOAD_MAX);
    }
    state_set(hub, options->rank, OPEN);
    *out = &self->base;
    return PMR_OK;
}

static const pmr_endpoint_ops loopback_ops = {
    .name = "loopback",
    .open = loopback_open,
    .connect = loopback_connect,
    .send = loopback_send,
    .poll = loopback_poll,
    .resume = loopback_resume,
    .abandon = loopback_abandon,
    .unsent_bytes = loopback_unsent_bytes,
    .close = loopback_close,
};
PMR_REGISTER_ENDPOINT(loopback_ops);
