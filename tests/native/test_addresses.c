/* SPDX-License-Identifier: Apache-2.0
 *
 * test_addresses.c: what other ranks publish and answer before they are trusted: addresses, and a host's side of the
 * handshake.
 *
 * An address that is taken names one interface and a port, and comes back from its own text; whoever answers a dialer
 * without the key is refused at the first word. As a program it changes sound texts and plays noise; with PMR_LIBFUZZER the
 * fuzzer brings both (make fuzz). Usage: test_addresses [seed [folder for some inputs]]
 */
#include "fuzz.h"

#include <string.h>

#include "transport/address.h"
#include "transport/handshake.h"

#define TEXT_MAX 300u
#define ROUNDS 20000u

static bool is_all(const pmr_address *address)
{
    static const struct in6_addr any = IN6ADDR_ANY_INIT;
    if (address->any.sa_family == AF_INET)
        return address->v4.sin_addr.s_addr == 0;
    const uint8_t *bytes = address->v6.sin6_addr.s6_addr;
    return memcmp(bytes, &any, sizeof any) == 0 ||
           (IN6_IS_ADDR_V4MAPPED(&address->v6.sin6_addr) && memcmp(bytes + 12, &any, 4) == 0);
}

/* Both readings of a text; one that is taken is taken again from what is written of it. */
static void read_text(const char *text)
{
    pmr_address address, again;
    pmr_error error;
    char written[PMR_ADDRESS_BYTES], published[PMR_ADDRESS_BYTES + 4];
    if (pmr_address_parse(text, &address, &error) == PMR_OK)
        CHECK(address.bytes && !is_all(&address));
    else
        CHECK(error.text[0] && memchr(error.text, 0, sizeof error.text));
    if (pmr_address_take(text, "tcp", 5, &address, &error) != PMR_OK) {
        CHECK(strncmp(error.text, "rank 5 published '", 18) == 0);
        return;
    }
    CHECK(address.bytes && !is_all(&address));
    pmr_address_text(&address, written);
    snprintf(published, sizeof published, "tcp %s", written);
    CHECK(pmr_address_take(published, "tcp", 5, &again, &error) == PMR_OK);
    CHECK(again.bytes == address.bytes && memcmp(&again.v6, &address.v6, address.bytes) == 0);
}

/* The input is a text, and what a host without the key answers. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    static const uint8_t key[PMR_KEY_BYTES] = "the key";
    char text[TEXT_MAX + 1];
    size_t length = bytes < TEXT_MAX ? bytes : TEXT_MAX;
    memcpy(text, data, length);
    text[length] = '\0';
    read_text(text);
    pmr_handshake dialer;
    pmr_answer answer;
    pmr_error error;
    CHECK(pmr_handshake_dial(&dialer, key, 1, 2, 3, &answer, &error) == PMR_OK);
    for (uint32_t wanted; (wanted = pmr_handshake_wanted(&dialer)) && wanted <= bytes; data += wanted, bytes -= wanted) {
        pmr_handshake_take(&dialer, data, &answer);
        CHECK(dialer.stage == PMR_HANDSHAKE_REFUSED && dialer.why[0] && answer.bytes == 0);
    }
    return 0;
}

#ifndef PMR_LIBFUZZER

static void test_known(void)
{
    static const char *const taken[] = {"tcp 10.0.0.1:4711", "tcp [fd00::1]:1", "tcp [::ffff:10.0.0.1]:65535"};
    static const char *const refused[] = {
        "", "tcp", "tcp ", "zmq 10.0.0.1:1", "tcp 10.0.0.1:0", "tcp 10.0.0.1:65536", "tcp :1", "tcp []:1", "tcp name:1",
        "tcp [10.0.0.1]:1", "tcp fd00::1:1", "tcp 0.0.0.0:1", "tcp [::]:1", "tcp [::ffff:0.0.0.0]:1"};
    pmr_address address;
    pmr_error error;
    for (size_t i = 0; i < sizeof taken / sizeof *taken; i++)
        CHECK(pmr_address_take(taken[i], "tcp", 5, &address, &error) == PMR_OK);
    for (size_t i = 0; i < sizeof refused / sizeof *refused; i++)
        CHECK(pmr_address_take(refused[i], "tcp", 5, &address, &error) == PMR_ERR_ARGUMENT);
}

/* Sound texts with some characters others, longer ones, and noise. */
static void test_changed(void)
{
    static const char *const sound[] = {"tcp 10.0.0.1:4711", "tcp [fd00::1]:4711", "10.77.0.1", "fd00::1", "tcp ["};
    static const char likely[] = "0123456789abcdef:.[]% tcpx";
    for (uint32_t round = 0; round < ROUNDS; round++) {
        uint8_t input[TEXT_MAX];
        const char *base = sound[fuzz_draw(sizeof sound / sizeof *sound)];
        size_t bytes = strlen(base);
        memcpy(input, base, bytes);
        for (uint32_t edits = fuzz_draw(4); edits > 0; edits--)
            input[fuzz_draw((uint32_t)bytes)] = (uint8_t)likely[fuzz_draw(sizeof likely - 1)];
        if (round % 4 == 0)
            for (size_t end = bytes + fuzz_draw(TEXT_MAX - (uint32_t)bytes); bytes < end; bytes++)
                input[bytes] = round % 8 ? (uint8_t)likely[fuzz_draw(sizeof likely - 1)] : (uint8_t)fuzz_draw(256);
        fuzz_keep(input, bytes);
        LLVMFuzzerTestOneInput(input, bytes);
    }
}

int main(int argc, char **argv)
{
    fuzz_begin(argc, argv);
    test_known();
    test_changed();
    return 0;
}
#endif
