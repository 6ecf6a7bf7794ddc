/* SPDX-License-Identifier: Apache-2.0
 *
 * endpoint_world.h: several endpoints in one process and one thread, and traffic between them that checks itself.
 *
 * A *flow* is what one rank sends another on one lane: packets whose sizes and bytes follow from their numbers, so the
 * receiver knows what must come next. The sink places, shows and holds back at random; every cookie must come back once.
 */
#ifndef PMR_TESTS_ENDPOINT_WORLD_H
#define PMR_TESTS_ENDPOINT_WORLD_H

#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "check.h"
#include "core/clock.h"
#include "transport/endpoint.h"
#include "transport/loopback.h"

#define WORLD_RANKS_MAX 8u
#define WORLD_LANES 2u
#define DEADLINE_NS 60000000000

static uint64_t random_state;

static inline uint32_t draw(uint32_t below)
{
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(random_state >> 33) % below;
}

typedef struct flow { /* packets of one (sender, receiver, lane) */
    uint32_t count;   /* to be sent */
    uint32_t sent, given_back, received;
    uint8_t **payload; /* of packets with a cookie, until they are given back */
    bool *ruined;      /* of those, whether the sender abandoned and overwrote it */
    uint8_t *place;    /* at the receiver, for the packet that is being read */
    uint32_t place_bytes;
    bool abandoned; /* the place was, and freed */
    bool held;
} flow;

typedef struct world world;

typedef struct member {
    world *world;
    uint32_t rank;
    pmr_endpoint *endpoint;
    uint32_t losses;
    bool lost[WORLD_RANKS_MAX];
    char why[PMR_ERROR_TEXT_BYTES];
} member;

struct world {
    const char *transport;
    char hub[PMR_ADDRESS_BYTES];
    uint32_t ranks;
    uint32_t (*size_of)(uint64_t mixed, uint32_t lane); /* payload bytes of a packet, from a number that is its own */
    member member[WORLD_RANKS_MAX];
    flow flow[WORLD_RANKS_MAX][WORLD_RANKS_MAX][WORLD_LANES];
};

static inline uint64_t mix(uint32_t from, uint32_t to, uint32_t lane, uint32_t number)
{
    uint64_t x = ((uint64_t)from << 56) ^ ((uint64_t)to << 48) ^ ((uint64_t)lane << 40) ^ number;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

/* Eight bytes at a time: sanitizers look at every access. */
static inline void fill(uint8_t *bytes, uint32_t count, uint64_t mixed)
{
    for (uint32_t at = 0; at < count; at += 8) {
        uint64_t word = mixed + at;
        memcpy(bytes + at, &word, count - at < 8 ? count - at : 8);
    }
}

static inline bool filled(const uint8_t *bytes, uint32_t count, uint64_t mixed)
{
    for (uint32_t at = 0; at < count; at += 8) {
        uint64_t word = mixed + at;
        if (memcmp(bytes + at, &word, count - at < 8 ? count - at : 8) != 0)
            return false;
    }
    return true;
}

static inline uint64_t cookie_of(uint32_t to, uint32_t lane, uint32_t number)
{
    return ((uint64_t)to << 48 | (uint64_t)lane << 40 | number) + 1;
}

/* ---- the sink ---- */

static inline pmr_placing world_place(void *arg, uint32_t peer, uint32_t lane, const pmr_packet *packet, void **into_out)
{
    member *self = arg;
    flow *flow = &self->world->flow[peer][self->rank][lane];
    uint64_t mixed = mix(peer, self->rank, lane, flow->received);
    CHECK(!self->lost[peer] && !flow->place && !flow->held);
    CHECK(packet->seq == flow->received && flow->received < flow->count);
    CHECK(packet->payload_bytes == self->world->size_of(mixed, lane));
    CHECK(packet->fingerprint == mixed && packet->source == (int32_t)peer && packet->kind == 1 + lane);
    if (draw(8) == 0) {
        flow->held = true;
        return PMR_PLACE_LATER;
    }
    if (packet->payload_bytes <= PMR_PACKET_SHOW_MAX && draw(2))
        return PMR_PLACE_SHOW;
    *into_out = flow->place = malloc(packet->payload_bytes + 1);
    flow->place_bytes = packet->payload_bytes;
    return PMR_PLACE_INTO;
}

static inline void world_arrived(void *arg, uint32_t peer, uint32_t lane, const pmr_packet *packet, const void *payload)
{
    member *self = arg;
    flow *flow = &self->world->flow[peer][self->rank][lane];
    uint64_t mixed = mix(peer, self->rank, lane, flow->received);
    CHECK(packet->seq == flow->received && packet->fingerprint == mixed);
    CHECK(flow->abandoned ? !payload : filled(payload, packet->payload_bytes, mixed));
    CHECK(!flow->place || payload == flow->place);
    flow->abandoned = false;
    CHECK(flow->place || !payload || packet->payload_bytes == 0 || (uintptr_t)payload % 8 == 0);
    free(flow->place);
    flow->place = NULL;
    flow->received++;
}

static inline void world_sent(void *arg, uint64_t cookie)
{
    member *self = arg;
    uint32_t to = (uint32_t)((cookie - 1) >> 48), lane = (uint32_t)((cookie - 1) >> 40) & 0xff;
    uint32_t number = (uint32_t)(cookie - 1);
    flow *flow = &self->world->flow[self->rank][to][lane];
    CHECK(number < flow->sent && flow->payload[number]);
    uint64_t mixed = mix(self->rank, to, lane, number);
    CHECK(self->lost[to] || flow->ruined[number] ||
          filled(flow->payload[number], self->world->size_of(mixed, lane), mixed));
    free(flow->payload[number]);
    flow->payload[number] = NULL;
    flow->given_back++;
}

static inline void world_lost(void *arg, uint32_t peer, const pmr_error *error)
{
    member *self = arg;
    CHECK(!self->lost[peer] && error->rank == (int32_t)peer && error->status == PMR_ERR_RANK_FAILED);
    self->lost[peer] = true;
    self->losses++;
    snprintf(self->why, sizeof self->why, "%s", error->text);
    for (uint32_t lane = 0; lane < WORLD_LANES; lane++) {
        flow *from = &self->world->flow[peer][self->rank][lane];
        free(from->place);
        from->place = NULL;
    }
}

/* ---- the world ---- */

#if defined(__SANITIZE_THREAD__)
#define UNDER_TSAN 1
#else
#define UNDER_TSAN 0
#endif

/* The path of libzmq that test_native.py found, or NULL. */
static inline const char *world_libzmq(void)
{
    const char *path = getenv("LIBZMQ");
    return path && path[0] ? path : NULL;
}

/* libzmq may be missing, and ThreadSanitizer cannot see how its threads synchronise. */
static inline bool world_can(const char *transport, const char *library)
{
    bool can = strcmp(transport, "zmq") != 0 || (library && !UNDER_TSAN);
    if (!can)
        printf("%s left out: %s\n", transport, library ? "libzmq is not instrumented" : "no libzmq");
    return can;
}

static const uint8_t world_key[PMR_KEY_BYTES] = "thirty-two bytes that all ranks";
static uint32_t world_socket_bytes; /* of the endpoints opened from now on */

static inline void world_open(world *world, const char *transport, const char *library, uint32_t ranks)
{
    pmr_error error;
    memset(world, 0, sizeof *world);
    world->transport = transport;
    world->ranks = ranks;
    bool hub = strcmp(transport, "loopback") == 0;
    if (hub && pmr_loopback_hub_open(ranks, draw(UINT32_MAX), world->hub, &error)) {
        fprintf(stderr, "%s\n", error.text);
        exit(1);
    }
    const char *addresses[WORLD_RANKS_MAX];
    for (uint32_t rank = 0; rank < ranks; rank++) {
        member *member = &world->member[rank];
        pmr_endpoint_options options = {
            .bind_address = hub ? world->hub : "127.0.0.1",
            .rank = rank,
            .ranks = ranks,
            .key = world_key,
            .socket_bytes = world_socket_bytes,
            .library = library,
        };
        if (pmr_endpoint_find(transport)->open(&options, &member->endpoint, &error)) {
            fprintf(stderr, "%s, rank %u: %s\n", transport, rank, error.text);
            exit(1);
        }
        member->world = world;
        member->rank = rank;
        member->endpoint->sink = (pmr_sink){member, world_place, world_arrived, world_sent, world_lost};
        addresses[rank] = member->endpoint->address;
        CHECK(member->endpoint->lanes >= WORLD_LANES);
    }
    for (uint32_t rank = 0; rank < ranks; rank++)
        CHECK(world->member[rank].endpoint->ops->connect(world->member[rank].endpoint, addresses, &error) == PMR_OK);
}

static inline void world_close_member(world *world, uint32_t rank)
{
    member *member = &world->member[rank];
    /* Briefly: its peers are in this thread, and read nothing meanwhile. */
    pmr_endpoint_close(member->endpoint, pmr_deadline_ns(20000000));
    member->endpoint = NULL;
}

static inline void world_close(world *world)
{
    for (uint32_t rank = 0; rank < world->ranks; rank++)
        world_close_member(world, rank);
    if (world->hub[0])
        pmr_loopback_hub_close(world->hub);
    for (uint32_t from = 0; from < world->ranks; from++)
        for (uint32_t to = 0; to < world->ranks; to++)
            for (uint32_t lane = 0; lane < WORLD_LANES; lane++) {
                flow *flow = &world->flow[from][to][lane];
                for (uint32_t i = 0; flow->payload && i < flow->count; i++)
                    free(flow->payload[i]);
                free(flow->payload);
                free(flow->ruined);
                free(flow->place);
            }
}

static inline void world_plan(world *world, uint32_t from, uint32_t to, uint32_t lane, uint32_t count)
{
    flow *flow = &world->flow[from][to][lane];
    flow->count = count;
    flow->payload = calloc(count, sizeof *flow->payload);
    flow->ruined = calloc(count, sizeof *flow->ruined);
}

/* One side gives up in the middle of a packet: its memory is overwritten, or freed, at once. */
static inline void world_abandon(world *world, uint32_t from, uint32_t to, uint32_t lane)
{
    flow *flow = &world->flow[from][to][lane];
    if (flow->place) {
        pmr_endpoint_abandon(world->member[to].endpoint, flow->place, flow->place_bytes);
        free(flow->place);
        flow->place = NULL;
        flow->abandoned = true;
    }
    if (!flow->sent)
        return;
    uint32_t number = flow->sent - 1 - draw(flow->sent < 4 ? flow->sent : 4);
    uint32_t bytes = world->size_of(mix(from, to, lane, number), lane);
    if (flow->payload[number] && bytes) {
        pmr_endpoint_abandon(world->member[from].endpoint, flow->payload[number], bytes);
        memset(flow->payload[number], 0xee, bytes);
        flow->ruined[number] = true;
    }
}

/* Sends the next packet of a flow. False: its queue is full. */
static inline bool world_send(world *world, uint32_t from, uint32_t to, uint32_t lane)
{
    flow *flow = &world->flow[from][to][lane];
    uint32_t number = flow->sent;
    uint64_t mixed = mix(from, to, lane, number);
    pmr_packet packet = {
        .kind = 1 + lane,
        .payload_bytes = world->size_of(mixed, lane),
        .seq = number,
        .source = (int32_t)from,
        .fingerprint = mixed,
    };
    bool copied = packet.payload_bytes <= PMR_PACKET_COPY_MAX && draw(2);
    uint8_t *payload = malloc(packet.payload_bytes + 1);
    fill(payload, packet.payload_bytes, mixed);
    flow->payload[number] = copied ? NULL : payload;
    flow->sent++; /* a transport may give it back only in poll, but the model does not depend on it */
    bool taken = pmr_endpoint_send(world->member[from].endpoint, to, lane, &packet, payload,
                                   copied ? 0 : cookie_of(to, lane, number));
    if (taken && copied)
        flow->given_back++;
    if (!taken || copied)
        free(payload);
    if (!taken) {
        flow->payload[number] = NULL;
        flow->sent--;
    }
    return taken;
}

static inline bool world_poll(world *world, uint32_t rank)
{
    member *member = &world->member[rank];
    if (member->endpoint && draw(16) == 0)
        member->endpoint->patient = !member->endpoint->patient;
    return member->endpoint && pmr_endpoint_poll(member->endpoint);
}

/* Whether a flow has come to its end: all received, or one side is gone and all was given back. */
static inline bool flow_done(world *world, uint32_t from, uint32_t to, uint32_t lane)
{
    flow *flow = &world->flow[from][to][lane];
    member *sender = &world->member[from], *receiver = &world->member[to];
    if (!sender->endpoint)
        return !receiver->endpoint || receiver->lost[from];
    if (!receiver->endpoint || sender->lost[to] || receiver->lost[from])
        return sender->lost[to] && flow->given_back == flow->sent;
    return flow->received == flow->count && flow->given_back == flow->count;
}

/* One turn of the whole world: sends, polls, resumes. True: all flows are done. */
static inline bool world_turn(world *world, bool *moved_out)
{
    bool done = true;
    for (uint32_t from = 0; from < world->ranks; from++)
        for (uint32_t to = 0; to < world->ranks; to++)
            for (uint32_t lane = 0; lane < WORLD_LANES; lane++) {
                flow *flow = &world->flow[from][to][lane];
                if (!flow->count)
                    continue;
                if (world->member[from].endpoint && flow->sent < flow->count && !world->member[from].lost[to])
                    *moved_out |= world_send(world, from, to, lane);
                if (world->member[from].endpoint && world->member[to].endpoint && draw(50) == 0)
                    world_abandon(world, from, to, lane);
                if (flow->held && world->member[to].endpoint && draw(2)) {
                    flow->held = false;
                    if (!world->member[to].lost[from])
                        pmr_endpoint_resume(world->member[to].endpoint, from, lane);
                    *moved_out = true;
                }
                done = flow_done(world, from, to, lane) && done;
            }
    for (uint32_t rank = 0; rank < world->ranks; rank++)
        *moved_out |= world_poll(world, rank);
    return done;
}

/* Sleeps until one of the endpoints may have something to do. */
static inline void world_sleep(world *world)
{
    struct pollfd waiting[WORLD_RANKS_MAX];
    for (uint32_t rank = 0; rank < world->ranks; rank++) {
        pmr_endpoint *endpoint = world->member[rank].endpoint;
        waiting[rank] = (struct pollfd){.fd = endpoint ? endpoint->descriptor : -1, .events = POLLIN};
    }
    poll(waiting, world->ranks, 100);
}

static inline void world_run(world *world)
{
    int64_t deadline_ns = pmr_deadline_ns(DEADLINE_NS);
    for (;;) {
        bool moved = false, held = false;
        if (world_turn(world, &moved))
            return;
        CHECK(pmr_now_ns() < deadline_ns);
        for (uint32_t from = 0; from < world->ranks; from++)
            for (uint32_t to = 0; to < world->ranks; to++)
                for (uint32_t lane = 0; lane < WORLD_LANES; lane++)
                    held = held || world->flow[from][to][lane].held;
        if (!moved && !held)
            world_sleep(world);
    }
}

#endif
