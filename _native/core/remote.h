/* SPDX-License-Identifier: Apache-2.0
 *
 * remote.h: reading another rank's private memory in one copy (process_vm_readv, "cross memory attach").
 *
 * Whether the kernel lets ranks do that depends on user, container and security modules, so it is found out
 * by doing it: each rank publishes where a known word of its own lies, and reads that of a peer. All ranks of
 * a node are started alike, so what one may read of another, the other may read of the one. Invariant: nobody
 * offers memory to be read before such a trial succeeded.
 */
#ifndef PMR_CORE_REMOTE_H
#define PMR_CORE_REMOTE_H

#include <stdbool.h>

#include "core/window_layout.h"

/* Publishes this rank's word in its recorder, and lets the agent's other ranks read this process. */
void pmr_remote_open(pmr_recorder *recorder);

/* From how many bytes on a block is better read in one copy than passed on in two. */
size_t pmr_remote_bytes_min(bool crowded);

/* Tries to read the peer's word. The peer must be attached to the window. */
bool pmr_remote_try(const pmr_recorder *peer);

/* Copies `bytes` from `address` in the process `pid`. PMR_ERR_RANK_FAILED: the process is gone. */
pmr_status pmr_remote_read(uint32_t pid, void *to, uint64_t address, size_t bytes, pmr_error *error);

#endif
