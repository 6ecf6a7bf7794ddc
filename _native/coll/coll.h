/* SPDX-License-Identifier: Apache-2.0
 *
 * coll.h: what an algorithm is. One algorithm is one file, which no other file names.
 *
 * An algorithm is a *step* function: it does all that it can without waiting and returns PMR_OK when this
 * rank's part is done, PMR_PENDING with task->want set where it would wait, or an error. The same step serves
 * blocking calls (the caller waits for task->want) and nonblocking ones (the engine comes back). task->phase
 * is 0 at first; the rest of the task is the algorithm's own. Every algorithm enters the call (comm/meet.h)
 * in its first step without waiting for anybody but a slower rank whose memory it reuses, writes no user
 * memory before the fingerprints it depends on were compared, and gives canonical-order bits.
 */
#ifndef PMR_COLL_COLL_H
#define PMR_COLL_COLL_H

#include "coll/schedule.h"
#include "comm/meet.h"

typedef struct pmr_algorithm {
    const char *name;
    uint32_t kinds; /* bits of pmr_kind */
    /* The largest message (task->bytes) of that kind for which it is the one to take on that communicator; 0:
     * never. Where several offer themselves for a size, the one with the smallest limit is taken. */
    size_t (*limit)(const pmr_comm *comm, pmr_kind kind);
    /* Largest message it can do at all, when forced. */
    size_t bytes_max;
    pmr_status (*step)(pmr_task *task, pmr_error *error);
    /* Instead of `step`, for communicators that span nodes: what each rank does, as data; span_run.c does it. */
    pmr_builder build;
} pmr_algorithm;

#define PMR_KIND_BIT(kind) (1u << (kind))

/* Puts a pointer in an ELF section that select.c walks. */
#define PMR_REGISTER_ALGORITHM(algorithm)                                                                    \
    static const pmr_algorithm *const pmr_registered_##algorithm                                             \
        __attribute__((section("pmr_algorithms"), used)) = &(algorithm)

/* The algorithm that runs messages of so many bytes (task->bytes) on that communicator. select.c */
const pmr_algorithm *pmr_algorithm_choose(pmr_comm *comm, pmr_kind kind, size_t bytes);
/* Prepares a task for the call: number, fingerprint, record, algorithm. select.c */
pmr_status pmr_task_begin(pmr_task *task, pmr_comm *comm, const pmr_call *call, pmr_error *error);
/* The same for a call on the inner communicator of the one that `outer` runs on, as a part of that call. */
void pmr_task_begin_inner(pmr_task *task, const pmr_task *outer, pmr_comm *inner, const pmr_call *call);
/* Waits until the task, which is pending, may go on. PMR_ERR_STALLED: the deadline passed (error not filled). */
pmr_status pmr_task_wait(pmr_task *task, int64_t deadline_ns, pmr_error *error);
/* Nothing can follow on this communicator; the caller's buffers are touched no more. */
void pmr_task_abandon(pmr_comm *comm);

/* The step of every algorithm that is built as a schedule, and what belongs to it; span_run.c */
pmr_status pmr_span_step(pmr_task *task, pmr_error *error);
pmr_status pmr_span_wait(pmr_task *task, int64_t deadline_ns, pmr_error *error);
void pmr_span_abandon(pmr_comm *comm);

/* What builders are told of a call that `rank` makes, where the network takes fragments of so many bytes; span_call.c */
pmr_plan pmr_span_plan(const pmr_shape *shape, uint32_t rank, const pmr_call *call, bool in_place,
                       uint32_t fragment_bytes);

static inline pmr_status pmr_task_step(pmr_task *task, pmr_error *error)
{
    return task->algorithm->build ? pmr_span_step(task, error) : task->algorithm->step(task, error);
}
/* Its end: the record is closed. */
void pmr_task_end(pmr_task *task);

/* All of the call's buffers on this rank lie in the heap. */
static inline bool pmr_task_in_heap(const pmr_task *task, size_t send_bytes, size_t recv_bytes)
{
    return pmr_comm_covers(task->comm, task->call->send, send_bytes) &&
           pmr_comm_covers(task->comm, task->call->recv, recv_bytes);
}

/* How many ranks of a call that all have entered hold all its buffers in the heap. */
static inline uint32_t pmr_task_exposed_ranks(const pmr_task *task)
{
    uint32_t exposed = 0;
    for (uint32_t rank = 0; rank < task->comm->size; rank++)
        exposed += pmr_comm_entry(task->comm, rank, task->seq)->style == PMR_STYLE_EXPOSED;
    return exposed;
}

/* Says in the entry that all of the call's buffers lie in the heap, and where. */
static inline void pmr_task_expose(const pmr_task *task, pmr_entry *entry)
{
    entry->style = PMR_STYLE_EXPOSED;
    entry->send_offset = pmr_comm_offset(task->comm, task->call->send);
    entry->recv_offset = pmr_comm_offset(task->comm, task->call->recv);
}

/* Items of a chunk: task->chunk_items, or what is left for the last one. */
static inline size_t pmr_task_items(const pmr_task *task, uint32_t chunk)
{
    size_t left = task->call->count - (size_t)chunk * task->chunk_items;
    return left < task->chunk_items ? left : task->chunk_items;
}

/* ---- algorithms that begin with a look at all entries ---- */

enum { PMR_PHASE_ENTER = 0, PMR_PHASE_GATHER, PMR_PHASE_WORK, PMR_PHASE_IN_PLACE = 100 };

typedef struct pmr_phases {
    /* Fills and publishes this rank's entry. Where it waits for memory of earlier calls it is called again. */
    pmr_status (*enter)(pmr_task *task);
    /* All have entered with the same call: decides what the ranks decide alike. task->phase is PMR_PHASE_WORK;
     * it may go on from there or set PMR_PHASE_IN_PLACE. */
    void (*settle)(pmr_task *task);
    /* The phases from PMR_PHASE_WORK on, which the algorithm numbers itself. */
    pmr_status (*work)(pmr_task *task, pmr_error *error);
} pmr_phases;

/* Allreduce of arrays that all lie in the heap: the phases from PMR_PHASE_IN_PLACE on. in_place.c */
pmr_status pmr_in_place_step(pmr_task *task);

/* The step of such an algorithm: its own with `phases` known when it is compiled, so that nothing is called
 * through a pointer. */
static inline __attribute__((always_inline)) pmr_status
pmr_task_go_through(const pmr_phases *phases, pmr_task *task, pmr_error *error)
{
    pmr_status status;
    if (task->phase == PMR_PHASE_ENTER) {
        status = pmr_task_drain(task, task->seq - PMR_ENTRY_SLOTS);
        if (!status)
            status = phases->enter(task);
        if (status)
            return status;
        task->phase = PMR_PHASE_GATHER;
    }
    if (task->phase == PMR_PHASE_GATHER) {
        status = pmr_task_gather(task, error);
        if (status)
            return status;
        task->phase = PMR_PHASE_WORK;
        phases->settle(task);
    }
    return task->phase >= PMR_PHASE_IN_PLACE ? pmr_in_place_step(task) : phases->work(task, error);
}

#endif
