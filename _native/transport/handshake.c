/* SPDX-License-Identifier: Apache-2.0
 *
 * handshake.c: the two sides' steps, as one state machine.
 *
 * A MAC's input is its name and then HELLO and CHALLENGE as far as they were said, each without its own MAC, and last
 * the verdict. Nonces come from the kernel.
 */
#include "transport/handshake.h"

#include <stddef.h>
#include <string.h>
#include <sys/random.h>

#include "core/status.h"

#define VERSION 1u
static const char magic[8] = {'p', 'm', 'r', 'u', 'n', '\r', '\n', '\0'};

/* How much of the conversation a MAC covers. */
enum covered { COVERS_HELLO, COVERS_CHALLENGE, COVERS_VERDICT };

static void mac(const pmr_handshake *handshake, const char name[8], enum covered covered, uint32_t taken,
                uint8_t mac_out[PMR_DIGEST_BYTES])
{
    pmr_hmac hmac;
    pmr_hmac_init(&hmac, handshake->key, PMR_KEY_BYTES);
    pmr_hmac_add(&hmac, name, 8);
    pmr_hmac_add(&hmac, &handshake->hello, offsetof(pmr_hello, mac));
    if (covered >= COVERS_CHALLENGE)
        pmr_hmac_add(&hmac, handshake->challenge.nonce, sizeof handshake->challenge.nonce);
    if (covered >= COVERS_VERDICT)
        pmr_hmac_add(&hmac, &taken, sizeof taken);
    pmr_hmac_end(&hmac, mac_out);
}

static bool mac_is(const pmr_handshake *handshake, const char name[8], enum covered covered, uint32_t taken,
                   const uint8_t claimed[PMR_DIGEST_BYTES])
{
    uint8_t right[PMR_DIGEST_BYTES];
    mac(handshake, name, covered, taken, right);
    return pmr_equal(right, claimed, sizeof right);
}

static bool draw_nonce(uint8_t nonce[32])
{
    return getrandom(nonce, 32, 0) == 32;
}

static void answer(pmr_answer *answer_out, const void *message, uint32_t bytes)
{
    memcpy(answer_out->message, message, bytes);
    answer_out->bytes = bytes;
}

static void refuse(pmr_handshake *handshake, const char *why)
{
    handshake->stage = PMR_HANDSHAKE_REFUSED;
    handshake->why = why;
}

pmr_status pmr_handshake_dial(pmr_handshake *handshake, const uint8_t *key, uint32_t me, uint32_t peer, uint32_t lane,
                              pmr_answer *answer_out, pmr_error *error)
{
    memset(handshake, 0, sizeof *handshake);
    handshake->key = key;
    handshake->me = me;
    handshake->stage = PMR_HANDSHAKE_CHALLENGE;
    pmr_hello *hello = &handshake->hello;
    memcpy(hello->magic, magic, sizeof magic);
    hello->version = VERSION;
    hello->from = me;
    hello->to = peer;
    hello->lane = lane;
    if (!draw_nonce(hello->nonce))
        return pmr_fail_os(error, "the system gives no random bytes for a handshake");
    mac(handshake, "hello..", COVERS_HELLO, 0, hello->mac);
    answer(answer_out, hello, sizeof *hello);
    return PMR_OK;
}

void pmr_handshake_host(pmr_handshake *handshake, const uint8_t *key, uint32_t me, uint32_t ranks, uint32_t lanes)
{
    memset(handshake, 0, sizeof *handshake);
    handshake->key = key;
    handshake->me = me;
    handshake->ranks = ranks;
    handshake->lanes = lanes;
    handshake->stage = PMR_HANDSHAKE_HELLO;
}

uint32_t pmr_handshake_wanted(const pmr_handshake *handshake)
{
    switch (handshake->stage) {
    case PMR_HANDSHAKE_HELLO:
        return sizeof(pmr_hello);
    case PMR_HANDSHAKE_CHALLENGE:
        return sizeof(pmr_challenge);
    case PMR_HANDSHAKE_PROOF:
        return sizeof(pmr_proof);
    case PMR_HANDSHAKE_VERDICT:
        return sizeof(pmr_verdict);
    default:
        return 0;
    }
}

static void take_hello(pmr_handshake *handshake, const uint8_t *message, pmr_answer *answer_out)
{
    pmr_hello *hello = &handshake->hello;
    memcpy(hello, message, sizeof *hello);
    if (memcmp(hello->magic, magic, sizeof magic) != 0)
        refuse(handshake, "does not speak pmrun");
    else if (hello->version != VERSION)
        refuse(handshake, "speaks another version of pmrun's protocol");
    else if (!mac_is(handshake, "hello..", COVERS_HELLO, 0, hello->mac))
        refuse(handshake, "does not have this job's key");
    else if (hello->to != handshake->me || hello->from == handshake->me || hello->from >= handshake->ranks ||
             hello->lane >= handshake->lanes)
        refuse(handshake, "has another picture of the ranks");
    else if (!draw_nonce(handshake->challenge.nonce))
        refuse(handshake, "cannot be challenged: the system gives no random bytes");
    else {
        mac(handshake, "challen", COVERS_CHALLENGE, 0, handshake->challenge.mac);
        answer(answer_out, &handshake->challenge, sizeof handshake->challenge);
        handshake->stage = PMR_HANDSHAKE_PROOF;
    }
}

static void take_challenge(pmr_handshake *handshake, const uint8_t *message, pmr_answer *answer_out)
{
    memcpy(&handshake->challenge, message, sizeof handshake->challenge);
    if (!mac_is(handshake, "challen", COVERS_CHALLENGE, 0, handshake->challenge.mac)) {
        refuse(handshake, "does not have this job's key");
        return;
    }
    pmr_proof proof;
    mac(handshake, "proof..", COVERS_CHALLENGE, 0, proof.mac);
    answer(answer_out, &proof, sizeof proof);
    handshake->stage = PMR_HANDSHAKE_VERDICT;
}

static void take_proof(pmr_handshake *handshake, const uint8_t *message)
{
    if (mac_is(handshake, "proof..", COVERS_CHALLENGE, 0, message))
        handshake->stage = PMR_HANDSHAKE_PROVEN;
    else
        refuse(handshake, "does not have this job's key");
}

static void take_verdict(pmr_handshake *handshake, const uint8_t *message)
{
    pmr_verdict verdict;
    memcpy(&verdict, message, sizeof verdict);
    if (!mac_is(handshake, "verdict", COVERS_VERDICT, verdict.taken, verdict.mac))
        refuse(handshake, "does not have this job's key");
    else
        handshake->stage = verdict.taken ? PMR_HANDSHAKE_TAKEN : PMR_HANDSHAKE_CROSSED;
}

void pmr_handshake_take(pmr_handshake *handshake, const uint8_t *message, pmr_answer *answer_out)
{
    answer_out->bytes = 0;
    switch (handshake->stage) {
    case PMR_HANDSHAKE_HELLO:
        take_hello(handshake, message, answer_out);
        break;
    case PMR_HANDSHAKE_CHALLENGE:
        take_challenge(handshake, message, answer_out);
        break;
    case PMR_HANDSHAKE_PROOF:
        take_proof(handshake, message);
        break;
    case PMR_HANDSHAKE_VERDICT:
        take_verdict(handshake, message);
        break;
    default:
        refuse(handshake, "says more than the handshake has");
    }
}

void pmr_handshake_decide(pmr_handshake *handshake, bool taken, pmr_answer *answer_out)
{
    pmr_verdict verdict = {.taken = taken};
    mac(handshake, "verdict", COVERS_VERDICT, verdict.taken, verdict.mac);
    answer(answer_out, &verdict, sizeof verdict);
    if (taken)
        handshake->stage = PMR_HANDSHAKE_TAKEN;
    else
        refuse(handshake, "dialled while we did");
}
