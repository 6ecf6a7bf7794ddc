/* SPDX-License-Identifier: Apache-2.0
 *
 * wait.c: the three stages of a wait, and sleeping on several flags at once.
 *
 * Futexes are the non-private kind: the flags lie in memory that several processes map. futex_waitv
 * (Linux 5.16) sleeps on several; older kernels sleep on the first for a short time instead. Invariant: a
 * thread is counted in a flag's `waiters` exactly while it may be asleep on it.
 */
#include "core/wait.h"

#include <errno.h>
#include <linux/futex.h>
#include <sched.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "core/clock.h"

#define SPINS_MAX        1500u /* some 30 us of polling with pauses: about what a sleep and a wake cost */
#define SPINS_MIN        64u
#define YIELDS_DEDICATED 8u
#define YIELDS_SHARED    64u /* more ranks than CPUs: each yield lets a rank run that is waited for */
#define POLL_WITHOUT_WAITV_NS 200000

#ifndef SYS_futex_waitv
#define SYS_futex_waitv 449
#endif

struct waitv_entry { /* struct futex_waitv of linux/futex.h, which older headers lack */
    uint64_t value;
    uint64_t address;
    uint32_t flags;
    uint32_t reserved;
};
#define WAITV_32BIT 2u

static int (*interrupt_hook)(void);

void pmr_interrupt_hook_set(int (*check)(void))
{
    interrupt_hook = check;
}

bool pmr_interrupted(void)
{
    return interrupt_hook && interrupt_hook() != 0;
}

void pmr_flag_wake(pmr_flag *flag)
{
    syscall(SYS_futex, &flag->value, FUTEX_WAKE, INT32_MAX, NULL, NULL, 0);
}

void pmr_wait_policy_init(pmr_wait_policy *policy, bool oversubscribed)
{
    policy->spins_max = oversubscribed ? 0 : SPINS_MAX;
    policy->spins = policy->spins_max;
    policy->yields = oversubscribed ? YIELDS_SHARED : YIELDS_DEDICATED;
    policy->polls = 0;
}

static bool aborted(const pmr_watch *watch)
{
    return watch->abort_state && atomic_load_explicit(watch->abort_state, memory_order_acquire) != 0;
}

/* True: reached. */
static bool spin(const pmr_flag *flag, uint32_t target, pmr_wait_policy *policy, const pmr_watch *watch)
{
    for (uint32_t i = 0; i < policy->spins; i++) {
        if (pmr_flag_reached(flag, target))
            return true;
        if (i >= 32) {
            pmr_cpu_relax();
            if (i % 64 == 0 && aborted(watch))
                return false;
        }
    }
    for (uint32_t i = 0; i < policy->yields; i++) {
        if (pmr_flag_reached(flag, target))
            return true;
        if (aborted(watch))
            return false;
        sched_yield();
    }
    return pmr_flag_reached(flag, target);
}

static void sleep_once(pmr_flag *flag, uint32_t target, int64_t until_ns)
{
    atomic_fetch_add_explicit(&flag->waiters, 1, memory_order_seq_cst);
    uint32_t seen = atomic_load_explicit(&flag->value, memory_order_seq_cst);
    if ((int32_t)(seen - target) < 0) {
        int64_t left = until_ns - pmr_now_ns();
        if (left > 0) {
            struct timespec relative = {.tv_sec = left / 1000000000, .tv_nsec = left % 1000000000};
            syscall(SYS_futex, &flag->value, FUTEX_WAIT, seen, &relative, NULL, 0);
        }
    }
    atomic_fetch_sub_explicit(&flag->waiters, 1, memory_order_relaxed);
}

pmr_status pmr_flag_wait(pmr_flag *flag, uint32_t target, pmr_wait_policy *policy, const pmr_watch *watch,
                         int64_t deadline_ns, pmr_error *error)
{
    if (spin(flag, target, policy, watch)) {
        uint32_t doubled = policy->spins * 2;
        policy->spins = doubled > policy->spins_max ? policy->spins_max : doubled;
        return PMR_OK;
    }
    if (policy->spins_max) {
        uint32_t halved = policy->spins / 2;
        policy->spins = halved < SPINS_MIN ? SPINS_MIN : halved;
    }
    for (;;) {
        /* The event wins over whatever happened after it: a rank may do its part and leave. */
        if (pmr_flag_reached(flag, target))
            return PMR_OK;
        pmr_status status = watch->check(watch->arg, error);
        if (status)
            return pmr_flag_reached(flag, target) && status == PMR_ERR_RANK_FAILED ? PMR_OK : status;
        int64_t now = pmr_now_ns();
        if (now >= deadline_ns)
            return PMR_ERR_STALLED;
        int64_t slice_end = now + PMR_WAIT_SLICE_NS;
        sleep_once(flag, target, slice_end < deadline_ns ? slice_end : deadline_ns);
    }
}

void pmr_flags_sleep(const pmr_flag_target *flags, uint32_t count, int64_t deadline_ns)
{
    struct waitv_entry entries[PMR_WAIT_FLAGS_MAX];
    if (count > PMR_WAIT_FLAGS_MAX)
        count = PMR_WAIT_FLAGS_MAX; /* the rest is looked at after at most a slice */
    bool ready = false;
    for (uint32_t i = 0; i < count; i++) {
        pmr_flag *flag = flags[i].flag;
        atomic_fetch_add_explicit(&flag->waiters, 1, memory_order_seq_cst);
        uint32_t seen = atomic_load_explicit(&flag->value, memory_order_seq_cst);
        ready = ready || (int32_t)(seen - flags[i].target) >= 0;
        entries[i] = (struct waitv_entry){
            .value = seen, .address = (uint64_t)(uintptr_t)&flag->value, .flags = WAITV_32BIT, .reserved = 0};
    }
    if (!ready && count > 0) {
        struct timespec until = {.tv_sec = deadline_ns / 1000000000, .tv_nsec = deadline_ns % 1000000000};
        long rc = syscall(SYS_futex_waitv, entries, count, 0, &until, CLOCK_MONOTONIC);
        if (rc < 0 && errno == ENOSYS) {
            struct timespec brief = {.tv_sec = 0, .tv_nsec = POLL_WITHOUT_WAITV_NS};
            syscall(SYS_futex, entries[0].address, FUTEX_WAIT, (uint32_t)entries[0].value, &brief, NULL, 0);
        }
    }
    for (uint32_t i = 0; i < count; i++)
        atomic_fetch_sub_explicit(&flags[i].flag->waiters, 1, memory_order_relaxed);
}
