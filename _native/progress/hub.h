/* SPDX-License-Identifier: Apache-2.0
 *
 * hub.h: who drives this rank's endpoint, who waits for it, and where its packets go.
 *
 * One hub per process. Whoever needs the network polls it under the hub's lock, and so also moves what others wait for.
 * Packets belong to *channels*: one for each communicator that spans nodes, and one for messages. `moves` is raised
 * whenever a poll moved something, and by the *watcher*, a thread that sleeps on the endpoint's descriptor for those who
 * can only wait for flags (they arm it each time before they sleep); who waits for nothing but the network sleeps on the
 * descriptor itself. A packet for a communicator that this rank has not made yet is kept until it has.
 * Invariant: between reading `moves` under the lock, after a poll that moved nothing, and sleeping until it passes that
 * value with the watcher armed, no arrival is missed.
 */
#ifndef PMR_PROGRESS_HUB_H
#define PMR_PROGRESS_HUB_H

#include <pthread.h>

#include "core/wait.h"
#include "core/window.h"
#include "transport/net.h"

#define PMR_HUB_MESSAGES UINT32_MAX /* the channel of messages between two ranks */

/* Kinds of packets. Up to PMR_PACKET_LAST_OF_CALLS they go to the channel of their communicator. */
enum pmr_packet_kind {
    PMR_PACKET_ENTER = 1, /* "I am in call `seq`"; token: bytes I send you in it; tag 1: and here is the first message */
    PMR_PACKET_DATA,      /* message number `token` of call `seq` */
    PMR_PACKET_ASK,       /* "I wait for you in call `seq`" */
    PMR_PACKET_TELL,      /* "we differ in call `seq`; my last calls were" */
    PMR_PACKET_WHERE,     /* "which of your node's ranks have entered call `seq`?" */
    PMR_PACKET_HERE,      /* the answer */
    PMR_PACKET_LAST_OF_CALLS = 15,
    PMR_PACKET_ABORT,     /* the sender's abort record */
    PMR_PACKET_MESSAGE    /* and all above: messages between two ranks */
};

typedef struct pmr_channel pmr_channel;
typedef struct pmr_sending pmr_sending;

/* All are called under the hub's lock, inside a poll. They may send. */
struct pmr_channel {
    uint32_t comm;
    pmr_placing (*place)(pmr_channel *channel, uint32_t peer, uint32_t lane, const pmr_packet *packet, void **into_out);
    void (*arrived)(pmr_channel *channel, uint32_t peer, uint32_t lane, const pmr_packet *packet, const void *payload);
    void (*sent)(pmr_channel *channel, pmr_sending *sending);
    void (*lost)(pmr_channel *channel, uint32_t peer, const pmr_error *error);
    pmr_channel *next;
};

/* A payload on its way: what the endpoint's cookie names. Stays where it is until `sent`. */
struct pmr_sending {
    pmr_channel *channel;
    uint32_t number; /* of the channel's choice */
};

typedef struct pmr_hub {
    pthread_mutex_t lock;
    pmr_endpoint *endpoint;
    const pmr_net *net;
    const pmr_window *window;
    pmr_flag moves;
    bool crowded;
    _Atomic bool patient; /* the next poll tells the endpoint */
    /* under the lock */
    pmr_channel *channels;
    pmr_channel *last;              /* found */
    struct pmr_orphan *orphans, **orphans_end;
    uint32_t next_comm;             /* ids from here on are of communicators that are not made yet */
    _Atomic bool *lost;             /* by world rank; written under the lock */
    pmr_error *losses;              /* why, by world rank; NULL: none yet */
    uint32_t large_lane;
    /* waiting */
    _Atomic uint32_t sleepers;      /* on the descriptor */
    int bell;                       /* wakes them: an eventfd that counts */
    pmr_flag armed;                 /* the watcher's doorbell */
    _Atomic bool stop;
    _Atomic bool watching;          /* the thread is started; set under the lock */
    pthread_t watcher;
} pmr_hub;

/* Takes over the endpoint of a connected net. Both, and the window, stay the caller's and must outlive the hub. */
pmr_status pmr_hub_open(pmr_hub **out, pmr_net *net, const pmr_window *window, bool crowded, pmr_error *error);
/* Channels must be gone. Accepts NULL. */
void pmr_hub_close(pmr_hub *hub);

void pmr_hub_attach(pmr_hub *hub, pmr_channel *channel);
void pmr_hub_detach(pmr_hub *hub, pmr_channel *channel);
/* All communicators with smaller ids are made, or none of this rank's. */
void pmr_hub_comms_made(pmr_hub *hub, uint32_t next_comm);

static inline void pmr_hub_lock(pmr_hub *hub)
{
    pthread_mutex_lock(&hub->lock);
}

static inline void pmr_hub_unlock(pmr_hub *hub)
{
    pthread_mutex_unlock(&hub->lock);
}

/* ---- under the lock ---- */

/* True: something moved. */
bool pmr_hub_poll(pmr_hub *hub);

static inline uint32_t pmr_hub_moves(const pmr_hub *hub)
{
    return atomic_load_explicit(&hub->moves.value, memory_order_acquire);
}

/* The lane for the next large payload: they take turns. */
static inline uint32_t pmr_hub_large_lane(pmr_hub *hub)
{
    hub->large_lane = hub->large_lane + 1 < hub->endpoint->lanes ? hub->large_lane + 1 : 1;
    return hub->large_lane;
}

/* ---- without the lock ---- */

/* Waits until something moved since `seen`, driving the endpoint. PMR_ERR_STALLED: the deadline passed (error not
 * filled); else what the watch said. May return early. */
pmr_status pmr_hub_wait(pmr_hub *hub, uint32_t seen, pmr_wait_policy *policy, const pmr_watch *watch,
                        int64_t deadline_ns, pmr_error *error);

/* Sleeps until the network may have something to do, or somebody moved it since `seen`, or rang. */
void pmr_hub_sleep(pmr_hub *hub, uint32_t seen, int64_t until_ns);

/* Whether whoever sleeps on the network shares its CPU with a program that computes (endpoint.h). */
static inline void pmr_hub_set_patient(pmr_hub *hub, bool patient)
{
    atomic_store_explicit(&hub->patient, patient, memory_order_relaxed);
}

/* Ends the sleep of all who are asleep on the network now, or enter it with what they saw before. */
void pmr_hub_ring(pmr_hub *hub);

/* Raises `moves` once, at the next arrival (or after a second): before sleeping on flags. */
pmr_status pmr_hub_arm(pmr_hub *hub, pmr_error *error);

/* Hands this node's abort record to the ranks of other nodes. */
void pmr_hub_tell_abort(pmr_hub *hub);

#endif
