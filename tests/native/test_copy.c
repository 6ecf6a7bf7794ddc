/* SPDX-License-Identifier: Apache-2.0
 *
 * test_copy.c: copying past the caches gives what memcpy gives, at every alignment, and touches nothing else.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/copy.h"

#define BYTES 4096u
#define GUARD 128u

int main(void)
{
    uint8_t *from = malloc(BYTES + GUARD), *to = malloc(BYTES + 2 * GUARD), *expected = malloc(BYTES + 2 * GUARD);
    if (!from || !to || !expected)
        return 1;
    for (size_t i = 0; i < BYTES + GUARD; i++)
        from[i] = (uint8_t)(i * 7 + i / 251);
    static const size_t sizes[] = {0, 1, 15, 63, 64, 65, 127, 128, 129, 191, 1000, BYTES - 1, BYTES};
    int failed = 0;
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++)
        for (size_t source = 0; source < 64; source += 3)
            for (size_t target = 0; target < 64; target++) {
                memset(to, 0xee, BYTES + 2 * GUARD);
                memset(expected, 0xee, BYTES + 2 * GUARD);
                pmr_copy_past_caches(to + GUARD - 64 + target, from + source, sizes[s]);
                memcpy(expected + GUARD - 64 + target, from + source, sizes[s]);
                failed += memcmp(to, expected, BYTES + 2 * GUARD) != 0;
            }
    size_t cache_bytes = pmr_cache_bytes_find();
    printf("%d wrong copies; the largest cache has %zu bytes\n", failed, cache_bytes);
    free(from);
    free(to);
    free(expected);
    return failed != 0 || cache_bytes < 65536;
}
