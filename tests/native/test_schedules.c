/* SPDX-License-Identifier: Apache-2.0
 *
 * test_schedules.c: every algorithm across nodes, as data: worlds of random shapes, from 2 ranks to 4,096, run in a random
 * order (schedule_world.h), give what the call promises, bit by bit and tree by tree. Each registered builder runs every
 * kind of call that it takes, in small worlds and in a few as large as its number of steps allows here.
 *
 * Usage: test_schedules [seed]
 */
#include <time.h>

#include "schedule_world.h"

#define RANKS_MAX   4096u
#define MEMBERS_MAX 16u      /* of a node of a large world */
#define STEPS_MAX   150000u  /* of all ranks of a large world together */
#define SAMPLES     4u

extern const pmr_algorithm *const __start_pmr_algorithms[];
extern const pmr_algorithm *const __stop_pmr_algorithms[];

typedef struct trial {
    const pmr_algorithm *algorithm;
    pmr_kind kind;
    uint32_t root;
    size_t count;
    bool in_place, widens, finishes;
    uint32_t fragment_bytes, window;
    size_t *counts, *displs;      /* of the v-forms: by rank */
    size_t *matrix;               /* of alltoallv: from * size + to */
    const pmr_shape *shape;
    uint64_t seed;
    word *totals;                 /* of an allreduce: what the first rank was held to, for the others */
} trial;

static word sent(const trial *t, uint32_t rank, size_t index)
{
    return mix(t->seed ^ ((word)rank << 40) ^ index);
}

/* ---- what comes out ---- */

/* The tree that the sums of nodes are joined by, or, where they are no part of it or nothing is joined, the canonical. */
static word total(const trial *t, size_t index, uint32_t ranks)
{
    const pmr_shape *shape = t->shape;
    bool raw = strcmp(t->algorithm->name, "raw") == 0;
    word *values = malloc((shape->size + shape->nodes) * sizeof *values), *sums = values + shape->size, result;
    for (uint32_t rank = 0; rank < ranks; rank++)
        values[rank] = t->widens && !raw ? widened(sent(t, rank, index)) : sent(t, rank, index);
    if (raw || shape->canonical) {
        result = tree(values, ranks);
    } else {
        uint32_t nodes = 0;
        for (uint32_t node = 0; node < shape->nodes; node++) {
            word of_node[64];
            uint32_t members = 0;
            for (uint32_t i = 0; i < pmr_shape_members(shape, node); i++)
                if (pmr_shape_rank(shape, node, i) < ranks)
                    of_node[members++] = values[pmr_shape_rank(shape, node, i)];
            if (members)
                sums[nodes++] = tree(of_node, members);
        }
        result = tree(sums, nodes);
    }
    free(values);
    return t->finishes && !raw ? finished(result, ranks) : result;
}

static size_t sum_before(const size_t *counts, uint32_t rank)
{
    size_t sum = 0;
    for (uint32_t i = 0; i < rank; i++)
        sum += counts[i];
    return sum;
}

static void expect(uint32_t rank, size_t index, word got, word wanted)
{
    if (got == wanted)
        return;
    fprintf(stderr, "%s: rank %u, item %zu is wrong\n", sim_what, rank, index);
    exit(1);
}

static void check_blocks(const trial *t, uint32_t rank, const word *out)
{
    uint32_t size = t->shape->size;
    for (uint32_t from = 0; from < size; from++) {
        size_t count = t->counts ? t->counts[from] : t->count, at = t->displs ? t->displs[from] : from * t->count, first = 0;
        if (t->kind == PMR_ALLTOALL)
            first = rank * t->count;
        if (t->kind == PMR_ALLTOALLV) {
            count = t->matrix[from * size + rank];
            first = sum_before(t->matrix + from * size, rank);
            at = 0;
            for (uint32_t i = 0; i < from; i++)
                at += t->matrix[i * size + rank];
        }
        for (size_t i = 0; i < count; i++)
            expect(rank, at + i, out[at + i], sent(t, from, first + i));
    }
}

static void check(const trial *t, uint32_t rank, const word *out)
{
    uint32_t size = t->shape->size, ranks = size;
    size_t first = 0, count = t->count;
    switch (t->kind) {
    case PMR_BARRIER:
        return;
    case PMR_BROADCAST:
        for (size_t i = 0; i < count && rank != t->root; i++)
            expect(rank, i, out[i], sent(t, t->root, i));
        return;
    case PMR_SCATTER:
    case PMR_SCATTERV:
        count = t->counts ? t->counts[rank] : count;
        first = t->displs ? t->displs[rank] : rank * t->count;
        for (size_t i = 0; i < count; i++)
            expect(rank, i, out[i], sent(t, t->root, first + i));
        return;
    case PMR_GATHER:
    case PMR_GATHERV:
        if (rank == t->root)
            check_blocks(t, rank, out);
        return;
    case PMR_ALLGATHER:
    case PMR_ALLGATHERV:
    case PMR_ALLTOALL:
    case PMR_ALLTOALLV:
        check_blocks(t, rank, out);
        return;
    case PMR_REDUCE:
        count = rank == t->root ? count : 0;
        break;
    case PMR_REDUCE_SCATTER:
        first = rank * count;
        break;
    case PMR_REDUCE_SCATTERV:
        first = sum_before(t->counts, rank);
        count = t->counts[rank];
        break;
    case PMR_SCAN:
        ranks = rank + 1;
        break;
    case PMR_EXSCAN:
        ranks = rank;
        break;
    default:
        break;
    }
    size_t step = count * t->shape->size > 4000000 ? 97 : 1; /* the oracle is slow */
    for (size_t i = 0; ranks && i < count; i += step) {
        bool known = t->kind == PMR_ALLREDUCE && rank > 0;
        word wanted = known ? t->totals[i] : total(t, first + i, ranks);
        if (t->kind == PMR_ALLREDUCE)
            t->totals[i] = wanted;
        expect(rank, i, out[i], wanted);
    }
}

/* ---- a trial ---- */

static bool blocks_out(pmr_kind kind)
{
    return kind == PMR_SCATTER || kind == PMR_ALLTOALL || kind == PMR_REDUCE_SCATTER;
}

static bool blocks_in(pmr_kind kind)
{
    return kind == PMR_GATHER || kind == PMR_ALLGATHER || kind == PMR_ALLTOALL;
}

static size_t items_out(const trial *t, uint32_t rank)
{
    uint32_t size = t->shape->size;
    if (t->kind == PMR_ALLTOALLV)
        return sum_before(t->matrix + rank * size, size);
    if (t->kind == PMR_GATHERV || t->kind == PMR_ALLGATHERV)
        return t->counts[rank];
    if (t->kind == PMR_SCATTERV)
        return t->displs[size - 1] + t->counts[size - 1];
    if (t->kind == PMR_REDUCE_SCATTERV)
        return sum_before(t->counts, size);
    return t->count * (blocks_out(t->kind) ? size : 1);
}

static size_t items_in(const trial *t, uint32_t rank)
{
    uint32_t size = t->shape->size;
    size_t sum = 0;
    if (t->kind == PMR_ALLTOALLV)
        for (uint32_t from = 0; from < size; from++)
            sum += t->matrix[from * size + rank];
    if (t->kind == PMR_ALLTOALLV)
        return sum;
    if (t->kind == PMR_GATHERV || t->kind == PMR_ALLGATHERV)
        return t->displs[size - 1] + t->counts[size - 1];
    if (t->kind == PMR_SCATTERV || t->kind == PMR_REDUCE_SCATTERV)
        return t->counts[rank];
    return t->count * (blocks_in(t->kind) ? size : 1);
}

static bool may_be_in_place(pmr_kind kind)
{
    return kind == PMR_ALLREDUCE || kind == PMR_REDUCE || kind == PMR_SCAN || kind == PMR_EXSCAN || kind == PMR_ALLTOALL;
}

/* The tables of a call, as one rank knows them; in `room`: 4 * size entries. */
static void fill_tables(const trial *t, uint32_t rank, pmr_call *call, size_t *room)
{
    uint32_t size = t->shape->size;
    if (t->kind == PMR_GATHERV || t->kind == PMR_ALLGATHERV) {
        room[0] = t->counts[rank];
        call->send_counts = room;
        call->recv_counts = t->counts;
        call->recv_displs = t->displs;
    } else if (t->kind == PMR_SCATTERV) {
        room[0] = t->counts[rank];
        call->recv_counts = room;
        call->send_counts = t->counts;
        call->send_displs = t->displs;
    } else if (t->kind == PMR_REDUCE_SCATTERV) {
        call->recv_counts = t->counts;
    } else if (t->kind == PMR_ALLTOALLV) {
        for (uint32_t i = 0; i < size; i++) {
            room[i] = t->matrix[rank * size + i];
            room[size + i] = sum_before(room, i);
            room[2 * size + i] = t->matrix[i * size + rank];
            room[3 * size + i] = i ? room[3 * size + i - 1] + room[2 * size + i - 1] : 0;
        }
        call->send_counts = room;
        call->send_displs = room + size;
        call->recv_counts = room + 2 * size;
        call->recv_displs = room + 3 * size;
    }
}

static void prepare(const trial *t, uint32_t rank, sim_rank *self)
{
    size_t out = items_out(t, rank), in = items_in(t, rank);
    self->call = (pmr_call){
        .kind = t->kind, .dtype = PMR_UINT64, .op = PMR_SUM, .root = (int32_t)t->root, .count = t->count};
    size_t *room = malloc(4 * (size_t)t->shape->size * sizeof *room);
    fill_tables(t, rank, &self->call, room);
    self->plan = (pmr_plan){.shape = t->shape,
                            .rank = rank,
                            .call = &self->call,
                            .item_bytes = sizeof(word),
                            .partial_bytes = sizeof(word),
                            .widens = t->widens,
                            .finishes = t->finishes,
                            .in_place = t->in_place,
                            .fragment_bytes = t->fragment_bytes,
                            .window = t->window};
    pmr_error error;
    pmr_schedule_init(&self->schedule);
    t->algorithm->build(&self->plan, &self->schedule);
    CHECK(pmr_schedule_end(&self->schedule, &error) == PMR_OK);
    free(room);
    size_t most = t->in_place && in > out ? in : out;
    self->bytes[PMR_BUFFER_SEND] = most * sizeof(word);
    self->bytes[PMR_BUFFER_RECV] = in * sizeof(word);
    self->bytes[PMR_BUFFER_SCRATCH] = self->schedule.scratch_bytes;
    for (uint32_t i = 0; i < PMR_BUFFERS; i++)
        self->buffer[i] = calloc(self->bytes[i] / sizeof(word) + 1, sizeof(word));
    if (t->in_place) {
        free(self->buffer[PMR_BUFFER_RECV]);
        self->buffer[PMR_BUFFER_RECV] = self->buffer[PMR_BUFFER_SEND];
    }
    for (size_t i = 0; i < out; i++)
        self->buffer[PMR_BUFFER_SEND][i] = sent(t, rank, i);
}

static void forget(const trial *t, sim_rank *self)
{
    free(self->buffer[PMR_BUFFER_SEND]);
    if (!t->in_place)
        free(self->buffer[PMR_BUFFER_RECV]);
    free(self->buffer[PMR_BUFFER_SCRATCH]);
    pmr_schedule_fini(&self->schedule);
}

static void run_trial(trial *t)
{
    uint32_t size = t->shape->size;
    t->totals = malloc((t->count + 1) * sizeof *t->totals);
    snprintf(sim_what, sizeof sim_what, "%s by %s, %u ranks on %u nodes, root %u, count %zu%s%s%s, fragment %u, window %u",
             pmr_kind_name(t->kind), t->algorithm->name, size, t->shape->nodes, t->root, t->count,
             t->in_place ? ", in place" : "", t->widens ? ", widened" : "", t->finishes ? ", finished" : "",
             t->fragment_bytes, t->window);
    sim_world world = {.shape = t->shape, .ranks = calloc(size, sizeof *world.ranks), .state = t->seed};
    for (uint32_t rank = 0; rank < size; rank++)
        prepare(t, rank, &world.ranks[rank]);
    sim_run(&world);
    for (uint32_t rank = 0; rank < size; rank++) {
        check(t, rank, world.ranks[rank].buffer[PMR_BUFFER_RECV]);
        forget(t, &world.ranks[rank]);
    }
    free(world.ranks);
    free(t->totals);
}

/* ---- trials ---- */

static void draw_tables(trial *t, uint64_t *state)
{
    uint32_t size = t->shape->size;
    size_t at = 0, most = t->count + 1;
    t->counts = malloc(size * sizeof *t->counts);
    t->displs = malloc(size * sizeof *t->displs);
    for (uint32_t i = 0; i < size; i++) {
        t->counts[i] = sim_draw(state, most);
        t->displs[i] = at;
        at += t->counts[i] + sim_draw(state, 3);
    }
    if (t->kind != PMR_ALLTOALLV)
        return;
    t->matrix = malloc((size_t)size * size * sizeof *t->matrix);
    for (uint32_t i = 0; i < size * size; i++)
        t->matrix[i] = sim_draw(state, most);
}

static void free_tables(trial *t)
{
    free(t->counts);
    free(t->displs);
    free(t->matrix);
    t->counts = t->displs = t->matrix = NULL;
}

/* `most`: items. */
static void draw_trial(trial *t, uint64_t *state, size_t most)
{
    static const size_t counts[] = {0, 1, 3, 40, 1000, 5000};
    static const uint32_t fragments[] = {64, 256, 4096, 131072};
    bool whole = strcmp(t->algorithm->name, "direct") == 0 || (t->kind == PMR_ALLREDUCE && strcmp(t->algorithm->name, "rails") == 0) || strcmp(t->algorithm->name, "doubling") == 0 ||
                 (t->kind == PMR_REDUCE && strcmp(t->algorithm->name, "tree") == 0);
    bool raw = strcmp(t->algorithm->name, "raw") == 0;
    t->root = (uint32_t)sim_draw(state, t->shape->size);
    t->count = t->kind == PMR_BARRIER ? 0 : counts[sim_draw(state, 6)];
    t->count = t->count < most ? t->count : most;
    t->in_place = may_be_in_place(t->kind) && sim_draw(state, 2);
    t->widens = !raw && sim_draw(state, 3) == 0;
    t->finishes = t->widens || (!raw && sim_draw(state, 3) == 0);
    t->fragment_bytes = whole ? 131072 : fragments[sim_draw(state, 4)];
    t->window = 1 + (uint32_t)sim_draw(state, 3);
    t->seed = sim_draw(state, UINT32_MAX);
    if (t->kind >= PMR_GATHERV)
        draw_tables(t, state);
}

/* `nodes` nodes of up to `most` ranks, all alike or not, numbered node after node or not. */
static void draw_shape(pmr_shape *shape, uint64_t *state, uint32_t nodes, uint32_t most, bool ordered)
{
    uint32_t place[8192], size = 0;
    bool alike = sim_draw(state, 2) == 0;
    uint32_t each = 1 + (uint32_t)sim_draw(state, most);
    for (uint32_t node = 0; node < nodes; node++) {
        uint32_t members = alike ? each : 1 + (uint32_t)sim_draw(state, most);
        for (uint32_t i = 0; i < members; i++)
            place[size++] = node;
    }
    for (uint32_t i = size - 1; !ordered && i > 0; i--) {
        uint32_t other = (uint32_t)sim_draw(state, i + 1), kept = place[i];
        place[i] = place[other];
        place[other] = kept;
    }
    pmr_error error;
    CHECK(pmr_shape_init(shape, place, size, &error) == PMR_OK);
}

static bool takes(const pmr_algorithm *algorithm, pmr_kind kind)
{
    return algorithm->build && (algorithm->kinds & PMR_KIND_BIT(kind));
}

static bool suits(const pmr_algorithm *algorithm, pmr_kind kind, const pmr_shape *shape)
{
    return takes(algorithm, kind) && (strcmp(algorithm->name, "prefix") != 0 || shape->ordered);
}

static uint32_t try_call(const pmr_algorithm *algorithm, pmr_kind kind, const pmr_shape *shape, uint64_t *state)
{
    trial t = {.algorithm = algorithm, .kind = kind, .shape = shape};
    draw_trial(&t, state, SIZE_MAX);
    run_trial(&t);
    free_tables(&t);
    return 1;
}

/* About how many steps all ranks have, from a few of them. */
static uint64_t estimate_steps(const trial *t, uint64_t *state)
{
    uint64_t steps = 0;
    for (uint32_t i = 0; i < SAMPLES; i++) {
        sim_rank sample = {0};
        prepare(t, (uint32_t)sim_draw(state, t->shape->size), &sample);
        steps += sample.schedule.steps.count;
        forget(t, &sample);
    }
    return steps * t->shape->size / SAMPLES;
}

/* One call of few items in a world as large as can be: half as many nodes again and again where there are too many steps. */
static uint32_t try_large(const pmr_algorithm *algorithm, pmr_kind kind, uint64_t *state)
{
    uint32_t most = 1u << sim_draw(state, 5), nodes = RANKS_MAX / most;
    bool ordered = strcmp(algorithm->name, "prefix") == 0 || sim_draw(state, 4) != 0, ran = false;
    for (; !ran && nodes > 1; nodes /= 2) {
        pmr_shape shape;
        draw_shape(&shape, state, nodes, most, ordered);
        trial t = {.algorithm = algorithm, .kind = kind, .shape = &shape};
        if (kind != PMR_ALLTOALLV || (uint64_t)shape.size * shape.size <= STEPS_MAX) {
            draw_trial(&t, state, 3);
            ran = estimate_steps(&t, state) <= STEPS_MAX;
            if (ran)
                run_trial(&t);
            free_tables(&t);
        }
        pmr_shape_fini(&shape);
    }
    return ran;
}

/* Beyond the segments that memory is used again for. */
static void try_long(uint64_t *state)
{
    static const struct {
        const char *name;
        pmr_kind kind;
        size_t count;
    } longs[] = {{"raw", PMR_ALLREDUCE, 1200000}, {"raw", PMR_REDUCE, 700000}, {"raw", PMR_SCAN, 300000}, {"prefix", PMR_SCAN, 40000},
                 {"slices", PMR_ALLREDUCE, 300000}, {"slices", PMR_REDUCE, 300000}, {"chain", PMR_BROADCAST, 300000}};
    pmr_shape shape;
    uint32_t place[] = {0, 0, 0, 1, 1, 2};
    pmr_error error;
    CHECK(pmr_shape_init(&shape, place, 6, &error) == PMR_OK);
    for (const pmr_algorithm *const *each = __start_pmr_algorithms; each < __stop_pmr_algorithms; each++)
        for (uint32_t i = 0; i < sizeof longs / sizeof *longs; i++)
            if (strcmp((*each)->name, longs[i].name) == 0 && suits(*each, longs[i].kind, &shape)) {
                trial t = {.algorithm = *each, .kind = longs[i].kind, .shape = &shape, .fragment_bytes = 16384, .window = 2,
                           .root = (uint32_t)sim_draw(state, 6), .count = longs[i].count, .seed = sim_draw(state, UINT32_MAX)};
                run_trial(&t);
            }
    pmr_shape_fini(&shape);
}

int main(int argc, char **argv)
{
    uint64_t seed = argc > 1 ? strtoull(argv[1], NULL, 10) : (uint64_t)time(NULL), state = seed;
    printf("seed %llu\n", (unsigned long long)seed);
#if defined(__SANITIZE_THREAD__) /* builders are pure functions, and all of this is one thread */
    uint32_t shapes = 2, larges = 0;
#elif defined(__SANITIZE_ADDRESS__)
    uint32_t shapes = 12, larges = 1;
#else
    uint32_t shapes = 30, larges = 2;
#endif
    uint32_t small = 0, large = 0;
    for (uint32_t i = 0; i < shapes; i++) {
        pmr_shape shape;
        draw_shape(&shape, &state, 2 + (uint32_t)sim_draw(&state, 6), 5, sim_draw(&state, 4) != 0);
        for (const pmr_algorithm *const *each = __start_pmr_algorithms; each < __stop_pmr_algorithms; each++)
            for (uint32_t kind = 0; kind < PMR_SEND; kind++)
                for (uint32_t round = 0; suits(*each, (pmr_kind)kind, &shape) && round < 2; round++)
                    small += try_call(*each, (pmr_kind)kind, &shape, &state);
        pmr_shape_fini(&shape);
    }
    if (larges > 0)
        try_long(&state);
    for (const pmr_algorithm *const *each = __start_pmr_algorithms; each < __stop_pmr_algorithms; each++)
        for (uint32_t kind = 0; kind < PMR_SEND; kind++)
            for (uint32_t i = 0; takes(*each, (pmr_kind)kind) && i < larges; i++)
                large += try_large(*each, (pmr_kind)kind, &state);
    printf("%u calls in small worlds, %u in large ones\nok\n", small, large);
    return 0;
}
