/* SPDX-License-Identifier: Apache-2.0
 *
 * exchange.pml: each pair of ranks needs two buffers, which it swaps with every chunk (_native/coll/exchange.c).
 *
 * CALLS calls of 1 to CHUNKS chunks each follow one another; chunks are numbered through all calls, from 1. In
 * each call each rank stages its blocks, or they are taken from its own array (drawn). A rank shows its first
 * chunk, then enters. Once all have entered, for each chunk: it shows the chunk unless it has, by raising a flag
 * also where it stages nothing, and takes the chunk of each other rank, one after the other, or, when it reduces
 * (REDUCING), all of them at once. Where nobody stages anything, all is taken in one go, without flags. Then
 * `done` (here: completed); who stages nothing waits for that of all, because the array is its user's again when
 * the call returns. Writing and reading take time: what lies in a buffer is nothing while it is written, and is
 * looked at when reading begins and when it ends. Up to DEATHS ranks die, each between any two of its steps; a
 * rank that waits may then find it. A death ends any wait, so DEATHS=0 proves that none lasts for ever.
 *
 * What is proved: whoever takes finds the chunk it wants; every rank that lives ends, behind all calls or, only after a
 * death, with an error (no deadlock). What must fail:
 *   ONE_BUFFER   a rank shows a chunk where its last one was
 *   SHOW_AHEAD   the next chunk is shown before this one is taken
 *   SILENT       who stages nothing raises no flag, and nobody waits for it
 *   NO_RELEASE   who stages nothing does not wait for those that take from it
 *   BLIND        waiters look at nothing but what they wait for
 */
#ifndef RANKS
#define RANKS 2
#endif
#ifndef CALLS
#define CALLS 2
#endif
#ifndef CHUNKS
#define CHUNKS 3
#endif
#ifndef DEATHS
#define DEATHS 1
#endif

#if RANKS > 2
#define ALL(flag, least) (flag[0] >= (least) && flag[1] >= (least) && flag[2] >= (least))
#else
#define ALL(flag, least) (flag[0] >= (least) && flag[1] >= (least))
#endif

#ifdef ONE_BUFFER
#define BUFFER(maker, taker, n) ((maker) * RANKS + (taker))
#else
#define BUFFER(maker, taker, n) ((n) % 2 -> (taker) * RANKS + (maker) : (maker) * RANKS + (taker))
#endif
#define CHUNK(maker, n) ((n) * RANKS + (maker))
#define STAGES(rank) staging[(rank) * (CALLS + 1) + call]

#ifdef BLIND
#define TROUBLE false
#else
#define TROUBLE (deaths > 0)
#endif

byte chunks[CALLS + 1];
bool staging[RANKS * (CALLS + 1)];
byte entry[RANKS];
byte pair[RANKS];
byte completed[RANKS];
byte lies[RANKS * RANKS]; /* the chunk in the buffer, 0 while it is written */
byte array[RANKS];        /* the call whose blocks the user's array holds, 0 when it is the user's */
bool dead[RANKS];
byte deaths;

inline write(value)
{
    d_step {
        do
        :: other == RANKS -> break
        :: other == me -> other++
        :: else -> lies[BUFFER(me, other, number)] = value; other++
        od;
        other = 0
    }
}

inline present(i)
{
    number = base + (i) + 1;
    if
    :: STAGES(me) -> write(0); write(CHUNK(me, number))
    :: else
    fi;
    shown = (i) + 1;
#ifdef SILENT
    if
    :: STAGES(me) -> pair[me] = number
    :: else
    fi
#else
    pair[me] = number
#endif
}

inline look_at(maker)
{
    d_step {
        if
        :: STAGES(maker) -> assert(lies[BUFFER(maker, me, base + step + 1)] == CHUNK(maker, base + step + 1))
        :: else -> assert(array[maker] == call)
        fi
    }
}

inline look_at_all()
{
    d_step {
        do
        :: other == RANKS -> break
        :: other == me -> other++
        :: else ->
            if
            :: STAGES(other) -> assert(lies[BUFFER(other, me, base + step + 1)] == CHUNK(other, base + step + 1))
            :: else -> assert(array[other] == call)
            fi;
            other++
        od;
        other = 0
    }
}

#ifdef SILENT
#define READY(maker) (nothing_staged || !STAGES(maker) || pair[maker] >= base + step + 1)
#else
#define READY(maker) (nothing_staged || pair[maker] >= base + step + 1)
#endif

inline take()
{
    do
    :: other == RANKS - 1 -> break
    :: else ->
        maker = (me + 1 + other) % RANKS;
        if
        :: READY(maker)
        :: !READY(maker) && TROUBLE -> goto out
        fi;
#ifndef REDUCING
        look_at(maker);
        look_at(maker);
#endif
        other++
    od;
    other = 0;
#ifdef REDUCING
    look_at_all();
    look_at_all()
#endif
}

proctype rank(byte me)
{
    byte call = 1, base, step, shown, other, maker, number;
    bool nothing_staged;
    {
        do
        :: call > CALLS -> break
        :: else ->
            array[me] = call;
            present(0);
            entry[me] = call;
            if
            :: ALL(entry, call)
            :: !ALL(entry, call) && TROUBLE -> goto out
            fi;
            d_step {
                nothing_staged = true;
                do
                :: other == RANKS -> break
                :: else -> nothing_staged = nothing_staged && !STAGES(other); other++
                od;
                other = 0
            };
            do
            :: step == (nothing_staged -> 1 : chunks[call]) -> break
            :: else ->
                if
                :: !nothing_staged && shown == step -> present(step)
                :: else
                fi;
#ifdef SHOW_AHEAD
                if
                :: !nothing_staged && step + 1 < chunks[call] -> present(step + 1)
                :: else
                fi;
#endif
                take();
                step++
            od;
            completed[me] = call;
#ifndef NO_RELEASE
            if
            :: STAGES(me) || ALL(completed, call)
            :: !STAGES(me) && !ALL(completed, call) && TROUBLE -> goto out
            fi;
#endif
            array[me] = 0;
            d_step { base = base + chunks[call]; step = 0; shown = 0; number = 0; maker = 0; call++ }
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
                :: staging[j * (CALLS + 1) + i] = true
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
