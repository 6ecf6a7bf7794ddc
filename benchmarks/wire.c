/* SPDX-License-Identifier: Apache-2.0
 *
 * wire.c: what an endpoint costs beside the plain socket under it; two processes, one machine, both ways at once.
 *
 * An exchange is: both send, both wait for the other's. Printed for each size: microseconds per exchange and bytes per
 * second and direction, for a plain blocking TCP socket and for every transport named on the command line, in turns,
 * the best of some rounds (what others do on the machine only ever adds). A large message goes in the transport's
 * fragments over its lanes, eight in flight, and over the one plain socket with sends and receives mixed.
 * Built and run by bench_wire.py. Usage: wire library-of-zmq-or-empty transport...
 */
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "core/clock.h"
#include "plain_tcp.h"
#include "transport/endpoint.h"

#define ROUNDS     5
#define SPINS      2000 /* polls before a wait sleeps */
#define BYTES_MAX  (64u << 20)

static const size_t sizes[] = {8, 1024, 65536, 1u << 20, 16u << 20};
#define SIZES (sizeof sizes / sizeof sizes[0])

typedef struct shared {
    char address[2][PMR_ADDRESS_BYTES];
    _Atomic uint32_t arrived;
    double best_us[16][SIZES];
} shared;

static shared *common;
static uint8_t *out, *in;

/* Both ranks are here. */
static void meet(void)
{
    static uint32_t meetings;
    meetings += 2;
    __atomic_fetch_add((uint32_t *)&common->arrived, 1, __ATOMIC_SEQ_CST);
    while (__atomic_load_n((uint32_t *)&common->arrived, __ATOMIC_SEQ_CST) < meetings)
        sched_yield();
}

static uint32_t repeats(size_t bytes)
{
    return bytes <= 1024 ? 4000 : bytes <= 65536 ? 1000 : bytes <= 1u << 20 ? 100 : 8;
}

/* ---- the plain socket ---- */

static int plain_pair(uint32_t rank)
{
    struct sockaddr_in name = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof name;
    int one = 1, fd = socket(AF_INET, SOCK_STREAM, 0);
    if (rank == 0) {
        if (bind(fd, (struct sockaddr *)&name, length) || listen(fd, 1) ||
            getsockname(fd, (struct sockaddr *)&name, &length))
            fail("listen");
        memcpy(common->address[0], &name, sizeof name);
    }
    meet();
    if (rank == 0) {
        int accepted = accept(fd, NULL, NULL);
        close(fd);
        fd = accepted;
    } else {
        memcpy(&name, common->address[0], sizeof name);
        if (connect(fd, (struct sockaddr *)&name, length))
            fail("connect");
    }
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    return fd;
}

/* ---- an endpoint ---- */

typedef struct counted { /* since the start: the peer may be one exchange ahead */
    size_t wanted, arrived, lent, given_back;
} counted;

static pmr_placing place(void *arg, uint32_t peer, uint32_t lane, const pmr_packet *packet, void **into_out)
{
    (void)arg, (void)peer, (void)lane;
    *into_out = in + packet->token;
    return PMR_PLACE_INTO;
}

static void arrived(void *arg, uint32_t peer, uint32_t lane, const pmr_packet *packet, const void *payload)
{
    (void)peer, (void)lane, (void)payload;
    ((counted *)arg)->arrived += packet->payload_bytes;
}

static void sent(void *arg, uint64_t cookie)
{
    (void)cookie;
    ((counted *)arg)->given_back++;
}

static void lost(void *arg, uint32_t peer, const pmr_error *error)
{
    (void)arg, (void)peer;
    fprintf(stderr, "%s\n", error->text);
    exit(1);
}

static void await(pmr_endpoint *endpoint)
{
    int spins = endpoint->threaded ? 1 : SPINS;
    for (int i = 0; i < spins; i++)
        if (pmr_endpoint_poll(endpoint))
            return;
    struct pollfd waiting = {.fd = endpoint->descriptor, .events = POLLIN};
    poll(&waiting, 1, 50);
}

static void endpoint_exchange(pmr_endpoint *endpoint, counted *counted, size_t bytes)
{
    uint32_t peer = 1 - endpoint->rank, fragment = endpoint->fragment_bytes, lane = 0;
    size_t at = 0;
    counted->wanted += bytes;
    while (at < bytes) {
        size_t step = bytes - at < fragment ? bytes - at : fragment;
        bool small = bytes <= PMR_PACKET_COPY_MAX;
        pmr_packet packet = {.kind = 1, .payload_bytes = (uint32_t)step, .token = at};
        if (!small && lane == 0)
            lane = 1;
        if (pmr_endpoint_send(endpoint, peer, lane, &packet, out + at, small ? 0 : at + 1)) {
            at += step;
            counted->lent += !small;
            lane = (lane + 1) % endpoint->lanes;
        } else {
            await(endpoint);
        }
    }
    while (counted->arrived < counted->wanted || counted->given_back < counted->lent)
        await(endpoint);
}

static pmr_endpoint *endpoint_open(const char *transport, const char *library, uint32_t rank, counted *counted)
{
    static const uint8_t key[PMR_KEY_BYTES];
    pmr_error error;
    pmr_endpoint *endpoint;
    pmr_endpoint_options options = {
        .bind_address = "127.0.0.1", .rank = rank, .ranks = 2, .key = key, .library = library};
    const pmr_endpoint_ops *ops = pmr_endpoint_find(transport);
    if (!ops || ops->open(&options, &endpoint, &error)) {
        fprintf(stderr, "%s: %s\n", transport, ops ? error.text : "no such transport");
        exit(1);
    }
    endpoint->sink = (pmr_sink){counted, place, arrived, sent, lost};
    memcpy(common->address[rank], endpoint->address, PMR_ADDRESS_BYTES);
    meet();
    const char *addresses[2] = {common->address[0], common->address[1]};
    if (ops->connect(endpoint, addresses, &error)) {
        fprintf(stderr, "%s\n", error.text);
        exit(1);
    }
    meet();
    return endpoint;
}

/* ---- measuring ---- */

static void measure(uint32_t rank, int fd, pmr_endpoint *endpoint, counted *counted, double *best_us)
{
    for (size_t i = 0; i < SIZES; i++) {
        uint32_t count = repeats(sizes[i]);
        int64_t start_ns = 0;
        for (uint32_t n = 0; n < count + count / 10 + 1; n++) {
            if (n == count / 10 + 1) {
                meet();
                start_ns = pmr_now_ns();
            }
            if (endpoint)
                endpoint_exchange(endpoint, counted, sizes[i]);
            else
                plain_exchange(fd, out, in, sizes[i]);
        }
        double us = (double)(pmr_now_ns() - start_ns) / 1000 / count;
        if (rank == 0 && (best_us[i] == 0 || us < best_us[i]))
            best_us[i] = us;
        meet();
    }
}

static int run(uint32_t rank, int contenders, char **contender, const char *library)
{
    int fd = plain_pair(rank);
    pmr_endpoint *endpoint[16] = {NULL};
    counted counted[16] = {{0}};
    out = aligned_alloc(4096, BYTES_MAX);
    in = aligned_alloc(4096, BYTES_MAX);
    memset(out, 1, BYTES_MAX);
    memset(in, 2, BYTES_MAX);
    for (int i = 1; i < contenders; i++)
        endpoint[i] = endpoint_open(contender[i], library, rank, &counted[i]);
    for (int round = 0; round < ROUNDS; round++)
        for (int i = 0; i < contenders; i++)
            measure(rank, fd, endpoint[i], &counted[i], common->best_us[i]);
    for (int i = 1; i < contenders; i++)
        pmr_endpoint_close(endpoint[i], pmr_deadline_ns(1000000000));
    close(fd);
    return 0;
}

int main(int argc, char **argv)
{
    if (argc < 3 || argc > 17) {
        fprintf(stderr, "usage: wire library transport...\n");
        return 2;
    }
    common = mmap(NULL, sizeof *common, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    int contenders = argc - 1;
    pid_t child = fork();
    if (child == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        return run(1, contenders, argv + 1, argv[1]);
    }
    int status, result = run(0, contenders, argv + 1, argv[1]);
    waitpid(child, &status, 0);
    for (int i = 0; i < contenders; i++)
        for (size_t n = 0; n < SIZES; n++)
            printf("%s %zu %.2f %.3f\n", i ? argv[1 + i] : "plain", sizes[n], common->best_us[i][n],
                   (double)sizes[n] / common->best_us[i][n] / 1000);
    return result || status;
}
