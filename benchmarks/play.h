/* SPDX-License-Identifier: Apache-2.0
 *
 * play.h: how long the ranks of a world take for their schedules, by a model of latencies, rates and CPUs.
 *
 * Each rank does one thing at a time, on a CPU: it begins a call, sends, takes in what arrived, works on memory, or does
 * its part of a collective of its node. A node has one link, whose two directions its ranks share, and on which their
 * messages take turns, piece by piece; a piece then travels, and waits for the receiver's link. As in the executor (span_run.c), a long
 * message, unless it can bring its sender's own, waits for the word that its receiver has entered the call, and a rank enters the next call when it is through
 * with one, so that ranks may run ahead of each other.
 *
 * A world whose nodes all do the same, each seen from its own place, may be *folded*: only node 0 is played, and a
 * message to the node d places further on arrives as the one from d places before. Invariant: the same world and
 * parameters give the same time.
 */
#ifndef PMR_BENCHMARKS_PLAY_H
#define PMR_BENCHMARKS_PLAY_H

#include "coll/coll.h"

typedef struct play_model {     /* microseconds; what ends in _kib_us: per KiB */
    double call_us;             /* from the caller's call to the first step */
    double send_us, send_kib_us;
    double receive_us, receive_kib_us;
    double wake_us;             /* until a rank goes on that had nothing to do */
    double latency_us;          /* of the wire alone */
    double link_kib_us;         /* each direction of a node's link */
    double burst_kib;           /* that a link saves up while it is idle, and then passes at once: of shaped ones */
    double work_us, work_kib_us; /* reductions and copies, by what they read */
    double node_us;             /* a collective of a node, for each doubling of its ranks */
    double node_kib_us;         /* by what a rank reads and writes in it */
    double cpus;                /* of a node; or, where `shared`, of all nodes together */
    double shared;              /* 0 or 1 */
} play_model;

typedef struct play_world {
    const pmr_shape *shape;
    const pmr_schedule *schedules; /* of the ranks that are played: all, or those of node 0 */
    size_t item_bytes, partial_bytes;
    bool folded;
    uint32_t calls;             /* one after the other */
} play_world;

/* Microseconds per call, until the last rank has ended the last one. Negative: the schedules do not fit together (a
 * folded world is not the same seen from every node), or there is no memory. */
double play(const play_world *world, const play_model *model);

#endif
