/* SPDX-License-Identifier: Apache-2.0
 *
 * request.h: a nonblocking operation as its caller and the progress engine share it.
 *
 * States: active -> completed, exactly once. The caller's reference and the engine's are counted: whoever
 * drops the last one frees. Requests of one process live in a pool (pool.c), so that starting one takes no
 * memory from malloc once the pool is warm. Invariant: status, error and info are written before `completed`
 * is raised, never after.
 */
#ifndef PMR_PROGRESS_REQUEST_H
#define PMR_PROGRESS_REQUEST_H

#include "core/flag.h"
#include "core/recorder.h"
#include "include/pmr.h"

struct pmr_engine;

struct pmr_request {
    pmr_flag completed; /* 0, then 1 */
    _Atomic int32_t references;
    _Atomic int32_t notify_fd; /* -1: none */
    pmr_status status;
    pmr_message_info info;
    pmr_error error;
    struct pmr_engine *engine;
    struct pmr_request *next; /* in the pool, or in a queue of the operation's owner */
    void *operation;          /* what the engine runs; belongs to whoever started it */
    pmr_recorder *recorder;   /* NULL: its waits are not recorded */
    pmr_record call;          /* what it is, for the record of a wait */
};

/* References: 2 (caller and engine). NULL: out of memory. */
pmr_request *pmr_request_take(struct pmr_engine *engine);
/* What the request is: a long wait for it is entered in the flight recorder as that. */
void pmr_request_note(pmr_request *request, pmr_recorder *recorder, const pmr_record *call);
/* Engine side: raises `completed`, notifies, drops the engine's reference. `error` may be NULL when status is
 * OK. */
void pmr_request_complete(pmr_request *request, pmr_status status, const pmr_error *error);
void pmr_request_drop(pmr_request *request);

#endif
