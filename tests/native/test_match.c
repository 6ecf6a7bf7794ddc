/* SPDX-License-Identifier: Apache-2.0
 *
 * test_match.c: the matcher against the definition of matching.
 *
 * A model keeps posted receives and unexpected messages in two plain arrays in order and searches them from the
 * front. Random programs over few communicators, sources and tags run on both; each step has to give the same partner.
 * Build: with progress/match.c. Usage: test_match [seed]
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "check.h"
#include "progress/match.h"

#define PROGRAMS 200
#define STEPS 2000

static uint64_t random_state;

static uint32_t draw(uint32_t below)
{
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(random_state >> 33) % below;
}

typedef struct item {
    union {
        pmr_posted posted;
        pmr_unexpected message;
    };
    bool waiting;
} item;

static item receives[STEPS], messages[STEPS];
static uint32_t receive_count, message_count;

static bool model_fits(const pmr_pattern *want, const pmr_pattern *have)
{
    bool source = want->source < 0 || want->source == have->source;
    bool tag = want->tag < 0 ? have->tag <= PMR_TAG_MAX : want->tag == have->tag;
    return source && tag && want->comm == have->comm;
}

static item *model_receive_for(const pmr_pattern *envelope)
{
    for (uint32_t i = 0; i < receive_count; i++)
        if (receives[i].waiting && model_fits(&receives[i].posted.pattern, envelope))
            return &receives[i];
    return NULL;
}

static item *model_message_for(const pmr_pattern *pattern)
{
    for (uint32_t i = 0; i < message_count; i++)
        if (messages[i].waiting && model_fits(pattern, &messages[i].message.envelope))
            return &messages[i];
    return NULL;
}

static void message_arrives(pmr_match *match)
{
    item *message = &messages[message_count++];
    message->message.envelope = (pmr_pattern){draw(2), (int32_t)draw(3), (int32_t)draw(4)};
    if (draw(8) == 0)
        message->message.envelope.tag = PMR_TAG_MAX + 1;
    item *expected = model_receive_for(&message->message.envelope);
    pmr_posted *got = pmr_match_arrive(match, &message->message.envelope);
    CHECK(got == (expected ? &expected->posted : NULL));
    if (expected)
        expected->waiting = false;
    else
        pmr_match_keep(match, &message->message);
    message->waiting = !expected;
}

static void receive_is_posted(pmr_match *match)
{
    item *receive = &receives[receive_count++];
    pmr_pattern *pattern = &receive->posted.pattern;
    *pattern = (pmr_pattern){draw(2), (int32_t)draw(4) - 1, (int32_t)draw(5) - 1};
    if (draw(8) == 0)
        pattern->tag = PMR_TAG_MAX + 1;
    item *expected = model_message_for(pattern);
    pmr_unexpected *got = pmr_match_find(match, pattern);
    CHECK(got == (expected ? &expected->message : NULL));
    if (expected) {
        pmr_match_take(got);
        expected->waiting = false;
    } else {
        pmr_match_post(match, &receive->posted);
    }
    receive->waiting = !expected;
}

static void receive_is_withdrawn(void)
{
    if (receive_count == 0)
        return;
    item *receive = &receives[draw(receive_count)];
    if (!receive->waiting)
        return;
    pmr_match_withdraw(&receive->posted);
    receive->waiting = false;
}

int main(int argc, char **argv)
{
    uint64_t seed = argc > 1 ? strtoull(argv[1], NULL, 10) : 20261122;
    printf("seed %" PRIu64 "\n", seed);
    random_state = seed;
    static pmr_match match;
    for (uint32_t program = 0; program < PROGRAMS; program++) {
        pmr_match_init(&match);
        memset(receives, 0, sizeof receives);
        memset(messages, 0, sizeof messages);
        receive_count = message_count = 0;
        uint32_t bias = 2 + draw(7); /* of ten: more receives or more messages wait */
        for (uint32_t step = 0; step < STEPS; step++) {
            if (draw(20) == 0)
                receive_is_withdrawn();
            else if (draw(10) < bias)
                message_arrives(&match);
            else
                receive_is_posted(&match);
        }
    }
    puts("test_match: ok");
    return 0;
}
