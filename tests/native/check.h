/* SPDX-License-Identifier: Apache-2.0
 *
 * check.h: the assertion of programs that have nothing more to tell than the place.
 *
 * abort(), so that a fuzzer sees a crash and a debugger the stack. Invariant: it is checked in every build, unlike assert().
 */
#ifndef PMR_TESTS_CHECK_H
#define PMR_TESTS_CHECK_H

#include <stdio.h>
#include <stdlib.h>

#define CHECK(condition)                                                              \
    do {                                                                              \
        if (!(condition)) {                                                           \
            fprintf(stderr, "%s:%d: not true: %s\n", __FILE__, __LINE__, #condition); \
            abort();                                                                  \
        }                                                                             \
    } while (0)

#endif
