/* SPDX-License-Identifier: Apache-2.0
 *
 * status.c: names of statuses and the one way to fill an error.
 */
#include "core/status.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

const char *pmr_status_name(pmr_status status)
{
    switch (status) {
    case PMR_OK:
        return "ok";
    case PMR_PENDING:
        return "pending";
    case PMR_ERR_ARGUMENT:
        return "argument";
    case PMR_ERR_UNSUPPORTED:
        return "unsupported";
    case PMR_ERR_TIMEOUT:
        return "timeout";
    case PMR_ERR_TRUNCATED:
        return "truncated";
    case PMR_ERR_NO_MEMORY:
        return "no memory";
    case PMR_ERR_OS:
        return "system call";
    case PMR_ERR_RANK_FAILED:
        return "rank failed";
    case PMR_ERR_MISMATCH:
        return "mismatch";
    case PMR_ERR_STALLED:
        return "stalled";
    case PMR_ERR_INTERRUPTED:
        return "interrupted";
    case PMR_ERR_SHUTDOWN:
        return "shut down";
    }
    return "unknown";
}

static void fill(pmr_error *error, pmr_status status, const char *format, va_list arguments)
{
    error->status = status;
    error->rank = -1;
    error->node[0] = '\0';
    vsnprintf(error->text, sizeof error->text, format, arguments);
}

pmr_status pmr_fail(pmr_error *error, pmr_status status, const char *format, ...)
{
    if (error) {
        va_list arguments;
        va_start(arguments, format);
        fill(error, status, format, arguments);
        va_end(arguments);
    }
    return status;
}

pmr_status pmr_fail_os(pmr_error *error, const char *format, ...)
{
    int saved = errno;
    if (error) {
        va_list arguments;
        va_start(arguments, format);
        fill(error, PMR_ERR_OS, format, arguments);
        va_end(arguments);
        size_t used = strlen(error->text);
        snprintf(error->text + used, sizeof error->text - used, ": %s", strerror(saved));
    }
    return PMR_ERR_OS;
}
