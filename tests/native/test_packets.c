/* SPDX-License-Identifier: Apache-2.0
 *
 * test_packets.c: a rank whose peer on another node sends it anything: packets of its own making, and those that the
 * rank itself sent, given back with some bytes changed, while it waits in collectives and messages.
 *
 * An input is a script of bytes (see `act`). The rank may end its calls well or badly, but touches no memory that is not
 * its own, and its calls end once the gang does. As a program it plays random scripts; with PMR_LIBFUZZER the fuzzer
 * brings them (make fuzz). Usage: test_packets [seed [folder for some scripts]]
 */
#include "fuzz.h"
#include "node_gang.h"
#include "progress/hub.h"

#define HEARD_MAX    32u
#define REQUESTS_MAX 16u
#define BYTES_MAX    200000u
#define SCRIPTS      100u
#define SCRIPT_MAX   400u
#define END_NS       20000000000ll

typedef struct script {
    const uint8_t *at, *end;
} script;

typedef struct stage {
    pthread_t thread; /* of the peer, which listens all the while */
    pthread_mutex_t lock; /* of its end */
    _Atomic bool over;
    pmr_context *context;
    pmr_net *ours, *theirs;
    pmr_packet heard[HEARD_MAX]; /* by the peer, the last ones */
    uint32_t heard_count;
    pmr_request *requests[REQUESTS_MAX];
    uint8_t *buffers[REQUESTS_MAX]; /* two halves of BYTES_MAX */
    uint32_t count;
} stage;

static uint8_t next(script *script)
{
    return script->at < script->end ? *script->at++ : 0;
}

/* 0 to 255, or around the sizes at which things change. */
static uint32_t next_size(script *script)
{
    static const uint32_t edges[] = {8192, 16384, 65536, 131072, BYTES_MAX - 8};
    uint32_t size = next(script);
    return size < 250 ? size : edges[size % 5] + next(script) % 9;
}

/* ---- the peer ---- */

static pmr_placing place(void *arg, uint32_t peer, uint32_t lane, const pmr_packet *packet, void **into_out)
{
    (void)arg, (void)peer, (void)lane, (void)packet, (void)into_out;
    return PMR_PLACE_SHOW;
}

/* A rank that finds a difference waits for the peer's story: it hears its own. */
static void arrived(void *arg, uint32_t peer, uint32_t lane, const pmr_packet *packet, const void *payload)
{
    stage *stage = arg;
    stage->heard[stage->heard_count++ % HEARD_MAX] = *packet;
    if (packet->kind != PMR_PACKET_TELL || packet->payload_bytes > PMR_PACKET_COPY_MAX)
        return;
    pmr_packet answer = *packet;
    answer.source = 1;
    pmr_endpoint_send(stage->theirs->endpoint, peer, lane, &answer, payload, 0);
}

static void sent(void *arg, uint64_t cookie)
{
    (void)arg, (void)cookie;
}

static void lost(void *arg, uint32_t peer, const pmr_error *error)
{
    (void)arg, (void)peer, (void)error;
}

static void send_packet(stage *stage, pmr_packet packet, uint32_t payload_bytes, uint32_t lane)
{
    static const uint8_t payload[PMR_PACKET_COPY_MAX] = {1, 0, 0, 0, 2};
    packet.payload_bytes = payload_bytes % (PMR_PACKET_COPY_MAX + 1);
    packet.kind = packet.kind % PMR_PACKET_KIND_OWN + !packet.kind;
    pmr_endpoint *endpoint = stage->theirs->endpoint;
    pmr_endpoint_send(endpoint, 0, lane % endpoint->lanes, &packet, payload, 0);
}

static void *listen_on(void *arg)
{
    stage *stage = arg;
    while (!atomic_load(&stage->over)) {
        pthread_mutex_lock(&stage->lock);
        pmr_endpoint_poll(stage->theirs->endpoint);
        pthread_mutex_unlock(&stage->lock);
        sched_yield();
    }
    return NULL;
}

/* A packet of its own making, or one that the rank sent, as if the peer had called the same, but for some bytes. */
static void lie(stage *stage, uint8_t how, script *script)
{
    pmr_packet packet = {.kind = 0};
    pthread_mutex_lock(&stage->lock);
    bool reflects = how % 8 > 2 && stage->heard_count;
    uint32_t changes = reflects ? how / 8 % 3 : sizeof packet, which = next(script) % HEARD_MAX;
    if (reflects)
        packet = stage->heard[(stage->heard_count - 1 - which) % HEARD_MAX];
    if (packet.kind < PMR_PACKET_MESSAGE)
        packet.source = 1;
    for (uint32_t i = 0; i < changes; i++) {
        uint8_t where = reflects ? next(script) : (uint8_t)i;
        ((uint8_t *)&packet)[where % sizeof packet] ^= next(script);
    }
    packet.kind %= 32;
    send_packet(stage, packet, how / 32 % 2 || !reflects ? next_size(script) : packet.payload_bytes, how / 64);
    pthread_mutex_unlock(&stage->lock);
}

/* ---- the rank ---- */

static void start_call(stage *stage, pmr_kind kind, uint32_t bytes, int32_t root)
{
    uint8_t *buffer = stage->buffers[stage->count];
    pmr_call call = {.kind = kind,
                     .dtype = PMR_UINT8,
                     .op = PMR_SUM,
                     .root = root,
                     .send = buffer,
                     .recv = buffer + BYTES_MAX,
                     .count = bytes / 2}; /* times two ranks where they are gathered */
    pmr_error error;
    if (!pmr_coll_start(pmr_context_world(stage->context), &call, &stage->requests[stage->count], &error))
        stage->count++;
}

static void start_message(stage *stage, bool sends, uint32_t bytes, int32_t tag)
{
    pmr_comm *world = pmr_context_world(stage->context);
    pmr_request **request = &stage->requests[stage->count];
    uint8_t *buffer = stage->buffers[stage->count];
    pmr_error error;
    pmr_status status = sends ? pmr_isend(world, buffer, bytes, 1, tag, 0, request, &error)
                              : pmr_irecv(world, buffer, bytes, PMR_ANY_SOURCE, tag, 0, request, &error);
    stage->count += status == PMR_OK;
}

/* One step of the script. */
static void act(stage *stage, script *script)
{
    static const pmr_kind kinds[] = {PMR_ALLREDUCE, PMR_BROADCAST, PMR_ALLGATHER, PMR_BARRIER, PMR_SCAN, PMR_GATHER};
    uint8_t what = next(script);
    if (what % 8 == 0 && stage->count < REQUESTS_MAX)
        start_call(stage, kinds[what / 8 % 6], next_size(script), what / 64 % 2);
    else if (what % 8 == 1 && stage->count < REQUESTS_MAX)
        start_message(stage, what / 8 % 2, next_size(script), what / 16 % 4);
    else if (what % 8 < 6)
        lie(stage, what, script);
    else
        sched_yield();
}

/* ---- a world for one script ---- */

static pmr_net *open_net(const node_layout *layout, const char *hub, uint32_t rank)
{
    static const uint8_t key[PMR_KEY_BYTES] = {1};
    pmr_net_options options = {.transport = "loopback", .bind_address = hub, .rank = rank, .nodes = layout->nodes,
                               .local_sizes = layout->sizes, .key = key};
    pmr_net *net;
    pmr_error error;
    CHECK(!pmr_net_open(&options, &net, &error));
    return net;
}

static void play(script *script, uint64_t seed)
{
    static const node_layout layout = {.nodes = 2, .sizes = {1, 1}};
    char hub[PMR_ADDRESS_BYTES];
    pmr_error error;
    stage stage = {.lock = PTHREAD_MUTEX_INITIALIZER};
    int fd = gang_window(1, 2, (uint64_t)1 << 20);
    node_window_header(fd, &layout, 0, 0);
    CHECK(!pmr_loopback_hub_open(2, seed, hub, &error));
    stage.ours = open_net(&layout, hub, 0);
    stage.theirs = open_net(&layout, hub, 1);
    const char *addresses[] = {pmr_net_address(stage.ours), pmr_net_address(stage.theirs)};
    CHECK(!pmr_net_connect(stage.ours, addresses, &error) && !pmr_net_connect(stage.theirs, addresses, &error));
    stage.theirs->endpoint->sink = (pmr_sink){&stage, place, arrived, sent, lost};
    pmr_context_options options = {.window_fd = fd, .local_rank = 0, .net = stage.ours};
    CHECK(!pmr_context_open(&options, &stage.context, &error));
    for (uint32_t i = 0; i < REQUESTS_MAX; i++)
        stage.buffers[i] = calloc(2, BYTES_MAX);
    CHECK(pthread_create(&stage.thread, NULL, listen_on, &stage) == 0);
    while (script->at < script->end)
        act(&stage, script);
    pmr_context_fail(stage.context, "the script is over");
    for (uint32_t i = 0; i < stage.count; i++) {
        CHECK(pmr_request_wait(stage.requests[i], END_NS, &error) != PMR_ERR_TIMEOUT);
        pmr_request_free(stage.requests[i]);
    }
    atomic_store(&stage.over, true);
    pthread_join(stage.thread, NULL);
    pmr_context_close(stage.context);
    pmr_net_close(stage.ours, 0);
    pmr_net_close(stage.theirs, 0);
    pmr_loopback_hub_close(hub);
    for (uint32_t i = 0; i < REQUESTS_MAX; i++)
        free(stage.buffers[i]);
    close(fd);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    script script = {data, data + bytes};
    play(&script, bytes);
    return 0;
}

#ifndef PMR_LIBFUZZER
int main(int argc, char **argv)
{
    uint8_t data[SCRIPT_MAX];
    fuzz_begin(argc, argv);
#ifdef __SANITIZE_THREAD__
    return 0; /* the recorder is read while it is written, and looked at again behind, which this does not know */
#endif
    for (uint32_t round = 0; round < SCRIPTS; round++) {
        size_t bytes = 1 + fuzz_draw(SCRIPT_MAX);
        for (size_t i = 0; i < bytes; i++)
            data[i] = (uint8_t)fuzz_draw(256);
        fuzz_keep(data, bytes);
        LLVMFuzzerTestOneInput(data, bytes);
    }
    _exit(0); /* without a look for leaks: a closed context keeps what its requests may still need */
}
#endif
