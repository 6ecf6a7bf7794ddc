/* SPDX-License-Identifier: Apache-2.0
 *
 * test_span_trouble.c: across nodes, everybody is told the same when ranks call different things, die, or do not come.
 *
 * Each rank writes what it was told into memory that all share; the parent judges it. There is no agent: what is told of a
 * death is what the connections tell.
 *
 * Usage: test_span_trouble [seed]
 */
#include <time.h>

#include "node_gang.h"

#define ITEMS 5000u
#define SECOND 1000000000ll
#define LOST_AFTER_S 60

typedef enum plot { DIFFERS, DIES, STAYS_AWAY } plot;

typedef struct report {
    pmr_status status;
    pmr_error error;
    bool touched;      /* something was written before the ranks had agreed */
} report;

typedef struct scene {
    plot plot;
    uint32_t odd;      /* the rank that is not like the others */
    pmr_call common, other;
    bool nonblocking;
    uint32_t before;   /* calls that all make alike, first */
    report rank[NODE_RANKS_MAX];
    _Atomic uint32_t told;
    uint32_t ranks;
} scene;

static uint64_t draw(uint64_t *state, uint64_t below)
{
    *state = *state * 6364136223846793005u + 1442695040888963407u;
    return (*state >> 33) % below;
}

static pmr_status run(pmr_comm *comm, const pmr_call *call, bool nonblocking, int64_t timeout_ns, pmr_error *error)
{
    if (!nonblocking)
        return pmr_coll_run(comm, call, timeout_ns, error);
    pmr_request *request;
    pmr_status status = pmr_coll_start(comm, call, &request, error);
    if (status)
        return status;
    status = pmr_request_wait(request, timeout_ns, error);
    pmr_request_free(request);
    return status;
}

static int play(pmr_context *context, void *arg)
{
    scene *s = arg;
    pmr_comm *world = pmr_context_world(context);
    uint32_t rank = pmr_comm_rank(world), size = pmr_comm_size(world);
    float *send = calloc(ITEMS * size, sizeof *send), *recv = malloc(ITEMS * size * sizeof *recv);
    report *r = &s->rank[rank];
    bool odd = rank == s->odd;
    alarm(LOST_AFTER_S);
    memset(recv, 0x5a, ITEMS * size * sizeof *recv);
    char site[64];
    snprintf(site, sizeof site, "play.py:%u in %s", rank, odd ? "odd" : "common");
    pmr_call call = odd && s->plot == DIFFERS ? s->other : s->common;
    pmr_call first = {.kind = PMR_ALLREDUCE, .dtype = PMR_FLOAT32, .op = PMR_SUM, .send = send, .recv = send, .count = 100};
    for (uint32_t i = 0; i < s->before && !r->status; i++) /* the end may overtake who is slow */
        r->status = pmr_coll_run(world, &first, 20 * SECOND, &r->error);
    call.send = send;
    call.recv = recv;
    call.site = pmr_site_intern(context, site);
    if (odd && s->plot == DIES)
        _exit(0);
    if (odd && s->plot == STAYS_AWAY) {
        while (atomic_load(&s->told) < size - 1)
            sched_yield();
        return 0;
    }
    /* Those that wait for nobody see it in a later call. */
    int64_t timeout_ns = s->plot == STAYS_AWAY ? SECOND / 2 : 30 * SECOND;
    for (int i = 0; i < 40 && !r->status; i++)
        r->status = run(world, &call, s->nonblocking, timeout_ns, &r->error);
    for (size_t i = 0; s->plot == DIFFERS && s->other.dtype != s->common.dtype && i < ITEMS * size * sizeof *recv; i++)
        r->touched |= ((uint8_t *)recv)[i] != 0x5a;
    atomic_fetch_add(&s->told, 1);
    free(send);
    free(recv);
    return 0;
}

static int complain(const scene *s, uint32_t rank, const char *what)
{
    const report *r = &s->rank[rank];
    fprintf(stderr, "%s%s, %s, odd one %u: rank %u of %u: %s; %s (rank %d): %s\n",
            s->plot == DIFFERS ? "differs" : s->plot == DIES ? "dies" : "stays away", s->nonblocking ? " (nonblocking)" : "",
            pmr_kind_name(s->common.kind), s->odd, rank, s->ranks, what, pmr_status_name(r->status), r->error.rank,
            r->status ? r->error.text : "");
    return 1;
}

static int judge(const scene *s, uint32_t rank)
{
    static const pmr_status wanted[] = {PMR_ERR_MISMATCH, PMR_ERR_RANK_FAILED, PMR_ERR_STALLED};
    const report *r = &s->rank[rank];
    char name[32];
    if (rank == s->odd && s->plot != DIFFERS)
        return 0;
    if (r->status != wanted[s->plot])
        return complain(s, rank, "another status was wanted");
    if (strcmp(r->error.text, s->rank[s->odd == 0 ? 1 : 0].error.text) != 0)
        return complain(s, rank, "not what the others were told");
    if (s->plot == DIFFERS && !(strstr(r->error.text, "in odd") && strstr(r->error.text, "in common")))
        return complain(s, rank, "both call sites were wanted");
    if (s->plot == DIFFERS && r->touched)
        return complain(s, rank, "something was written");
    if (s->plot == DIES && r->error.rank != (int32_t)s->odd)
        return complain(s, rank, "another culprit was wanted");
    snprintf(name, sizeof name, "rank(s) %u;", s->odd);
    if (s->plot == STAYS_AWAY && !s->nonblocking && !strstr(r->error.text, name))
        return complain(s, rank, "the one that stayed away was to be named");
    return 0;
}

static pmr_call draw_call(uint64_t *state, uint32_t size)
{
    static const pmr_kind kinds[] = {PMR_BARRIER, PMR_ALLREDUCE, PMR_ALLGATHER, PMR_ALLTOALL, PMR_REDUCE_SCATTER,
                                     PMR_BROADCAST, PMR_REDUCE, PMR_GATHER, PMR_SCATTER, PMR_SCAN};
    static const size_t counts[] = {1, 20, ITEMS};
    pmr_call call = {.kind = kinds[draw(state, 10)], .dtype = PMR_FLOAT32, .op = PMR_SUM};
    call.root = (int32_t)draw(state, size);
    call.count = call.kind == PMR_BARRIER ? 0 : counts[draw(state, 3)];
    return call;
}

static bool waits_for_all(pmr_kind kind)
{
    return kind == PMR_BARRIER || kind == PMR_ALLREDUCE || kind == PMR_ALLGATHER || kind == PMR_ALLTOALL ||
           kind == PMR_REDUCE_SCATTER;
}

static int try_scene(const node_layout *layout, plot plot, uint64_t *state, scene *s)
{
    uint32_t ranks = node_ranks(layout);
    memset(s, 0, sizeof *s);
    s->plot = plot;
    s->ranks = ranks;
    s->odd = (uint32_t)draw(state, ranks);
    s->nonblocking = plot != STAYS_AWAY && draw(state, 3) == 0;
    s->before = (uint32_t)draw(state, 3);
    do
        s->common = draw_call(state, ranks);
    while (plot != DIFFERS && !waits_for_all(s->common.kind));
    do
        s->other = draw_call(state, ranks);
    while (s->other.kind == s->common.kind && s->other.count == s->common.count);
    int status[NODE_RANKS_MAX], bad = 0;
    node_gang_run_all(layout, play, s, status);
    for (uint32_t rank = 0; rank < ranks; rank++)
        bad += status[rank] ? complain(s, rank, "it did not end well") : judge(s, rank);
    return bad;
}

int main(int argc, char **argv)
{
    uint64_t seed = argc > 1 ? strtoull(argv[1], NULL, 10) : (uint64_t)time(NULL), state = seed;
    printf("seed %llu\n", (unsigned long long)seed);
    static const node_layout layouts[] = {
        {.nodes = 2, .sizes = {1, 1}}, {.nodes = 2, .sizes = {2, 2}}, {.nodes = 3, .sizes = {1, 2, 1}}};
    scene *s = mmap(NULL, sizeof *s, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    int bad = 0;
    for (uint32_t i = 0; i < 24; i++) {
        node_layout layout = layouts[draw(&state, 3)];
        plot plot = i % 4 == 3 ? STAYS_AWAY : i % 4 == 2 ? DIES : DIFFERS;
        layout.transport = "tcp";
        layout.cpus = draw(&state, 2) ? 64 : 1;
        bad += try_scene(&layout, plot, &state, s);
    }
    munmap(s, sizeof *s);
    printf("%s\n", bad ? "FAILED" : "ok");
    return bad != 0;
}
