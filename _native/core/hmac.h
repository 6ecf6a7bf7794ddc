/* SPDX-License-Identifier: Apache-2.0
 *
 * hmac.h: HMAC-SHA256, by which two ranks prove to each other that they have the job's key.
 *
 * Written out here, since the core has no library below it: a rank would have to find and load one of three that a
 * system may have, and the kernel's own (AF_ALG) is closed to many containers. It is for handshakes of a few hundred
 * bytes, not for data. Invariant: the time that pmr_equal takes depends on the length alone.
 */
#ifndef PMR_CORE_HMAC_H
#define PMR_CORE_HMAC_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define PMR_DIGEST_BYTES 32u

typedef struct pmr_sha256 {
    uint32_t state[8];
    uint64_t bytes;
    uint8_t block[64];
} pmr_sha256;

void pmr_sha256_init(pmr_sha256 *hash);
void pmr_sha256_add(pmr_sha256 *hash, const void *data, size_t bytes);
void pmr_sha256_end(pmr_sha256 *hash, uint8_t digest_out[PMR_DIGEST_BYTES]);

typedef struct pmr_hmac {
    pmr_sha256 inner, outer;
} pmr_hmac;

void pmr_hmac_init(pmr_hmac *hmac, const void *key, size_t key_bytes);
void pmr_hmac_add(pmr_hmac *hmac, const void *data, size_t bytes);
void pmr_hmac_end(pmr_hmac *hmac, uint8_t digest_out[PMR_DIGEST_BYTES]);

bool pmr_equal(const uint8_t *one, const uint8_t *other, size_t bytes);

#endif
