/* SPDX-License-Identifier: Apache-2.0
 *
 * reduce_avx512.c: the kernels for AVX-512 (F, BW, DQ, VL). The features named here are those that
 * pmr_cpu_runs (cpu.c) asks for. The build's -ffp-contract=off keeps most products from being fused,
 * PMR_SET_WITHOUT_FUSION the rest. All headers come before the choice of the target: nothing but the kernels may
 * be compiled for it.
 */
#if defined(__x86_64__)

#include <immintrin.h>
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "core/reduce_tree.h"

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,f16c,avx512f,avx512bw,avx512dq,avx512vl"))), \
                             apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,f16c,avx512f,avx512bw,avx512dq,avx512vl,prefer-vector-width=512")
#endif

#define PMR_SET_LANES 16
#define PMR_SET_WITHOUT_FUSION "no-avx512f,no-fma"
#define PMR_SET pmr_reduce_set_avx512
#include "core/reduce_kernels.inc"

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#else
typedef int pmr_reduce_avx512_not_on_this_machine; /* ISO C wants a declaration in every file */
#endif
