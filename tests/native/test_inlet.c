/* SPDX-License-Identifier: Apache-2.0
 *
 * test_inlet.c: what takes apart bytes from the network, given anything: sound streams in any cutting, and broken ones.
 *
 * A sound stream gives exactly its packets, however it is cut and however often the sink says LATER. A stream with
 * flipped, lost or added bytes gives packets that were sound, or an error; and never touches memory that it was not
 * given (AddressSanitizer looks on). The handshake never ends well without the key. Broken streams come from the seed, or,
with PMR_LIBFUZZER, from the fuzzer (make fuzz). Usage: test_inlet [seed [folder for some streams]]
 */
#include <string.h>

#include "fuzz.h"
#include "transport/handshake.h"
#include "transport/inlet.h"

#define STREAMS      300
#define PACKETS_MAX  40
#define PAYLOAD_MAX  100000u
#define CONVERSATIONS 3000

typedef struct reader {
    uint32_t arrived;
    uint8_t *place;
    uint64_t sum; /* of what arrived */
    bool exact;   /* packets must be numbered and filled as they were made */
} reader;

static uint8_t byte_at(uint32_t packet, uint32_t at)
{
    return (uint8_t)(packet * 31 + at * 7 + at / 256);
}

static pmr_placing place(void *arg, uint32_t peer, uint32_t lane, const pmr_packet *packet, void **into_out)
{
    reader *self = arg;
    CHECK(peer == 3 && lane == 1 && packet->kind != 0 && packet->kind < PMR_PACKET_KIND_OWN);
    CHECK(packet->payload_bytes <= PAYLOAD_MAX && !self->place);
    CHECK(!self->exact || packet->seq == self->arrived);
    uint32_t choice = fuzz_draw(5);
    if (choice == 0)
        return PMR_PLACE_LATER;
    if (choice < 3)
        return PMR_PLACE_SHOW;
    *into_out = self->place = malloc(packet->payload_bytes + !packet->payload_bytes); /* not a byte more */
    return PMR_PLACE_INTO;
}

static void arrived(void *arg, uint32_t peer, uint32_t lane, const pmr_packet *packet, const void *payload)
{
    (void)peer, (void)lane;
    reader *self = arg;
    const uint8_t *bytes = payload;
    CHECK(!self->place || payload == self->place);
    for (uint32_t i = 0; i < packet->payload_bytes; i++) {
        self->sum += bytes[i];
        CHECK(!self->exact || bytes[i] == byte_at(packet->seq, i));
    }
    free(self->place);
    self->place = NULL;
    self->arrived++;
}

/* Gives the stream to the inlet in random pieces. Returns whether it was sound to its end. */
static bool feed(pmr_inlet *inlet, const pmr_sink *sink, const uint8_t *stream, size_t bytes)
{
    pmr_endpoint_counts counts = {0};
    const char *why = NULL;
    size_t at = 0;
    while (at < bytes || inlet->held) {
        if (inlet->held && !pmr_inlet_resume(inlet, sink, &counts, &why))
            break;
        struct iovec vector[2];
        int places = pmr_inlet_room(inlet, vector);
        if (!places)
            continue; /* held */
        size_t piece = fuzz_draw(3) ? 1 + fuzz_draw(200) : 1 + fuzz_draw(60000), moved = 0;
        piece = piece < bytes - at ? piece : bytes - at;
        for (int i = 0; i < places && moved < piece; i++) {
            size_t step = piece - moved < vector[i].iov_len ? piece - moved : vector[i].iov_len;
            memcpy(vector[i].iov_base, stream + at + moved, step);
            moved += step;
        }
        CHECK(moved > 0 || at == bytes);
        at += moved;
        if (!pmr_inlet_take(inlet, moved, sink, &counts, &why))
            break;
    }
    CHECK(!why || why[0]);
    return !why;
}

/* An input: 8 bytes that say how the stream is cut and what the sink says, then the stream. The same
 * bytes are what a dialer without the key says to a host. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    static const uint8_t key[PMR_KEY_BYTES] = "the key";
    if (bytes < sizeof fuzz_random)
        return 0;
    uint64_t before = fuzz_random;
    memcpy(&fuzz_random, data, sizeof fuzz_random);
    data += sizeof fuzz_random, bytes -= sizeof fuzz_random;
    reader reader = {.exact = false};
    pmr_sink sink = {.arg = &reader, .place = place, .arrived = arrived};
    pmr_inlet inlet;
    pmr_inlet_init(&inlet, 3, 1, PAYLOAD_MAX);
    feed(&inlet, &sink, data, bytes);
    free(reader.place);
    pmr_inlet_fini(&inlet);
    pmr_handshake host;
    pmr_answer answer;
    pmr_handshake_host(&host, key, 2, 8, 4);
    for (uint32_t wanted; (wanted = pmr_handshake_wanted(&host)) && wanted <= bytes; data += wanted, bytes -= wanted)
        pmr_handshake_take(&host, data, &answer);
    CHECK(host.stage == PMR_HANDSHAKE_HELLO || host.stage == PMR_HANDSHAKE_REFUSED);
    fuzz_random = before;
    return 0;
}

#ifndef PMR_LIBFUZZER

/* Returns the bytes of a stream of packets. */
static size_t make_stream(uint8_t *stream, uint32_t packets)
{
    size_t at = 0;
    for (uint32_t n = 0; n < packets; n++) {
        uint32_t magnitude = fuzz_draw(17);
        pmr_packet packet = {.kind = 1 + fuzz_draw(9), .seq = n, .payload_bytes = fuzz_draw((1u << magnitude) + 1)};
        memcpy(stream + at, &packet, sizeof packet);
        at += sizeof packet;
        for (uint32_t i = 0; i < packet.payload_bytes; i++)
            stream[at + i] = byte_at(n, i);
        at += packet.payload_bytes;
    }
    return at;
}

static size_t damage(uint8_t *stream, size_t bytes)
{
    if (!bytes)
        return 0;
    size_t at = fuzz_draw((uint32_t)bytes), rest;
    switch (fuzz_draw(4)) {
    case 0: /* a bit */
        stream[at] ^= (uint8_t)(1u << fuzz_draw(8));
        return bytes;
    case 1: /* a byte lost */
        memmove(stream + at, stream + at + 1, bytes - at - 1);
        return bytes - 1;
    case 2: /* noise */
        rest = bytes - at < 64 ? bytes - at : 64;
        for (size_t i = 0; i < rest; i++)
            stream[at + i] = (uint8_t)fuzz_draw(256);
        return bytes;
    default: /* the end cut off */
        return at;
    }
}

static void test_streams(void)
{
    const size_t head = sizeof fuzz_random;
    uint8_t *input = malloc(head + (size_t)PACKETS_MAX * (sizeof(pmr_packet) + PAYLOAD_MAX)), *stream = input + head;
    for (uint32_t round = 0; round < STREAMS; round++) {
        bool sound = round % 3 == 0;
        uint32_t packets = 1 + fuzz_draw(PACKETS_MAX);
        size_t bytes = make_stream(stream, packets);
        memcpy(input, &fuzz_random, head);
        if (sound) {
            reader reader = {.exact = true};
            pmr_sink sink = {.arg = &reader, .place = place, .arrived = arrived};
            pmr_inlet inlet;
            pmr_inlet_init(&inlet, 3, 1, PAYLOAD_MAX);
            fuzz_keep(input, head + bytes);
            CHECK(feed(&inlet, &sink, stream, bytes) && reader.arrived == packets && !pmr_inlet_torn(&inlet));
            pmr_inlet_fini(&inlet);
            continue;
        }
        for (uint32_t i = 0; i <= round % 4; i++)
            bytes = damage(stream, bytes);
        LLVMFuzzerTestOneInput(input, head + bytes);
    }
    free(input);
}

/* One conversation, in which each message may be damaged. Returns whether anything was. */
static bool converse(const uint8_t *dialer_key, const uint8_t *host_key, bool damaging, pmr_handshake *dialer,
                     pmr_handshake *host)
{
    pmr_answer answer[2];
    pmr_error error;
    bool damaged = false;
    CHECK(pmr_handshake_dial(dialer, dialer_key, 1, 2, 3, &answer[0], &error) == PMR_OK);
    pmr_handshake_host(host, host_key, 2, 8, 4);
    for (uint32_t turn = 0; answer[turn % 2].bytes; turn++) {
        pmr_handshake *to = turn % 2 ? dialer : host;
        uint8_t *message = answer[turn % 2].message;
        CHECK(answer[turn % 2].bytes <= PMR_HANDSHAKE_MESSAGE_MAX);
        if (damaging && fuzz_draw(3) == 0) {
            message[fuzz_draw(answer[turn % 2].bytes)] ^= (uint8_t)(1u << fuzz_draw(8));
            damaged = true;
        }
        CHECK(pmr_handshake_wanted(to) == answer[turn % 2].bytes);
        pmr_handshake_take(to, message, &answer[(turn + 1) % 2]);
        if (to->stage == PMR_HANDSHAKE_PROVEN)
            pmr_handshake_decide(to, fuzz_draw(4) > 0, &answer[(turn + 1) % 2]);
    }
    return damaged;
}

static void test_handshake(void)
{
    static const uint8_t key[PMR_KEY_BYTES] = "the key", other[PMR_KEY_BYTES] = "another";
    pmr_handshake dialer, host;
    for (uint32_t i = 0; i < CONVERSATIONS; i++) {
        bool damaged = converse(key, key, i % 2, &dialer, &host);
        bool done = dialer.stage == PMR_HANDSHAKE_TAKEN && host.stage == PMR_HANDSHAKE_TAKEN;
        bool crossed = dialer.stage == PMR_HANDSHAKE_CROSSED && host.stage == PMR_HANDSHAKE_REFUSED;
        if (damaged) /* a damaged verdict leaves the host content; the dialer never is */
            CHECK(dialer.stage != PMR_HANDSHAKE_TAKEN && dialer.stage != PMR_HANDSHAKE_CROSSED);
        else
            CHECK(done || crossed);
        CHECK(!(dialer.stage == PMR_HANDSHAKE_REFUSED) || dialer.why[0]);
        converse(i % 2 ? key : other, i % 2 ? other : key, false, &dialer, &host);
        CHECK(host.stage == PMR_HANDSHAKE_REFUSED && strcmp(host.why, "does not have this job's key") == 0);
    }
    for (uint32_t i = 0; i < CONVERSATIONS; i++) { /* noise from the start */
        uint8_t message[PMR_HANDSHAKE_MESSAGE_MAX];
        pmr_answer answer;
        for (uint32_t b = 0; b < sizeof message; b++)
            message[b] = (uint8_t)fuzz_draw(256);
        pmr_handshake_host(&host, key, 2, 8, 4);
        pmr_handshake_take(&host, message, &answer);
        CHECK(host.stage == PMR_HANDSHAKE_REFUSED && answer.bytes == 0);
        pmr_handshake_take(&host, message, &answer);
        CHECK(host.stage == PMR_HANDSHAKE_REFUSED && answer.bytes == 0);
    }
}

/* What one side said to one peer is worth nothing to another, nor a second time. */
static void test_replay(void)
{
    static const uint8_t key[PMR_KEY_BYTES] = "the key";
    pmr_handshake dialer, host, again;
    pmr_answer hello, challenge, proof, verdict;
    pmr_error error;
    CHECK(pmr_handshake_dial(&dialer, key, 1, 2, 0, &hello, &error) == PMR_OK);
    pmr_handshake_host(&host, key, 2, 8, 4);
    pmr_handshake_take(&host, hello.message, &challenge);
    pmr_handshake_take(&dialer, challenge.message, &proof);
    pmr_handshake_take(&host, proof.message, &verdict);
    CHECK(host.stage == PMR_HANDSHAKE_PROVEN);
    pmr_handshake_host(&again, key, 2, 8, 4);
    pmr_handshake_take(&again, hello.message, &verdict);
    CHECK(again.stage == PMR_HANDSHAKE_PROOF);
    pmr_handshake_take(&again, proof.message, &verdict);
    CHECK(again.stage == PMR_HANDSHAKE_REFUSED);
    pmr_handshake_host(&again, key, 3, 8, 4); /* another rank */
    pmr_handshake_take(&again, hello.message, &verdict);
    CHECK(again.stage == PMR_HANDSHAKE_REFUSED && strcmp(again.why, "has another picture of the ranks") == 0);
    pmr_handshake_host(&again, key, 1, 8, 4); /* its own words */
    pmr_handshake_take(&again, hello.message, &verdict);
    CHECK(again.stage == PMR_HANDSHAKE_REFUSED);
}

int main(int argc, char **argv)
{
    fuzz_begin(argc, argv);
    test_streams();
    test_handshake();
    test_replay();
    return 0;
}
#endif
