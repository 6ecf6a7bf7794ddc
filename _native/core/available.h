/* SPDX-License-Identifier: Apache-2.0
 *
 * available.h: whether this machine, or this control group, can still give so much memory.
 *
 * The kernel rather kills a process than refuse it pages, so a large request is compared with what is available
 * first. Invariant: what cannot be found out does not refuse anything.
 */
#ifndef PMR_CORE_AVAILABLE_H
#define PMR_CORE_AVAILABLE_H

#include <stdbool.h>
#include <stddef.h>

bool pmr_memory_available(size_t bytes);

#endif
