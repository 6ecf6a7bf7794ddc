/* SPDX-License-Identifier: Apache-2.0
 *
 * test_p2p_random.c: random programs of messages against the definition of matching.
 *
 * All ranks draw the same plan from one seed: for each phase and pair of ranks a stream of messages, and for each
 * phase how receives are written (exact, any tag, any source, both). A rank starts its sends in order, mixed with
 * nonblocking receives, then makes the rest of its receives. Every message carries its stream's name and its number.
 * Checked per receive, in the order of posting: every earlier message of that stream that it could have taken was
 * taken by an earlier receive; and in the end every message was taken once. Phases follow without a barrier.
 * Build: as test_p2p.c. Usage: test_p2p_random [processes|threads] [seed] [gangs]
 */
#include "p2p_ranks.h"

#define PHASES 3
#define RANKS_MAX 4
#define STREAM_MAX 20
#define TAGS 3
#define STAMP_BYTES 16u

typedef enum style { EXACT, ANY_TAG, ANY_SOURCE, ANY_BOTH } style;

typedef struct message {
    int32_t tag;
    size_t bytes;
    bool in_heap;       /* sent from the window's heap */
    bool blocking;
} message;

typedef struct stream {
    uint32_t count;
    message messages[STREAM_MAX];
} stream;

typedef struct plan {
    style style[PHASES];
    stream streams[PHASES][RANKS_MAX][RANKS_MAX]; /* [phase][source][dest] */
} plan;

typedef struct receive {
    pmr_p2p_in in;
    pmr_request *request;
    pmr_message_info info;
    uint32_t number;    /* of the message it took, in its stream */
} receive;

typedef struct sending {
    pmr_request *request;
    uint8_t *data;
    bool in_heap;
} sending;

static size_t draw_bytes(uint64_t *state)
{
    switch (draw(state, 10)) {
    case 0: return 0;
    case 1: case 2: case 3: return draw(state, 100);
    case 4: case 5: return draw(state, 5000);
    case 6: return 16384 - 32 + draw(state, 64);
    case 7: case 8: return draw(state, 300 << 10);
    default: return draw(state, 8) ? draw(state, 40000) : draw(state, 3 << 20);
    }
}

static void draw_plan(plan *plan, uint32_t ranks, uint64_t *state)
{
    memset(plan, 0, sizeof *plan);
    for (uint32_t phase = 0; phase < PHASES; phase++) {
        plan->style[phase] = (style)draw(state, 4);
        for (uint32_t pair = 0; pair < ranks * ranks; pair++) {
            stream *stream = &plan->streams[phase][pair / ranks][pair % ranks];
            stream->count = draw(state, STREAM_MAX + 1);
            for (uint32_t i = 0; i < stream->count; i++) {
                message *message = &stream->messages[i];
                message->tag = (int32_t)draw(state, TAGS);
                message->bytes = draw_bytes(state);
                message->in_heap = draw(state, 4) == 0 && message->bytes < 200000;
                message->blocking = message->bytes <= 4096 && draw(state, 2);
            }
        }
    }
}

/* The receives of a phase, as patterns, in an order of this rank's choice. */
static uint32_t draw_receives(const plan *plan, uint32_t phase, const rank_env *env, uint64_t *own, receive *receives)
{
    uint32_t count = 0;
    for (uint32_t source = 0; source < env->ranks; source++) {
        const stream *stream = &plan->streams[phase][source][env->rank];
        for (uint32_t i = 0; i < stream->count; i++) {
            style style = plan->style[phase];
            receives[count++].in = (pmr_p2p_in){
                .bytes = 3 << 20, .comm = phase, .source_place = source,
                .source = style == ANY_SOURCE || style == ANY_BOTH ? PMR_ANY_SOURCE : (int32_t)source,
                .tag = style == ANY_TAG || style == ANY_BOTH ? PMR_ANY_TAG : stream->messages[i].tag};
        }
    }
    for (uint32_t i = count; i > 1; i--) {
        uint32_t other = draw(own, i);
        receive swapped = receives[i - 1];
        receives[i - 1] = receives[other];
        receives[other] = swapped;
    }
    return count;
}

static uint8_t byte_at(size_t i, uint32_t stamp)
{
    return (uint8_t)(i * 13 + (i >> 9) + stamp);
}

static uint32_t stamp_of(uint32_t phase, uint32_t source, uint32_t dest, uint32_t number)
{
    return (phase << 24) + (source << 20) + (dest << 16) + number;
}

/* Short messages carry as much of the stamp as fits; their length says the rest (see identify). */
static void write_payload(uint8_t *data, size_t bytes, uint32_t stamp)
{
    for (size_t i = 0; i < bytes; i++)
        data[i] = byte_at(i, stamp);
    if (bytes >= STAMP_BYTES)
        memcpy(data, &stamp, sizeof stamp);
}

static bool payload_is(const uint8_t *data, size_t bytes, uint32_t stamp)
{
    size_t from = 0;
    if (bytes >= STAMP_BYTES) {
        uint32_t found;
        memcpy(&found, data, sizeof found);
        if (found != stamp)
            return false;
        from = sizeof stamp;
    }
    for (size_t i = from; i < bytes; i++)
        if (data[i] != byte_at(i, stamp))
            return false;
    return true;
}

static void start_one_send(rank_env *env, const plan *plan, uint32_t phase, uint32_t dest, uint32_t number,
                           sending *sending)
{
    const message *message = &plan->streams[phase][env->rank][dest].messages[number];
    pmr_error error = {.text = ""};
    bool heap = message->in_heap && env->heap_used + message->bytes + 64 <= HEAP_BYTES;
    sending->in_heap = heap;
    sending->data = heap ? take_heap(env, message->bytes) : malloc(message->bytes + 1);
    write_payload(sending->data, message->bytes, stamp_of(phase, env->rank, dest, number));
    pmr_p2p_out out = {sending->data, message->bytes, phase, dest, (int32_t)env->rank, message->tag};
    if (message->blocking) {
        pmr_p2p_wait wait = within(env, FAR);
        CHECK_OK(pmr_p2p_send(env->p2p, &out, &wait, &error));
        sending->request = NULL;
    } else {
        CHECK_OK(pmr_p2p_isend(env->p2p, &out, &sending->request, &error));
    }
}

static void start_receive(rank_env *env, receive *receive)
{
    pmr_error error = {.text = ""};
    receive->in.data = malloc(receive->in.bytes);
    CHECK_OK(pmr_p2p_irecv(env->p2p, &receive->in, &receive->request, &error));
}

static void make_receive(rank_env *env, receive *receive, uint64_t *own)
{
    pmr_error error = {.text = ""};
    pmr_p2p_wait wait = within(env, FAR);
    if (draw(own, 3) == 0) {
        pmr_message_info seen;
        CHECK_OK(pmr_p2p_probe(env->p2p, &receive->in, &wait, &seen, &error));
        receive->in.bytes = seen.bytes; /* the receive takes the very message that was probed */
    }
    receive->in.data = malloc(receive->in.bytes + 1);
    CHECK_OK(pmr_p2p_recv(env->p2p, &receive->in, &wait, &receive->info, &error));
}

/* Which message of its stream a receive took: the first one not taken yet that agrees in tag, length and content. */
static void identify(const plan *plan, uint32_t phase, const rank_env *env, receive *receive, bool taken[][STREAM_MAX])
{
    const pmr_message_info *info = &receive->info;
    uint32_t source = (uint32_t)info->source;
    CHECK(source < env->ranks);
    const stream *stream = &plan->streams[phase][source][env->rank];
    uint32_t i = 0;
    while (i < stream->count &&
           (taken[source][i] || stream->messages[i].tag != info->tag || stream->messages[i].bytes != info->bytes ||
            !payload_is(receive->in.data, info->bytes, stamp_of(phase, source, env->rank, i))))
        i++;
    CHECK(i < stream->count);
    for (uint32_t earlier = 0; earlier < i; earlier++) {
        bool could = receive->in.tag == PMR_ANY_TAG || receive->in.tag == stream->messages[earlier].tag;
        CHECK(!could || taken[source][earlier]);
    }
    taken[source][i] = true;
}

static void finish_sends(sending *sends, uint32_t count)
{
    pmr_error error = {.text = ""};
    for (uint32_t i = 0; i < count; i++) {
        if (sends[i].request) {
            CHECK_OK(pmr_request_wait(sends[i].request, FAR, &error));
            pmr_request_free(sends[i].request);
        }
        if (!sends[i].in_heap)
            free(sends[i].data);
    }
}

static void run_phase(rank_env *env, const plan *plan, uint32_t phase, uint64_t *own, sending *sends,
                      uint32_t *send_count)
{
    static _Thread_local receive receives[RANKS_MAX * STREAM_MAX];
    memset(receives, 0, sizeof receives);
    uint32_t count = draw_receives(plan, phase, env, own, receives), posted = 0;
    uint32_t sent[RANKS_MAX] = {0};
    for (uint32_t left = env->ranks; left > 0;) {
        uint32_t dest = draw(own, env->ranks);
        if (sent[dest] < plan->streams[phase][env->rank][dest].count)
            start_one_send(env, plan, phase, dest, sent[dest]++, &sends[(*send_count)++]);
        if (posted < count && draw(own, 3) == 0)
            start_receive(env, &receives[posted++]);
        left = 0;
        for (uint32_t rank = 0; rank < env->ranks; rank++)
            left += sent[rank] < plan->streams[phase][env->rank][rank].count;
    }
    for (uint32_t i = posted; i < count; i++) {
        if (draw(own, 2))
            start_receive(env, &receives[i]);
        else
            make_receive(env, &receives[i], own);
    }
    pmr_error error = {.text = ""};
    bool taken[RANKS_MAX][STREAM_MAX] = {{false}};
    for (uint32_t i = 0; i < count; i++) {
        if (receives[i].request) {
            CHECK_OK(pmr_request_wait(receives[i].request, FAR, &error));
            pmr_request_info(receives[i].request, &receives[i].info);
            pmr_request_free(receives[i].request);
        }
        identify(plan, phase, env, &receives[i], taken);
        free(receives[i].in.data);
    }
}

static void body(rank_env *env)
{
    plan *drawn = malloc(sizeof *drawn);
    sending *sends = calloc(PHASES * RANKS_MAX * STREAM_MAX, sizeof *sends);
    uint64_t shared = env->random, own = env->random + env->rank + 1;
    uint32_t send_count = 0;
    draw_plan(drawn, env->ranks, &shared);
    for (uint32_t phase = 0; phase < PHASES; phase++)
        run_phase(env, drawn, phase, &own, sends, &send_count);
    finish_sends(sends, send_count);
    free(sends);
    free(drawn);
}

int main(int argc, char **argv)
{
    as_threads = argc > 2 && strcmp(argv[2], "threads") == 0;
    uint64_t seed = argc > 1 ? strtoull(argv[1], NULL, 10) : 20261122;
    uint32_t gangs = argc > 3 ? (uint32_t)strtoul(argv[3], NULL, 10) : 12;
    for (uint32_t i = 0; i < gangs; i++) {
        printf("seed %" PRIu64 ": ", seed + i);
        run_gang("random", 2 + i % 3, body, seed + i);
    }
    puts("test_p2p_random: ok");
    return 0;
}
