/* SPDX-License-Identifier: Apache-2.0
 *
 * raw_tcp.c: what one plain TCP connection between two machines does: the floor under what bench_nodes.py measures.
 *
 * Prints JSON lines as the ranks do (src/pmrun/bench): for 8 bytes the time there and back with blocking calls, then for
 * larger ones the time of an exchange, both ways at once. Both sides make the same calls; the connecting one prints.
 * Usage: raw_tcp listen|connect ADDRESS PORT LOOPS. The listening side prints a line once it listens.
 */
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "plain_tcp.h"

#define BYTES_MAX (16u << 20)
#define LOOP_US   20000.0 /* a loop holds as many calls as fill this */

static const size_t sizes[] = {8, 1u << 20, 4u << 20, 16u << 20};
#define SIZES (sizeof sizes / sizeof sizes[0])

static double now_us(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return 1e6 * (double)now.tv_sec + 1e-3 * (double)now.tv_nsec;
}

static int open_pair(bool listens, const char *address, int port)
{
    struct sockaddr_in name = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    int one = 1, fd = socket(AF_INET, SOCK_STREAM, 0);
    if (inet_pton(AF_INET, address, &name.sin_addr) != 1)
        fail(address);
    if (listens) {
        setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
        if (bind(fd, (struct sockaddr *)&name, sizeof name) || listen(fd, 1))
            fail("listen");
        puts("listening");
        fflush(stdout);
        int accepted = accept(fd, NULL, NULL);
        close(fd);
        fd = accepted;
    } else if (connect(fd, (struct sockaddr *)&name, sizeof name)) {
        fail("connect");
    }
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    return fd;
}

/* One call: there and back for what is small, else both ways at once. */
static void call(int fd, bool first, uint8_t *out, uint8_t *in, size_t bytes)
{
    if (bytes > 8) {
        plain_exchange(fd, out, in, bytes);
    } else if (first) {
        if (send(fd, out, bytes, 0) != (ssize_t)bytes || recv(fd, in, bytes, MSG_WAITALL) != (ssize_t)bytes)
            fail("there and back");
    } else if (recv(fd, in, bytes, MSG_WAITALL) != (ssize_t)bytes || send(fd, out, bytes, 0) != (ssize_t)bytes) {
        fail("there and back");
    }
}

/* The connecting side's number, on both. */
static uint32_t agreed(int fd, bool first, uint32_t number)
{
    if (first ? send(fd, &number, sizeof number, 0) != sizeof number
              : recv(fd, &number, sizeof number, MSG_WAITALL) != sizeof number)
        fail("agree");
    return number;
}

int main(int argc, char **argv)
{
    if (argc != 5) {
        fprintf(stderr, "usage: raw_tcp listen|connect ADDRESS PORT LOOPS\n");
        return 2;
    }
    bool first = strcmp(argv[1], "connect") == 0;
    int fd = open_pair(!first, argv[2], atoi(argv[3])), loops = atoi(argv[4]);
    uint8_t *out = malloc(BYTES_MAX), *in = malloc(BYTES_MAX);
    if (!out || !in)
        fail("malloc");
    memset(out, 1, BYTES_MAX);
    memset(in, 1, BYTES_MAX);
    for (size_t i = 0; i < SIZES; i++) {
        double start = now_us();
        for (int n = 0; n < 4; n++)
            call(fd, first, out, in, sizes[i]);
        uint32_t calls = agreed(fd, first, 1 + (uint32_t)(LOOP_US / ((now_us() - start) / 4)));
        if (first)
            printf("{\"op\": \"%s\", \"bytes\": %zu, \"loops_us\": [", i ? "exchange" : "round trip", sizes[i]);
        for (int loop = 0; loop < loops; loop++) {
            start = now_us();
            for (uint32_t n = 0; n < calls; n++)
                call(fd, first, out, in, sizes[i]);
            if (first)
                printf("%s%.3f", loop ? ", " : "", (now_us() - start) / calls);
        }
        if (first)
            puts("]}");
    }
    return 0;
}
