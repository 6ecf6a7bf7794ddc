/* SPDX-License-Identifier: Apache-2.0
 *
 * p2p_net.h: the transport of messages between nodes: frames as packets of the hub's endpoint.
 */
#ifndef PMR_PROGRESS_P2P_NET_H
#define PMR_PROGRESS_P2P_NET_H

#include "progress/hub.h"
#include "transport/transport.h"

/* Peers are world ranks. `inbox` of the transport is the hub's `moves`. The hub must outlive it. */
pmr_status pmr_p2p_net_open(pmr_transport **out, pmr_hub *hub, pmr_error *error);

/* Lets packets come and go. True: something moved. */
bool pmr_p2p_net_poll(pmr_transport *transport);

/* All that was put is in the kernel's hands. */
bool pmr_p2p_net_is_empty(pmr_transport *transport);

#endif
