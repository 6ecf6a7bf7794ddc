/* SPDX-License-Identifier: Apache-2.0
 *
 * plain_tcp.h: both ways at once over one plain TCP socket, the floor that transports are compared with.
 *
 * Sends and receives are mixed, so that neither side waits while the other's buffers are full; the last of it, and all
 * of a small message, is a blocking recv. Invariant: when it returns, all bytes went and came.
 */
#ifndef PMR_BENCH_PLAIN_TCP_H
#define PMR_BENCH_PLAIN_TCP_H

#include <poll.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>

static void fail(const char *what)
{
    perror(what);
    exit(1);
}

static void plain_exchange(int fd, const uint8_t *out, uint8_t *in, size_t bytes)
{
    size_t sent = 0, received = 0;
    while (sent < bytes || received < bytes) {
        ssize_t done = sent < bytes ? send(fd, out + sent, bytes - sent, MSG_DONTWAIT) : 0;
        sent += done > 0 ? (size_t)done : 0;
        if (sent < bytes) {
            done = recv(fd, in + received, bytes - received, MSG_DONTWAIT);
            received += done > 0 ? (size_t)done : 0;
            struct pollfd waiting = {.fd = fd, .events = POLLOUT | (received < bytes ? POLLIN : 0)};
            if (done < 0)
                poll(&waiting, 1, 1000);
        } else if (received < bytes) {
            done = recv(fd, in + received, bytes - received, 0);
            if (done <= 0)
                fail("recv");
            received += (size_t)done;
        }
    }
}

#endif
