/* SPDX-License-Identifier: Apache-2.0
 *
 * engine.c: the thread that drives nonblocking operations, and the callers that take its place.
 *
 * `driving` is held around a pass over the sources, never while sleeping, so a caller in pmr_engine_wait can
 * take over between two passes; while there is such a guest the thread stays asleep on the doorbell `kick`. A
 * pass never waits, so the lock is free again after the work at hand. The thread does not spin: it shares its
 * CPU with the program that computes. Who sleeps on flags that a source wants is counted in `sleepers` from the
 * pass that collected them on, so that a source is removed, and its memory given back, only when nobody may
 * touch its flags any more; everybody sleeps on `kick` too. Who wants nothing but the network sleeps on the hub instead, is
 * counted in `on_network`, and is rung for where a flag would be raised for the others.
 * Invariant: an active source is driven by somebody, or all flags that it wants are being waited for.
 */
#include "progress/engine.h"

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>

#include "core/clock.h"
#include "core/slice.h"
#include "core/status.h"

#define SLICE_NS     100000 /* of CPU at a time: a segment's work, and the shortest that Linux grants */
#define GUEST_SPINS  2000u /* passes without progress before a guest sleeps, with a CPU for each rank */
#define GUEST_YIELDS 64u   /* the same, with more ranks than CPUs */

struct pmr_engine {
    pthread_mutex_t driving;
    pmr_source *sources; /* under driving */
    pmr_flag kick;       /* raised for the thread: new work, guests left, stop */
    pmr_flag completions;
    _Atomic uint32_t guests;
    _Atomic uint32_t sleepers; /* raised under driving */
    _Atomic uint32_t on_network; /* of those, who sleep on the hub's descriptor and not on flags */
    _Atomic(pmr_hub *) hub;      /* theirs: there is one in a process */
    _Atomic bool stop;
    bool crowded;
    _Atomic bool started;       /* set under starting */
    pthread_mutex_t starting;
    pthread_t thread;
    pthread_mutex_t pool_lock;
    pmr_request *pool;
};

/* Raises a flag of the engine's, for those who sleep on flags and for those who sleep on the network. */
static void raise_flag(pmr_engine *engine, pmr_flag *flag)
{
    pmr_flag_add(flag);
    if (atomic_load(&engine->on_network))
        pmr_hub_ring(atomic_load(&engine->hub));
}

/* Under driving. True: something moved. */
static bool pass(pmr_engine *engine, pmr_wants *wants)
{
    bool moved = false;
    wants->count = 0;
    wants->hub = NULL;
    for (pmr_source *source = engine->sources; source; source = source->next)
        if (atomic_load_explicit(&source->active, memory_order_acquire))
            moved |= source->poll(source, wants);
    if (moved)
        raise_flag(engine, &engine->completions);
    return moved;
}

/* A pass; when nothing moved and `sleepy`, the caller counts as a sleeper from here on. */
static bool drive(pmr_engine *engine, pmr_wants *wants, bool sleepy)
{
    pthread_mutex_lock(&engine->driving);
    bool moved = pass(engine, wants);
    if (!moved && sleepy)
        atomic_fetch_add(&engine->sleepers, 1);
    pthread_mutex_unlock(&engine->driving);
    return moved;
}

static bool any_raised(const pmr_flag_target *flags, uint32_t count)
{
    bool raised = false;
    for (uint32_t i = 0; i < count; i++)
        raised = raised || (int32_t)(atomic_load(&flags[i].flag->value) - flags[i].target) >= 0;
    return raised;
}

/* Sleeps until something that was wanted, or one of the engine's `own` flags, may have come; then the caller counts as a
 * sleeper no more. Where the network alone is wanted it sleeps on the network itself: a thread that is woken by another
 * waits twice for the CPU on which the program computes. */
static void sleep_for(pmr_engine *engine, pmr_wants *wants, const pmr_flag_target *own, uint32_t count, int64_t until_ns)
{
    if (wants->hub && wants->count == 0) {
        atomic_store(&engine->hub, wants->hub);
        atomic_fetch_add(&engine->on_network, 1); /* then look at the flags: who raises one looks here behind that */
        if (!any_raised(own, count))
            pmr_hub_sleep(wants->hub, wants->seen, until_ns);
        atomic_fetch_sub(&engine->on_network, 1);
    } else {
        uint32_t most = PMR_WAIT_FLAGS_MAX - count - 1; /* what is left out is looked at after a slice */
        wants->count = wants->count < most ? wants->count : most;
        for (uint32_t i = 0; i < count; i++)
            pmr_wants_add(wants, own[i].flag, own[i].target);
        if (wants->hub) {
            pmr_wants_add(wants, &wants->hub->moves, wants->seen + 1);
            pmr_hub_arm(wants->hub, NULL); /* without its thread the network is looked at after a slice */
        }
        pmr_flags_sleep(wants->flag, wants->count, until_ns);
    }
    atomic_fetch_sub(&engine->sleepers, 1);
}

static bool any_active(pmr_engine *engine)
{
    bool active = false;
    pthread_mutex_lock(&engine->driving);
    for (const pmr_source *source = engine->sources; source && !active; source = source->next)
        active = atomic_load_explicit(&source->active, memory_order_acquire) != 0;
    pthread_mutex_unlock(&engine->driving);
    return active;
}

/* The thread that drives now can wait for long payloads; a guest, which only waits, cannot. */
static void set_patient(pmr_engine *engine, bool patient)
{
    pmr_hub *hub = atomic_load(&engine->hub);
    if (hub)
        pmr_hub_set_patient(hub, patient);
}

static void *run(void *arg)
{
    pmr_engine *engine = arg;
    pmr_wants wants = {.count = 0};
    pmr_slice_ask(SLICE_NS);
    while (!atomic_load(&engine->stop)) {
        uint32_t seen = atomic_load(&engine->kick.value);
        if (atomic_load(&engine->guests) || !any_active(engine)) {
            pmr_flag_target doorbell = {&engine->kick, seen + 1};
            set_patient(engine, false);
            pmr_flags_sleep(&doorbell, 1, pmr_now_ns() + PMR_WAIT_SLICE_NS * 20ll);
            continue;
        }
        if (drive(engine, &wants, true))
            continue;
        pmr_flag_target doorbell = {&engine->kick, seen + 1};
        set_patient(engine, true);
        sleep_for(engine, &wants, &doorbell, 1, pmr_now_ns() + PMR_WAIT_SLICE_NS);
    }
    return NULL;
}

pmr_status pmr_engine_open(pmr_engine **out, bool oversubscribed, pmr_error *error)
{
    pmr_engine *engine = calloc(1, sizeof *engine);
    if (!engine)
        return pmr_fail(error, PMR_ERR_NO_MEMORY, "out of memory");
    pthread_mutex_init(&engine->driving, NULL);
    pthread_mutex_init(&engine->starting, NULL);
    pthread_mutex_init(&engine->pool_lock, NULL);
    engine->crowded = oversubscribed;
    *out = engine;
    return PMR_OK;
}

void pmr_engine_close(pmr_engine *engine)
{
    if (!engine)
        return;
    if (engine->started) {
        atomic_store(&engine->stop, true);
        raise_flag(engine, &engine->kick);
        pthread_join(engine->thread, NULL);
        engine->started = false;
    }
    /* The mutexes and requests that callers still hold stay usable: a request may be freed after the engine.
     */
}

void pmr_engine_lock(pmr_engine *engine)
{
    pthread_mutex_lock(&engine->driving);
}

void pmr_engine_unlock(pmr_engine *engine)
{
    pthread_mutex_unlock(&engine->driving);
}

void pmr_engine_add(pmr_engine *engine, pmr_source *source)
{
    pmr_engine_lock(engine);
    source->next = engine->sources;
    engine->sources = source;
    pmr_engine_unlock(engine);
}

void pmr_engine_remove(pmr_engine *engine, pmr_source *source)
{
    pmr_engine_lock(engine);
    for (pmr_source **at = &engine->sources; *at; at = &(*at)->next)
        if (*at == source) {
            *at = source->next;
            break;
        }
    pmr_engine_unlock(engine);
    while (atomic_load(&engine->sleepers)) {
        raise_flag(engine, &engine->kick);
        sched_yield();
    }
}

/* Once, whichever of the program's threads comes first. */
static pmr_status start_thread(pmr_engine *engine, pmr_error *error)
{
    pthread_mutex_lock(&engine->starting);
    if (!engine->started) {
        sigset_t all, before;
        sigfillset(&all);
        pthread_sigmask(SIG_SETMASK, &all, &before); /* signals belong to the program's threads */
        engine->started = pthread_create(&engine->thread, NULL, run, engine) == 0;
        pthread_sigmask(SIG_SETMASK, &before, NULL);
    }
    bool started = engine->started;
    pthread_mutex_unlock(&engine->starting);
    return started ? PMR_OK
                   : pmr_fail(error, PMR_ERR_OS,
                              "cannot start the progress thread (a limit on processes? 'ulimit -u')");
}

pmr_status pmr_engine_kick(pmr_engine *engine, pmr_error *error)
{
    if (!engine->started) {
        pmr_status status = start_thread(engine, error);
        if (status)
            return status;
    }
    raise_flag(engine, &engine->kick);
    return PMR_OK;
}

void pmr_engine_drive(pmr_engine *engine)
{
    if (pthread_mutex_trylock(&engine->driving))
        return;
    pmr_wants wants;
    pass(engine, &wants);
    pthread_mutex_unlock(&engine->driving);
}

pmr_flag_target pmr_engine_next_completion(pmr_engine *engine)
{
    return (pmr_flag_target){&engine->completions, atomic_load(&engine->completions.value) + 1};
}

/* One try: drive, and when nothing moves give the CPU away, at last by sleeping. */
static pmr_status wait_once(pmr_engine *engine, pmr_flag_target goal, const pmr_watch *watch,
                            int64_t deadline_ns, uint32_t *idle, pmr_error *error)
{
    pmr_wants wants;
    uint32_t kicks = atomic_load(&engine->kick.value);
    bool sleepy = *idle + 1 >= (engine->crowded ? GUEST_YIELDS : GUEST_SPINS);
    set_patient(engine, false);
    if (drive(engine, &wants, sleepy)) {
        *idle = 0;
        return PMR_OK;
    }
    if (!sleepy) {
        ++*idle;
        if (engine->crowded)
            sched_yield();
        else
            pmr_cpu_relax();
        return PMR_OK;
    }
    pmr_status status = watch->check(watch->arg, error);
    int64_t now = pmr_now_ns();
    if (!status && now >= deadline_ns)
        status = PMR_ERR_STALLED;
    if (status) {
        atomic_fetch_sub(&engine->sleepers, 1);
        return status;
    }
    pmr_flag_target own[2] = {goal, {&engine->kick, kicks + 1}};
    int64_t slice_end = now + PMR_WAIT_SLICE_NS;
    sleep_for(engine, &wants, own, 2, slice_end < deadline_ns ? slice_end : deadline_ns);
    return PMR_OK;
}

pmr_status pmr_engine_wait(pmr_engine *engine, pmr_flag *flag, uint32_t target, const pmr_watch *watch,
                           int64_t deadline_ns, pmr_error *error)
{
    pmr_status status = PMR_OK;
    uint32_t idle = 0;
    atomic_fetch_add(&engine->guests, 1);
    while (!status && !pmr_flag_reached(flag, target))
        status = wait_once(engine, (pmr_flag_target){flag, target}, watch, deadline_ns, &idle, error);
    if (atomic_fetch_sub(&engine->guests, 1) == 1 && engine->started)
        if (any_active(engine))
            raise_flag(engine, &engine->kick);
    return status;
}

pmr_request *pmr_engine_pool_take(pmr_engine *engine)
{
    pthread_mutex_lock(&engine->pool_lock);
    pmr_request *request = engine->pool;
    if (request)
        engine->pool = request->next;
    pthread_mutex_unlock(&engine->pool_lock);
    return request ? request : calloc(1, sizeof *request);
}

void pmr_engine_pool_give(pmr_engine *engine, pmr_request *request)
{
    pthread_mutex_lock(&engine->pool_lock);
    request->next = engine->pool;
    engine->pool = request;
    pthread_mutex_unlock(&engine->pool_lock);
}
