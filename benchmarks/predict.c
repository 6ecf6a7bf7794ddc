/* SPDX-License-Identifier: Apache-2.0
 *
 * predict.c: how long collectives across nodes would take, by a model (play.h) and by the core's own schedules.
 *
 * Nothing is measured and no byte moves: for each question the algorithm is chosen and the schedules are built as ranks
 * would do it, on the tcp transport, and played. Where all ranks together have too many steps, the world is folded to
 * one node. Reads lines, answers each `time` with a line, and keeps small worlds, since their questions are repeated
 * with other parameters while predict.py fits them.
 *
 *     set PARAMETER VALUE
 *     time OPERATION BYTES NODES RANKS CALLS auto|whole|folded
 *         -> MICROSECONDS ALGORITHM STEPS whole|folded     microseconds -1: it cannot be folded
 *
 * RANKS are those of a node; BYTES as in src/pmrun/bench/points.py, of float32.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "comm/span.h"
#include "core/status.h"
#include "play.h"

#define ITEM_BYTES     4u
#define FRAGMENT_BYTES (256u << 10) /* of tcp.c */
#define WHOLE_STEPS    6000000u     /* that all ranks may have together: about 1 GB */
#define KEPT_RANKS     64u          /* of a world that is kept */

static const struct {
    const char *name;
    size_t at;
} parameters[] = {
#define PARAMETER(name) {#name, offsetof(play_model, name)}
    PARAMETER(call_us),        PARAMETER(send_us),     PARAMETER(send_kib_us), PARAMETER(receive_us),
    PARAMETER(receive_kib_us), PARAMETER(wake_us),     PARAMETER(latency_us),  PARAMETER(link_kib_us),
    PARAMETER(work_us),        PARAMETER(work_kib_us), PARAMETER(node_us),     PARAMETER(node_kib_us),
    PARAMETER(cpus),           PARAMETER(shared),      PARAMETER(burst_kib),
};

typedef struct question {
    pmr_kind kind;
    size_t bytes;
    uint32_t nodes, ranks;
    bool folded;
} question;

typedef struct built {
    question what;
    pmr_shape shape;
    pmr_schedule *schedules;
    uint32_t count;
    const pmr_algorithm *algorithm;
    uint64_t steps;      /* of all ranks of the world; estimated by rank 0's where it is folded */
    struct built *next;
} built;

static built *kept;

static void give_up(const char *text)
{
    fprintf(stderr, "predict: %s\n", text);
    exit(2);
}

static void check(pmr_status status, const pmr_error *error)
{
    if (status)
        give_up(error->text);
}

/* ---- worlds ---- */

static pmr_call call_of(const question *what)
{
    size_t items = what->bytes / ITEM_BYTES ? what->bytes / ITEM_BYTES : 1;
    if (what->kind == PMR_BARRIER)
        items = 0;
    if (what->kind == PMR_REDUCE_SCATTER || what->kind == PMR_ALLTOALL || what->kind == PMR_SCATTER) {
        items /= (size_t)what->nodes * what->ranks;
        items = items ? items : 1;
    }
    return (pmr_call){.kind = what->kind, .dtype = PMR_FLOAT32, .op = PMR_SUM, .count = items};
}

static void build_rank(built *world, const pmr_call *call, uint32_t rank, pmr_schedule *schedule)
{
    pmr_error error;
    pmr_plan plan = pmr_span_plan(&world->shape, rank, call, call->kind == PMR_ALLREDUCE, FRAGMENT_BYTES);
    pmr_schedule_init(schedule);
    world->algorithm->build(&plan, schedule);
    check(pmr_schedule_end(schedule, &error), &error);
}

static void choose(built *world, const pmr_call *call)
{
    pmr_context context = {0};
    pmr_span span = {.shape = world->shape};
    pmr_comm *comm = calloc(1, sizeof *comm);
    if (!comm)
        give_up("out of memory");
    comm->context = &context;
    comm->span = &span;
    comm->size = world->shape.size;
    world->algorithm = pmr_algorithm_choose(comm, call->kind, call->count * ITEM_BYTES);
    free(comm);
}

static built *build(const question *what, const char *mode)
{
    built *world = calloc(1, sizeof *world);
    uint32_t size = what->nodes * what->ranks;
    uint32_t *place = malloc(((size_t)size + 1) * sizeof *place);
    if (!world || !place)
        give_up("out of memory");
    for (uint32_t rank = 0; rank < size; rank++)
        place[rank] = rank / what->ranks;
    pmr_error error;
    check(pmr_shape_init(&world->shape, place, size, &error), &error);
    free(place);
    pmr_call call = call_of(what);
    choose(world, &call);
    world->what = *what;
    world->schedules = malloc(size * sizeof *world->schedules);
    if (!world->schedules)
        give_up("out of memory");
    build_rank(world, &call, 0, &world->schedules[0]);
    world->steps = (uint64_t)world->schedules[0].steps.count * size;
    world->what.folded = strcmp(mode, "folded") == 0 || (strcmp(mode, "auto") == 0 && world->steps > WHOLE_STEPS);
    world->count = world->what.folded ? what->ranks : size;
    for (uint32_t rank = 1; rank < world->count; rank++)
        build_rank(world, &call, rank, &world->schedules[rank]);
    return world;
}

static void forget(built *world)
{
    for (uint32_t rank = 0; rank < world->count; rank++)
        pmr_schedule_fini(&world->schedules[rank]);
    free(world->schedules);
    pmr_shape_fini(&world->shape);
    free(world);
}

static bool fits(const built *world, const question *what, const char *mode)
{
    return world->what.kind == what->kind && world->what.bytes == what->bytes && world->what.nodes == what->nodes &&
           world->what.ranks == what->ranks &&
           (strcmp(mode, "auto") == 0 || world->what.folded == (strcmp(mode, "folded") == 0));
}

static void answer(const question *what, uint32_t calls, const char *mode, const play_model *model)
{
    built *world = kept;
    while (world && !fits(world, what, mode))
        world = world->next;
    bool fresh = !world;
    if (fresh)
        world = build(what, mode);
    play_world played = {.shape = &world->shape,
                         .schedules = world->schedules,
                         .item_bytes = ITEM_BYTES,
                         .partial_bytes = ITEM_BYTES,
                         .folded = world->what.folded,
                         .calls = calls};
    if (played.folded && model->shared > 0)
        give_up("nodes that share their CPUs cannot be folded to one");
    printf("%.6g %s %llu %s\n", play(&played, model), world->algorithm->name, (unsigned long long)world->steps,
           played.folded ? "folded" : "whole");
    fflush(stdout);
    if (fresh && world->shape.size <= KEPT_RANKS) {
        world->next = kept;
        kept = world;
    } else if (fresh) {
        forget(world);
    }
}

/* ---- lines ---- */

static void set(play_model *model, const char *name, double value)
{
    for (size_t i = 0; i < sizeof parameters / sizeof *parameters; i++)
        if (strcmp(parameters[i].name, name) == 0) {
            memcpy((char *)model + parameters[i].at, &value, sizeof value);
            return;
        }
    give_up("there is no parameter of that name");
}

static pmr_kind kind_named(const char *name)
{
    for (uint32_t kind = 0; kind < PMR_GATHERV; kind++)
        if (strcmp(pmr_kind_name((pmr_kind)kind), name) == 0)
            return (pmr_kind)kind;
    give_up("there is no operation of that name");
    return PMR_BARRIER;
}

int main(void)
{
    play_model model = {.cpus = 1};
    char line[256], name[64], mode[16];
    while (fgets(line, sizeof line, stdin)) {
        question what = {0};
        uint32_t calls;
        double value;
        if (sscanf(line, "set %63s %lf", name, &value) == 2) {
            set(&model, name, value);
        } else if (sscanf(line, "time %63s %zu %u %u %u %15s", name, &what.bytes, &what.nodes, &what.ranks, &calls,
                          mode) == 6) {
            what.kind = kind_named(name);
            if (what.nodes < 2 || what.ranks < 1 || (uint64_t)what.nodes * what.ranks > 65536 || calls < 1)
                give_up("a world has at least 2 nodes, a rank on each and at most 65,536 ranks, and makes a call");
            answer(&what, calls, mode, &model);
        } else {
            give_up("a line is neither 'set' nor 'time' with what belongs to it");
        }
    }
    while (kept) {
        built *next = kept->next;
        forget(kept);
        kept = next;
    }
    return 0;
}
