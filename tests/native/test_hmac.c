/* SPDX-License-Identifier: Apache-2.0
 *
 * test_hmac.c: SHA-256 by the vectors of FIPS 180-4, HMAC by those of RFC 4231, and any cutting of the input.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "check.h"
#include "core/hmac.h"

static void check_hex(const uint8_t digest[PMR_DIGEST_BYTES], const char *hex)
{
    char text[2 * PMR_DIGEST_BYTES + 1];
    for (uint32_t i = 0; i < PMR_DIGEST_BYTES; i++)
        snprintf(text + 2 * i, 3, "%02x", digest[i]);
    if (strcmp(text, hex) != 0) {
        fprintf(stderr, "digest %s, should be %s\n", text, hex);
        exit(1);
    }
}

static void check_hash(const void *data, size_t bytes, size_t step, const char *hex)
{
    uint8_t digest[PMR_DIGEST_BYTES];
    pmr_sha256 hash;
    pmr_sha256_init(&hash);
    for (size_t done = 0; done < bytes; done += step)
        pmr_sha256_add(&hash, (const uint8_t *)data + done, bytes - done < step ? bytes - done : step);
    pmr_sha256_end(&hash, digest);
    check_hex(digest, hex);
}

static void check_hmac(const char *key, size_t key_bytes, const char *data, size_t bytes, const char *hex)
{
    uint8_t digest[PMR_DIGEST_BYTES];
    pmr_hmac hmac;
    pmr_hmac_init(&hmac, key, key_bytes);
    pmr_hmac_add(&hmac, data, bytes / 2);
    pmr_hmac_add(&hmac, data + bytes / 2, bytes - bytes / 2);
    pmr_hmac_end(&hmac, digest);
    check_hex(digest, hex);
}

int main(void)
{
    static char million[1000000], long_key[131];
    const char *two_blocks = "abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq";
    memset(million, 'a', sizeof million);
    memset(long_key, 0xaa, sizeof long_key);
    check_hash("", 0, 1, "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    check_hash("abc", 3, 1, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    check_hash(two_blocks, 56, 7, "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
    check_hash(million, sizeof million, 1000000, "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
    check_hash(million, sizeof million, 63, "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
    check_hash(million, sizeof million, 65, "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
    check_hmac("\x0b\x0b\x0b\x0b\x0b\x0b\x0b\x0b\x0b\x0b\x0b\x0b\x0b\x0b\x0b\x0b\x0b\x0b\x0b\x0b", 20, "Hi There", 8,
               "b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7");
    check_hmac("Jefe", 4, "what do ya want for nothing?", 28,
               "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843");
    check_hmac(long_key, sizeof long_key, "Test Using Larger Than Block-Size Key - Hash Key First", 54,
               "60e431591ee0b67f0d8a26aacbf5b77f8e0bc6213728c5140546040f0ee37f54");
    for (uint32_t i = 0; i < 32; i++) {
        uint8_t one[32] = {0}, other[32] = {0};
        CHECK(pmr_equal(one, other, 32));
        other[i] = (uint8_t)(1u << i % 8);
        CHECK(!pmr_equal(one, other, 32) && pmr_equal(one, other, i));
    }
    return 0;
}
