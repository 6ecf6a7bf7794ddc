/* SPDX-License-Identifier: Apache-2.0
 *
 * fuzz.h: what the tests that are fuzz targets share.
 *
 * Such a test has LLVMFuzzerTestOneInput, and a main that calls it with inputs made from a seed: so CI runs what
 * `make fuzz` builds without that main (PMR_LIBFUZZER), for libFuzzer to bring better ones. Given a folder as its second
 * argument, the main also writes its first inputs there, for the fuzzer to begin with.
 */
#ifndef PMR_TESTS_FUZZ_H
#define PMR_TESTS_FUZZ_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include "check.h"

#define FUZZ_KEPT_MAX 100u

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

static uint64_t fuzz_random;
static const char *fuzz_folder;
static uint32_t fuzz_kept;

static inline uint32_t fuzz_draw(uint32_t below)
{
    fuzz_random = fuzz_random * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(fuzz_random >> 33) % below;
}

static inline void fuzz_begin(int argc, char **argv)
{
    fuzz_random = argc > 1 ? strtoull(argv[1], NULL, 10) : 1;
    fuzz_folder = argc > 2 ? argv[2] : NULL;
}

static inline void fuzz_keep(const uint8_t *data, size_t bytes)
{
    if (!fuzz_folder || fuzz_kept == FUZZ_KEPT_MAX)
        return;
    char path[4096];
    snprintf(path, sizeof path, "%s/%u", fuzz_folder, fuzz_kept++);
    FILE *file = fopen(path, "wb");
    CHECK(file && fwrite(data, 1, bytes, file) == bytes && fclose(file) == 0);
}

#endif
