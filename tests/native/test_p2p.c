/* SPDX-License-Identifier: Apache-2.0
 *
 * test_p2p.c: point-to-point messages: sizes, ways to travel, limits, and what happens to the survivors.
 *
 * Build: with clock, status, wait and window of core/, all of progress/ and transport/.
 * Usage: test_p2p [processes|threads]. Deaths and huge messages are tested among processes only.
 */
#include "p2p_ranks.h"
#include "progress/p2p_state.h"

static uint8_t byte_at(size_t i, uint32_t salt)
{
    return (uint8_t)(i * 31 + (i >> 8) * 7 + salt);
}

static void fill(uint8_t *data, size_t bytes, uint32_t salt)
{
    for (size_t i = 0; i < bytes; i++)
        data[i] = byte_at(i, salt);
}

static bool filled(const uint8_t *data, size_t bytes, uint32_t salt)
{
    for (size_t i = 0; i < bytes; i++)
        if (data[i] != byte_at(i, salt))
            return false;
    return true;
}

static pmr_p2p_out to(uint32_t dest, const void *data, size_t bytes, const rank_env *env, int32_t tag)
{
    return (pmr_p2p_out){.data = data, .bytes = bytes, .comm = 0, .dest = dest, .source = (int32_t)env->rank,
                         .tag = tag};
}

static pmr_p2p_in from(int32_t source, void *data, size_t bytes, int32_t tag)
{
    return (pmr_p2p_in){.data = data, .bytes = bytes, .comm = 0, .source_place = (uint32_t)source, .source = source,
                        .tag = tag};
}

static void must_send(rank_env *env, uint32_t dest, const void *data, size_t bytes, int32_t tag)
{
    pmr_error error = {.text = ""};
    pmr_p2p_wait wait = within(env, FAR);
    pmr_p2p_out out = to(dest, data, bytes, env, tag);
    CHECK_OK(pmr_p2p_send(env->p2p, &out, &wait, &error));
}

static pmr_message_info must_recv(rank_env *env, int32_t source, void *data, size_t bytes, int32_t tag)
{
    pmr_error error = {.text = ""};
    pmr_message_info info;
    pmr_p2p_wait wait = within(env, FAR);
    pmr_p2p_in in = from(source, data, bytes, tag);
    CHECK_OK(pmr_p2p_recv(env->p2p, &in, &wait, &info, &error));
    return info;
}

static pmr_request *must_isend(rank_env *env, uint32_t dest, const void *data, size_t bytes, int32_t tag)
{
    pmr_error error = {.text = ""};
    pmr_request *request = NULL;
    pmr_p2p_out out = to(dest, data, bytes, env, tag);
    CHECK_OK(pmr_p2p_isend(env->p2p, &out, &request, &error));
    return request;
}

static pmr_request *must_irecv(rank_env *env, int32_t source, void *data, size_t bytes, int32_t tag)
{
    pmr_error error = {.text = ""};
    pmr_request *request = NULL;
    pmr_p2p_in in = from(source, data, bytes, tag);
    CHECK_OK(pmr_p2p_irecv(env->p2p, &in, &request, &error));
    return request;
}

static void must_wait(pmr_request *request)
{
    pmr_error error = {.text = ""};
    CHECK_OK(pmr_request_wait(request, FAR, &error));
    pmr_request_free(request);
}

/* ---- plain messages ---- */

static const size_t sizes[] = {0,     1,      8,      31,     32,     33,      96,      97,     4096,
                               16383, 16384,  16385,  32768,  65536,  131072,  300000,  3 << 20};

static void body_sizes(rank_env *env)
{
    uint8_t *data = malloc(3 << 20), *heap = take_heap(env, 3 << 20);
    uint32_t peer = 1 - env->rank;
    for (uint32_t round = 0; round < 40; round++)
        for (uint32_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
            uint8_t *buffer = round % 2 ? heap : data;
            if (sizes[i] > 300000 && round > 3)
                continue;
            if (env->rank == round / 2 % 2) {
                fill(buffer, sizes[i], round + i);
                must_send(env, peer, buffer, sizes[i], (int32_t)i);
            } else {
                memset(data, 0, sizes[i]);
                pmr_message_info info = must_recv(env, (int32_t)peer, data, sizes[i], (int32_t)i);
                CHECK(info.bytes == sizes[i] && info.tag == (int32_t)i && info.source == (int32_t)peer);
                CHECK(filled(data, sizes[i], round + i));
            }
        }
    free(data);
}

/* Both send first: only a sendrecv that receives meanwhile can end. */
static void body_exchange(rank_env *env)
{
    size_t bytes = 9 << 20;
    uint8_t *out = malloc(bytes), *in = malloc(bytes), *heap = take_heap(env, bytes);
    uint32_t right = (env->rank + 1) % env->ranks, left = (env->rank + env->ranks - 1) % env->ranks;
    for (uint32_t round = 0; round < 3; round++) {
        pmr_error error = {.text = ""};
        pmr_message_info info;
        fill(round == 1 ? heap : out, bytes, env->rank + round);
        pmr_p2p_out what = to(right, round == 1 ? heap : out, bytes, env, 5);
        pmr_p2p_in into = from((int32_t)left, in, bytes, round == 2 ? PMR_ANY_TAG : 5);
        pmr_p2p_wait wait = within(env, FAR);
        CHECK_OK(pmr_p2p_sendrecv(env->p2p, &what, &into, &wait, &info, &error));
        CHECK(info.bytes == bytes && info.source == (int32_t)left && filled(in, bytes, left + round));
    }
    free(out);
    free(in);
}

/* Announced messages in front must not bar the way: received in the reverse order of their sending. */
#define MANY 300
#define MANY_BYTES 20000u

static void body_reverse(rank_env *env)
{
    uint8_t *all = malloc(MANY * (size_t)MANY_BYTES);
    pmr_request *requests[MANY];
    if (env->rank == 0) {
        for (uint32_t i = 0; i < MANY; i++) {
            fill(all + i * (size_t)MANY_BYTES, MANY_BYTES, i);
            requests[i] = must_isend(env, 1, all + i * (size_t)MANY_BYTES, MANY_BYTES, (int32_t)i);
        }
        for (uint32_t i = 0; i < MANY; i++)
            must_wait(requests[i]);
    } else {
        for (uint32_t i = MANY; i-- > 0;) {
            must_recv(env, i % 3 ? 0 : PMR_ANY_SOURCE, all, MANY_BYTES, (int32_t)i);
            CHECK(filled(all, MANY_BYTES, i));
        }
    }
    free(all);
}

/* Both ranks start everything, then both wait: neither is inside a receive while the other's sends go out. */
static void body_requests(rank_env *env)
{
    enum { COUNT = 24 };
    pmr_request *sends[COUNT], *receives[COUNT];
    uint8_t *out[COUNT], *in[COUNT];
    uint32_t peer = 1 - env->rank;
    for (uint32_t i = 0; i < COUNT; i++) {
        size_t bytes = (size_t)i * i * 900;
        out[i] = malloc(bytes + 1);
        in[i] = malloc(bytes + 1);
        fill(out[i], bytes, i + env->rank);
        sends[i] = must_isend(env, peer, out[i], bytes, (int32_t)i);
    }
    for (uint32_t i = 0; i < COUNT; i++)
        receives[i] = must_irecv(env, (int32_t)peer, in[i], (size_t)i * i * 900, (int32_t)i);
    for (uint32_t i = 0; i < COUNT; i++)
        must_wait(sends[i]);
    for (uint32_t i = 0; i < COUNT; i++) {
        must_wait(receives[i]);
        CHECK(filled(in[i], (size_t)i * i * 900, i + peer));
        free(in[i]);
        free(out[i]);
    }
}

/* Above 2**32 bytes, of address space only: one small file mapped again and again. */
#define HUGE_PIECE ((size_t)16 << 20)
#define HUGE_PIECES 257u

static uint8_t *map_repeatedly(void)
{
    int fd = memfd_create("piece", MFD_CLOEXEC);
    uint8_t *base = mmap(NULL, HUGE_PIECE * HUGE_PIECES, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    CHECK(fd >= 0 && base != MAP_FAILED && ftruncate(fd, (off_t)HUGE_PIECE) == 0);
    for (uint32_t i = 0; i < HUGE_PIECES; i++)
        CHECK(mmap(base + i * HUGE_PIECE, HUGE_PIECE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0) !=
              MAP_FAILED);
    close(fd);
    return base;
}

__attribute__((unused)) static void body_huge(rank_env *env)
{
    size_t bytes = HUGE_PIECE * (HUGE_PIECES - 1) + 12345;
    uint8_t *data = map_repeatedly();
    if (env->rank == 0) {
        fill(data, HUGE_PIECE, 1);
        must_send(env, 1, data, bytes, 1);
    } else {
        CHECK(must_recv(env, 0, data, bytes, 1).bytes == bytes && filled(data, HUGE_PIECE, 1));
    }
    munmap(data, HUGE_PIECE * HUGE_PIECES);
}

/* ---- limits ---- */

static void body_truncation(rank_env *env)
{
    static const size_t lengths[] = {9, 5000, 100000, 3000000};
    uint8_t *data = calloc(1, 3000000);
    for (uint32_t i = 0; i < 8; i++) {
        size_t bytes = lengths[i / 2];
        if (env->rank == 0) {
            must_send(env, 1, i % 2 ? memset(take_heap(env, bytes), 1, bytes) : memset(data, 1, bytes), bytes, 1);
            must_send(env, 1, "after", 5, 1);
        } else {
            pmr_error error = {.text = ""};
            char room[40], sent[40];
            pmr_p2p_wait wait = within(env, FAR);
            pmr_p2p_in in = from(0, data, 8, 1);
            memset(data, 7, 16);
            CHECK(pmr_p2p_recv(env->p2p, &in, &wait, NULL, &error) == PMR_ERR_TRUNCATED);
            snprintf(room, sizeof room, "of %d bytes", 8);
            snprintf(sent, sizeof sent, "of %zu bytes", bytes);
            CHECK(error.status == PMR_ERR_TRUNCATED && strstr(error.text, room) && strstr(error.text, sent));
            CHECK(data[0] == 7 && data[7] == 7 && data[8] == 7);
            CHECK(must_recv(env, 0, data, 8, 1).bytes == 5 && memcmp(data, "after", 5) == 0);
        }
    }
    free(data);
}

static size_t bytes_kept(pmr_p2p *p2p)
{
    size_t bytes = 0;
    for (pmr_link *link = p2p->match.order.next; link != &p2p->match.order; link = link->next) {
        const pmr_kept *kept =
            PMR_MEMBER_OF(PMR_MEMBER_OF(link, pmr_unexpected, order_link), pmr_kept, unexpected);
        bytes += sizeof *kept + (kept->eager ? kept->bytes : 0);
    }
    return bytes;
}

/* 80 MiB of small messages in front of the one that is wanted: kept only up to the bound, and yet it is reached. */
#define FLOOD 10240u
#define FLOOD_BYTES 8192u

static void body_bounded(rank_env *env)
{
    uint8_t *data = malloc(FLOOD_BYTES);
    if (env->rank == 0) {
        pmr_request **requests = calloc(FLOOD, sizeof *requests);
        fill(data, FLOOD_BYTES, 3);
        for (uint32_t i = 0; i < FLOOD; i++)
            requests[i] = must_isend(env, 1, data, FLOOD_BYTES, 1);
        must_send(env, 1, "x", 1, 2);
        for (uint32_t i = 0; i < FLOOD; i++)
            must_wait(requests[i]);
        free(requests);
    } else {
        must_recv(env, 0, data, 1, 2);
        size_t kept = bytes_kept(env->p2p);
        CHECK(kept > (1 << 20) && kept < (20 << 20));
        for (uint32_t i = 0; i < FLOOD; i++) {
            memset(data, 0, FLOOD_BYTES);
            must_recv(env, 0, data, FLOOD_BYTES, 1);
            CHECK(filled(data, FLOOD_BYTES, 3));
        }
        CHECK(bytes_kept(env->p2p) == 0);
    }
    free(data);
}

static void body_self(rank_env *env)
{
    pmr_error error = {.text = ""};
    int32_t me = (int32_t)env->rank;
    size_t large = 70 << 20;
    uint8_t *data = malloc(large), *copy = malloc(large);
    fill(data, 1 << 20, 9);
    must_send(env, env->rank, data, 1 << 20, 4);
    CHECK(must_recv(env, me, copy, 1 << 20, PMR_ANY_TAG).bytes == 1 << 20 && filled(copy, 1 << 20, 9));

    pmr_p2p_wait wait = within(env, FAR);
    pmr_p2p_out out = to(env->rank, data, large, env, 4);
    CHECK(pmr_p2p_send(env->p2p, &out, &wait, &error) == PMR_ERR_ARGUMENT && strstr(error.text, "itself"));
    pmr_p2p_in in = from(me, copy, large, 4);
    CHECK(pmr_p2p_recv(env->p2p, &in, &wait, NULL, &error) == PMR_ERR_ARGUMENT && strstr(error.text, "itself"));

    pmr_request *receive = must_irecv(env, me, copy, large, 4); /* posted: then any size goes */
    must_send(env, env->rank, data, large, 4);
    must_wait(receive);
    pmr_request *send = must_isend(env, env->rank, data, large, 6);
    CHECK(pmr_request_test(send, &error) == PMR_PENDING);
    CHECK(must_recv(env, PMR_ANY_SOURCE, copy, large, 6).bytes == large && memcmp(copy, data, large) == 0);
    must_wait(send);
    free(data);
    free(copy);
}

static void body_probe(rank_env *env)
{
    pmr_error error = {.text = ""};
    pmr_message_info info;
    uint8_t data[100];
    if (env->rank == 1) {
        pmr_p2p_wait look = {.watch = &env->watch, .policy = &env->policy, .deadline_ns = 0};
        pmr_p2p_wait wait = within(env, FAR), brief = within(env, 5000000);
        pmr_p2p_in any = from(PMR_ANY_SOURCE, NULL, 0, PMR_ANY_TAG), other = from(0, NULL, 0, 9);
        CHECK(pmr_p2p_probe(env->p2p, &any, &look, &info, &error) == PMR_PENDING);
        CHECK(pmr_p2p_probe(env->p2p, &other, &brief, &info, &error) == PMR_ERR_TIMEOUT);
        must_send(env, 0, "go", 2, 1);
        CHECK_OK(pmr_p2p_probe(env->p2p, &any, &wait, &info, &error));
        CHECK(info.bytes == 77 && info.tag == 3 && info.source == 0);
        CHECK_OK(pmr_p2p_probe(env->p2p, &any, &look, &info, &error));
        CHECK(info.bytes == 77 && must_recv(env, info.source, data, info.bytes, info.tag).bytes == 77);
    } else {
        must_recv(env, 1, data, 2, 1);
        must_send(env, 1, memset(data, 1, 77), 77, 3);
    }
}

static void body_timeout(rank_env *env)
{
    pmr_error error = {.text = ""};
    uint8_t data[100] = {0}, *large = calloc(1, 1 << 20);
    pmr_p2p_wait wait = within(env, 5000000);
    if (env->rank == 1) {
        pmr_p2p_in in = from(0, data, sizeof data, 1);
        CHECK(pmr_p2p_recv(env->p2p, &in, &wait, NULL, &error) == PMR_ERR_TIMEOUT);
        must_send(env, 0, "go", 2, 1);
        CHECK(must_recv(env, 0, data, sizeof data, 1).bytes == 50); /* the withdrawn receive took nothing */
        must_send(env, 0, "go", 2, 1);
        must_recv(env, 0, data, 1, 3);
        pmr_p2p_in lost = from(0, large, 1 << 20, 2);
        pmr_p2p_wait ample = within(env, FAR);
        CHECK(pmr_p2p_recv(env->p2p, &lost, &ample, NULL, &error) == PMR_ERR_STALLED); /* the sender gave up */
        must_send(env, 0, "end", 3, 1);
    } else {
        must_recv(env, 1, data, 2, 1);
        must_send(env, 1, data, 50, 1);
        must_recv(env, 1, data, 2, 1);
        pmr_p2p_wait brief = within(env, 5000000);
        pmr_p2p_out out = to(1, large, 1 << 20, env, 2);
        CHECK(pmr_p2p_send(env->p2p, &out, &brief, &error) == PMR_ERR_STALLED);
        must_send(env, 1, "x", 1, 3);
        must_recv(env, 1, data, 3, 1);
    }
    free(large);
}

/* Two threads of each rank, each with its own communicator, block at the same time. */
struct second_thread {
    rank_env *env;
    uint32_t comm;
};

static void *chatter(void *arg)
{
    const struct second_thread *self = arg;
    rank_env *env = self->env;
    pmr_error error = {.text = ""};
    pmr_wait_policy policy;
    pmr_wait_policy_init(&policy, true);
    uint8_t *data = malloc(60000);
    for (uint32_t i = 0; i < 300; i++) {
        pmr_p2p_wait wait = {&env->watch, &policy, pmr_now_ns() + FAR};
        size_t bytes = i % 10 == 0 ? 60000 : i;
        pmr_p2p_out out = to(1 - env->rank, data, bytes, env, 1);
        pmr_p2p_in in = from(1 - (int32_t)env->rank, data, 60000, 1);
        out.comm = in.comm = self->comm;
        if ((env->rank + i) % 2) {
            fill(data, bytes, i + self->comm);
            CHECK_OK(pmr_p2p_send(env->p2p, &out, &wait, &error));
        } else {
            CHECK_OK(pmr_p2p_recv(env->p2p, &in, &wait, NULL, &error));
            CHECK(filled(data, bytes, i + self->comm));
        }
    }
    free(data);
    return NULL;
}

static void body_two_threads(rank_env *env)
{
    struct second_thread starts[2] = {{env, 1}, {env, 2}};
    pthread_t threads[2];
    for (uint32_t i = 0; i < 2; i++)
        CHECK(pthread_create(&threads[i], NULL, chatter, &starts[i]) == 0);
    for (uint32_t i = 0; i < 2; i++)
        pthread_join(threads[i], NULL);
}

/* One thread waits for any of its requests while the other one's blocking receives may complete them. */
static void *wait_for_any(void *arg)
{
    rank_env *env = arg;
    pmr_error error = {.text = ""};
    uint8_t data[2][64];
    for (uint32_t i = 0; i < 200; i++) {
        pmr_request *requests[2] = {must_irecv(env, 0, data[0], 64, 7), must_irecv(env, 0, data[1], 64, 8)};
        for (uint32_t left = 2; left > 0; left--) {
            size_t index = 0;
            CHECK_OK(pmr_request_wait_any(requests, 2, FAR, &index, &error));
            CHECK_OK(pmr_request_test(requests[index], &error));
            pmr_request_free(requests[index]);
            requests[index] = NULL;
        }
    }
    return NULL;
}

static void body_wait_any(rank_env *env)
{
    uint8_t data[64] = {0};
    pthread_t thread;
    if (env->rank == 1)
        CHECK(pthread_create(&thread, NULL, wait_for_any, env) == 0);
    for (uint32_t i = 0; i < 200; i++) {
        if (env->rank == 0) {
            must_send(env, 1, data, 64, i % 2 ? 7 : 8);
            must_send(env, 1, data, 1, 1);
            must_send(env, 1, data, 64, i % 2 ? 8 : 7);
        }
        if (env->rank == 1)
            must_recv(env, 0, data, 1, 1);
    }
    if (env->rank == 1)
        pthread_join(thread, NULL);
}

/* ---- the gang breaks ---- */

static void body_abort(rank_env *env)
{
    pmr_error error = {.text = ""};
    uint8_t data[8];
    if (env->rank == 2) {
        must_recv(env, 0, data, 1, 1);
        pmr_window_abort_gang(&env->window, PMR_ABORT_RANK_FAILED, 2, "here", "it had enough");
        return;
    }
    pmr_p2p_wait wait = within(env, FAR);
    pmr_p2p_in in = from(1 - (int32_t)env->rank, data, sizeof data, 1);
    if (env->rank == 0) {
        must_send(env, 2, "x", 1, 1);
        pmr_request *request = must_irecv(env, 1, data, sizeof data, 1);
        CHECK(pmr_request_wait(request, FAR, &error) == PMR_ERR_RANK_FAILED && error.rank == 2);
        pmr_request_free(request);
    } else {
        CHECK(pmr_p2p_recv(env->p2p, &in, &wait, NULL, &error) == PMR_ERR_RANK_FAILED && error.rank == 2);
    }
    CHECK(strcmp(error.text, "it had enough") == 0);
}

static void die(int signal_number)
{
    (void)signal_number;
    _exit(17);
}

/* Rank 1 dies while it copies: the second half of what it sends cannot be read. */
static void die_while_sending(rank_env *env)
{
    size_t half = 4 << 20;
    uint8_t *data = mmap(NULL, 2 * half, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(data != MAP_FAILED && mprotect(data + half, half, PROT_NONE) == 0);
    signal(SIGSEGV, die);
    signal(SIGBUS, die);
    must_send(env, 0, data, 2 * half, 7);
    CHECK(!"the send ended");
}

static void body_death(rank_env *env)
{
    pmr_error error = {.text = ""};
    uint8_t *data = malloc(8 << 20);
    pmr_p2p_wait wait = within(env, FAR);
    if (env->rank == 1) {
        must_send(env, 0, memset(data, 5, 3000), 3000, 1);
        die_while_sending(env);
    }
    if (env->rank == 2)
        _exit(17);
    pmr_request *lost = must_irecv(env, 2, data, 1, 1); /* the engine finds out as well */
    CHECK(pmr_request_wait(lost, FAR, &error) == PMR_ERR_RANK_FAILED && error.rank == 2);
    pmr_request_free(lost);
    pmr_p2p_in in = from(1, data, 8 << 20, 7);
    CHECK(pmr_p2p_recv(env->p2p, &in, &wait, NULL, &error) == PMR_ERR_RANK_FAILED);
    CHECK(error.rank == 1 && strstr(error.text, "rank 1 died"));
    CHECK(must_recv(env, 1, data, 3000, 1).bytes == 3000 && data[2999] == 5); /* sent before the death */
    CHECK(pmr_p2p_recv(env->p2p, &in, &wait, NULL, &error) == PMR_ERR_RANK_FAILED && error.rank == 1);
    pmr_p2p_in any = from(PMR_ANY_SOURCE, data, 8, 7);
    CHECK(pmr_p2p_recv(env->p2p, &any, &wait, NULL, &error) == PMR_ERR_RANK_FAILED && error.rank == -1);
    pmr_p2p_out out = to(1, data, 8 << 20, env, 1);
    CHECK(pmr_p2p_send(env->p2p, &out, &wait, &error) == PMR_ERR_RANK_FAILED && error.rank == 1);
    pmr_status status = PMR_OK;
    for (uint32_t i = 0; i < 10000 && !status; i++) { /* until the ring is full */
        pmr_p2p_out small = to(1, data, 4096, env, 1);
        status = pmr_p2p_send(env->p2p, &small, &wait, &error);
    }
    CHECK(status == PMR_ERR_RANK_FAILED && error.rank == 1);
    free(data);
}

int main(int argc, char **argv)
{
    as_threads = argc > 2 && strcmp(argv[2], "threads") == 0;
    run_gang("sizes", 2, body_sizes, 0);
    run_gang("exchange", 2, body_exchange, 0);
    run_gang("exchange", 4, body_exchange, 0);
    run_gang("reverse", 2, body_reverse, 0);
    run_gang("requests", 2, body_requests, 0);
    run_gang("truncation", 2, body_truncation, 0);
    run_gang("bounded", 2, body_bounded, 0);
    run_gang("self", 1, body_self, 0);
    run_gang("probe", 2, body_probe, 0);
    run_gang("timeout", 2, body_timeout, 0);
    run_gang("two threads", 2, body_two_threads, 0);
    run_gang("wait any", 2, body_wait_any, 0);
    run_gang("abort", 3, body_abort, 0);
    if (!as_threads) {
#ifndef __SANITIZE_THREAD__ /* its shadow memory is four times what 8 GiB of messages take */
        run_gang("huge", 2, body_huge, 0);
#endif
        run_gang("death", 3, body_death, 0);
    }
    puts("test_p2p: ok");
    return 0;
}
