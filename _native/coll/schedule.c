/* SPDX-License-Identifier: Apache-2.0
 *
 * schedule.c: putting schedules together.
 *
 * While a schedule is built its parts are lists that grow, and dependencies are pairs of steps; its end sorts them, so
 * that whoever runs it walks arrays. Invariant: a step comes after earlier steps only, so no schedule has a cycle.
 */
#include "coll/schedule.h"

#include <stdlib.h>
#include <string.h>

#include "core/status.h"

#define LINE 64u

/* ---- lists ---- */

/* Room for `count` more items; NULL: out of memory. */
static void *grow(pmr_schedule *schedule, pmr_list *list, uint32_t count)
{
    if (schedule->failed)
        return NULL;
    if (list->count + count > list->room) {
        uint32_t room = list->room ? list->room * 2 : 16;
        room = room < list->count + count ? list->count + count : room;
        void *data = realloc(list->data, room * list->item_bytes);
        schedule->failed = !data;
        if (!data)
            return NULL;
        list->data = data;
        list->room = room;
    }
    void *at = (char *)list->data + list->count * list->item_bytes;
    list->count += count;
    return at;
}

void pmr_schedule_init(pmr_schedule *schedule)
{
    *schedule = (pmr_schedule){0};
    schedule->steps.item_bytes = sizeof(pmr_step);
    schedule->sources.item_bytes = sizeof(pmr_place);
    schedule->calls.item_bytes = sizeof(pmr_node_call);
    schedule->counts.item_bytes = sizeof(size_t);
    schedule->links.item_bytes = sizeof(pmr_schedule_link);
    schedule->guards.item_bytes = sizeof(pmr_schedule_link);
}

void pmr_schedule_fini(pmr_schedule *schedule)
{
    free(schedule->steps.data);
    free(schedule->sources.data);
    free(schedule->calls.data);
    free(schedule->counts.data);
    free(schedule->links.data);
    free(schedule->guards.data);
    free(schedule->edges);
    free(schedule->receive_steps);
    free(schedule->peers);
    pmr_schedule_init(schedule);
}

/* ---- steps ---- */

static uint32_t add(pmr_schedule *schedule, const pmr_step *step)
{
    pmr_step *at = grow(schedule, &schedule->steps, 1);
    if (!at)
        return PMR_NO_STEP;
    *at = *step;
    return schedule->steps.count - 1;
}

uint32_t pmr_schedule_send(pmr_schedule *schedule, uint32_t peer, pmr_place from, uint64_t bytes)
{
    schedule->sends++;
    schedule->large = schedule->large || bytes > PMR_EAGER_BYTES;
    return add(schedule, &(pmr_step){.kind = PMR_STEP_SEND, .peer = peer, .from = from, .amount = bytes});
}

uint32_t pmr_schedule_receive(pmr_schedule *schedule, uint32_t peer, pmr_place to, uint64_t bytes)
{
    schedule->large = schedule->large || bytes > PMR_EAGER_BYTES;
    return add(schedule, &(pmr_step){.kind = PMR_STEP_RECEIVE, .peer = peer, .to = to, .amount = bytes});
}

uint32_t pmr_schedule_reduce(pmr_schedule *schedule, pmr_step_kind kind, pmr_place to, const pmr_place *sources,
                             uint32_t count, uint64_t items)
{
    uint32_t first = schedule->sources.count;
    pmr_place *at = grow(schedule, &schedule->sources, count);
    if (at)
        memcpy(at, sources, count * sizeof *at);
    return add(schedule,
               &(pmr_step){.kind = kind, .to = to, .source = first, .sources = count, .amount = items});
}

uint32_t pmr_schedule_work(pmr_schedule *schedule, pmr_step_kind kind, pmr_place to, pmr_place from, uint64_t amount,
                           uint32_t ranks)
{
    return add(schedule, &(pmr_step){.kind = kind, .to = to, .from = from, .amount = amount, .peer = ranks});
}

uint32_t pmr_schedule_node(pmr_schedule *schedule, const pmr_node_call *call)
{
    pmr_node_call *at = grow(schedule, &schedule->calls, 1);
    if (at)
        *at = *call;
    return add(schedule, &(pmr_step){.kind = PMR_STEP_NODE, .number = schedule->calls.count - 1});
}

size_t *pmr_schedule_table(pmr_schedule *schedule, uint32_t count, uint32_t *table_out)
{
    *table_out = schedule->counts.count;
    return grow(schedule, &schedule->counts, count);
}

void pmr_schedule_after(pmr_schedule *schedule, uint32_t step, uint32_t earlier)
{
    if (earlier == PMR_NO_STEP || step == PMR_NO_STEP)
        return;
    pmr_schedule_link *link = grow(schedule, &schedule->links, 1);
    if (link)
        *link = (pmr_schedule_link){.before = earlier, .after = step};
}

void pmr_schedule_guard(pmr_schedule *schedule, uint32_t receive, uint32_t earlier)
{
    if (earlier == PMR_NO_STEP || receive == PMR_NO_STEP)
        return;
    pmr_schedule_link *link = grow(schedule, &schedule->guards, 1);
    if (link)
        *link = (pmr_schedule_link){.before = earlier, .after = receive};
}

pmr_place pmr_schedule_scratch(pmr_schedule *schedule, uint64_t bytes)
{
    pmr_place place = pmr_place_at(PMR_BUFFER_SCRATCH, schedule->scratch_bytes);
    schedule->scratch_bytes += (bytes + LINE - 1) / LINE * LINE;
    return place;
}

/* ---- the end ---- */

static pmr_status sort_edges(pmr_schedule *schedule)
{
    uint32_t count = schedule->steps.count, links = schedule->links.count;
    const pmr_schedule_link *link = schedule->links.data;
    schedule->edges = malloc(((size_t)links + 1) * sizeof *schedule->edges);
    if (!schedule->edges)
        return PMR_ERR_NO_MEMORY;
    for (uint32_t i = 0; i < links; i++) {
        pmr_schedule_step(schedule, link[i].before)->next_count++;
        pmr_schedule_step(schedule, link[i].after)->after++;
    }
    uint32_t at = 0;
    for (uint32_t i = 0; i < count; i++) {
        pmr_step *step = pmr_schedule_step(schedule, i);
        step->next = at;
        at += step->next_count;
        step->next_count = 0;
    }
    for (uint32_t i = 0; i < links; i++) {
        pmr_step *before = pmr_schedule_step(schedule, link[i].before);
        schedule->edges[before->next + before->next_count++] = link[i].after;
    }
    free(schedule->links.data);
    schedule->links = (pmr_list){.item_bytes = sizeof(pmr_schedule_link)};
    return PMR_OK;
}

static int compare_ranks(const void *a, const void *b)
{
    uint32_t left = *(const uint32_t *)a, right = *(const uint32_t *)b;
    return left < right ? -1 : left > right;
}

static bool is_message(const pmr_step *step)
{
    return step->kind == PMR_STEP_SEND || step->kind == PMR_STEP_RECEIVE;
}

static pmr_schedule_peer *find_peer(const pmr_schedule *schedule, uint32_t rank)
{
    return bsearch(&rank, schedule->peers, schedule->peer_count, sizeof *schedule->peers, compare_ranks);
}

/* The distinct peers, ascending. */
static pmr_status collect_peers(pmr_schedule *schedule)
{
    uint32_t count = schedule->steps.count, found = 0, distinct = 0;
    uint32_t *ranks = malloc(((size_t)count + 1) * sizeof *ranks);
    if (!ranks)
        return PMR_ERR_NO_MEMORY;
    for (uint32_t i = 0; i < count; i++)
        if (is_message(pmr_schedule_step(schedule, i)))
            ranks[found++] = pmr_schedule_step(schedule, i)->peer;
    qsort(ranks, found, sizeof *ranks, compare_ranks);
    for (uint32_t i = 0; i < found; i++)
        if (i == 0 || ranks[i] != ranks[i - 1])
            ranks[distinct++] = ranks[i];
    schedule->peers = calloc((size_t)distinct + 1, sizeof *schedule->peers);
    for (uint32_t i = 0; schedule->peers && i < distinct; i++)
        schedule->peers[i] = (pmr_schedule_peer){.rank = ranks[i], .first_send = PMR_NO_STEP};
    schedule->peer_count = distinct;
    free(ranks);
    return schedule->peers ? PMR_OK : PMR_ERR_NO_MEMORY;
}

static void count_messages(pmr_schedule *schedule)
{
    for (uint32_t i = 0; i < schedule->steps.count; i++) {
        pmr_step *step = pmr_schedule_step(schedule, i);
        if (!is_message(step))
            continue;
        pmr_schedule_peer *peer = find_peer(schedule, step->peer);
        bool sends = step->kind == PMR_STEP_SEND;
        if (sends && peer->first_send == PMR_NO_STEP)
            peer->first_send = i;
        step->source = (uint32_t)(peer - schedule->peers);
        step->number = sends ? peer->sends++ : peer->receives++;
        *(sends ? &peer->send_bytes : &peer->receive_bytes) += step->amount;
        peer->longest = step->amount > peer->longest ? step->amount : peer->longest;
    }
}

static pmr_status number_messages(pmr_schedule *schedule)
{
    pmr_status status = collect_peers(schedule);
    if (status)
        return status;
    count_messages(schedule);
    uint32_t at = 0;
    for (uint32_t i = 0; i < schedule->peer_count; i++) {
        schedule->peers[i].receive = at;
        at += schedule->peers[i].receives;
    }
    schedule->receive_steps = malloc(((size_t)at + 1) * sizeof *schedule->receive_steps);
    if (!schedule->receive_steps)
        return PMR_ERR_NO_MEMORY;
    for (uint32_t i = 0; i < schedule->steps.count; i++) {
        const pmr_step *step = pmr_schedule_step(schedule, i);
        if (step->kind == PMR_STEP_RECEIVE)
            schedule->receive_steps[schedule->peers[step->source].receive + step->number] = i;
    }
    return PMR_OK;
}

/* Steps come after earlier ones only, so one walk from each node call on finds all that follows it. Large schedules are
 * left out: their ranks always look at the network while they wait for their node. */
static pmr_status count_sends_behind(pmr_schedule *schedule)
{
    if (schedule->large || schedule->calls.count == 0)
        return PMR_OK;
    uint32_t count = schedule->steps.count;
    bool *behind = malloc(count);
    if (!behind)
        return PMR_ERR_NO_MEMORY;
    for (uint32_t from = 0; from < count; from++) {
        if (pmr_schedule_step(schedule, from)->kind != PMR_STEP_NODE)
            continue;
        uint32_t sends = 0;
        memset(behind, 0, count);
        behind[from] = true;
        for (uint32_t i = from; i < count; i++) {
            const pmr_step *step = pmr_schedule_step(schedule, i);
            for (uint32_t next = 0; behind[i] && next < step->next_count; next++)
                behind[schedule->edges[step->next + next]] = true;
            sends += behind[i] && step->kind == PMR_STEP_SEND;
        }
        ((pmr_node_call *)schedule->calls.data)[pmr_schedule_step(schedule, from)->number].sends_behind = sends;
    }
    free(behind);
    return PMR_OK;
}

pmr_status pmr_schedule_end(pmr_schedule *schedule, pmr_error *error)
{
    pmr_status status = schedule->failed ? PMR_ERR_NO_MEMORY : sort_edges(schedule);
    if (!status)
        status = number_messages(schedule);
    if (!status)
        status = count_sends_behind(schedule);
    if (!status)
        return PMR_OK;
    return pmr_fail(error, status, "out of memory for the %u steps of a collective across nodes",
                    schedule->steps.count);
}
