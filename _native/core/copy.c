/* SPDX-License-Identifier: Apache-2.0
 *
 * copy.c: stores that go past the caches, a whole line at a time.
 *
 * Every x86-64 has them (SSE2); wider ones are no faster, since memory is the limit. They are weakly ordered:
 * a fence at the end puts them before whatever is stored next. Invariant: only whole, aligned lines of `to`
 * are written that way; a line that is written in part would cost a read after all.
 */
#include "core/copy.h"

#include <stdint.h>
#include <stdio.h>

#define CACHES_MAX          8u
#define GUESSED_CACHE_BYTES ((size_t)32 << 20)

/* "32768K" */
static size_t cache_bytes_at(unsigned index)
{
    char path[80];
    snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu0/cache/index%u/size", index);
    FILE *file = fopen(path, "re");
    if (!file)
        return 0;
    size_t number = 0;
    char unit = 0;
    int fields = fscanf(file, "%zu%c", &number, &unit);
    fclose(file);
    return fields == 2 && (unit == 'K' || unit == 'M') ? number << (unit == 'K' ? 10 : 20) : 0;
}

/* Not sysconf: glibc multiplies the size by the number of threads on some processors (2.36 says 320 MiB where
 * there are 32), which is also why its memcpy never goes past the caches there. */
size_t pmr_cache_bytes_find(void)
{
    size_t largest = 0;
    for (unsigned index = 0; index < CACHES_MAX; index++) {
        size_t bytes = cache_bytes_at(index);
        largest = bytes > largest ? bytes : largest;
    }
    return largest ? largest : GUESSED_CACHE_BYTES;
}

#if defined(__x86_64__)
#include <emmintrin.h>

#define LINE        64u
#define AHEAD_BYTES 1024u

void pmr_copy_past_caches(void *to, const void *from, size_t bytes)
{
    uint8_t *dst = to;
    const uint8_t *src = from;
    size_t head = (LINE - (uintptr_t)dst % LINE) % LINE;
    if (bytes < head + LINE) {
        memcpy(dst, src, bytes);
        return;
    }
    memcpy(dst, src, head);
    dst += head;
    src += head;
    size_t lines = (bytes - head) / LINE;
    for (size_t i = 0; i < lines; i++, dst += LINE, src += LINE) {
        _mm_prefetch((const char *)src + AHEAD_BYTES, _MM_HINT_NTA);
        __m128i a = _mm_loadu_si128((const __m128i *)(const void *)src);
        __m128i b = _mm_loadu_si128((const __m128i *)(const void *)(src + 16));
        __m128i c = _mm_loadu_si128((const __m128i *)(const void *)(src + 32));
        __m128i d = _mm_loadu_si128((const __m128i *)(const void *)(src + 48));
        _mm_stream_si128((__m128i *)(void *)dst, a);
        _mm_stream_si128((__m128i *)(void *)(dst + 16), b);
        _mm_stream_si128((__m128i *)(void *)(dst + 32), c);
        _mm_stream_si128((__m128i *)(void *)(dst + 48), d);
    }
    memcpy(dst, src, bytes - head - lines * LINE);
    _mm_sfence();
}
#else
void pmr_copy_past_caches(void *to, const void *from, size_t bytes)
{
    memcpy(to, from, bytes);
}
#endif
