/* SPDX-License-Identifier: Apache-2.0
 *
 * slice.c: the calling thread's slice, by sched_setattr.
 *
 * The call sets all attributes at once, so those that are there are read first, and threads of another policy than the
 * usual one are left alone: for them the field means something else. Needs no privilege, as nothing but the slice changes.
 */
#include "core/slice.h"

#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

struct attributes { /* struct sched_attr of linux/sched/types.h, in its first version */
    uint32_t size, policy;
    uint64_t flags;
    int32_t nice;
    uint32_t priority;
    uint64_t runtime_ns, deadline_ns, period_ns;
};

void pmr_slice_ask(uint64_t slice_ns)
{
    struct attributes attributes = {.size = sizeof attributes};
    if (syscall(SYS_sched_getattr, 0, &attributes, sizeof attributes, 0) != 0 || attributes.policy != SCHED_OTHER)
        return;
    attributes.size = sizeof attributes;
    attributes.runtime_ns = slice_ns;
    syscall(SYS_sched_setattr, 0, &attributes, 0);
}
