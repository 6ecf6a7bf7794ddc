/* SPDX-License-Identifier: Apache-2.0
 *
 * hmac.c: SHA-256 (FIPS 180-4) and HMAC (RFC 2104) over it.
 *
 * The constants are the first 32 bits of the fractional parts of the cube roots (and for the start the square roots) of
 * the first primes. tests/native/test_hmac.c holds the standards' vectors.
 */
#include "core/hmac.h"

#include <string.h>

static const uint32_t round_constant[64] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2,
};

static uint32_t rotate(uint32_t word, uint32_t bits)
{
    return word >> bits | word << (32 - bits);
}

static void compress(uint32_t state[8], const uint8_t block[64])
{
    uint32_t w[64];
    for (uint32_t i = 0; i < 16; i++)
        w[i] = (uint32_t)block[4 * i] << 24 | (uint32_t)block[4 * i + 1] << 16 | (uint32_t)block[4 * i + 2] << 8 |
               block[4 * i + 3];
    for (uint32_t i = 16; i < 64; i++) {
        uint32_t s0 = rotate(w[i - 15], 7) ^ rotate(w[i - 15], 18) ^ w[i - 15] >> 3;
        uint32_t s1 = rotate(w[i - 2], 17) ^ rotate(w[i - 2], 19) ^ w[i - 2] >> 10;
        w[i] = w[i - 16] + s0 + w[i - 7] + s1;
    }
    uint32_t v[8]; /* a to h of the standard */
    memcpy(v, state, sizeof v);
    for (uint32_t i = 0; i < 64; i++) {
        uint32_t s1 = rotate(v[4], 6) ^ rotate(v[4], 11) ^ rotate(v[4], 25);
        uint32_t t1 = v[7] + s1 + ((v[4] & v[5]) ^ (~v[4] & v[6])) + round_constant[i] + w[i];
        uint32_t s0 = rotate(v[0], 2) ^ rotate(v[0], 13) ^ rotate(v[0], 22);
        uint32_t t2 = s0 + ((v[0] & v[1]) ^ (v[0] & v[2]) ^ (v[1] & v[2]));
        memmove(v + 1, v, 7 * sizeof v[0]);
        v[4] += t1;
        v[0] = t1 + t2;
    }
    for (uint32_t i = 0; i < 8; i++)
        state[i] += v[i];
}

void pmr_sha256_init(pmr_sha256 *hash)
{
    static const uint32_t start[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                                      0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
    memcpy(hash->state, start, sizeof start);
    hash->bytes = 0;
}

void pmr_sha256_add(pmr_sha256 *hash, const void *data, size_t bytes)
{
    const uint8_t *from = data;
    while (bytes) {
        size_t at = hash->bytes % 64;
        size_t step = bytes < 64 - at ? bytes : 64 - at;
        memcpy(hash->block + at, from, step);
        hash->bytes += step;
        from += step;
        bytes -= step;
        if (at + step == 64)
            compress(hash->state, hash->block);
    }
}

void pmr_sha256_end(pmr_sha256 *hash, uint8_t digest_out[PMR_DIGEST_BYTES])
{
    static const uint8_t padding[64] = {0x80};
    uint64_t bits = hash->bytes * 8;
    uint8_t length[8];
    for (uint32_t i = 0; i < 8; i++)
        length[i] = (uint8_t)(bits >> (56 - 8 * i));
    pmr_sha256_add(hash, padding, 1 + (119 - hash->bytes % 64) % 64);
    pmr_sha256_add(hash, length, sizeof length);
    for (uint32_t i = 0; i < PMR_DIGEST_BYTES; i++)
        digest_out[i] = (uint8_t)(hash->state[i / 4] >> (24 - i % 4 * 8));
}

void pmr_hmac_init(pmr_hmac *hmac, const void *key, size_t key_bytes)
{
    uint8_t block[64] = {0}, inner[64], outer[64];
    if (key_bytes > sizeof block) {
        pmr_sha256 hash;
        pmr_sha256_init(&hash);
        pmr_sha256_add(&hash, key, key_bytes);
        pmr_sha256_end(&hash, block);
    } else if (key_bytes) {
        memcpy(block, key, key_bytes);
    }
    for (uint32_t i = 0; i < sizeof block; i++) {
        inner[i] = block[i] ^ 0x36;
        outer[i] = block[i] ^ 0x5c;
    }
    pmr_sha256_init(&hmac->inner);
    pmr_sha256_add(&hmac->inner, inner, sizeof inner);
    pmr_sha256_init(&hmac->outer);
    pmr_sha256_add(&hmac->outer, outer, sizeof outer);
    explicit_bzero(block, sizeof block);
    explicit_bzero(inner, sizeof inner);
    explicit_bzero(outer, sizeof outer);
}

void pmr_hmac_add(pmr_hmac *hmac, const void *data, size_t bytes)
{
    pmr_sha256_add(&hmac->inner, data, bytes);
}

void pmr_hmac_end(pmr_hmac *hmac, uint8_t digest_out[PMR_DIGEST_BYTES])
{
    uint8_t digest[PMR_DIGEST_BYTES];
    pmr_sha256_end(&hmac->inner, digest);
    pmr_sha256_add(&hmac->outer, digest, sizeof digest);
    pmr_sha256_end(&hmac->outer, digest_out);
    explicit_bzero(hmac, sizeof *hmac);
}

bool pmr_equal(const uint8_t *one, const uint8_t *other, size_t bytes)
{
    uint8_t differs = 0;
    for (size_t i = 0; i < bytes; i++) {
        differs |= one[i] ^ other[i];
        __asm__ volatile("" : "+r"(differs)); /* so that no compiler ends the loop early */
    }
    return differs == 0;
}
