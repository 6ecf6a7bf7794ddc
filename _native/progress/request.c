/* SPDX-License-Identifier: Apache-2.0
 *
 * request.c: the life of a request.
 *
 * Invariant: after the last reference is dropped nobody touches the request, and it is back in the engine's
 * pool.
 */
#include "progress/request.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/clock.h"
#include "core/status.h"
#include "progress/engine.h"

pmr_request *pmr_request_take(pmr_engine *engine)
{
    pmr_request *request = pmr_engine_pool_take(engine);
    if (!request)
        return NULL;
    atomic_store_explicit(&request->completed.value, 0, memory_order_relaxed);
    atomic_store_explicit(&request->completed.waiters, 0, memory_order_relaxed);
    atomic_store_explicit(&request->references, 2, memory_order_relaxed);
    atomic_store_explicit(&request->notify_fd, -1, memory_order_relaxed);
    request->status = PMR_PENDING;
    request->info = (pmr_message_info){-1, -1, 0};
    request->engine = engine;
    request->next = NULL;
    request->operation = NULL;
    request->recorder = NULL;
    return request;
}

void pmr_request_note(pmr_request *request, pmr_recorder *recorder, const pmr_record *call)
{
    request->call = *call;
    request->recorder = recorder;
}

void pmr_request_drop(pmr_request *request)
{
    if (atomic_fetch_sub_explicit(&request->references, 1, memory_order_acq_rel) == 1)
        pmr_engine_pool_give(request->engine, request);
}

static void notify(int event_fd)
{
    uint64_t one = 1;
    ssize_t written = write(event_fd, &one, sizeof one);
    (void)written; /* a full eventfd is readable already */
}

void pmr_request_complete(pmr_request *request, pmr_status status, const pmr_error *error)
{
    request->status = status;
    if (status && error)
        request->error = *error;
    pmr_flag_set(&request->completed, 1);
    int event_fd = atomic_exchange(&request->notify_fd, -1);
    if (event_fd >= 0)
        notify(event_fd);
    pmr_request_drop(request);
}

static pmr_status outcome(const pmr_request *request, pmr_error *error)
{
    if (request->status && error)
        *error = request->error;
    return request->status;
}

#define RECORDED_WAIT_NS 1000000000

static pmr_status check_interrupt(void *arg, pmr_error *error)
{
    (void)arg;
    return pmr_interrupted() ? pmr_fail(error, PMR_ERR_INTERRUPTED, "interrupted") : PMR_OK;
}

static const pmr_watch interrupt_watch = {.abort_state = NULL, .check = check_interrupt, .arg = NULL};

/* A wait in the flight recorder, so that whoever looks at a rank sees that it waits. Short ones are left out: a loop of
 * them would push the calls out of the ring. */
typedef struct recorded_wait {
    pmr_record *record; /* NULL: none */
    uint64_t number;
} recorded_wait;

static recorded_wait enter_wait(const pmr_request *request, int64_t timeout_ns)
{
    if (!request->recorder || (timeout_ns != PMR_FOREVER && timeout_ns < RECORDED_WAIT_NS))
        return (recorded_wait){NULL, 0};
    pmr_record wait = request->call;
    wait.mode = PMR_RECORD_WAIT;
    wait.entered_ticks = pmr_ticks();
    pmr_record *record = pmr_recorder_add(request->recorder, wait);
    return (recorded_wait){record, record->number};
}

static void leave_wait(recorded_wait wait)
{
    if (wait.record)
        pmr_recorder_done_if(wait.record, wait.number);
}

pmr_status pmr_request_wait(pmr_request *request, int64_t timeout_ns, pmr_error *error)
{
    if (!pmr_flag_reached(&request->completed, 1)) {
        recorded_wait wait = enter_wait(request, timeout_ns);
        pmr_status status = pmr_engine_wait(request->engine, &request->completed, 1, &interrupt_watch,
                                            pmr_deadline_ns(timeout_ns), error);
        leave_wait(wait);
        if (status == PMR_ERR_STALLED)
            return pmr_fail(error, PMR_ERR_TIMEOUT,
                            "the operation is still running after %.3f s; it goes on: wait again",
                            (double)timeout_ns / 1e9);
        if (status)
            return status;
    }
    return outcome(request, error);
}

pmr_status pmr_request_test(pmr_request *request, pmr_error *error)
{
    if (pmr_flag_reached(&request->completed, 1))
        return outcome(request, error);
    pmr_engine_drive(request->engine);
    return pmr_flag_reached(&request->completed, 1) ? outcome(request, error) : PMR_PENDING;
}

static bool find_completed(pmr_request *const *requests, size_t count, size_t *index_out)
{
    for (size_t i = 0; i < count; i++)
        if (requests[i] && pmr_flag_reached(&requests[i]->completed, 1)) {
            *index_out = i;
            return true;
        }
    return false;
}

/* Any completion raises the engine's `completions`, so that one flag stands for all requests. */
static pmr_status wait_any(pmr_engine *engine, pmr_request *const *requests, size_t count, int64_t timeout_ns,
                           size_t *index_out, pmr_error *error)
{
    int64_t deadline_ns = pmr_deadline_ns(timeout_ns);
    for (;;) {
        pmr_flag_target next = pmr_engine_next_completion(engine);
        if (find_completed(requests, count, index_out))
            return PMR_OK;
        pmr_status status =
            pmr_engine_wait(engine, next.flag, next.target, &interrupt_watch, deadline_ns, error);
        if (status == PMR_ERR_STALLED) {
            if (find_completed(requests, count, index_out))
                return PMR_OK;
            return pmr_fail(error, PMR_ERR_TIMEOUT,
                            "none of the operations ended within %.3f s; they go on: wait again",
                            (double)timeout_ns / 1e9);
        }
        if (status)
            return status;
    }
}

pmr_status pmr_request_wait_any(pmr_request *const *requests, size_t count, int64_t timeout_ns,
                                size_t *index_out, pmr_error *error)
{
    const pmr_request *first = NULL;
    for (size_t i = 0; i < count && !first; i++)
        first = requests[i];
    if (!first)
        return pmr_fail(error, PMR_ERR_ARGUMENT, "wait_any without a request");
    if (find_completed(requests, count, index_out))
        return PMR_OK;
    recorded_wait wait = enter_wait(first, timeout_ns);
    pmr_status status = wait_any(first->engine, requests, count, timeout_ns, index_out, error);
    leave_wait(wait);
    return status;
}

void pmr_request_info(const pmr_request *request, pmr_message_info *info_out)
{
    *info_out = request->info;
}

pmr_status pmr_request_notify(pmr_request *request, int event_fd, pmr_error *error)
{
    int none = -1;
    if (!atomic_compare_exchange_strong(&request->notify_fd, &none, event_fd))
        return pmr_fail(error, PMR_ERR_ARGUMENT, "the request is awaited already");
    if (pmr_flag_reached(&request->completed, 1)) {
        int mine = atomic_exchange(&request->notify_fd, -1);
        if (mine >= 0)
            notify(mine);
    }
    return PMR_OK;
}

void pmr_request_free(pmr_request *request)
{
    if (request)
        pmr_request_drop(request);
}
