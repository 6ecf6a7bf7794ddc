/* SPDX-License-Identifier: Apache-2.0
 *
 * span_trouble.c: what ends a call across nodes before its time, and how all ranks come to tell the same story.
 *
 * A rank that has waited for some time *asks* those it waits for: the question says which call it is in, so that ranks
 * of different calls find out even where neither sends the other anything. Who sees a difference *tells* the other its
 * last calls with their call sites, and is told the other's; both make the same text of it. At a deadline one rank of
 * each node is asked which ranks of its node have entered, which the flight recorders say. Who finds a cause writes the
 * abort record of its node and hands it to all others.
 * Invariant: under the hub's lock nothing here waits.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "comm/span.h"
#include "core/clock.h"

#define TALE_CALLS        16u
#define TALE_TEXT_BYTES   330u
#define TELL_WAIT_NS      1500000000ll /* for the other's calls, and for the agents' word on a lost peer */
#define CENSUS_WAIT_NS    400000000ll
#define ASK_FIRST_NS      100000000ll
#define ASK_LAST_NS       5000000000ll
#define ASK_RANKS_MAX     64u          /* at once */
#define CENSUS_RANKS      1024u

/* A rank's last calls: what TELL carries. */
typedef struct pmr_span_tale {
    struct {
        uint32_t seq;
        uint32_t known;
        uint64_t fingerprint;
        char text[TALE_TEXT_BYTES];
    } call[TALE_CALLS];
} pmr_span_tale;

_Static_assert(sizeof(pmr_span_tale) <= PMR_PACKET_COPY_MAX, "a tale is one packet");

/* Who has entered a call, by rank: what HERE carries of one node, and the sum of them. */
typedef struct pmr_span_census {
    uint32_t seq;
    uint32_t answers;     /* nodes */
    uint8_t *entered;     /* by rank */
    uint8_t *answered;    /* by node */
} pmr_span_census;

/* ---- a rank of this node, as the recorder knows it ---- */

static bool member_is_local(const pmr_span *span, uint32_t rank)
{
    return span->shape.node[rank] == span->shape.node[span->comm->rank];
}

/* The member, a rank of this node, has entered the call or one behind it. */
static bool has_entered(const pmr_span *span, uint32_t rank, uint32_t seq)
{
    const pmr_comm *comm = span->comm;
    const pmr_recorder *recorder =
        pmr_window_recorder(&comm->context->window, pmr_comm_local(comm, rank));
    pmr_record record;
    return pmr_recorder_newest(recorder, comm->id, &record) && (int32_t)(record.seq - seq) >= 0;
}

/* ---- telling each other what was called ---- */

static void fill_tale(const pmr_span *span, uint32_t seq, pmr_span_tale *tale)
{
    memset(tale, 0, sizeof *tale);
    for (uint32_t i = 0; i < TALE_CALLS && seq - i > 0; i++) {
        uint32_t each = seq - i;
        if ((int32_t)(span->comm->entered - each) < 0)
            continue;
        tale->call[i].seq = each;
        tale->call[i].known = 1;
        tale->call[i].fingerprint = span->history[each % PMR_HISTORY_CALLS];
        pmr_comm_describe(span->comm, span->comm->rank, each, tale->call[i].text, TALE_TEXT_BYTES);
    }
}

static void tell(pmr_span *span, uint32_t rank, uint32_t seq)
{
    if (span->members[rank].told)
        return;
    pmr_span_tale tale;
    fill_tale(span, seq, &tale);
    pmr_packet packet = {.kind = PMR_PACKET_TELL,
                         .payload_bytes = sizeof tale,
                         .comm = span->comm->id,
                         .seq = seq,
                         .source = (int32_t)span->comm->rank};
    span->members[rank].told =
        pmr_endpoint_send(span->hub->endpoint, span->comm->members[rank], 0, &packet, &tale, 0);
}

static void hear_tale(pmr_span *span, uint32_t rank, const pmr_packet *packet, const void *payload)
{
    if (packet->payload_bytes != sizeof(pmr_span_tale) || !payload)
        return;
    if (span->differs_rank == UINT32_MAX || span->differs_rank == rank) {
        span->differs_rank = rank;
        span->differs_seq = packet->seq;
        if (!span->told)
            span->told = malloc(sizeof *span->told);
        if (span->told) {
            memcpy(span->told, payload, sizeof *span->told);
            for (uint32_t i = 0; i < TALE_CALLS; i++)
                span->told->call[i].text[TALE_TEXT_BYTES - 1] = '\0';
        }
        span->told_rank = rank;
    }
    tell(span, rank, packet->seq);
}

/* ---- who has entered ---- */

static void answer_where(pmr_span *span, uint32_t rank, const pmr_packet *packet)
{
    const pmr_shape *shape = &span->shape;
    uint32_t node = shape->node[span->comm->rank], members = pmr_shape_members(shape, node);
    uint8_t entered[CENSUS_RANKS] = {0};
    members = members < CENSUS_RANKS ? members : CENSUS_RANKS;
    for (uint32_t i = 0; i < members; i++)
        entered[i] = has_entered(span, pmr_shape_rank(shape, node, i), packet->seq);
    pmr_packet answer = {.kind = PMR_PACKET_HERE,
                         .payload_bytes = members,
                         .comm = span->comm->id,
                         .seq = packet->seq,
                         .source = (int32_t)span->comm->rank};
    pmr_endpoint_send(span->hub->endpoint, span->comm->members[rank], 0, &answer, entered, 0);
}

static void hear_here(pmr_span *span, uint32_t rank, const pmr_packet *packet, const uint8_t *entered)
{
    pmr_span_census *census = span->census;
    uint32_t node = span->shape.node[rank];
    if (!census || census->seq != packet->seq || census->answered[node] || !entered)
        return;
    census->answered[node] = 1;
    census->answers++;
    for (uint32_t i = 0; i < packet->payload_bytes && i < pmr_shape_members(&span->shape, node); i++)
        census->entered[pmr_shape_rank(&span->shape, node, i)] = entered[i];
}

void pmr_span_hear(pmr_span *span, uint32_t rank, const pmr_packet *packet, const void *payload)
{
    if (packet->kind == PMR_PACKET_TELL)
        hear_tale(span, rank, packet, payload);
    else if (packet->kind == PMR_PACKET_WHERE)
        answer_where(span, rank, packet);
    else if (packet->kind == PMR_PACKET_HERE)
        hear_here(span, rank, packet, payload);
}

static pmr_status no_check(void *arg, pmr_error *error)
{
    (void)arg;
    (void)error;
    return PMR_OK;
}

/* Drives the network until `*done` says so, the gang has ended, or the time is over. */
static bool drive_until(pmr_span *span, bool (*done)(const pmr_span *span), int64_t wait_ns)
{
    int64_t deadline_ns = pmr_now_ns() + wait_ns;
    pmr_wait_policy policy = {.polls = 1};
    pmr_watch watch = {.abort_state = pmr_window_abort_word(&span->comm->context->window),
                       .check = no_check};
    for (;;) {
        pmr_hub_lock(span->hub);
        pmr_hub_poll(span->hub);
        bool is_done = done(span);
        uint32_t seen = pmr_hub_moves(span->hub);
        pmr_hub_unlock(span->hub);
        if (is_done || atomic_load(watch.abort_state) || pmr_now_ns() >= deadline_ns)
            return is_done;
        int64_t slice_ns = pmr_now_ns() + 10000000;
        pmr_hub_wait(span->hub, seen, &policy, &watch, slice_ns < deadline_ns ? slice_ns : deadline_ns, NULL);
    }
}

/* ---- a mismatch ---- */

static bool is_told(const pmr_span *span)
{
    return span->told && span->told_rank == span->differs_rank;
}

/* The first call that both remember and that differs; `*theirs` is empty when the other told nothing. */
static uint32_t first_difference(const pmr_span *span, uint32_t seq, const char **theirs)
{
    *theirs = "";
    uint32_t first = seq;
    for (uint32_t i = 0; span->told && i < TALE_CALLS; i++) {
        uint32_t each = span->told->call[i].seq;
        if (!span->told->call[i].known || span->comm->entered - each >= PMR_HISTORY_CALLS)
            break;
        bool same = span->told->call[i].fingerprint == span->history[each % PMR_HISTORY_CALLS];
        if (same && i > 0)
            break;
        first = each;
        *theirs = span->told->call[i].text;
    }
    return first;
}

pmr_status pmr_span_mismatch(pmr_span *span, pmr_error *error)
{
    pmr_comm *comm = span->comm;
    pmr_status status = pmr_window_aborted(&comm->context->window, error);
    if (status)
        return status;
    uint32_t rank = span->differs_rank;
    pmr_hub_lock(span->hub);
    tell(span, rank, span->differs_seq);
    pmr_hub_unlock(span->hub);
    drive_until(span, is_told, TELL_WAIT_NS);
    status = pmr_window_aborted(&comm->context->window, error);
    if (status)
        return status;
    pmr_hub_lock(span->hub);
    const char *told;
    uint32_t seq = first_difference(span, span->differs_seq, &told);
    char ours[TALE_TEXT_BYTES], theirs[TALE_TEXT_BYTES + 32], text[PMR_ERROR_TEXT_BYTES];
    pmr_comm_describe(comm, comm->rank, seq, ours, sizeof ours);
    if (*told)
        snprintf(theirs, sizeof theirs, "%s", told);
    else
        snprintf(theirs, sizeof theirs, "rank %u: another call", comm->members[rank]);
    pmr_hub_unlock(span->hub);
    bool first = rank < comm->rank;
    snprintf(text, sizeof text, "call %u of the communicator differs: %s; %s", seq, first ? theirs : ours,
             first ? ours : theirs);
    uint32_t later = first ? comm->rank : rank; /* both sides name the same one */
    return pmr_comm_end_gang(comm, PMR_ABORT_MISMATCH, (int32_t)comm->members[later], "", text, error);
}

/* ---- a lost member ---- */

static bool never(const pmr_span *span)
{
    (void)span;
    return false;
}

static pmr_status fail_lost(pmr_span *span, uint32_t rank, pmr_error *error)
{
    pmr_comm *comm = span->comm;
    uint32_t world_rank = comm->members[rank];
    drive_until(span, never, TELL_WAIT_NS); /* the agents know why, and will say so */
    pmr_status status = pmr_window_aborted(&comm->context->window, error);
    if (status)
        return status;
    char ours[TALE_TEXT_BYTES], text[PMR_ERROR_TEXT_BYTES];
    pmr_comm_describe(comm, comm->rank, comm->entered, ours, sizeof ours);
    const char *why = span->hub->losses ? span->hub->losses[world_rank].text : "its connection ended";
    snprintf(text, sizeof text, "rank %u is gone, inside or before the call that the others wait in (%.200s); %s",
             world_rank, why, ours);
    return pmr_comm_end_gang(comm, PMR_ABORT_RANK_FAILED, (int32_t)world_rank, "", text, error);
}

/* The first member that is lost and that the open call still needs; UINT32_MAX: none. */
static uint32_t lost_member(const pmr_span *span)
{
    for (uint32_t rank = 0; span->call && rank < span->comm->size; rank++)
        if (span->members[rank].lost && span->call->needs(span->call, rank))
            return rank;
    return UINT32_MAX;
}

/* ---- looking around ---- */

/* "I am in this call": to those who have not entered it, now and then. */
static void ask_the_late(pmr_span *span)
{
    int64_t now = pmr_now_ns();
    if (span->asks == 0) {
        span->asks = 1;
        span->ask_due_ns = now + ASK_FIRST_NS;
        return;
    }
    if (now < span->ask_due_ns)
        return;
    int64_t pause = ASK_FIRST_NS << (span->asks < 6 ? span->asks : 6);
    span->asks++;
    span->ask_due_ns = now + (pause < ASK_LAST_NS ? pause : ASK_LAST_NS);
    uint32_t asked = 0;
    for (uint32_t rank = 0; span->call && rank < span->comm->size && asked < ASK_RANKS_MAX; rank++)
        if (!member_is_local(span, rank) && span->call->awaits(span->call, rank)) {
            pmr_span_send(span, rank, &(pmr_span_word){.kind = PMR_PACKET_ASK});
            asked++;
        }
}

pmr_status pmr_span_check(pmr_comm *comm, pmr_error *error)
{
    pmr_span *span = comm->span;
    pmr_hub_lock(span->hub);
    pmr_hub_poll(span->hub);
    bool differs = span->differs_rank != UINT32_MAX;
    uint32_t lost = lost_member(span);
    if (!differs && lost == UINT32_MAX)
        ask_the_late(span);
    pmr_hub_unlock(span->hub);
    if (differs)
        return pmr_span_mismatch(span, error);
    if (lost != UINT32_MAX)
        return fail_lost(span, lost, error);
    return span->inner->running ? pmr_comm_check_quiet(span->inner, error) : PMR_OK;
}

/* ---- a deadline ---- */

static bool all_answered(const pmr_span *span)
{
    return span->census->answers == span->shape.nodes;
}

/* Asks every rank of the other nodes; the first of each node that answers speaks for it. */
static void take_census(pmr_span *span, pmr_span_census *census)
{
    const pmr_shape *shape = &span->shape;
    const pmr_comm *comm = span->comm;
    uint32_t own = shape->node[comm->rank];
    for (uint32_t i = 0; i < pmr_shape_members(shape, own); i++) {
        uint32_t rank = pmr_shape_rank(shape, own, i);
        census->entered[rank] = rank == comm->rank || has_entered(span, rank, census->seq);
    }
    census->answered[own] = 1;
    census->answers = 1;
    pmr_packet packet = {
        .kind = PMR_PACKET_WHERE, .comm = comm->id, .seq = census->seq, .source = (int32_t)comm->rank};
    pmr_hub_lock(span->hub);
    span->census = census;
    for (uint32_t rank = 0; rank < comm->size; rank++) {
        census->entered[rank] |= (int32_t)(span->members[rank].seen - census->seq) >= 0;
        if (!member_is_local(span, rank))
            pmr_endpoint_send(span->hub->endpoint, comm->members[rank], 0, &packet, NULL, 0);
    }
    pmr_hub_unlock(span->hub);
    drive_until(span, all_answered, CENSUS_WAIT_NS);
    pmr_hub_lock(span->hub);
    span->census = NULL;
    pmr_hub_unlock(span->hub);
}

pmr_status pmr_span_stalled(const pmr_task *task, pmr_error *error)
{
    const pmr_comm *comm = task->comm;
    pmr_span *span = comm->span;
    pmr_span_census census = {.seq = task->seq, .entered = calloc(comm->size, 1), .answered = calloc(comm->size, 1)};
    char missing[160] = "", ours[TALE_TEXT_BYTES], text[PMR_ERROR_TEXT_BYTES];
    int32_t first = -1;
    size_t used = 0;
    if (census.entered && census.answered)
        take_census(span, &census);
    for (uint32_t rank = 0; census.entered && rank < comm->size; rank++) {
        if (census.entered[rank])
            continue;
        first = first < 0 ? (int32_t)comm->members[rank] : first;
        if (used < sizeof missing - 16)
            used += (size_t)snprintf(missing + used, sizeof missing - used, "%s%u", used ? ", " : "",
                                     comm->members[rank]);
    }
    free(census.entered);
    free(census.answered);
    pmr_comm_describe(comm, comm->rank, task->seq, ours, sizeof ours);
    if (first >= 0)
        snprintf(text, sizeof text, "timed out; not entered by rank(s) %s; waiting is %s", missing, ours);
    else
        snprintf(text, sizeof text, "timed out after all ranks had entered; waiting is %s", ours);
    return pmr_comm_end_gang(comm, PMR_ABORT_STALLED, first, "", text, error);
}
