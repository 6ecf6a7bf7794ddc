/* SPDX-License-Identifier: Apache-2.0
 *
 * flag.h: a counter in shared memory that one side raises and others wait for.
 *
 * A flag has one writer at a time and only grows (modulo 2**32). Whoever waits first registers in `waiters`,
 * then looks again, then sleeps in the kernel; the writer stores, then looks at `waiters`: between its store
 * and that look stands a full fence, as between the waiter's registration and its second look, so one of the
 * two always sees the other. The model in tests/model proves that no wake-up is lost.
 * Invariant: memory written before pmr_flag_set(f, v) is visible after pmr_flag_reached(f, v) returned true.
 */
#ifndef PMR_CORE_FLAG_H
#define PMR_CORE_FLAG_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

typedef struct pmr_flag {
    _Atomic uint32_t value;
    _Atomic uint32_t waiters;
} pmr_flag;

/* Wakes all who sleep on the flag. */
void pmr_flag_wake(pmr_flag *flag);

static inline bool pmr_flag_reached(const pmr_flag *flag, uint32_t target)
{
    return (int32_t)(atomic_load_explicit(&flag->value, memory_order_acquire) - target) >= 0;
}

static inline void pmr_flag_set(pmr_flag *flag, uint32_t value)
{
    /* An exchange is store and full fence in one instruction. */
    atomic_exchange_explicit(&flag->value, value, memory_order_seq_cst);
    if (__builtin_expect(atomic_load_explicit(&flag->waiters, memory_order_seq_cst) != 0, 0))
        pmr_flag_wake(flag);
}

/* Raises a flag that has several writers: a doorbell. */
static inline void pmr_flag_add(pmr_flag *flag)
{
    atomic_fetch_add_explicit(&flag->value, 1, memory_order_seq_cst);
    if (__builtin_expect(atomic_load_explicit(&flag->waiters, memory_order_seq_cst) != 0, 0))
        pmr_flag_wake(flag);
}

#endif
