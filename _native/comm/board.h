/* SPDX-License-Identifier: Apache-2.0
 *
 * board.h: the memory through which the members of one communicator meet.
 *
 * The nouns: an *entry* says "I am in call number s, and this is my call"; a *gate* lets the last to arrive
 * act for all; a *slot* holds a small message of one call; *staging* holds the chunks of large ones, in two
 * halves, for even and odd calls; *rings*, *turns*, *pairs* and *benches* are the same for one algorithm
 * each, laid out so that what is written was not read last by another core (rings) or was read last by this
 * one (turns, pairs). All counters only grow; all memory starts as zero. Invariant: every line has one writer
 * at a time: its member, or (gates, results, claims) the rank that the protocol of the algorithm names.
 */
#ifndef PMR_COMM_BOARD_H
#define PMR_COMM_BOARD_H

#include <stdalign.h>
#include <stddef.h>

#include "core/flag.h"

#define PMR_LINE            64u
#define PMR_ENTRY_SLOTS     16u    /* how many calls a rank may run ahead of the slowest */
#define PMR_SLOT_BYTES      16384u /* a small message */
#define PMR_CHUNK_SLOTS     5u     /* chunks in flight: see coll/allreduce_sliced.c for why five */
#define PMR_CHUNK_BYTES_MAX 524288u
#define PMR_HALF_BYTES      (PMR_CHUNK_SLOTS * PMR_CHUNK_BYTES_MAX)
#define PMR_TURN_BYTES      262144u /* a chunk of coll/allreduce_symmetric.c */
#define PMR_RING_SLOTS   32u /* chunks of the one-way collectives: 2 MiB, more than a core keeps for itself */
#define PMR_RING_BYTES   65536u
#define PMR_PAIRS_BYTES  524288u /* what a rank shares with all others in coll/exchange.c */
#define PMR_INLINE_BYTES 32u     /* a message beside its entry */

/* How a rank's outgoing data can be reached. */
enum pmr_style {
    PMR_STYLE_NONE = 0, /* nothing to be had from this rank */
    PMR_STYLE_INLINE,   /* in the entry */
    PMR_STYLE_SLOT,     /* in the slot of this call */
    PMR_STYLE_STAGED,   /* in shared memory, chunk by chunk */
    PMR_STYLE_EXPOSED   /* in the heap, at `send_offset` */
};

typedef struct pmr_entry { /* one cache line, written before `seq` is raised */
    pmr_flag seq;          /* number of the call that is in this slot */
    uint64_t fingerprint;
    uint32_t style;
    uint32_t in_base;  /* the member's `in` when the call began */
    uint32_t out_base; /* the member's `out` when the call began */
    uint32_t steps;    /* chunks it stages in this call */
    union {
        uint8_t payload[PMR_INLINE_BYTES];
        struct {
            uint64_t send_offset;
            uint64_t recv_offset;
        };
    };
} pmr_entry;

_Static_assert(sizeof(pmr_entry) == PMR_LINE, "an entry is a cache line");

typedef struct pmr_member {
    alignas(PMR_LINE) pmr_entry entry[PMR_ENTRY_SLOTS];
    alignas(PMR_LINE) pmr_flag in;    /* chunks staged since the communicator was made */
    alignas(PMR_LINE) pmr_flag out;   /* steps consumed */
    alignas(PMR_LINE) pmr_flag done;  /* last call completed; raised by the calls that need not meet */
    alignas(PMR_LINE) pmr_flag round; /* second meetings passed */
    alignas(PMR_LINE) pmr_flag turn;  /* chunks shown in coll/allreduce_symmetric.c */
    alignas(PMR_LINE) pmr_flag pair;  /* chunks shown in coll/exchange.c */
} pmr_member;

typedef struct pmr_gate {
    alignas(PMR_LINE) _Atomic uint32_t arrived;
    alignas(PMR_LINE) pmr_flag open; /* number of the last meeting that is complete */
} pmr_gate;

enum { PMR_GATE_MEET = 0, PMR_GATE_CHUNK = 1, PMR_GATE_COUNT = 3 };

typedef struct pmr_claims {                  /* of one chunk slot: who works on which slice */
    alignas(PMR_LINE) _Atomic uint64_t next; /* meeting number << 32 | next slice */
    alignas(PMR_LINE) _Atomic uint32_t finished;
    pmr_flag ready; /* number of the meeting whose slices are all finished */
} pmr_claims;

typedef struct pmr_board {
    alignas(PMR_LINE) pmr_gate gate[PMR_GATE_COUNT];
    alignas(PMR_LINE) pmr_claims claims[2];
    alignas(PMR_LINE) _Atomic uint32_t leaving; /* members that freed the communicator */
    alignas(4096) pmr_member member[];
} pmr_board;

/* Where the parts behind the members begin, for `size` members. */
typedef struct pmr_board_layout {
    size_t slots;   /* [member][PMR_ENTRY_SLOTS][PMR_SLOT_BYTES] */
    size_t staging; /* [member][2][PMR_CHUNK_SLOTS][PMR_CHUNK_BYTES_MAX] */
    size_t rings;   /* [member][PMR_RING_SLOTS][PMR_RING_BYTES] */
    size_t turns;   /* [member][2][PMR_TURN_BYTES] */
    size_t pairs;   /* [member][PMR_PAIRS_BYTES] */
    size_t benches; /* [member][2][PMR_CHUNK_BYTES_MAX]: what ranks bring to a gate */
    size_t results; /* [2][PMR_CHUNK_BYTES_MAX]: what is fetched behind it */
    size_t bytes;
} pmr_board_layout;

static inline pmr_board_layout pmr_board_layout_of(uint32_t size)
{
    pmr_board_layout layout;
    size_t members = sizeof(pmr_board) + (size_t)size * sizeof(pmr_member);
    layout.slots = (members + 4095) / 4096 * 4096;
    layout.staging = layout.slots + (size_t)size * PMR_ENTRY_SLOTS * PMR_SLOT_BYTES;
    layout.rings = layout.staging + (size_t)size * 2 * PMR_HALF_BYTES;
    layout.turns = layout.rings + (size_t)size * PMR_RING_SLOTS * PMR_RING_BYTES;
    layout.pairs = layout.turns + (size_t)size * 2 * PMR_TURN_BYTES;
    layout.benches = layout.pairs + (size_t)size * PMR_PAIRS_BYTES;
    layout.results = layout.benches + (size_t)size * 2 * PMR_CHUNK_BYTES_MAX;
    layout.bytes = layout.results + 2 * PMR_CHUNK_BYTES_MAX;
    return layout;
}

#endif
