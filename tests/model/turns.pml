/* SPDX-License-Identifier: Apache-2.0
 *
 * turns.pml: two turns per rank are enough for _native/coll/allreduce_symmetric.c, with two ranks two for both.
 *
 * CALLS calls of 1 to CHUNKS chunks each follow one another; chunks are numbered through all calls, from 1. In
 * each call each rank's array lies in the heap or not (drawn). A rank whose array does not shows its first chunk
 * before it enters. Where no rank's lies in the heap, all reduce that chunk once all have entered, without a flag;
 * where each rank's does, nothing is shown and nothing counted; else who has not shown it shows it now. For each
 * further chunk, a rank shows, raises its turn, waits for all turns, and reduces. Two ranks swap their two buffers
 * with each chunk. Writing and reading take time: what lies in a buffer is nothing while it is written, and is
 * looked at when reading begins and when it ends. Up to DEATHS ranks die, each between any two of its steps; a
 * rank that waits may then find it. A death ends any wait, so DEATHS=0 proves that none lasts for ever.
 *
 * What is proved: whoever reduces finds the chunk it wants from everybody else; every rank that lives ends, behind
 * all calls or, only after a death, with an error (no deadlock). What must fail:
 *   TURNS=1         one buffer for each rank
 *   SHOW_AHEAD      the next chunk is shown before this one is reduced
 *   ALWAYS_DIRECT   the first chunk is reduced without a flag though some ranks had not shown it on entering
 *   BLIND           waiters look at nothing but what they wait for
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
#ifndef TURNS
#define TURNS 2
#endif
#ifndef DEATHS
#define DEATHS 1
#endif

#if RANKS == 2 && TURNS == 2
#define BUFFER(rank, n) (((rank) + (n)) % 2)
#else
#define BUFFER(rank, n) ((rank) * TURNS + (n) % TURNS)
#endif
#define CHUNK(rank, n) ((n) * RANKS + (rank))

#if RANKS > 2
#define ALL(flag, least) (flag[0] >= (least) && flag[1] >= (least) && flag[2] >= (least))
#else
#define ALL(flag, least) (flag[0] >= (least) && flag[1] >= (least))
#endif

#ifdef BLIND
#define TROUBLE false
#else
#define TROUBLE (deaths > 0)
#endif

byte chunks[CALLS + 1];
bool in_heap[RANKS * (CALLS + 1)];
byte entry[RANKS];
byte turn[RANKS];
byte lies[RANKS * TURNS]; /* the chunk in the buffer, 0 while it is written */
bool dead[RANKS];
byte deaths;

inline present(i)
{
    lies[BUFFER(me, base + (i) + 1)] = 0;
    lies[BUFFER(me, base + (i) + 1)] = CHUNK(me, base + (i) + 1);
    shown = (i) + 1
}

inline look_at_sources(i)
{
    d_step {
        do
        :: other == RANKS -> break
        :: other == me -> other++
        :: else ->
            assert(lies[BUFFER(other, base + (i) + 1)] == CHUNK(other, base + (i) + 1));
            other++
        od;
        other = 0
    }
}

inline reduce(i)
{
    look_at_sources(i);
    look_at_sources(i)
}

proctype rank(byte me)
{
    byte call = 1, base, step, shown, other, exposed;
    {
        do
        :: call > CALLS -> break
        :: else ->
            if
            :: !in_heap[me * (CALLS + 1) + call] -> present(0)
            :: else
            fi;
            entry[me] = call;
            if
            :: ALL(entry, call)
            :: !ALL(entry, call) && TROUBLE -> goto out
            fi;
            d_step {
                do
                :: other == RANKS -> break
                :: else -> exposed = exposed + in_heap[other * (CALLS + 1) + call]; other++
                od;
                other = 0
            };
            if
            :: exposed == RANKS
            :: else ->
                if
#ifdef ALWAYS_DIRECT
                :: true -> reduce(0); step = 1
#else
                :: exposed == 0 -> reduce(0); step = 1
                :: else
#endif
                fi;
                do
                :: step >= chunks[call] -> break
                :: else ->
                    if
                    :: shown == step -> present(step)
                    :: else
                    fi;
                    turn[me] = base + step + 1;
                    if
                    :: ALL(turn, base + step + 1)
                    :: !ALL(turn, base + step + 1) && TROUBLE -> goto out
                    fi;
#ifdef SHOW_AHEAD
                    if
                    :: step + 1 < chunks[call] -> present(step + 1)
                    :: else
                    fi;
#endif
                    reduce(step);
                    step++
                od;
                base = base + chunks[call]
            fi;
            d_step { step = 0; shown = 0; exposed = 0; call++ }
        od;
out:    skip
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
        byte i = 1, j, length;
        do
        :: i > CALLS -> break
        :: else ->
            select(length : 1 .. CHUNKS);
            chunks[i] = length;
            do
            :: j == RANKS -> break
            :: else ->
                if
                :: in_heap[j * (CALLS + 1) + i] = true
                :: skip
                fi;
                j++
            od;
            j = 0;
            i++
        od;
        i = 0;
        do
        :: i < RANKS -> run rank(i); i++
        :: else -> break
        od
    }
}
