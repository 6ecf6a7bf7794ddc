/* SPDX-License-Identifier: Apache-2.0
 *
 * handshake.h: how two ranks prove the job's key to each other, before either reads a packet of the other's.
 *
 * The *dialer* made the connection, the *host* accepted it. Four messages of fixed sizes:
 *
 *   dialer -> host    HELLO      who, for whom, which lane, a nonce; a MAC under the key, which keeps strangers out
 *   host -> dialer    CHALLENGE  a nonce; a MAC over HELLO and the nonce: the host has the key, now
 *   dialer -> host    PROOF      a MAC over both: the dialer has it, now
 *   host -> dialer    VERDICT    taken, or refused because both dialled at once; a MAC over all
 *
 * Each MAC begins with the message's own name, so none can stand for another, and covers all that was said before, so
 * none can be replayed. It knows no socket: it is given whole messages of the size that it asked for, and nobody sends
 * anything behind PROOF before VERDICT came. Invariant: after a refusal nothing is told and nothing more is taken.
 */
#ifndef PMR_TRANSPORT_HANDSHAKE_H
#define PMR_TRANSPORT_HANDSHAKE_H

#include "core/hmac.h"
#include "include/pmr.h"

#define PMR_HANDSHAKE_MESSAGE_MAX 96u

typedef struct pmr_hello {
    char magic[8];
    uint32_t version;
    uint32_t from, to, lane;
    uint8_t nonce[32];
    uint8_t mac[PMR_DIGEST_BYTES];
} pmr_hello;

typedef struct pmr_challenge {
    uint8_t nonce[32];
    uint8_t mac[PMR_DIGEST_BYTES];
} pmr_challenge;

typedef struct pmr_proof {
    uint8_t mac[PMR_DIGEST_BYTES];
} pmr_proof;

typedef struct pmr_verdict {
    uint32_t taken;
    uint8_t mac[PMR_DIGEST_BYTES];
} pmr_verdict;

typedef enum pmr_handshake_stage {
    PMR_HANDSHAKE_HELLO, /* this is the next message that is to come */
    PMR_HANDSHAKE_CHALLENGE,
    PMR_HANDSHAKE_PROOF,
    PMR_HANDSHAKE_PROVEN, /* host: the peer is who it says; it is to be told a verdict */
    PMR_HANDSHAKE_VERDICT,
    PMR_HANDSHAKE_TAKEN,
    PMR_HANDSHAKE_CROSSED, /* dialer: the peer goes on with the connection that it made itself */
    PMR_HANDSHAKE_REFUSED  /* `why` tells */
} pmr_handshake_stage;

typedef struct pmr_handshake {
    pmr_handshake_stage stage;
    uint32_t me, ranks, lanes;
    const char *why; /* of a refusal */
    pmr_hello hello; /* said or heard; from the host's HELLO on it names the peer */
    pmr_challenge challenge;
    const uint8_t *key; /* PMR_KEY_BYTES; lives as long as this */
} pmr_handshake;

/* An answer to be sent: `bytes` 0: none. */
typedef struct pmr_answer {
    uint8_t message[PMR_HANDSHAKE_MESSAGE_MAX];
    uint32_t bytes;
} pmr_answer;

/* The dialer begins: HELLO. PMR_ERR_OS: the system gives no random bytes. */
pmr_status pmr_handshake_dial(pmr_handshake *handshake, const uint8_t *key, uint32_t me, uint32_t peer, uint32_t lane,
                              pmr_answer *answer_out, pmr_error *error);

/* The host waits for HELLO, from any of `ranks` and for any of `lanes`. */
void pmr_handshake_host(pmr_handshake *handshake, const uint8_t *key, uint32_t me, uint32_t ranks, uint32_t lanes);

/* Size of the message that is to come next; 0: none is. */
uint32_t pmr_handshake_wanted(const pmr_handshake *handshake);

/* Takes a whole message. Look at `stage` behind it. */
void pmr_handshake_take(pmr_handshake *handshake, const uint8_t *message, pmr_answer *answer_out);

/* The host decides, once, at PROVEN. */
void pmr_handshake_decide(pmr_handshake *handshake, bool taken, pmr_answer *answer_out);

#endif
