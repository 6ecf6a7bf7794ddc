/* SPDX-License-Identifier: Apache-2.0
 *
 * reduce_portable.c: the kernels for any processor: what the compiler makes of them for the build's own target
 * (SSE2 on x86-64, NEON on arm64). The other sets must give the same bits as this one.
 */
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "core/reduce_tree.h"

#define PMR_SET pmr_reduce_set_portable
#include "core/reduce_kernels.inc"
