/* SPDX-License-Identifier: Apache-2.0
 *
 * clock.c: the rate of the tick counter.
 *
 * arm64 states it in a register. On x86-64 it is measured between two moments at least a millisecond apart:
 * the recorder's readers only need it to about a thousandth. Invariant: never zero.
 */
#include "core/clock.h"

uint64_t pmr_ticks_hz(void)
{
#if defined(__aarch64__)
    uint64_t hz;
    __asm__ volatile("mrs %0, cntfrq_el0" : "=r"(hz));
    return hz ? hz : 1;
#else
    int64_t start_ns = pmr_now_ns();
    uint64_t start = pmr_ticks();
    int64_t now_ns;
    do {
        now_ns = pmr_now_ns();
    } while (now_ns - start_ns < 1000000);
    uint64_t elapsed = pmr_ticks() - start;
    uint64_t hz = (uint64_t)((double)elapsed * 1e9 / (double)(now_ns - start_ns));
    return hz ? hz : 1;
#endif
}
