/* SPDX-License-Identifier: Apache-2.0
 *
 * net.h: this rank's endpoint, and which rank is on which node.
 *
 * Opened by the program's bootstrap before there is a context; the context then sets the endpoint's sink and drives it.
 * Invariant: first_rank[0] = 0, first_rank[nodes] = ranks, and no node is without a rank.
 */
#ifndef PMR_TRANSPORT_NET_H
#define PMR_TRANSPORT_NET_H

#include "transport/endpoint.h"

#define PMR_PACKET_PROBE (PMR_PACKET_KIND_OWN - 1) /* kind of the packets of pmr_net_probe; no context sends it */
#define PMR_PACKET_TRIAL (PMR_PACKET_KIND_OWN - 2) /* of those of pmr_net_time */

struct pmr_net {
    pmr_endpoint *endpoint;
    uint32_t rank, ranks;
    uint32_t node, nodes;
    bool connected;
    char (*addresses)[PMR_ADDRESS_BYTES]; /* of each node's first rank, once connected; for messages */
    int32_t process;       /* the one that opened it; a child made by fork has no part in it */
    uint32_t first_rank[]; /* nodes + 1 */
};

static inline uint32_t pmr_net_node_size(const pmr_net *net, uint32_t node)
{
    return net->first_rank[node + 1] - net->first_rank[node];
}

/* The node of a world rank. */
uint32_t pmr_net_node_of(const pmr_net *net, uint32_t rank);

#endif
