/* SPDX-License-Identifier: Apache-2.0
 *
 * trouble.c: what ends a wait other than what was waited for, and how it is told.
 *
 * Three things are looked at when a wait has lasted: the window's abort record; members that are in the same
 * call number with another call (a mismatch need not meet at the same flag, so the waiter looks for it);
 * members that have left without entering, or in the middle. Who finds something writes the abort record, so
 * that all ranks tell the same story. Invariant: a text names ranks of the world.
 */
#include <sched.h>
#include <stdio.h>

#include "comm/communicator.h"
#include "core/clock.h"

#define RECORD_WAIT_NS 20000000 /* a record is written in microseconds, unless its writer lost the CPU */

/* Who claimed the record and has not published it yet is writing it, or died while it did: then we tell our
 * own story. */
static pmr_status end_gang(const pmr_comm *comm, uint32_t state, int32_t rank, const char *text,
                           pmr_error *error)
{
    const pmr_window *window = &comm->context->window;
    pmr_window_abort_gang(window, state, rank, rank >= 0 ? comm->context->node : "", text);
    pmr_status status;
    int64_t deadline_ns = pmr_now_ns() + RECORD_WAIT_NS;
    while ((status = pmr_window_aborted(window, error)) == PMR_OK && pmr_now_ns() < deadline_ns)
        sched_yield();
    if (status)
        return status;
    status = pmr_fail(error, pmr_window_abort_status(state), "%s", text);
    if (error) {
        error->rank = rank;
        if (rank >= 0)
            memcpy(error->node, comm->context->node, sizeof error->node);
    }
    return status;
}

static int32_t world_rank(const pmr_comm *comm, uint32_t rank)
{
    return (int32_t)pmr_comm_world_rank(comm, rank);
}

static const char *without(pmr_form form)
{
    switch (form) {
    case PMR_FORM_SCATTER:
    case PMR_FORM_SCATTERV:
        return " without out";
    case PMR_FORM_GATHERV:
    case PMR_FORM_ALLGATHERV:
    case PMR_FORM_ALLTOALLV:
        return " without the others' counts";
    default:
        return "";
    }
}

/* "rank 3: allreduce(float32, 4000 bytes, sum) at train.py:44 in main". Of a call that is part of another one
 * only what the user said is told: "broadcast_object(root 0)". */
static void describe_call(const pmr_comm *comm, uint32_t rank, uint32_t seq, char *out, size_t out_bytes)
{
    const pmr_recorder *recorder = pmr_window_recorder(&comm->context->window, comm->local[rank]);
    pmr_record record;
    if (!pmr_recorder_find(recorder, comm->id, seq, &record)) {
        snprintf(out, out_bytes, "rank %d: another call", world_rank(comm, rank));
        return;
    }
    char root[24] = "", data[64] = "", operation[24] = "";
    bool plain = record.form == PMR_FORM_PLAIN;
    if (plain && record.kind != PMR_BARRIER)
        snprintf(data, sizeof data, "%s, %llu bytes", pmr_dtype_name((pmr_dtype)record.dtype),
                 (unsigned long long)record.bytes);
    if (plain && record.op < PMR_OP_COUNT)
        snprintf(operation, sizeof operation, ", %s", pmr_op_name((pmr_op)record.op));
    if (record.peer >= 0)
        snprintf(root, sizeof root, "%sroot %d", plain ? ", " : "", record.peer);
    snprintf(out, out_bytes, "rank %d: %s(%s%s%s)%s at %s", world_rank(comm, rank),
             plain ? pmr_kind_name((pmr_kind)record.kind) : pmr_form_name((pmr_form)record.form), data,
             operation, root, without((pmr_form)record.form), pmr_recorder_site_text(recorder, record.site));
}

/* Ranks may have differed before, in calls in which nobody had to look (two roots, say): the first of those
 * calls. */
static uint32_t first_difference(const pmr_comm *comm, uint32_t rank, uint32_t seq)
{
    uint32_t first = seq;
    while (first > 1 && seq - first + 1 < PMR_ENTRY_SLOTS) {
        const pmr_entry *theirs = pmr_comm_entry(comm, rank, first - 1),
                        *ours = pmr_comm_entry(comm, comm->rank, first - 1);
        if (atomic_load_explicit(&theirs->seq.value, memory_order_acquire) != first - 1 ||
            atomic_load_explicit(&ours->seq.value, memory_order_relaxed) != first - 1 ||
            theirs->fingerprint == ours->fingerprint)
            break;
        first--;
    }
    return first;
}

pmr_status pmr_comm_mismatch(const pmr_task *task, uint32_t rank, pmr_error *error)
{
    const pmr_comm *comm = task->comm;
    uint32_t seq = first_difference(comm, rank, task->seq);
    char theirs[330], ours[330], text[PMR_ERROR_TEXT_BYTES];
    describe_call(comm, rank, seq, theirs, sizeof theirs);
    describe_call(comm, comm->rank, seq, ours, sizeof ours);
    bool first = rank < comm->rank;
    snprintf(text, sizeof text, "call %u of the communicator differs: %s; %s", seq, first ? theirs : ours,
             first ? ours : theirs);
    return end_gang(comm, PMR_ABORT_MISMATCH, world_rank(comm, rank), text, error);
}

static bool has_entered(const pmr_comm *comm, uint32_t rank, uint32_t seq)
{
    return pmr_flag_reached(&pmr_comm_entry(comm, rank, seq)->seq, seq);
}

pmr_status pmr_comm_stalled(const pmr_task *task, pmr_error *error)
{
    const pmr_comm *comm = task->comm;
    char missing[160] = "";
    int32_t first = -1;
    size_t used = 0;
    for (uint32_t rank = 0; rank < comm->size; rank++) {
        if (has_entered(comm, rank, task->seq))
            continue;
        if (first < 0)
            first = world_rank(comm, rank);
        if (used < sizeof missing - 16)
            used += (size_t)snprintf(missing + used, sizeof missing - used, "%s%d", used ? ", " : "",
                                     world_rank(comm, rank));
    }
    char ours[330], text[PMR_ERROR_TEXT_BYTES];
    describe_call(comm, comm->rank, task->seq, ours, sizeof ours);
    if (first >= 0)
        snprintf(text, sizeof text, "timed out; not entered by rank(s) %s; waiting is %s", missing, ours);
    else
        snprintf(text, sizeof text, "timed out after all ranks had entered; waiting is %s", ours);
    return end_gang(comm, PMR_ABORT_STALLED, first, text, error);
}

/* A member that is gone and whose part of the running call is missing; those who died first, since others
 * left for it. */
static pmr_status find_departed(const pmr_comm *comm, const pmr_task *task, pmr_error *error)
{
    const pmr_window *window = &comm->context->window;
    uint32_t worst = PMR_RANK_ABSENT;
    for (uint32_t rank = 0; rank < comm->size; rank++) {
        uint32_t state = pmr_window_rank_state(window, comm->local[rank]);
        worst = state > worst ? state : worst;
    }
    for (uint32_t rank = 0; rank < comm->size && worst >= PMR_RANK_FINISHED; rank++) {
        uint32_t state = pmr_window_rank_state(window, comm->local[rank]);
        if (state < PMR_RANK_FINISHED || (worst == PMR_RANK_FAILED && state != worst))
            continue;
        bool entered = has_entered(comm, rank, task->seq);
        pmr_record record;
        if (entered && (!pmr_recorder_find(pmr_window_recorder(window, comm->local[rank]), comm->id,
                                           task->seq, &record) ||
                        record.done_ticks != 0))
            continue; /* it did its part */
        char ours[330], text[PMR_ERROR_TEXT_BYTES];
        describe_call(comm, comm->rank, task->seq, ours, sizeof ours);
        snprintf(text, sizeof text, "%s %s the call that the others wait in; %s",
                 state == PMR_RANK_FINISHED ? "it ended (its script, sys.exit or pm.shutdown())"
                 : state == PMR_RANK_LEFT   ? "it ended with exit code 0"
                                            : "it died",
                 entered ? "inside" : "without entering", ours);
        return end_gang(comm, PMR_ABORT_RANK_FAILED, world_rank(comm, rank), text, error);
    }
    return PMR_OK;
}

pmr_status pmr_comm_check_quiet(pmr_comm *comm, pmr_error *error)
{
    pmr_status status = pmr_window_aborted(&comm->context->window, error);
    const pmr_task *task = comm->running;
    if (status || !task)
        return status;
    for (uint32_t rank = 0; rank < comm->size; rank++) {
        const pmr_entry *entry = pmr_comm_entry(comm, rank, task->seq);
        if (atomic_load_explicit(&entry->seq.value, memory_order_acquire) == task->seq &&
            has_entered(comm, comm->rank, task->seq) && entry->fingerprint != task->fingerprint)
            return pmr_comm_mismatch(task, rank, error);
    }
    return find_departed(comm, task, error);
}

pmr_status pmr_comm_check_sometimes(pmr_comm *comm, pmr_error *error)
{
    int64_t now = pmr_now_ns();
    if (now < comm->next_check_ns)
        return pmr_window_aborted(&comm->context->window, error);
    comm->next_check_ns = now + PMR_WAIT_SLICE_NS;
    return pmr_comm_check_quiet(comm, error);
}

pmr_status pmr_comm_check(void *arg, pmr_error *error)
{
    pmr_status status = pmr_comm_check_quiet(arg, error);
    if (!status && pmr_interrupted())
        return pmr_fail(error, PMR_ERR_INTERRUPTED, "interrupted");
    return status;
}
