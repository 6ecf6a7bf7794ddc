/* SPDX-License-Identifier: Apache-2.0
 *
 * shm.h: the transport between the ranks of one node: rings in shared memory.
 */
#ifndef PMR_TRANSPORT_SHM_H
#define PMR_TRANSPORT_SHM_H

#include "transport/transport.h"

/* Size of the area for that many ranks: sparse, only the rings in use take memory. */
size_t pmr_shm_area_bytes(uint32_t ranks);

/* `area`: pmr_shm_area_bytes(ranks), aligned to pages, zero before the first rank came, mapped by all ranks (at any
 * address); stays the caller's and must outlive the transport. PMR_ERR_NO_MEMORY: the rank's own bookkeeping. */
pmr_status pmr_shm_open(pmr_transport **out, void *area, uint32_t ranks, uint32_t rank, pmr_error *error);

#endif
