/* SPDX-License-Identifier: Apache-2.0
 *
 * address.h: numeric addresses of IPv4 and IPv6, as text and as sockets want them.
 *
 * A published address is "<transport> <host>:<port>", an IPv6 host in brackets. Names are not looked up: which address
 * of a node is meant was decided before. Invariant: a parsed address is IPv4 or IPv6 and names one interface.
 */
#ifndef PMR_TRANSPORT_ADDRESS_H
#define PMR_TRANSPORT_ADDRESS_H

#include <netinet/in.h>
#include <sys/socket.h>

#include "include/pmr.h"

typedef struct pmr_address {
    union {
        struct sockaddr any;
        struct sockaddr_in v4;
        struct sockaddr_in6 v6;
    };
    socklen_t bytes; /* 0: none */
} pmr_address;

/* "10.0.0.1", "fd00::1": an address to bind, with port 0. */
pmr_status pmr_address_parse(const char *host, pmr_address *out, pmr_error *error);

/* "10.0.0.1:4711", "[fd00::1]:4711". */
void pmr_address_text(const pmr_address *address, char text_out[PMR_ADDRESS_BYTES]);

/* "tcp 10.0.0.1:4711", of rank `rank`, which must speak `transport`. */
pmr_status pmr_address_take(const char *published, const char *transport, uint32_t rank, pmr_address *out,
                            pmr_error *error);

#endif
