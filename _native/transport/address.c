/* SPDX-License-Identifier: Apache-2.0
 *
 * address.c: parses and writes numeric addresses.
 *
 * The system's own functions do the work; what is added is that ports are checked, that addresses which mean "all
 * interfaces" are refused, and that each mistake has a text.
 */
#include "transport/address.h"

#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/status.h"

static bool parse_host(const char *host, pmr_address *out)
{
    struct addrinfo wanted = {.ai_flags = AI_NUMERICHOST, .ai_socktype = SOCK_STREAM};
    struct addrinfo *found = NULL;
    if (getaddrinfo(host, NULL, &wanted, &found) != 0)
        return false;
    bool fits = found->ai_addrlen <= sizeof out->v6;
    if (fits) {
        memset(out, 0, sizeof *out);
        memcpy(&out->any, found->ai_addr, found->ai_addrlen);
        out->bytes = found->ai_addrlen;
    }
    freeaddrinfo(found);
    return fits;
}

static bool means_all(const pmr_address *address)
{
    if (address->any.sa_family == AF_INET)
        return address->v4.sin_addr.s_addr == htonl(INADDR_ANY);
    const struct in6_addr *v6 = &address->v6.sin6_addr;
    if (IN6_IS_ADDR_V4MAPPED(v6)) /* ::ffff:0.0.0.0: all that are IPv4 */
        return memcmp(v6->s6_addr + 12, in6addr_any.s6_addr, 4) == 0;
    return memcmp(v6, &in6addr_any, sizeof in6addr_any) == 0;
}

pmr_status pmr_address_parse(const char *host, pmr_address *out, pmr_error *error)
{
    if (!parse_host(host, out))
        return pmr_fail(error, PMR_ERR_ARGUMENT, "'%s' is no numeric IPv4 or IPv6 address", host);
    if (means_all(out))
        return pmr_fail(error, PMR_ERR_ARGUMENT,
                        "%s would listen on all interfaces: give the address by which other nodes reach this one", host);
    return PMR_OK;
}

void pmr_address_text(const pmr_address *address, char text_out[PMR_ADDRESS_BYTES])
{
    char host[PMR_ADDRESS_BYTES - 16], port[8];
    if (getnameinfo(&address->any, address->bytes, host, sizeof host, port, sizeof port,
                    NI_NUMERICHOST | NI_NUMERICSERV) != 0)
        snprintf(text_out, PMR_ADDRESS_BYTES, "an unknown address");
    else
        snprintf(text_out, PMR_ADDRESS_BYTES, address->any.sa_family == AF_INET6 ? "[%s]:%s" : "%s:%s", host, port);
}

/* Cuts "<host>:<port>" in two. */
static bool parse_both(const char *text, pmr_address *out)
{
    char host[PMR_ADDRESS_BYTES];
    const char *colon = strrchr(text, ':');
    if (!colon || colon[1] < '0' || colon[1] > '9' || strlen(text) >= sizeof host)
        return false;
    char *end;
    unsigned long port = strtoul(colon + 1, &end, 10);
    size_t length = (size_t)(colon - text);
    bool bracketed = length >= 2 && text[0] == '[' && text[length - 1] == ']';
    if (*end || port == 0 || port > 65535)
        return false;
    memcpy(host, text + bracketed, length - 2 * bracketed);
    host[length - 2 * bracketed] = '\0';
    if (!parse_host(host, out) || means_all(out) || bracketed != (out->any.sa_family == AF_INET6))
        return false;
    if (bracketed)
        out->v6.sin6_port = htons((uint16_t)port);
    else
        out->v4.sin_port = htons((uint16_t)port);
    return true;
}

pmr_status pmr_address_take(const char *published, const char *transport, uint32_t rank, pmr_address *out,
                            pmr_error *error)
{
    size_t length = strlen(transport);
    if (strncmp(published, transport, length) != 0 || published[length] != ' ')
        return pmr_fail(error, PMR_ERR_ARGUMENT,
                        "rank %u published '%.100s', but the transport here is %s: all nodes must use the same", rank,
                        published, transport);
    if (!parse_both(published + length + 1, out))
        return pmr_fail(error, PMR_ERR_ARGUMENT, "rank %u published '%.100s', which is no address", rank, published);
    return PMR_OK;
}
