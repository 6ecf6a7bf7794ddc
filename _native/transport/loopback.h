/* SPDX-License-Identifier: Apache-2.0
 *
 * loopback.h: an endpoint without a network, for tests of what stands on endpoints.
 *
 * A *hub* is made first; endpoints of one process, or of children that are forked after it, then open with the hub's
 * name as their bind_address. A seed decides in which order lanes move and how many bytes at a time. Invariant: the
 * same calls in the same order give the same events, as far as one thread makes them.
 */
#ifndef PMR_TRANSPORT_LOOPBACK_H
#define PMR_TRANSPORT_LOOPBACK_H

#include "transport/endpoint.h"

#define PMR_LOOPBACK_HUBS_MAX 64u

pmr_status pmr_loopback_hub_open(uint32_t ranks, uint64_t seed, char name_out[PMR_ADDRESS_BYTES], pmr_error *error);

/* After the endpoints were closed. What a child holds of it ends with the child. */
void pmr_loopback_hub_close(const char *name);

/* As if the process of that rank had died: its endpoint is not to be used after it, but for close. */
void pmr_loopback_kill(const char *name, uint32_t rank);

#endif
