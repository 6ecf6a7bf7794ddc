/* SPDX-License-Identifier: Apache-2.0
 *
 * engine.h: the progress engine: who drives nonblocking operations while the program computes.
 *
 * A *source* is something that can be driven: the queue of a communicator's collectives, the point-to-point
 * matcher. `poll` does all it can without waiting and leaves in `wants` the flags whose change would let it
 * go on. Two may drive: the engine's thread (started at the first nonblocking operation) and a caller inside
 * pmr_request_wait, who takes over, since it is already running. Invariant: at most one of them drives at any
 * moment (`driving`).
 */
#ifndef PMR_PROGRESS_ENGINE_H
#define PMR_PROGRESS_ENGINE_H

#include "progress/hub.h"
#include "progress/request.h"

typedef struct pmr_wants {
    pmr_flag_target flag[PMR_WAIT_FLAGS_MAX];
    uint32_t count;
    pmr_hub *hub;  /* wanted as well: that the network moves ... */
    uint32_t seen; /* ... beyond this; NULL: not */
} pmr_wants;

static inline void pmr_wants_add(pmr_wants *wants, pmr_flag *flag, uint32_t target)
{
    if (wants->count < PMR_WAIT_FLAGS_MAX)
        wants->flag[wants->count++] = (pmr_flag_target){flag, target};
}

/* `seen`: the hub's moves after a poll that moved nothing. The oldest counts: whoever saw more was told of the rest. */
static inline void pmr_wants_add_network(pmr_wants *wants, pmr_hub *hub, uint32_t seen)
{
    if (!wants->hub || (int32_t)(seen - wants->seen) < 0)
        wants->seen = seen;
    wants->hub = hub;
}

typedef struct pmr_source pmr_source;
struct pmr_source {
    /* True: something moved. Errors end the operations concerned, through their requests. */
    bool (*poll)(pmr_source *source, pmr_wants *wants);
    pmr_source *next;        /* the engine's list */
    _Atomic uint32_t active; /* operations under way: 0 means poll is not called */
};

typedef struct pmr_engine pmr_engine;

pmr_status pmr_engine_open(pmr_engine **out, bool oversubscribed, pmr_error *error);
/* Stops the thread. Sources must have ended their operations before. Accepts NULL. */
void pmr_engine_close(pmr_engine *engine);

void pmr_engine_add(pmr_engine *engine, pmr_source *source);
/* Behind it nobody touches the source, nor any flag that it wanted. */
void pmr_engine_remove(pmr_engine *engine, pmr_source *source);

/* Tells the engine that `source` has a new operation (its `active` is raised already); starts the thread if
 * needed. */
pmr_status pmr_engine_kick(pmr_engine *engine, pmr_error *error);

/* One driver at a time: to touch what a source's poll touches, without being it. Held briefly. */
void pmr_engine_lock(pmr_engine *engine);
void pmr_engine_unlock(pmr_engine *engine);

/* Polls every active source once, unless somebody else is at it. */
void pmr_engine_drive(pmr_engine *engine);

/* The wait that every request's owner makes: drives the engine itself until `flag` reaches `target`.
 * PMR_ERR_STALLED at the deadline (error not filled); else what watch->check said. */
pmr_status pmr_engine_wait(pmr_engine *engine, pmr_flag *flag, uint32_t target, const pmr_watch *watch,
                           int64_t deadline_ns, pmr_error *error);

/* What the next completion of any request raises. */
pmr_flag_target pmr_engine_next_completion(pmr_engine *engine);

/* Requests for reuse; request.c. */
pmr_request *pmr_engine_pool_take(pmr_engine *engine);
void pmr_engine_pool_give(pmr_engine *engine, pmr_request *request);

#endif
