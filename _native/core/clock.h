/* SPDX-License-Identifier: Apache-2.0
 *
 * clock.h: the two clocks of the core.
 *
 * Deadlines are absolute CLOCK_MONOTONIC nanoseconds. Ticks are the processor's constant-rate counter, for
 * the flight recorder alone: a read costs ten nanoseconds where the clock costs twenty.
 */
#ifndef PMR_CORE_CLOCK_H
#define PMR_CORE_CLOCK_H

#include <stdint.h>
#include <time.h>

#include "include/pmr.h"

static inline int64_t pmr_now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

/* PMR_FOREVER stays forever. */
static inline int64_t pmr_deadline_ns(int64_t timeout_ns)
{
    if (timeout_ns == PMR_FOREVER)
        return PMR_FOREVER;
    int64_t now = pmr_now_ns();
    return timeout_ns > PMR_FOREVER - now ? PMR_FOREVER : now + timeout_ns;
}

static inline uint64_t pmr_ticks(void)
{
#if defined(__x86_64__)
    return __builtin_ia32_rdtsc();
#elif defined(__aarch64__)
    uint64_t ticks;
    __asm__ volatile("mrs %0, cntvct_el0" : "=r"(ticks));
    return ticks;
#else
#error "pmrun's core knows x86-64 and arm64"
#endif
}

static inline void pmr_cpu_relax(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#else
    __asm__ volatile("yield");
#endif
}

/* Ticks per second, measured once over some milliseconds against CLOCK_MONOTONIC on x86. */
uint64_t pmr_ticks_hz(void);

#endif
