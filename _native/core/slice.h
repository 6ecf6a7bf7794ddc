/* SPDX-License-Identifier: Apache-2.0
 *
 * slice.h: asking the scheduler to run this thread soon after it is woken, in exchange for shorter turns.
 */
#ifndef PMR_CORE_SLICE_H
#define PMR_CORE_SLICE_H

#include <stdint.h>

/* From Linux 6.12 on a thread that is woken takes the CPU from one whose turns are longer, if it used less than its share;
 * before, or where it is not permitted, nothing changes: woken beside a busy thread it waits for the end of that one's
 * turn, some milliseconds. Linux grants 0.1 ms at least. */
void pmr_slice_ask(uint64_t slice_ns);

#endif
