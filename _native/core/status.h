/* SPDX-License-Identifier: Apache-2.0
 *
 * status.h: filling a pmr_error where the fact is known.
 *
 * `return pmr_fail(error, PMR_ERR_..., "...")` reads as one act. Invariant: the text is one line for a person
 * and always NUL terminated; a NULL `error` is allowed everywhere.
 */
#ifndef PMR_CORE_STATUS_H
#define PMR_CORE_STATUS_H

#include "include/pmr.h"

pmr_status pmr_fail(pmr_error *error, pmr_status status, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* As pmr_fail, with ": <text of errno>" behind the text. */
pmr_status pmr_fail_os(pmr_error *error, const char *format, ...) __attribute__((format(printf, 2, 3)));

#endif
