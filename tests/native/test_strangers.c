/* SPDX-License-Identifier: Apache-2.0
 *
 * test_strangers.c: endpoints among those who mean harm, and peers that die.
 *
 * Plain sockets connect to a rank and say nothing, half a word, garbage, another rank's words again, or the right words
 * and then garbage; ranks with another key dial; processes are killed in the middle of a transfer. The traffic of the
 * others goes on unharmed. Usage: test_strangers [seed]
 */
#include "endpoint_world.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "transport/handshake.h"

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SANITIZED 1
#else
#define SANITIZED 0
#endif

#define STRANGERS 200
#define BIG_TOTAL ((uint64_t)3 << 30)

static const char *library;

static uint32_t size_medium(uint64_t mixed, uint32_t lane)
{
    return (uint32_t)(mixed >> 8) % (lane ? 200000 : 2000);
}

static int connect_to(const pmr_endpoint *endpoint)
{
    struct sockaddr_in address = {.sin_family = AF_INET};
    const char *colon = strrchr(endpoint->address, ':');
    address.sin_port = htons((uint16_t)atoi(colon + 1));
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    CHECK(fd >= 0 && connect(fd, (struct sockaddr *)&address, sizeof address) == 0);
    return fd;
}

/* Waits, polling the world, until the other end closed the socket. */
static void await_end(world *world, int fd)
{
    int64_t deadline_ns = pmr_deadline_ns(DEADLINE_NS);
    char byte[256];
    for (;;) {
        ssize_t got = recv(fd, byte, sizeof byte, MSG_DONTWAIT);
        if (got == 0 || (got < 0 && errno != EAGAIN))
            break;
        CHECK(pmr_now_ns() < deadline_ns);
        for (uint32_t rank = 0; rank < world->ranks; rank++)
            world_poll(world, rank);
    }
    close(fd);
}

static void receive_all(world *world, int fd, void *into, size_t bytes)
{
    int64_t deadline_ns = pmr_deadline_ns(DEADLINE_NS);
    for (size_t got = 0; got < bytes;) {
        ssize_t done = recv(fd, (char *)into + got, bytes - got, MSG_DONTWAIT);
        CHECK(done != 0 && pmr_now_ns() < deadline_ns);
        got += done > 0 ? (size_t)done : 0;
        for (uint32_t rank = 0; rank < world->ranks; rank++)
            world_poll(world, rank);
    }
}

static void plan_all(world *world, uint32_t count)
{
    world->size_of = size_medium;
    for (uint32_t from = 0; from < world->ranks; from++)
        for (uint32_t to = 0; to < world->ranks; to++)
            for (uint32_t lane = 0; lane < WORLD_LANES; lane++)
                if (from != to)
                    world_plan(world, from, to, lane, count);
}

static void test_crowd(const char *transport)
{
    static world world;
    int fd[STRANGERS];
    pmr_answer hello;
    pmr_handshake handshake;
    pmr_error error;
    static const uint8_t other_key[PMR_KEY_BYTES];
    world_open(&world, transport, library, 2);
    plan_all(&world, 300);
    for (uint32_t i = 0; i < STRANGERS; i++) {
        char garbage[4000];
        fd[i] = connect_to(world.member[i % 2].endpoint);
        memset(garbage, (int)draw(256), sizeof garbage);
        CHECK(pmr_handshake_dial(&handshake, other_key, 1 - i % 2, i % 2, draw(4), &hello, &error) == PMR_OK);
        uint32_t what = draw(4);
        if (what == 1)
            CHECK(send(fd[i], garbage, 1 + draw(4000), MSG_NOSIGNAL) > 0);
        else if (what == 2)
            CHECK(send(fd[i], hello.message, 1 + draw(hello.bytes), MSG_NOSIGNAL) > 0);
        bool moved = false;
        world_turn(&world, &moved);
    }
    world_run(&world);
    for (uint32_t rank = 0; rank < 2; rank++)
        CHECK(world.member[rank].losses == 0 && world.member[rank].endpoint->counts.connections >= WORLD_LANES);
    if (strcmp(transport, "tcp") == 0)
        CHECK(world.member[0].endpoint->counts.strangers > 0 && world.member[1].endpoint->counts.strangers > 0);
    for (uint32_t i = 0; i < STRANGERS; i++)
        close(fd[i]);
    world_close(&world);
}

/* Says HELLO with the key, as rank 1 would, and returns the challenge. */
static int greet(world *world, pmr_handshake *handshake, pmr_answer *proof)
{
    pmr_answer hello;
    pmr_challenge challenge;
    pmr_error error;
    int fd = connect_to(world->member[0].endpoint);
    CHECK(pmr_handshake_dial(handshake, world_key, 1, 0, 1, &hello, &error) == PMR_OK);
    CHECK(send(fd, hello.message, hello.bytes, MSG_NOSIGNAL) == (ssize_t)hello.bytes);
    receive_all(world, fd, &challenge, sizeof challenge);
    pmr_handshake_take(handshake, (uint8_t *)&challenge, proof);
    CHECK(proof->bytes == sizeof(pmr_proof));
    return fd;
}

/* Words that are right until they are not. */
static void test_impostors(void)
{
    static world world;
    pmr_handshake handshake;
    pmr_answer proof;
    world_open(&world, "tcp", NULL, 2);
    world.size_of = size_medium;
    pmr_endpoint *endpoint = world.member[0].endpoint;

    int fd = greet(&world, &handshake, &proof); /* a wrong proof */
    proof.message[draw(proof.bytes)] ^= 1;
    CHECK(send(fd, proof.message, proof.bytes, MSG_NOSIGNAL) == (ssize_t)proof.bytes);
    await_end(&world, fd);

    fd = greet(&world, &handshake, &proof); /* leaves before the proof */
    close(fd);
    CHECK(endpoint->counts.connections == 0);

    fd = greet(&world, &handshake, &proof); /* proves itself, a byte at a time, then sends what is no packet */
    for (uint32_t i = 0; i < proof.bytes; i++) {
        CHECK(send(fd, proof.message + i, 1, MSG_NOSIGNAL) == 1);
        world_poll(&world, 0);
    }
    pmr_verdict verdict;
    receive_all(&world, fd, &verdict, sizeof verdict);
    CHECK(verdict.taken && endpoint->counts.connections == 1 && world.member[0].losses == 0);
    pmr_packet packet = {.kind = 1, .payload_bytes = UINT32_MAX};
    CHECK(send(fd, &packet, sizeof packet, MSG_NOSIGNAL) == (ssize_t)sizeof packet);
    await_end(&world, fd);
    CHECK(world.member[0].losses == 1 && world.member[0].lost[1]);
    CHECK(strstr(world.member[0].why, "lost rank 1 (127.0.0.1:") &&
          strstr(world.member[0].why, "it sent a payload longer than any that is sent"));

    fd = connect_to(endpoint); /* a peer that is lost does not come back */
    close(fd);
    world_plan(&world, 0, 1, 0, 3);
    while (world.flow[0][1][0].sent < 3)
        CHECK(world_send(&world, 0, 1, 0));
    while (world.flow[0][1][0].given_back < 3)
        world_poll(&world, 0);
    CHECK(pmr_endpoint_unsent_bytes(endpoint) == 0);
    world_close(&world);
}

/* ---- peers that die ---- */


/* Rank 1, in a process of its own: takes everything and sends without end. */
static void be_rank_1(const char *transport, int in, int out)
{
    static world world;
    static uint8_t payload[100000];
    pmr_error error;
    pmr_endpoint_options options = {
        .bind_address = "127.0.0.1", .rank = 1, .ranks = 2, .key = world_key, .library = library};
    member *self = &world.member[1];
    char mine[PMR_ADDRESS_BYTES], theirs[PMR_ADDRESS_BYTES];
    CHECK(pmr_endpoint_find(transport)->open(&options, &self->endpoint, &error) == PMR_OK);
    memcpy(mine, self->endpoint->address, sizeof mine);
    CHECK(write(out, mine, sizeof mine) == (ssize_t)sizeof mine && read(in, theirs, sizeof theirs) == (ssize_t)sizeof theirs);
    const char *addresses[2] = {theirs, mine};
    CHECK(self->endpoint->ops->connect(self->endpoint, addresses, &error) == PMR_OK);
    self->endpoint->sink = pmr_sink_of_closing;
    for (uint32_t n = 0;; n++) {
        pmr_packet packet = {.kind = 2, .payload_bytes = sizeof payload};
        pmr_endpoint_send(self->endpoint, 0, 1, &packet, payload, 1 + n);
        pmr_endpoint_poll(self->endpoint);
    }
}

static pmr_placing place_anything(void *arg, uint32_t peer, uint32_t lane, const pmr_packet *packet, void **into_out)
{
    (void)arg, (void)peer, (void)lane, (void)packet, (void)into_out;
    return PMR_PLACE_SHOW;
}

static void arrived_anything(void *arg, uint32_t peer, uint32_t lane, const pmr_packet *packet, const void *payload)
{
    (void)peer, (void)lane, (void)packet, (void)payload;
    ++*(uint32_t *)arg;
}

static uint32_t dead;
static char why_dead[PMR_ERROR_TEXT_BYTES];

static void lost_one(void *arg, uint32_t peer, const pmr_error *error)
{
    (void)arg;
    CHECK(peer == 1 && error->rank == 1 && error->status == PMR_ERR_RANK_FAILED);
    memcpy(why_dead, error->text, sizeof why_dead);
    dead++;
}

static void sent_one(void *arg, uint64_t cookie)
{
    (void)arg;
    CHECK(cookie == 7 && !dead);
}

static void test_death(const char *transport)
{
    int to_child[2], from_child[2], status;
    char mine[PMR_ADDRESS_BYTES], theirs[PMR_ADDRESS_BYTES];
    pmr_error error;
    CHECK(pipe(to_child) == 0 && pipe(from_child) == 0);
    fflush(NULL);
    pid_t child = fork();
    if (child == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        be_rank_1(transport, to_child[0], from_child[1]);
    }
    uint32_t arrived_count = 0;
    pmr_endpoint *endpoint;
    pmr_endpoint_options options = {
        .bind_address = "127.0.0.1", .rank = 0, .ranks = 2, .key = world_key, .library = library};
    CHECK(pmr_endpoint_find(transport)->open(&options, &endpoint, &error) == PMR_OK);
    endpoint->sink = (pmr_sink){&arrived_count, place_anything, arrived_anything, sent_one, lost_one};
    memcpy(mine, endpoint->address, sizeof mine);
    CHECK(write(to_child[1], mine, sizeof mine) == (ssize_t)sizeof mine);
    CHECK(read(from_child[0], theirs, sizeof theirs) == (ssize_t)sizeof theirs);
    const char *addresses[2] = {mine, theirs};
    CHECK(endpoint->ops->connect(endpoint, addresses, &error) == PMR_OK);
    static uint8_t payload[1000000]; /* which the other side holds back: it is under way when it dies */
    pmr_packet packet = {.kind = 3, .payload_bytes = sizeof payload};
    CHECK(pmr_endpoint_send(endpoint, 1, 1, &packet, payload, 7));
    int64_t killed_ns = 0, deadline_ns = pmr_deadline_ns(DEADLINE_NS);
    dead = 0;
    while (!dead) {
        if (arrived_count >= 50 && !killed_ns) {
            kill(child, SIGKILL);
            killed_ns = pmr_now_ns();
        }
        CHECK(pmr_now_ns() < deadline_ns);
        struct pollfd waiting = {.fd = endpoint->descriptor, .events = POLLIN};
        if (!pmr_endpoint_poll(endpoint))
            poll(&waiting, 1, 1000);
    }
    CHECK(pmr_now_ns() - killed_ns < 5000000000);
    CHECK(strstr(why_dead, "rank 1 (127.0.0.1:"));
    waitpid(child, &status, 0);
    CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
    CHECK(pmr_endpoint_unsent_bytes(endpoint) == 0 && dead == 1);
    pmr_endpoint_close(endpoint, pmr_deadline_ns(1000000));
    for (int i = 0; i < 2; i++) {
        close(to_child[i]);
        close(from_child[i]);
    }
}

/* ---- more than any counter of 32 bits holds ---- */

static uint64_t big_arrived, big_back;
static uint8_t *big_place;

static pmr_placing place_big(void *arg, uint32_t peer, uint32_t lane, const pmr_packet *packet, void **into_out)
{
    (void)arg, (void)peer, (void)lane, (void)packet;
    *into_out = big_place;
    return PMR_PLACE_INTO;
}

static void arrived_big(void *arg, uint32_t peer, uint32_t lane, const pmr_packet *packet, const void *payload)
{
    (void)arg, (void)peer, (void)lane;
    const uint8_t *bytes = payload;
    CHECK(packet->token == big_arrived && bytes[0] == 5 && bytes[packet->payload_bytes - 1] == 5);
    big_arrived += packet->payload_bytes;
}

static void sent_big(void *arg, uint64_t cookie)
{
    (void)arg, (void)cookie;
    big_back++;
}

static void test_big(const char *transport)
{
    static world world;
    world_open(&world, transport, library, 2);
    pmr_endpoint *from = world.member[0].endpoint, *to = world.member[1].endpoint;
    uint32_t piece = from->payload_max;
    uint8_t *payload = malloc(piece);
    big_place = malloc(piece);
    memset(payload, 5, piece);
    from->sink.sent = sent_big;
    to->sink = (pmr_sink){NULL, place_big, arrived_big, sent_big, NULL};
    big_arrived = big_back = 0;
    int64_t deadline_ns = pmr_deadline_ns(DEADLINE_NS);
    for (uint64_t at = 0; big_arrived < BIG_TOTAL;) {
        pmr_packet packet = {.kind = 1, .payload_bytes = piece, .token = at};
        if (at < BIG_TOTAL && pmr_endpoint_send(from, 1, 1, &packet, payload, at + 1))
            at += piece;
        bool moved = pmr_endpoint_poll(from);
        moved = pmr_endpoint_poll(to) || moved;
        if (!moved)
            world_sleep(&world);
        CHECK(pmr_now_ns() < deadline_ns);
    }
    while (big_back < BIG_TOTAL / piece)
        pmr_endpoint_poll(from);
    CHECK(from->counts.bytes_sent == BIG_TOTAL && to->counts.bytes_received == BIG_TOTAL);
    free(payload);
    free(big_place);
    world_close(&world);
}

int main(int argc, char **argv)
{
    random_state = argc > 1 ? strtoull(argv[1], NULL, 10) : 1;
    library = world_libzmq();
    test_impostors();
    static const char *const transports[] = {"tcp", "zmq"};
    for (int i = 0; i < 2; i++) {
        if (!world_can(transports[i], library))
            continue;
        test_crowd(transports[i]);
        test_death(transports[i]);
        if (!SANITIZED)
            test_big(transports[i]);
    }
    return 0;
}
