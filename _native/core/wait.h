/* SPDX-License-Identifier: Apache-2.0
 *
 * wait.h: waiting for a flag: spin, then yield, then sleep in the kernel.
 *
 * How long each stage lasts is the wait's policy: with a CPU for every rank, spin for about the cost of a
 * block; with more ranks than CPUs, yield at once, since what is waited for needs this CPU. A sleeper wakes
 * at least every PMR_WAIT_SLICE_NS to look at what else can end a wait. Invariant: no wait outlives its
 * deadline, or a set abort word, by more than a slice.
 */
#ifndef PMR_CORE_WAIT_H
#define PMR_CORE_WAIT_H

#include "core/flag.h"
#include "include/pmr.h"

#define PMR_WAIT_SLICE_NS 50000000

typedef struct pmr_wait_policy {
    uint32_t spins_max; /* 0: never spin */
    uint32_t spins;     /* now: halves when spinning was in vain, doubles when it was not */
    uint32_t yields;
    uint32_t polls;     /* the same for polls of the network; 0: not tried yet (progress/hub.c) */
} pmr_wait_policy;

/* What can end a wait besides the flag. `check` is called before the first sleep and after each slice. */
typedef struct pmr_watch {
    const _Atomic uint32_t *abort_state; /* non-zero ends the wait; looked at often; may be NULL */
    pmr_status (*check)(void *arg, pmr_error *error);
    void *arg;
} pmr_watch;

/* What the hook of pmr_interrupt_hook_set says; false without one. */
bool pmr_interrupted(void);

void pmr_wait_policy_init(pmr_wait_policy *policy, bool oversubscribed);

/* PMR_OK: reached. PMR_ERR_STALLED: the deadline passed (error not filled). Else what `check` said. */
pmr_status pmr_flag_wait(pmr_flag *flag, uint32_t target, pmr_wait_policy *policy, const pmr_watch *watch,
                         int64_t deadline_ns, pmr_error *error);

/* Sleeps until one of the flags may have reached its target, at most until deadline_ns; returns early at
 * will. */
typedef struct pmr_flag_target {
    pmr_flag *flag;
    uint32_t target;
} pmr_flag_target;
#define PMR_WAIT_FLAGS_MAX 64
void pmr_flags_sleep(const pmr_flag_target *flags, uint32_t count, int64_t deadline_ns);

#endif
