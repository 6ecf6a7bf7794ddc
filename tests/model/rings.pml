/* SPDX-License-Identifier: Apache-2.0
 *
 * rings.pml: when a maker may write a slot of its ring again (_native/coll/pull.c).
 *
 * CALLS calls of 1 to CHUNKS chunks each follow one another. In each the first or the last rank makes for all
 * others, or all others make for the first, or all for all (drawn). A maker's ring has ROOT_SLOTS slots where one
 * rank makes, else SLOTS; its chunks go round it, on from call to call. A maker stages its first chunk when it
 * enters, then, before it takes chunk i of others, chunk i + 1. It stages a chunk where no chunk of the same call
 * was once all ranks have completed the last call that used the slot (drain), else once all takers have taken that
 * chunk (await_room). So roots and leaves run ahead, without looking at the others. Writing and reading take time:
 * what lies in a slot is nothing while it is written, and is looked at when reading begins and when it ends. Up to
 * DEATHS ranks die, each between any two of its steps; a rank that waits may then find it. A death ends any wait,
 * so DEATHS=0 proves that none lasts for ever. Entries are those of meeting.pml.
 *
 * What is proved: whoever takes finds the chunk it wants; every rank that lives ends, behind all calls or, only after a
 * death, with an error (no deadlock). It holds also where ranks stage all that there is room for before they take
 * (AHEAD), as they do with more ranks than CPUs. What must fail:
 *   SLOTS=1      where all make, each waits for room before it takes what would make room for the others
 *   NO_DRAIN     slots of earlier calls are written without asking
 *   EARLY_ROOM   a maker waits for one chunk less to be taken
 *   EARLY_OUT    a taker counts a chunk as taken before it has read it
 *   BLIND        waiters look at nothing but what they wait for
 */
#ifndef RANKS
#define RANKS 2
#endif
#ifndef CALLS
#define CALLS 3
#endif
#ifndef CHUNKS
#define CHUNKS 3
#endif
#ifndef SLOTS
#define SLOTS 2
#endif
#ifndef ROOT_SLOTS
#define ROOT_SLOTS 3
#endif
#ifndef DEATHS
#define DEATHS 1
#endif

#define FROM_FIRST 0
#define FROM_LAST 1
#define TO_FIRST 2
#define ALL_TO_ALL 3

#define MAKES(rank)                                                                                          \
    (kind[call] == ALL_TO_ALL || (kind[call] == FROM_FIRST && (rank) == 0) ||                                \
     (kind[call] == FROM_LAST && (rank) == RANKS - 1) || (kind[call] == TO_FIRST && (rank) != 0))
#define TAKES(taker, maker)                                                                                  \
    ((taker) != (maker) && MAKES(maker) && (kind[call] != TO_FIRST || (taker) == 0))
#define RING (kind[call] < TO_FIRST -> ROOT_SLOTS : SLOTS)
#define AT(rank) ((rank) * (CALLS + 1) + call)
#define SLOT(maker, i) ((maker) * ROOT_SLOTS + (in_base[AT(maker)] + (i)) % RING)
#define CHUNK(maker, i) (in_base[AT(maker)] + (i) + 1)

#ifdef BLIND
#define TROUBLE false
#else
#define TROUBLE (deaths > 0)
#endif
#if RANKS > 2
#define EACH(holds) (holds(0) && holds(1) && holds(2))
#else
#define EACH(holds) (holds(0) && holds(1))
#endif
#define ENTERED(maker) (!TAKES(me, maker) || entry[maker] >= call)
#define DRAINED(rank) ((rank) == me || completed[rank] >= busy[(in_base[AT(me)] + staged) % RING])
#ifdef EARLY_ROOM
#define NEEDED (staged - RING)
#else
#define NEEDED (staged + 1 - RING)
#endif
#define EMPTIED(taker)                                                                                       \
    (!TAKES(taker, me) || (entry[taker] >= call && out[taker] >= out_base[AT(taker)] + NEEDED))

byte kind[CALLS + 1], chunks[CALLS + 1];
byte entry[RANKS];
byte in_base[RANKS * (CALLS + 1)], out_base[RANKS * (CALLS + 1)]; /* of the entries */
byte in[RANKS];                   /* chunks staged in all calls */
byte out[RANKS];                  /* chunks taken, from whomever there are */
byte completed[RANKS];
byte lies[RANKS * ROOT_SLOTS];    /* the chunk in the slot, 0 while it is written */
bool dead[RANKS];
byte deaths;

inline await(condition)
{
    if
    :: condition
    :: !(condition) && TROUBLE -> goto over
    fi
}

/* For the chunk that is staged next. */
#ifdef NO_DRAIN
#define ROOM (staged < RING || EACH(EMPTIED))
#else
#define ROOM ((staged < RING && EACH(DRAINED)) || (staged >= RING && EACH(EMPTIED)))
#endif

inline stage()
{
    d_step { busy[(in_base[AT(me)] + staged) % RING] = call; lies[SLOT(me, staged)] = 0 };
    d_step { lies[SLOT(me, staged)] = CHUNK(me, staged); staged++ };
    in[me] = in_base[AT(me)] + staged
}

inline take(i)
{
    do
    :: other == RANKS - 1 -> break
    :: else ->
        if
        :: TAKES(me, (me + 1 + other) % RANKS) ->
            await(in[(me + 1 + other) % RANKS] >= CHUNK((me + 1 + other) % RANKS, i));
            assert(lies[SLOT((me + 1 + other) % RANKS, i)] == CHUNK((me + 1 + other) % RANKS, i));
            assert(lies[SLOT((me + 1 + other) % RANKS, i)] == CHUNK((me + 1 + other) % RANKS, i))
        :: else
        fi;
        other++
    od;
    other = 0
}

proctype rank(byte me)
{
    byte call = 1, step, staged, other;
    byte busy[ROOT_SLOTS];
    {
        do
        :: call > CALLS -> break
        :: else ->
            d_step { in_base[AT(me)] = in[me]; out_base[AT(me)] = out[me] };
            if
            :: MAKES(me) -> await(ROOM)
            :: else
            fi;
            entry[me] = call;
            if
            :: MAKES(me) -> stage()
            :: else
            fi;
            await(EACH(ENTERED));
            do
            :: step == chunks[call] -> break
            :: else ->
                if
                :: MAKES(me) && staged == step + 1 && staged < chunks[call] -> await(ROOM); stage()
                :: else
                fi;
#ifdef AHEAD
                do
                :: MAKES(me) && staged < chunks[call] && staged <= step + RING && ROOM -> stage()
                :: else -> break
                od;
#endif
#ifdef EARLY_OUT
                out[me] = out_base[AT(me)] + step + 1;
                take(step);
#else
                take(step);
                out[me] = out_base[AT(me)] + step + 1;
#endif
                step++
            od;
            completed[me] = call;
            d_step { step = 0; staged = 0; call++ }
        od;
over:   skip
    } unless { dead[me] }
}

active proctype death()
{
    byte who;
end:
    do
    :: deaths < DEATHS ->
        atomic {
            select(who : 0 .. RANKS - 1);
            if
            :: !dead[who] -> dead[who] = true; deaths++
            :: else
            fi;
            who = 0
        }
    od
}

init
{
    atomic {
        byte i = 1, drawn;
        do
        :: i > CALLS -> break
        :: else ->
            select(drawn : 1 .. CHUNKS);
            chunks[i] = drawn;
            select(drawn : FROM_FIRST .. ALL_TO_ALL);
            kind[i] = drawn;
            i++
        od;
        i = 0;
        do
        :: i < RANKS -> run rank(i); i++
        :: else -> break
        od
    }
}
