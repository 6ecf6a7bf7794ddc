/* SPDX-License-Identifier: Apache-2.0
 *
 * select.c: checks a call, numbers it, and chooses its algorithm.
 *
 * Algorithms register themselves in an ELF section; a communicator orders those of each kind by their limits
 * once, so that choosing is a comparison or two. Only what all ranks know alike decides (kind, message bytes,
 * the communicator), so all ranks choose the same. Invariant: at least one algorithm takes any size of every
 * kind.
 */
#include "coll/coll.h"

extern const pmr_algorithm *const __start_pmr_algorithms[];
extern const pmr_algorithm *const __stop_pmr_algorithms[];

static const pmr_algorithm *forced[2][PMR_KIND_COUNT]; /* on one node, and across nodes */

static const char *const kind_names[PMR_KIND_COUNT] = {
    [PMR_BARRIER] = "barrier",
    [PMR_BROADCAST] = "broadcast",
    [PMR_REDUCE] = "reduce",
    [PMR_ALLREDUCE] = "allreduce",
    [PMR_GATHER] = "gather",
    [PMR_ALLGATHER] = "allgather",
    [PMR_SCATTER] = "scatter",
    [PMR_REDUCE_SCATTER] = "reduce_scatter",
    [PMR_ALLTOALL] = "alltoall",
    [PMR_SCAN] = "scan",
    [PMR_EXSCAN] = "exscan",
    [PMR_GATHERV] = "gatherv",
    [PMR_ALLGATHERV] = "allgatherv",
    [PMR_SCATTERV] = "scatterv",
    [PMR_REDUCE_SCATTERV] = "reduce_scatterv",
    [PMR_ALLTOALLV] = "alltoallv",
    [PMR_SEND] = "send",
    [PMR_RECV] = "recv",
};

#define ROOTED                                                                                               \
    (PMR_KIND_BIT(PMR_BROADCAST) | PMR_KIND_BIT(PMR_REDUCE) | PMR_KIND_BIT(PMR_GATHER) |                     \
     PMR_KIND_BIT(PMR_SCATTER) | PMR_KIND_BIT(PMR_GATHERV) | PMR_KIND_BIT(PMR_SCATTERV))
#define REDUCING                                                                                             \
    (PMR_KIND_BIT(PMR_REDUCE) | PMR_KIND_BIT(PMR_ALLREDUCE) | PMR_KIND_BIT(PMR_REDUCE_SCATTER) |             \
     PMR_KIND_BIT(PMR_REDUCE_SCATTERV) | PMR_KIND_BIT(PMR_SCAN) | PMR_KIND_BIT(PMR_EXSCAN))
/* v-forms whose counts every rank knows */
#define COMMON_COUNTS (PMR_KIND_BIT(PMR_ALLGATHERV) | PMR_KIND_BIT(PMR_REDUCE_SCATTERV))
#define V_FORMS                                                                                              \
    (COMMON_COUNTS | PMR_KIND_BIT(PMR_GATHERV) | PMR_KIND_BIT(PMR_SCATTERV) | PMR_KIND_BIT(PMR_ALLTOALLV))

static bool in(uint32_t kinds, pmr_kind kind)
{
    return (kinds & PMR_KIND_BIT(kind)) != 0;
}

const char *pmr_kind_name(pmr_kind kind)
{
    return (unsigned)kind < PMR_KIND_COUNT ? kind_names[kind] : "unknown";
}

const char *pmr_algorithm_name(pmr_kind kind, size_t index)
{
    for (const pmr_algorithm *const *each = __start_pmr_algorithms; each < __stop_pmr_algorithms; each++)
        if (in((*each)->kinds, kind) && index-- == 0)
            return (*each)->name;
    return NULL;
}

pmr_status pmr_algorithm_force(pmr_kind kind, const char *name)
{
    if ((unsigned)kind >= PMR_KIND_COUNT)
        return PMR_ERR_ARGUMENT;
    if (!name) {
        forced[0][kind] = forced[1][kind] = NULL;
        return PMR_OK;
    }
    for (const pmr_algorithm *const *each = __start_pmr_algorithms; each < __stop_pmr_algorithms; each++)
        if (in((*each)->kinds, kind) && strcmp((*each)->name, name) == 0) {
            forced[(*each)->build != NULL][kind] = *each;
            return PMR_OK;
        }
    return PMR_ERR_ARGUMENT;
}

static void insert(pmr_choices *choices, const pmr_algorithm *algorithm, size_t bytes_max)
{
    uint32_t at = 0;
    while (at < PMR_CHOICES_MAX && choices->algorithm[at] && choices->bytes_max[at] <= bytes_max)
        at++;
    for (uint32_t i = PMR_CHOICES_MAX - 1; i > at; i--) {
        choices->algorithm[i] = choices->algorithm[i - 1];
        choices->bytes_max[i] = choices->bytes_max[i - 1];
    }
    if (at < PMR_CHOICES_MAX) {
        choices->algorithm[at] = algorithm;
        choices->bytes_max[at] = bytes_max;
    }
}

/* A forced algorithm comes first; what it cannot do goes to the others. */
static void insert_forced(pmr_choices *choices, const pmr_algorithm *algorithm)
{
    pmr_choices rest = *choices;
    choices->algorithm[0] = algorithm;
    choices->bytes_max[0] = algorithm->bytes_max;
    for (uint32_t i = 0; i + 1 < PMR_CHOICES_MAX; i++) {
        choices->algorithm[i + 1] = rest.algorithm[i];
        choices->bytes_max[i + 1] = rest.bytes_max[i];
    }
}

static void choose_all(pmr_comm *comm)
{
    bool spans = comm->span != NULL;
    for (uint32_t kind = 0; kind < PMR_SEND; kind++) {
        for (const pmr_algorithm *const *each = __start_pmr_algorithms; each < __stop_pmr_algorithms;
             each++) {
            bool fits = in((*each)->kinds, kind) && ((*each)->build != NULL) == spans;
            size_t bytes_max = fits ? (*each)->limit(comm, kind) : 0;
            if (bytes_max)
                insert(&comm->choices[kind], *each, bytes_max);
        }
        const pmr_algorithm *wanted = forced[spans][kind];
        if (wanted && comm->size > 1 && (!spans || wanted->limit(comm, kind)))
            insert_forced(&comm->choices[kind], wanted);
    }
    comm->chosen = true;
}

/* ---- checking ---- */

static pmr_status check_call(const pmr_comm *comm, const pmr_call *call, pmr_error *error)
{
    if ((unsigned)call->kind >= PMR_SEND || (unsigned)call->dtype >= PMR_DTYPE_COUNT ||
        (unsigned)call->form >= PMR_FORM_COUNT)
        return pmr_fail(error, PMR_ERR_ARGUMENT, "no such collective, dtype or form");
    if (in(ROOTED, call->kind) && (call->root < 0 || (uint32_t)call->root >= comm->size))
        return pmr_fail(error, PMR_ERR_ARGUMENT,
                        "%s: root %d is not a rank of this communicator: 0 to %u are",
                        pmr_kind_name(call->kind), call->root, comm->size - 1);
    if (in(REDUCING, call->kind) && !pmr_op_defined(call->op, call->dtype))
        return pmr_fail(error, PMR_ERR_UNSUPPORTED, "%s: %s is not defined for %s", pmr_kind_name(call->kind),
                        pmr_op_name(call->op), pmr_dtype_name(call->dtype));
    if (call->kind == PMR_ALLTOALLV && call->send_counts[comm->rank] != call->recv_counts[comm->rank])
        return pmr_fail(error, PMR_ERR_ARGUMENT,
                        "alltoallv: this rank sends %zu elements to itself and receives %zu",
                        call->send_counts[comm->rank], call->recv_counts[comm->rank]);
    return PMR_OK;
}

static uint64_t mix(uint64_t hash, uint64_t value)
{
    hash = (hash ^ value) * 0x9e3779b97f4a7c15ull;
    return hash ^ (hash >> 29);
}

/* What must be equal on all ranks. */
static uint64_t fingerprint_of(const pmr_comm *comm, const pmr_call *call)
{
    uint64_t what = (uint64_t)call->kind | (uint64_t)call->dtype << 8 | (uint64_t)call->form << 56;
    if (in(REDUCING, call->kind))
        what |= (uint64_t)(call->op + 1) << 16;
    if (in(ROOTED, call->kind))
        what |= (uint64_t)(uint32_t)call->root << 24;
    if (!in(V_FORMS, call->kind))
        return mix(what + 1, call->count);
    uint64_t hash = what + 1;
    if (in(COMMON_COUNTS, call->kind))
        for (uint32_t rank = 0; rank < comm->size; rank++)
            hash = mix(hash, call->recv_counts[rank]);
    return mix(hash, 0);
}

/* The v-forms' sizes differ between ranks, so they must not decide: such calls count as 1 byte (limits above
 * it hold). */
static size_t message_bytes(const pmr_call *call, size_t item_bytes)
{
    return in(V_FORMS, call->kind) ? 1 : call->count * item_bytes;
}

static uint64_t recorded_bytes(const pmr_task *task)
{
    const pmr_comm *comm = task->comm;
    const pmr_call *call = task->call;
    size_t item_bytes = task->item_bytes;
    if (!in(V_FORMS, call->kind))
        return task->bytes;
    if (call->kind == PMR_GATHERV || call->kind == PMR_ALLGATHERV)
        return call->send_counts[0] * item_bytes;
    if (call->kind == PMR_SCATTERV)
        return call->recv_counts[0] * item_bytes;
    size_t sent = 0;
    if (call->kind == PMR_ALLTOALLV)
        for (uint32_t rank = 0; rank < comm->size; rank++)
            sent += call->send_counts[rank];
    if (call->kind == PMR_ALLTOALLV)
        return sent * item_bytes;
    return call->recv_counts[comm->rank] * item_bytes;
}

/* A short call takes the time when it has to wait, or is done: nothing else in it takes long. */
static uint64_t entered_ticks(const pmr_task *task)
{
    bool shortly = !in(V_FORMS, task->call->kind) && task->bytes <= PMR_SLOT_BYTES;
    return shortly ? 0 : pmr_ticks();
}

static void record(pmr_task *task)
{
    pmr_comm *comm = task->comm;
    const pmr_call *call = task->call;
    pmr_record *record =
        pmr_recorder_add(comm->recorder, (pmr_record){.bytes = recorded_bytes(task),
                                                      .entered_ticks = entered_ticks(task),
                                                      .seq = task->seq,
                                                      .comm = comm->id,
                                                      .site = call->site,
                                                      .peer = in(ROOTED, call->kind) ? call->root : -1,
                                                      .kind = (uint8_t)call->kind,
                                                      .dtype = (uint8_t)call->dtype,
                                                      .op = in(REDUCING, call->kind) ? (uint8_t)call->op : 0xff,
                                                      .form = (uint8_t)call->form,
                                                      .mode = PMR_RECORD_CALL});
    task->record = record;
    task->record_number = record->number;
}

/* What the call is, for the others and for the recorder. PMR_WITHOUT_RECORDS leaves it out, in the build that
 * benchmarks/bench_records.py compares with: this is to cost next to nothing. */
static void identify(pmr_task *task)
{
#ifndef PMR_WITHOUT_RECORDS
    pmr_comm *comm = task->comm;
    comm->history = mix(comm->history, fingerprint_of(comm, task->call));
    task->fingerprint = comm->history;
    record(task);
#else
    (void)fingerprint_of, (void)recorded_bytes, (void)record;
    task->fingerprint = 0;
    task->record = &task->comm->recorder->record[0];
    task->record_number = UINT64_MAX;
#endif
}

const pmr_algorithm *pmr_algorithm_choose(pmr_comm *comm, pmr_kind kind, size_t bytes)
{
    if (!comm->chosen)
        choose_all(comm);
    const pmr_choices *choices = &comm->choices[kind];
    uint32_t at = 0;
    while (bytes > choices->bytes_max[at])
        at++;
    return choices->algorithm[at];
}

/* Numbers the call and chooses its algorithm. */
static void prepare(pmr_task *task, pmr_comm *comm, const pmr_call *call)
{
    task->comm = comm;
    task->call = call;
    task->item_bytes = pmr_dtype_size(call->dtype);
    task->bytes = message_bytes(call, task->item_bytes);
    task->seq = ++comm->seq;
    task->phase = 0;
    task->cursor = 0;
    task->step = 0;
    task->want_network = false;
    task->algorithm = pmr_algorithm_choose(comm, call->kind, task->bytes);
}

pmr_status pmr_task_begin(pmr_task *task, pmr_comm *comm, const pmr_call *call, pmr_error *error)
{
    pmr_status status = check_call(comm, call, error);
    if (status)
        return status;
    if (atomic_load_explicit(&comm->broken, memory_order_relaxed)) { /* the engine may find it out meanwhile */
        status =
            pmr_window_aborted(&comm->context->window, error); /* why it broke, if the gang ended by it */
        return status ? status
                      : pmr_fail(error, PMR_ERR_SHUTDOWN,
                                 "this communicator was left in the middle of an earlier call");
    }
    prepare(task, comm, call);
    identify(task);
    return PMR_OK;
}

void pmr_task_begin_inner(pmr_task *task, const pmr_task *outer, pmr_comm *inner, const pmr_call *call)
{
    prepare(task, inner, call);
    inner->outer_seq[task->seq % PMR_ENTRY_SLOTS] = outer->seq;
    task->fingerprint = mix(outer->fingerprint, fingerprint_of(inner, call));
    task->record = outer->record;
    task->record_number = outer->record_number;
}

void pmr_task_end(pmr_task *task)
{
    pmr_recorder_done_if(task->record, task->record_number);
}
