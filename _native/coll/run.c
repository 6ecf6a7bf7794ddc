/* SPDX-License-Identifier: Apache-2.0
 *
 * run.c: running collectives: at once by their caller, or in the queue that the engine drives.
 *
 * While a communicator's queue is empty a blocking call runs in its caller, without a lock. Otherwise it
 * queues up behind the nonblocking ones, so that calls take effect in the order they were made. Only the head
 * of a queue runs. Invariant: `source.active` counts the queued tasks, and falls only after the driver let go
 * of the communicator.
 */
#include <stdlib.h>

#include "coll/coll.h"
#include "comm/span.h"
#include "core/clock.h"

/* A queued task with its own copy of the call. */
typedef struct queued_task {
    pmr_task task;
    pmr_call call;
    size_t counts[]; /* copies of the call's count arrays */
} queued_task;

/* ---- the queue ---- */

static pthread_mutex_t queue_lock = PTHREAD_MUTEX_INITIALIZER; /* held for a few pointer writes */

static pmr_task *queue_head(pmr_comm *comm)
{
    pthread_mutex_lock(&queue_lock);
    pmr_task *head = comm->queue_head;
    pthread_mutex_unlock(&queue_lock);
    return head;
}

static void queue_append(pmr_comm *comm, pmr_task *task)
{
    task->next = NULL;
    pthread_mutex_lock(&queue_lock);
    if (comm->queue_tail)
        comm->queue_tail->next = task;
    else
        comm->queue_head = task;
    comm->queue_tail = task;
    pthread_mutex_unlock(&queue_lock);
    atomic_fetch_add_explicit(&comm->source.active, 1, memory_order_release);
}

static void queue_pop(pmr_comm *comm)
{
    pthread_mutex_lock(&queue_lock);
    comm->queue_head = comm->queue_head->next;
    if (!comm->queue_head)
        comm->queue_tail = NULL;
    pthread_mutex_unlock(&queue_lock);
}

static void finish_head(pmr_comm *comm, pmr_task *task, pmr_status status, const pmr_error *error)
{
    if (status)
        pmr_task_abandon(comm);
    else
        pmr_task_end(task);
    comm->running = NULL;
    pmr_request *request = task->request;
    queue_pop(comm);
    free(task);
    atomic_fetch_sub_explicit(&comm->source.active, 1, memory_order_release);
    pmr_request_complete(request, status, error);
}

/* Leaves what the task waits for with the driver. */
static void want(const pmr_task *task, pmr_wants *wants)
{
    const pmr_span *span = task->comm->span;
    if (task->want_network)
        pmr_wants_add_network(wants, span->hub, span->seen);
    if (!task->want_network || task->want.flag != &span->hub->moves)
        pmr_wants_add(wants, task->want.flag, task->want.target);
}

/* Runs the head of the queue as far as it goes, then the next one. */
static bool poll_queue(pmr_source *source, pmr_wants *wants)
{
    pmr_comm *comm = (pmr_comm *)(void *)((char *)source - offsetof(pmr_comm, source));
    bool moved = false;
    for (pmr_task *task; (task = queue_head(comm));) {
        pmr_error error;
        comm->running = task;
        uint32_t phase = task->phase, step = task->step, cursor = task->cursor;
        pmr_status status =
            comm->broken ? pmr_fail(&error, PMR_ERR_SHUTDOWN, "an earlier call of this communicator failed")
                         : pmr_task_step(task, &error);
        if (status == PMR_PENDING) {
            moved = moved || phase != task->phase || step != task->step || cursor != task->cursor;
            if (pmr_flag_reached(task->want.flag, task->want.target))
                continue;
            status = pmr_comm_check_sometimes(comm, &error);
            if (!status) {
                want(task, wants);
                return moved;
            }
        }
        finish_head(comm, task, status, &error);
        moved = true;
    }
    return moved;
}

/* ---- starting ---- */

static size_t v_arrays(const pmr_call *call)
{
    return (size_t)(call->send_counts != NULL) + (size_t)(call->send_displs != NULL) +
           (size_t)(call->recv_counts != NULL) + (size_t)(call->recv_displs != NULL);
}

static const size_t *copy_counts(const size_t *from, uint32_t size, bool only_one, size_t **room)
{
    if (!from)
        return NULL;
    size_t *to = *room;
    memcpy(to, from, (only_one ? 1 : size) * sizeof *to);
    *room += size;
    return to;
}

static queued_task *make_task(const pmr_comm *comm, const pmr_call *call)
{
    queued_task *queued = malloc(sizeof *queued + v_arrays(call) * comm->size * sizeof(size_t));
    if (!queued)
        return NULL;
    queued->call = *call;
    size_t *room = queued->counts;
    bool one_send = call->kind == PMR_GATHERV || call->kind == PMR_ALLGATHERV;
    queued->call.send_counts = copy_counts(call->send_counts, comm->size, one_send, &room);
    queued->call.send_displs = copy_counts(call->send_displs, comm->size, false, &room);
    queued->call.recv_counts = copy_counts(call->recv_counts, comm->size, call->kind == PMR_SCATTERV, &room);
    queued->call.recv_displs = copy_counts(call->recv_displs, comm->size, false, &room);
    return queued;
}

static void open_queue(pmr_comm *comm)
{
    comm->source.poll = poll_queue;
    pmr_engine_add(comm->context->engine, &comm->source);
    comm->queue_open = true;
}

pmr_status pmr_coll_start(pmr_comm *comm, const pmr_call *call, pmr_request **out, pmr_error *error)
{
    pmr_engine *engine = comm->context->engine;
    queued_task *queued = make_task(comm, call);
    pmr_request *request = queued ? pmr_request_take(engine) : NULL;
    if (!request) {
        free(queued);
        return pmr_fail(error, PMR_ERR_NO_MEMORY, "out of memory for a nonblocking call");
    }
    pmr_status status = pmr_task_begin(&queued->task, comm, &queued->call, error);
    if (status) {
        free(queued);
        pmr_request_drop(request);
        pmr_request_drop(request);
        return status;
    }
    queued->task.request = request;
    queued->task.record->mode = PMR_RECORD_STARTED;
    pmr_recorder_entered(queued->task.record, pmr_ticks());
    pmr_request_note(request, comm->recorder, queued->task.record);
    if (!comm->queue_open)
        open_queue(comm);
    queue_append(comm, &queued->task);
    pmr_engine_drive(engine); /* enter the call now, if nobody else is at it: the others may be waiting */
    if (atomic_load_explicit(&comm->source.active, memory_order_acquire))
        status = pmr_engine_kick(engine, error);
    if (status) {
        pmr_request_drop(request); /* it still ends when somebody drives */
        return status;
    }
    *out = request;
    return PMR_OK;
}

/* ---- blocking ---- */

static pmr_status run_queued(pmr_comm *comm, const pmr_call *call, int64_t timeout_ns, pmr_error *error)
{
    pmr_request *request;
    pmr_status status = pmr_coll_start(comm, call, &request, error);
    if (status)
        return status;
    status = pmr_request_wait(request, timeout_ns, error);
    if (status == PMR_ERR_TIMEOUT || status == PMR_ERR_INTERRUPTED) {
        /* The caller's buffers are about to go: nothing of this communicator may run any more. */
        pmr_engine_lock(comm->context->engine);
        status = status == PMR_ERR_TIMEOUT && comm->running ? pmr_comm_stalled(comm->running, error) : status;
        pmr_task_abandon(comm);
        pmr_engine_unlock(comm->context->engine);
    }
    pmr_request_free(request);
    return status;
}

pmr_status pmr_task_wait(pmr_task *task, int64_t deadline_ns, pmr_error *error)
{
    pmr_comm *comm = task->comm;
    if (comm->span)
        return pmr_span_wait(task, deadline_ns, error);
    return pmr_flag_wait(task->want.flag, task->want.target, &comm->policy, &comm->watch, deadline_ns, error);
}

void pmr_task_abandon(pmr_comm *comm)
{
    comm->broken = true;
    if (comm->span)
        pmr_span_abandon(comm);
}

static pmr_status run_slowly(pmr_task *task, pmr_status status, int64_t timeout_ns, pmr_error *error)
{
    pmr_comm *comm = task->comm;
    pmr_recorder_waits_if(task->record, task->record_number);
    int64_t deadline_ns = timeout_ns == PMR_FOREVER ? PMR_FOREVER : pmr_deadline_ns(timeout_ns);
    while (status == PMR_PENDING) {
        status = pmr_task_wait(task, deadline_ns, error);
        if (status == PMR_OK)
            status = pmr_task_step(task, error);
        else if (status == PMR_ERR_STALLED && !pmr_window_aborted(&comm->context->window, error))
            status = pmr_comm_stalled(task, error);
    }
    return status;
}

pmr_status pmr_coll_run(pmr_comm *comm, const pmr_call *call, int64_t timeout_ns, pmr_error *error)
{
    if (atomic_load_explicit(&comm->source.active, memory_order_acquire))
        return run_queued(comm, call, timeout_ns, error);
    pmr_task task;
    pmr_status status = pmr_task_begin(&task, comm, call, error);
    if (status)
        return status;
    comm->running = &task;
    status = pmr_task_step(&task, error);
    if (status == PMR_PENDING)
        status = run_slowly(&task, status, timeout_ns, error);
    if (status)
        pmr_task_abandon(comm);
    else
        pmr_task_end(&task);
    comm->running = NULL;
    return status;
}
