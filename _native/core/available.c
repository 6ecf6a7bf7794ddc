/* SPDX-License-Identifier: Apache-2.0
 *
 * available.c: /proc/meminfo's MemAvailable, and the memory controller's limit less its use (version 2, then 1).
 *
 * A process in a container sees its own group at the root of the control group mount. Invariant: reads only.
 */
#include "core/available.h"

#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define MARGIN_BYTES ((size_t)64 << 20) /* left for everything else */

static bool read_text(const char *path, char *text, size_t room)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return false;
    ssize_t got = read(fd, text, room - 1);
    close(fd);
    if (got <= 0)
        return false;
    text[got] = '\0';
    return true;
}

static uint64_t read_number(const char *path)
{
    char text[64];
    char *end;
    if (!read_text(path, text, sizeof text))
        return UINT64_MAX;
    uint64_t number = strtoull(text, &end, 10);
    return end == text ? UINT64_MAX : number; /* "max" */
}

static uint64_t left_in_group(const char *limit_path, const char *use_path)
{
    uint64_t limit = read_number(limit_path), use = read_number(use_path);
    if (limit == UINT64_MAX || use == UINT64_MAX)
        return UINT64_MAX;
    return limit > use ? limit - use : 0;
}

static uint64_t left_on_machine(void)
{
    char text[2048];
    if (!read_text("/proc/meminfo", text, sizeof text))
        return UINT64_MAX;
    const char *line = strstr(text, "MemAvailable:");
    return line ? strtoull(line + strlen("MemAvailable:"), NULL, 10) * 1024 : UINT64_MAX;
}

bool pmr_memory_available(size_t bytes)
{
    uint64_t wanted = (uint64_t)bytes + MARGIN_BYTES;
    return left_on_machine() >= wanted &&
           left_in_group("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current") >= wanted &&
           left_in_group("/sys/fs/cgroup/memory/memory.limit_in_bytes",
                         "/sys/fs/cgroup/memory/memory.usage_in_bytes") >= wanted;
}
