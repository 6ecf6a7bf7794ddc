/* SPDX-License-Identifier: Apache-2.0
 *
 * cpu.c: the processor's features, through the compiler's own run-time support.
 *
 * The lists of features here and the target lists in reduce_avx2.c and reduce_avx512.c are the same: a set
 * is offered only when all of its features are present.
 */
#include "core/cpu.h"

#if defined(__x86_64__)
#include <cpuid.h>

/* Read by hand: not every compiler knows this feature by name. "avx2" already says that registers are saved. */
static bool has_f16c(void) {
    unsigned eax, ebx, ecx, edx;
    return __get_cpuid(1, &eax, &ebx, &ecx, &edx) && (ecx & bit_F16C);
}
#endif

bool pmr_cpu_runs(pmr_kernel_set set) {
    if (set == PMR_KERNELS_PORTABLE)
        return true;
#if defined(__x86_64__)
    __builtin_cpu_init();
    bool avx2 = __builtin_cpu_supports("avx2") && has_f16c();
    if (set == PMR_KERNELS_AVX2)
        return avx2;
    if (set == PMR_KERNELS_AVX512)
        return avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
               __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
#endif
    return false;
}

pmr_kernel_set pmr_cpu_best(void) {
    pmr_kernel_set best = PMR_KERNELS_PORTABLE;
    for (int set = PMR_KERNELS_PORTABLE; set < PMR_KERNELS_COUNT; set++)
        if (pmr_cpu_runs((pmr_kernel_set)set))
            best = (pmr_kernel_set)set;
    return best;
}
