/* SPDX-License-Identifier: Apache-2.0
 *
 * cpu.h: which kernel sets this processor can run.
 */
#ifndef PMR_CORE_CPU_H
#define PMR_CORE_CPU_H

#include <stdbool.h>

/* Sets with a higher number are faster where they run at all. */
typedef enum pmr_kernel_set {
    PMR_KERNELS_PORTABLE,
    PMR_KERNELS_AVX2,
    PMR_KERNELS_AVX512,
    PMR_KERNELS_COUNT
} pmr_kernel_set;

/* Whether every instruction that the set is compiled for exists here and the system saves its registers. */
bool pmr_cpu_runs(pmr_kernel_set set);
pmr_kernel_set pmr_cpu_best(void);

#endif
