/* SPDX-License-Identifier: Apache-2.0
 *
 * test_span_messages.c: messages between ranks of any nodes: order, sizes, wildcards, limits, and lost peers.
 *
 * All ranks draw the same rounds. In a round every rank sends messages to every other, blocking or not, and receives
 * them from each or from any; the bytes tell who sent them and as which message of the pair.
 *
 * Usage: test_span_messages [seed]
 */
#include <time.h>

#include "node_gang.h"

#define SECOND 1000000000ll
#define FAR (40 * SECOND)
#define BYTES_MAX ((size_t)3 << 20)
#define EACH 3u /* messages of a pair in a round */
#define LOST_AFTER_S 80

#define CHECK(condition)                                                                              \
    do {                                                                                              \
        if (!(condition)) {                                                                           \
            fprintf(stderr, "%s:%d: not true: %s: %s\n", __FILE__, __LINE__, #condition, error.text); \
            _exit(1);                                                                                 \
        }                                                                                             \
    } while (0)

static uint64_t draw(uint64_t *state, uint64_t below)
{
    *state = *state * 6364136223846793005u + 1442695040888963407u;
    return (*state >> 33) % below;
}

static size_t size_of(uint64_t seed, uint32_t from, uint32_t to, uint32_t number)
{
    static const size_t most[] = {1, 64, 9000, 20000, 300000, BYTES_MAX};
    uint64_t state = seed ^ ((uint64_t)from << 40) ^ ((uint64_t)to << 20) ^ number;
    draw(&state, 2);
    return draw(&state, most[draw(&state, 20) ? draw(&state, 5) : 5] + 1);
}

static void fill(uint8_t *data, size_t bytes, uint32_t from, uint32_t number)
{
    for (size_t i = 0; i < bytes; i++)
        data[i] = (uint8_t)(i * 31 + (i >> 8) * 7 + from * 5 + number);
}

static bool filled(const uint8_t *data, size_t bytes, uint32_t from, uint32_t number)
{
    for (size_t i = 0; i < bytes; i++)
        if (data[i] != (uint8_t)(i * 31 + (i >> 8) * 7 + from * 5 + number))
            return false;
    return true;
}

typedef struct mailbox {
    uint8_t *out[NODE_RANKS_MAX][EACH], *in;
    pmr_request *sends[NODE_RANKS_MAX * EACH];
    uint32_t sending;
} mailbox;

/* Tag 10 + number: the messages of a pair can be told apart, and come in this order. */
static void send_all(pmr_comm *comm, uint64_t seed, mailbox *m)
{
    uint32_t rank = pmr_comm_rank(comm), size = pmr_comm_size(comm);
    pmr_error error = {.text = ""};
    m->sending = 0;
    for (uint32_t number = 0; number < EACH; number++)
        for (uint32_t i = 1; i < size; i++) {
            uint32_t to = (rank + i) % size;
            size_t bytes = size_of(seed, rank, to, number);
            m->out[to][number] = malloc(bytes + 1);
            fill(m->out[to][number], bytes, rank, number);
            CHECK(!pmr_isend(comm, m->out[to][number], bytes, (int32_t)to, (int32_t)(10 + number), 0,
                             &m->sends[m->sending++], &error));
        }
}

static void receive_all(pmr_comm *comm, uint64_t seed, mailbox *m, bool any)
{
    uint32_t rank = pmr_comm_rank(comm), size = pmr_comm_size(comm), next[NODE_RANKS_MAX] = {0};
    pmr_error error = {.text = ""};
    for (uint32_t i = 0; i < (size - 1) * EACH; i++) {
        uint32_t from = (rank + 1 + i / EACH) % size;
        pmr_message_info info;
        int32_t source = any ? PMR_ANY_SOURCE : (int32_t)from;
        if (i % 3 == 0) { /* what a probe shows is what a receive gets */
            pmr_message_info shown;
            CHECK(!pmr_probe(comm, source, PMR_ANY_TAG, 0, FAR, &shown, &error));
            CHECK(!pmr_recv(comm, m->in, BYTES_MAX, shown.source, shown.tag, 0, FAR, &info, &error));
            CHECK(info.source == shown.source && info.bytes == shown.bytes && info.tag == shown.tag);
        } else {
            CHECK(!pmr_recv(comm, m->in, BYTES_MAX, source, PMR_ANY_TAG, 0, FAR, &info, &error));
        }
        from = (uint32_t)info.source;
        CHECK(info.tag == (int32_t)(10 + next[from]) && info.bytes == size_of(seed, from, rank, next[from]));
        CHECK(filled(m->in, info.bytes, from, next[from]));
        next[from]++;
    }
}

static void end_sends(pmr_comm *comm, mailbox *m)
{
    pmr_error error = {.text = ""};
    for (uint32_t i = 0; i < m->sending; i++) {
        CHECK(!pmr_request_wait(m->sends[i], FAR, &error));
        pmr_request_free(m->sends[i]);
    }
    for (uint32_t to = 0; to < pmr_comm_size(comm); to++)
        for (uint32_t number = 0; number < EACH && to != pmr_comm_rank(comm); number++)
            free(m->out[to][number]);
}

/* Blocking sends around a ring, with and without room for two. */
static void around(pmr_comm *comm, size_t bytes)
{
    uint32_t rank = pmr_comm_rank(comm), size = pmr_comm_size(comm);
    int32_t next = (int32_t)((rank + 1) % size), last = (int32_t)((rank + size - 1) % size);
    pmr_error error = {.text = ""};
    pmr_message_info info;
    uint8_t *out = malloc(bytes + 1), *in = malloc(bytes + 1);
    fill(out, bytes, rank, 7);
    CHECK(!pmr_sendrecv(comm, out, bytes, next, 1, in, bytes, last, 1, 0, FAR, &info, &error));
    CHECK(info.bytes == bytes && filled(in, bytes, (uint32_t)last, 7));
    if (rank % 2 == 0) {
        CHECK(!pmr_send(comm, out, bytes, next, 2, 0, FAR, &error));
        CHECK(!pmr_recv(comm, in, bytes, last, 2, 0, FAR, &info, &error));
    } else {
        CHECK(!pmr_recv(comm, in, bytes, last, 2, 0, FAR, &info, &error));
        CHECK(!pmr_send(comm, out, bytes, next, 2, 0, FAR, &error));
    }
    free(out);
    free(in);
}

/* What does not fit is refused, and what is not received in time is taken back. */
static void limits(pmr_comm *comm)
{
    uint32_t rank = pmr_comm_rank(comm), size = pmr_comm_size(comm);
    pmr_error error = {.text = ""};
    static uint8_t data[100000];
    pmr_message_info info;
    if (rank == 0) {
        CHECK(!pmr_send(comm, data, 100, (int32_t)size - 1, 1, 0, FAR, &error));
        CHECK(!pmr_send(comm, data, sizeof data, (int32_t)size - 1, 2, 0, FAR, &error));
        CHECK(pmr_send(comm, data, sizeof data, (int32_t)size - 1, 9, 0, SECOND / 20, &error) == PMR_ERR_STALLED);
        CHECK(pmr_recv(comm, data, 1, (int32_t)size - 1, 5, 0, SECOND / 20, &info, &error) == PMR_ERR_TIMEOUT);
    } else if (rank == size - 1) {
        CHECK(pmr_recv(comm, data, 99, 0, 1, 0, FAR, &info, &error) == PMR_ERR_TRUNCATED);
        CHECK(pmr_recv(comm, data, sizeof data - 1, 0, 2, 0, FAR, &info, &error) == PMR_ERR_TRUNCATED);
    }
}

static int exchange(pmr_context *context, void *arg)
{
    uint64_t seed = *(uint64_t *)arg, state = seed;
    pmr_comm *world = pmr_context_world(context), *turned;
    uint32_t size = pmr_comm_size(world);
    pmr_error error = {.text = ""};
    mailbox m = {.in = malloc(BYTES_MAX)};
    alarm(LOST_AFTER_S);
    CHECK(!pmr_comm_split(world, 0, -(int32_t)pmr_comm_rank(world), 0, &turned, &error)); /* the other way round */
    for (uint32_t round = 0; round < 6; round++) {
        pmr_comm *comm = round % 2 ? turned : world;
        uint64_t of_round = draw(&state, UINT32_MAX);
        send_all(comm, of_round, &m);
        receive_all(comm, of_round, &m, draw(&state, 2));
        end_sends(comm, &m);
    }
    for (size_t bytes = 0; size % 2 == 0 && bytes <= BYTES_MAX; bytes = bytes * 40 + 1)
        around(world, bytes);
    limits(world);
    pmr_call barrier = {.kind = PMR_BARRIER, .dtype = PMR_UINT8};
    CHECK(!pmr_coll_run(world, &barrier, FAR, &error));
    CHECK(!pmr_comm_free(turned, &error));
    free(m.in);
    return 0;
}

/* Rank 1 is gone: who waits for it is told, others go on. */
static int outlive(pmr_context *context, void *arg)
{
    (void)arg;
    pmr_comm *world = pmr_context_world(context);
    uint32_t rank = pmr_comm_rank(world);
    pmr_error error = {.text = ""};
    uint8_t data[64] = {0};
    pmr_message_info info;
    alarm(LOST_AFTER_S);
    pmr_call barrier = {.kind = PMR_BARRIER, .dtype = PMR_UINT8};
    CHECK(!pmr_coll_run(world, &barrier, FAR, &error));
    if (rank == 1) {
        for (int32_t to = 0; to < 3; to += 2)
            CHECK(!pmr_send(world, data, 64, to, 3, 0, FAR, &error));
        _exit(0);
    }
    CHECK(!pmr_recv(world, data, 64, 1, 3, 0, FAR, &info, &error));
    CHECK(pmr_recv(world, data, 64, 1, 4, 0, FAR, &info, &error) == PMR_ERR_RANK_FAILED && error.rank == 1);
    return 0;
}

int main(int argc, char **argv)
{
    uint64_t seed = argc > 1 ? strtoull(argv[1], NULL, 10) : (uint64_t)time(NULL);
    printf("seed %llu\n", (unsigned long long)seed);
    node_layout layouts[] = {{.nodes = 2, .sizes = {1, 1}}, {.nodes = 2, .sizes = {2, 2}}, {.nodes = 3, .sizes = {2, 1, 2}}};
    int bad = 0;
    for (uint32_t i = 0; i < 6; i++) {
        node_layout *layout = &layouts[i % 3];
        layout->transport = node_transport(seed + i + i / 3);
        layout->cpus = i % 2 ? 1 : 64;
        uint64_t own = seed + i;
        bad += node_gang_run(layout, exchange, &own);
    }
    node_layout apart = {.nodes = 3, .sizes = {1, 1, 1}, .cpus = 64, .transport = "tcp"};
    bad += node_gang_run(&apart, outlive, NULL);
    printf("%s\n", bad ? "FAILED" : "ok");
    return bad != 0;
}
