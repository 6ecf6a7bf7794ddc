/* SPDX-License-Identifier: Apache-2.0
 *
 * net.c: opens and closes this rank's endpoint, and keeps the layout of the world.
 *
 * Everything that a user can have got wrong (a transport's name, an address) is checked here or in the transport's own
 * open, before any other rank hears of it.
 */
#include "transport/net.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/clock.h"
#include "core/status.h"

#define RANKS_MAX 65536u

const char *pmr_net_transport_name(size_t index)
{
    return pmr_endpoint_name(index);
}

static pmr_status unknown_transport(const char *name, pmr_error *error)
{
    char known[256] = "";
    for (size_t i = 0; pmr_endpoint_name(i); i++) {
        size_t used = strlen(known);
        snprintf(known + used, sizeof known - used, "%s%s", i ? ", " : "", pmr_endpoint_name(i));
    }
    return pmr_fail(error, PMR_ERR_ARGUMENT, "no transport is named '%s': use one of %s", name, known);
}

static pmr_status take_layout(pmr_net *net, const pmr_net_options *options, pmr_error *error)
{
    uint64_t ranks = 0;
    net->nodes = options->nodes;
    net->rank = options->rank;
    for (uint32_t node = 0; node < net->nodes; node++) {
        if (options->local_sizes[node] == 0)
            return pmr_fail(error, PMR_ERR_ARGUMENT, "node %u of %u has no rank", node, net->nodes);
        net->first_rank[node] = (uint32_t)ranks;
        ranks += options->local_sizes[node];
        if (ranks > RANKS_MAX)
            return pmr_fail(error, PMR_ERR_ARGUMENT, "more than %u ranks", RANKS_MAX);
    }
    net->ranks = net->first_rank[net->nodes] = (uint32_t)ranks;
    if (net->rank >= net->ranks)
        return pmr_fail(error, PMR_ERR_ARGUMENT, "rank %u is not one of %u ranks", net->rank, net->ranks);
    net->node = pmr_net_node_of(net, net->rank);
    return PMR_OK;
}

pmr_status pmr_net_open(const pmr_net_options *options, pmr_net **out, pmr_error *error)
{
    const pmr_endpoint_ops *ops = pmr_endpoint_find(options->transport);
    if (!ops)
        return unknown_transport(options->transport, error);
    if (options->nodes == 0 || options->nodes > RANKS_MAX)
        return pmr_fail(error, PMR_ERR_ARGUMENT, "%u nodes: there must be between 1 and %u", options->nodes, RANKS_MAX);
    pmr_net *net = calloc(1, sizeof *net + (options->nodes + 1) * sizeof net->first_rank[0]);
    if (!net)
        return pmr_fail(error, PMR_ERR_NO_MEMORY, "out of memory for a network of %u nodes", options->nodes);
    pmr_status status = take_layout(net, options, error);
    if (!status) {
        pmr_endpoint_options wanted = {
            .bind_address = options->bind_address,
            .rank = net->rank,
            .ranks = net->ranks,
            .key = options->key,
            .flows = options->flows,
            .encrypt = options->encrypt,
            .library = options->library,
        };
        status = ops->open(&wanted, &net->endpoint, error);
    }
    if (status) {
        free(net);
        return status;
    }
    net->process = getpid();
    *out = net;
    return PMR_OK;
}

const char *pmr_net_address(const pmr_net *net)
{
    return net->endpoint->address;
}

uint32_t pmr_net_ranks(const pmr_net *net)
{
    return net->ranks;
}

pmr_status pmr_net_connect(pmr_net *net, const char *const *addresses, pmr_error *error)
{
    if (net->addresses)
        return pmr_fail(error, PMR_ERR_ARGUMENT, "the network is connected already");
    net->addresses = calloc(net->nodes, sizeof *net->addresses);
    if (!net->addresses)
        return pmr_fail(error, PMR_ERR_NO_MEMORY, "out of memory for a network of %u nodes", net->nodes);
    for (uint32_t node = 0; node < net->nodes; node++)
        snprintf(net->addresses[node], sizeof *net->addresses, "%s", addresses[net->first_rank[node]]);
    pmr_status status = net->endpoint->ops->connect(net->endpoint, addresses, error);
    net->connected = status == PMR_OK;
    return status;
}

void pmr_net_close(pmr_net *net, int64_t timeout_ns)
{
    if (!net || net->process != getpid())
        return;
    pmr_endpoint_close(net->endpoint, pmr_deadline_ns(timeout_ns));
    free(net->addresses);
    free(net);
}

uint32_t pmr_net_node_of(const pmr_net *net, uint32_t rank)
{
    uint32_t low = 0, high = net->nodes;
    while (high - low > 1) {
        uint32_t middle = low + (high - low) / 2;
        if (net->first_rank[middle] <= rank)
            low = middle;
        else
            high = middle;
    }
    return low;
}
