/* SPDX-License-Identifier: Apache-2.0
 *
 * test_protocol.c: what everybody is told when ranks call different things, die, leave, or never come.
 *
 * The parent plays the agent: it forks the ranks, sees them end, and writes into the window what the launcher would. The ranks
 * write what they were told into memory that all share, and the parent judges it.
 *
 * Usage: test_protocol [seed]
 */
#include <sched.h>
#include <stdatomic.h>
#include <sys/time.h>
#include <time.h>

#include "gang.h"

#define RANKS_MAX 5u
#define GUARD 0x5a
#define SECOND 1000000000ll
#define CALL_DEADLINE (SECOND / 10) /* of a call that one rank does not enter */
#define MISMATCH_TOLD_WITHIN (1 * SECOND)
#define DEATH_TOLD_WITHIN (300 * SECOND / 1000)
#define LOST_AFTER (80 * SECOND) /* no rank may take longer for anything */
#define LATENCIES_MAX 1024u
#define MESSAGE_MAX ((size_t)1 << 20)

typedef struct report {
    _Atomic int ready;      /* the rank is about to call */
    _Atomic int over;       /* the rank has nothing more to wait for */
    pmr_status status;
    pmr_error error;
    int64_t at_ns;
    bool recv_touched;
    bool refused;           /* a call after the failure was refused */
} report;

typedef struct stage {      /* shared by all processes */
    report rank[RANKS_MAX];
    int64_t death_ns;
} stage;

typedef enum ending { BY_SIGNAL, BY_EXIT, BY_CLOSE } ending;

typedef struct scene {
    uint32_t ranks;
    bool crowded;
    bool nonblocking;
    uint32_t odd;           /* the rank that differs, dies or stays away */
    pmr_call common, other;
    bool swapped;           /* the odd rank makes the same two calls in the other order */
    ending end;
    bool writes_record;     /* the agent */
    bool claimed;           /* the rank that died had claimed the abort record and not filled it */
    uint64_t seed;
    stage *stage;
} scene;

static uint64_t draw(uint64_t *state)
{
    uint64_t z = (*state += 0x9e3779b97f4a7c15ull);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
}

static int64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * SECOND + now.tv_nsec;
}

/* How long ranks took to be told. A busy machine delays some, so a quarter of them has to keep the time. */
typedef struct latencies {
    int64_t ns[LATENCIES_MAX];
    size_t count;
} latencies;

static latencies until_told;

static void note(int64_t ns)
{
    if (until_told.count < LATENCIES_MAX)
        until_told.ns[until_told.count++] = ns;
}

static int ascending(const void *a, const void *b)
{
    int64_t left = *(const int64_t *)a, right = *(const int64_t *)b;
    return (left > right) - (left < right);
}

static int judge_latencies(const char *what, int64_t limit_ns)
{
    qsort(until_told.ns, until_told.count, sizeof *until_told.ns, ascending);
    int64_t quarter = until_told.ns[until_told.count / 4];
    printf("%s: told after %.1f ms, at most %.1f ms\n", what, (double)quarter / 1e6,
           (double)until_told.ns[until_told.count - 1] / 1e6);
    until_told.count = 0;
    return quarter > limit_ns;
}

static int complain(const scene *s, uint32_t rank, const char *what)
{
    const report *r = &s->stage->rank[rank];
    fprintf(stderr, "rank %u of %u (%s, odd one %u): %s; %s: %s\n", rank, s->ranks, s->crowded ? "crowded" : "dedicated",
            s->odd, what, pmr_status_name(r->status), r->status ? r->error.text : "");
    return 1;
}

/* ---- the agent ----------------------------------------------------------------------------------------------------- */

static void write_departure(pmr_window_header *header, uint32_t rank, bool failed, bool writes_record)
{
    __atomic_store_n(&header->rank_state[rank], failed ? PMR_RANK_FAILED : PMR_RANK_LEFT, __ATOMIC_RELEASE);
    __atomic_fetch_add(&header->departures, 1, __ATOMIC_RELEASE);
    uint32_t unclaimed = 0;
    if (!writes_record || !failed ||
        !__atomic_compare_exchange_n(&header->abort.claim, &unclaimed, 1, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST))
        return;
    header->abort.rank = (int32_t)rank;
    snprintf(header->abort.text, sizeof header->abort.text, "the agent says so");
    __atomic_store_n(&header->abort.state, PMR_ABORT_RANK_FAILED, __ATOMIC_RELEASE);
}

/* Runs `body` on all ranks, tells the window of each that is gone. Answers how many ended badly, the odd one left out. */
static int gang_with_agent(scene *s, gang_body body)
{
    int fd = gang_window(s->ranks, s->crowded ? 1 : 64, (uint64_t)1 << 30);
    pmr_window_header *header = mmap(NULL, sizeof *header, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (header == MAP_FAILED) {
        perror("header");
        exit(1);
    }
    memset(s->stage, 0, sizeof *s->stage);
    header->abort.claim = s->claimed;
    pid_t child[RANKS_MAX];
    fflush(NULL);
    for (uint32_t rank = 0; rank < s->ranks; rank++) {
        child[rank] = fork();
        if (child[rank] == 0) {
            prctl(PR_SET_PDEATHSIG, SIGKILL);
            alarm((unsigned)(LOST_AFTER / SECOND)); /* a hang fails the test */
            _exit(gang_child(fd, rank, body, s));
        }
    }
    int failed = 0;
    for (uint32_t gone = 0; gone < s->ranks; gone++) {
        int status;
        pid_t pid = wait(&status);
        uint32_t rank = 0;
        while (rank < s->ranks && child[rank] != pid)
            rank++;
        bool died = !WIFEXITED(status) || WEXITSTATUS(status);
        if (died || header->rank_state[rank] != PMR_RANK_FINISHED)
            write_departure(header, rank, died, s->writes_record);
        if (rank == s->odd)
            s->stage->death_ns = now_ns();
        else if (died)
            failed += complain(s, rank, "ended badly");
    }
    munmap(header, sizeof *header);
    close(fd);
    return failed;
}

/* ---- calls ----------------------------------------------------------------------------------------------------------- */

static pmr_status make_call(pmr_comm *comm, const pmr_call *call, bool nonblocking, int64_t timeout_ns, pmr_error *error)
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

static bool all_guard(const uint8_t *memory, size_t bytes)
{
    for (size_t i = 0; i < bytes; i++)
        if (memory[i] != GUARD)
            return false;
    return true;
}

/* Further calls fail at once: with the gang's end, where it is on record. */
static bool refuses(pmr_comm *comm, pmr_status told)
{
    pmr_error error;
    pmr_call barrier = {.kind = PMR_BARRIER};
    pmr_request *request;
    pmr_status run = pmr_coll_run(comm, &barrier, LOST_AFTER, &error);
    pmr_status start = pmr_coll_start(comm, &barrier, &request, &error);
    return (run == told || run == PMR_ERR_SHUTDOWN) && start == run && run != PMR_OK;
}

/* ---- mismatches ------------------------------------------------------------------------------------------------------ */

static int call_differently(pmr_context *context, void *arg)
{
    const scene *s = arg;
    pmr_comm *world = pmr_context_world(context);
    uint32_t rank = pmr_comm_rank(world);
    report *mine = &s->stage->rank[rank];
    bool odd = rank == s->odd;
    bool heap = (s->seed >> rank) & 1;
    size_t bytes = MESSAGE_MAX * RANKS_MAX;
    uint8_t *send = heap ? pmr_heap_alloc(context, bytes) : malloc(bytes);
    uint8_t *recv = heap ? pmr_heap_alloc(context, bytes) : malloc(bytes);
    uint8_t *second = malloc(bytes);
    memset(send, 1, bytes);
    memset(recv, GUARD, bytes);
    pmr_call calls[2] = {s->common, s->swapped ? s->other : s->common};
    if (odd && s->swapped) {
        calls[0] = s->other;
        calls[1] = s->common;
    } else if (odd) {
        calls[0] = s->other;
    }
    calls[0].send = calls[1].send = send;
    calls[0].recv = recv;
    calls[1].recv = second;
    calls[0].site = calls[1].site = pmr_site_intern(context, odd ? "odd.c:7 in strange" : "common.c:3 in usual");
    pmr_call barrier = {.kind = PMR_BARRIER};
    int64_t start = now_ns();
    mine->status = make_call(world, &calls[0], s->nonblocking, LOST_AFTER, &mine->error);
    mine->recv_touched = mine->status && !all_guard(recv, bytes);
    /* a call that waits for nobody (a broadcast's root) ends well: the next ones meet the others */
    for (int more = 0; more < 2 && !mine->status; more++)
        mine->status = make_call(world, more ? &barrier : &calls[1], s->nonblocking, LOST_AFTER, &mine->error);
    mine->at_ns = now_ns() - start;
    mine->refused = refuses(world, mine->status);
    mine->over = 1;
    free(second);
    if (!heap) {
        free(send);
        free(recv);
    }
    return 0;
}

/* Each rank needs all others: none may have a result. Where it needs only some (a root's message, the ranks before it), it
 * may, if those made the same call. */
static bool needs_everyone(pmr_kind kind)
{
    return kind == PMR_ALLREDUCE || kind == PMR_ALLGATHER || kind == PMR_ALLTOALL || kind == PMR_REDUCE_SCATTER;
}

static int judge_mismatch(const scene *s)
{
    int failed = 0;
    bool strict = needs_everyone(s->common.kind) && needs_everyone(s->other.kind);
    for (uint32_t rank = 0; rank < s->ranks; rank++) {
        const report *r = &s->stage->rank[rank];
        if (!r->over || r->status != PMR_ERR_MISMATCH)
            failed += complain(s, rank, "was not told of the mismatch");
        else if (!strstr(r->error.text, "odd.c:7 in strange") || !strstr(r->error.text, "common.c:3 in usual"))
            failed += complain(s, rank, "was not told both call sites");
        else if (strict && r->recv_touched)
            failed += complain(s, rank, "has a result of a mismatched call");
        else if (!strstr(r->error.text, "call 1 of"))
            failed += complain(s, rank, "was told another call");
        else if (!r->refused)
            failed += complain(s, rank, "could go on");
        note(r->at_ns);
    }
    if (failed)
        fprintf(stderr, "  common %s %s %zu, odd %s %s %zu%s%s\n", pmr_kind_name(s->common.kind),
                pmr_dtype_name(s->common.dtype), s->common.count, pmr_kind_name(s->other.kind),
                pmr_dtype_name(s->other.dtype), s->other.count, s->swapped ? ", order" : "", s->nonblocking ? ", nonblocking" : "");
    return failed;
}

static pmr_call simple(pmr_kind kind, size_t count)
{
    return (pmr_call){.kind = kind, .dtype = PMR_FLOAT32, .op = PMR_SUM, .root = 0, .count = count};
}

/* The odd call: one thing is different. */
static pmr_call differing(pmr_call call, int what)
{
    if (what == 0)
        call.kind = call.kind == PMR_ALLGATHER ? PMR_ALLREDUCE : PMR_ALLGATHER;
    else if (what == 1)
        call.dtype = PMR_INT32;
    else if (what == 2)
        call.count++;
    else if (what == 3)
        call.op = PMR_MAX;
    else
        call.root = 1;
    return call;
}

static bool decides(pmr_kind kind, int what)
{
    bool reduces = kind == PMR_ALLREDUCE || kind == PMR_REDUCE || kind == PMR_REDUCE_SCATTER || kind == PMR_SCAN;
    bool rooted = kind == PMR_BROADCAST || kind == PMR_REDUCE || kind == PMR_GATHER || kind == PMR_SCATTER;
    return what < 3 ? kind != PMR_BARRIER || what == 0 : what == 3 ? reduces : rooted;
}

static int mismatches(scene *s, uint64_t *random)
{
    static const pmr_kind kinds[] = {PMR_BARRIER, PMR_BROADCAST, PMR_REDUCE, PMR_ALLREDUCE, PMR_GATHER, PMR_ALLGATHER,
                                     PMR_SCATTER, PMR_REDUCE_SCATTER, PMR_ALLTOALL, PMR_SCAN};
    static const size_t counts[] = {1, 8, 1000, 40000, 200000};
    int failed = 0;
    for (size_t k = 0; k < sizeof kinds / sizeof *kinds; k++)
        for (int what = 0; what < 5; what++) {
            if (!decides(kinds[k], what))
                continue;
            s->seed = draw(random);
            s->ranks = 2 + (uint32_t)(draw(random) % (RANKS_MAX - 1));
            s->odd = (uint32_t)(draw(random) % s->ranks);
            s->crowded = draw(random) & 1;
            s->nonblocking = draw(random) & 1;
            s->common = simple(kinds[k], kinds[k] == PMR_BARRIER ? 0 : counts[draw(random) % 5]);
            s->other = differing(s->common, what);
            s->swapped = false;
            failed += gang_with_agent(s, call_differently) + judge_mismatch(s);
        }
    for (uint32_t round = 0; round < 8; round++) {
        s->ranks = 2 + round % (RANKS_MAX - 1);
        s->odd = (uint32_t)(draw(random) % s->ranks);
        s->crowded = round & 1;
        s->nonblocking = draw(random) & 1;
        s->common = simple(kinds[1 + draw(random) % 9], 100);
        s->other = simple(PMR_BARRIER, 0);
        s->swapped = true;
        failed += gang_with_agent(s, call_differently) + judge_mismatch(s);
    }
    s->swapped = s->nonblocking = false;
    return failed + judge_latencies("mismatches", MISMATCH_TOLD_WITHIN);
}

/* ---- deaths ------------------------------------------------------------------------------------------------------------ */

static void die(int signal_number)
{
    (void)signal_number;
    kill(getpid(), SIGKILL);
}

/* Dies at a moment that no call knows of. */
static void die_within(uint64_t microseconds)
{
    struct itimerval timer = {.it_value = {.tv_usec = (suseconds_t)(1 + microseconds)}};
    signal(SIGALRM, die);
    setitimer(ITIMER_REAL, &timer, NULL);
}

static pmr_status random_call(pmr_comm *comm, uint64_t *common, uint8_t *send, uint8_t *recv, pmr_error *error)
{
    static const pmr_kind kinds[] = {PMR_BARRIER, PMR_ALLREDUCE, PMR_BROADCAST, PMR_REDUCE, PMR_ALLGATHER, PMR_ALLTOALL};
    static const size_t counts[] = {1, 100, 3000, 50000};
    pmr_call call = simple(kinds[draw(common) % 6], 0);
    if (call.kind != PMR_BARRIER)
        call.count = counts[draw(common) % 4];
    call.root = (int32_t)(draw(common) % pmr_comm_size(comm));
    call.send = send;
    call.recv = recv;
    return make_call(comm, &call, draw(common) % 3 == 0, LOST_AFTER, error);
}

static int live_until_told(pmr_context *context, void *arg)
{
    const scene *s = arg;
    pmr_comm *world = pmr_context_world(context);
    uint32_t rank = pmr_comm_rank(world);
    report *mine = &s->stage->rank[rank];
    uint64_t common = s->seed, own = s->seed + 77 * rank;
    size_t bytes = 50000 * sizeof(float) * RANKS_MAX;
    bool heap = draw(&own) & 1;
    uint8_t *send = heap ? pmr_heap_alloc(context, bytes) : calloc(1, bytes);
    uint8_t *recv = heap ? pmr_heap_alloc(context, bytes) : calloc(1, bytes);
    uint64_t calls = draw(&own) % 40;
    pmr_error error;
    if (random_call(world, &common, send, recv, &mine->error))
        return 1;
    if (rank == s->odd && s->end == BY_SIGNAL)
        die_within(draw(&own) % 30000);
    for (uint64_t number = 0; rank != s->odd || s->end == BY_SIGNAL || number < calls; number++) {
        mine->status = random_call(world, &common, send, recv, &mine->error);
        if (mine->status)
            break;
    }
    if (rank == s->odd) {
        if (s->end == BY_EXIT)
            _exit(0);
        return mine->status != PMR_OK; /* gang_child closes the context */
    }
    mine->at_ns = now_ns();
    mine->refused = refuses(world, mine->status);
    pmr_call barrier = {.kind = PMR_BARRIER};
    mine->refused = mine->refused && pmr_coll_run(world, &barrier, SECOND, &error) != PMR_OK;
    mine->over = 1;
    return 0;
}

static int judge_death(const scene *s)
{
    int failed = 0;
    for (uint32_t rank = 0; rank < s->ranks; rank++) {
        const report *r = &s->stage->rank[rank];
        if (rank == s->odd)
            continue;
        if (!r->over || r->status != PMR_ERR_RANK_FAILED || r->error.rank != (int32_t)s->odd)
            failed += complain(s, rank, "was not told of the death");
        else if (!r->refused)
            failed += complain(s, rank, "could go on");
        note(r->at_ns - s->stage->death_ns);
    }
    if (failed)
        fprintf(stderr, "  ending %d, agent's record %d, claimed %d, seed %llu\n", s->end, s->writes_record, s->claimed,
                (unsigned long long)s->seed);
    return failed;
}

static int deaths(scene *s, uint64_t *random)
{
    int failed = 0;
    for (int round = 0; round < 60; round++) {
        s->seed = draw(random);
        s->ranks = 2 + (uint32_t)(draw(random) % (RANKS_MAX - 1));
        s->odd = (uint32_t)(draw(random) % s->ranks);
        s->crowded = round & 1;
        s->end = (ending)(round / 2 % 3);
        s->writes_record = draw(random) & 1;
        s->claimed = s->end == BY_SIGNAL && draw(random) & 1; /* by the very rank that dies */
        failed += gang_with_agent(s, live_until_told) + judge_death(s);
    }
    s->claimed = false;
    return failed + judge_latencies("deaths", DEATH_TOLD_WITHIN);
}

/* ---- deadlines ----------------------------------------------------------------------------------------------------------- */

static int stay_away(pmr_context *context, void *arg)
{
    const scene *s = arg;
    pmr_comm *world = pmr_context_world(context);
    uint32_t rank = pmr_comm_rank(world);
    report *mine = &s->stage->rank[rank];
    float value = 1, sum = 0;
    pmr_call call = simple(PMR_ALLREDUCE, 1);
    call.send = &value;
    call.recv = &sum;
    mine->ready = rank != s->odd;
    for (uint32_t other = 0; other < s->ranks; other++) /* else who came late would be missing, too */
        while (other != s->odd && !(rank == s->odd ? s->stage->rank[other].over : s->stage->rank[other].ready))
            sched_yield();
    int64_t start = now_ns();
    mine->status = make_call(world, &call, false, CALL_DEADLINE, &mine->error);
    mine->at_ns = now_ns() - start;
    mine->refused = refuses(world, mine->status);
    mine->over = 1;
    return 0;
}

static int deadlines(scene *s)
{
    int failed = 0;
    for (uint32_t round = 0; round < 4; round++) {
        s->ranks = 2 + round;
        s->odd = round % s->ranks;
        s->crowded = round & 1;
        failed += gang_with_agent(s, stay_away);
        char missing[64];
        snprintf(missing, sizeof missing, "not entered by rank(s) %u;", s->odd);
        for (uint32_t rank = 0; rank < s->ranks; rank++) {
            const report *r = &s->stage->rank[rank];
            if (rank == s->odd) /* comes when it is over for the others: finds all their contributions, or their story */
                continue;
            if (!r->over || r->status != PMR_ERR_STALLED || !strstr(r->error.text, missing) || r->error.rank != (int32_t)s->odd)
                failed += complain(s, rank, "was not told who is missing");
            else if (r->at_ns < CALL_DEADLINE)
                failed += complain(s, rank, "did not wait as long as it was told to");
            note(r->at_ns - CALL_DEADLINE);
        }
    }
    return failed + judge_latencies("deadlines", SECOND);
}

int main(int argc, char **argv)
{
    uint64_t seed = argc > 1 ? strtoull(argv[1], NULL, 10) : (uint64_t)time(NULL);
    printf("seed %llu\n", (unsigned long long)seed);
    stage *shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (shared == MAP_FAILED) {
        perror("stage");
        return 1;
    }
    scene s = {.stage = shared};
    int failed = mismatches(&s, &seed);
    failed += deaths(&s, &seed);
    failed += deadlines(&s);
    munmap(shared, sizeof *shared);
    printf("%s\n", failed ? "FAILED" : "ok");
    return failed != 0;
}
