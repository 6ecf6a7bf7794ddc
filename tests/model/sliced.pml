/* SPDX-License-Identifier: Apache-2.0
 *
 * sliced.pml: how many chunk slots the pipeline of _native/coll/allreduce_sliced.c needs.
 *
 * CALLS calls follow one another, each of 1 to CHUNKS chunks (drawn, the same for all ranks), staged in two halves
 * for even and odd calls of SLOTS slots each. Chunks are numbered through all calls, from 1. In iteration i a rank stages
 * chunk i, reduces its slice of chunk i - 1 once all have staged it, and collects the others' slices of chunk i - 2.
 *
 * Every chunk but a call's last is cut into slices at the same places, so staging it leaves the own slice alone. The last
 * one is shorter and cut elsewhere: staging it may write over any part of the slot. Hence two proofs:
 *   (default)     whoever stages may write all of the slot: nobody may still read any of its last chunk
 *   SAME_CUTS     all chunks are cut alike: who reads a part of a slot finds the chunk it wants there
 * ONE_HALF: all calls use the same half, which must fail.
 */
#ifndef RANKS
#define RANKS 2
#endif
#ifndef CALLS
#define CALLS 3
#endif
#ifndef CHUNKS
#define CHUNKS 7
#endif
#ifndef SLOTS
#define SLOTS 5
#endif

#ifdef ONE_HALF
#define HALF(call) 0
#else
#define HALF(call) ((call) % 2)
#endif
#define SLOT(rank, i) (((rank) * 2 + HALF(call)) * SLOTS + (i) % SLOTS)

byte chunks[CALLS + 1];
byte entered[RANKS];        /* seq of the newest entry */
byte staged[RANKS];         /* `in`: chunks staged in all calls */
byte published[RANKS];      /* `out` */

/* what the proof looks at: the chunk whose contributions, and whose result, lie in a slot */
byte contribution[RANKS * 2 * SLOTS];
byte result[RANKS * 2 * SLOTS];
byte collected[RANKS * RANKS]; /* by the first, from the second: the newest chunk */

inline stage(i)
{
    d_step {
#ifndef SAME_CUTS
        do
        :: other == RANKS -> break
        :: other == me -> other++
        :: else ->
            assert(published[other] >= contribution[SLOT(me, i)]);
            assert(collected[other * RANKS + me] >= contribution[SLOT(me, i)]);
            other++
        od;
        other = 0;
#endif
        contribution[SLOT(me, i)] = base + i + 1
    }
    staged[me] = base + i + 1
}

inline reduce(i)
{
    do
    :: other == RANKS -> break
    :: other < RANKS && (other == me || staged[other] >= base + i + 1) -> other++
    od;
    other = 0;
    d_step {
        do
        :: other == RANKS -> break
        :: else -> assert(contribution[SLOT(other, i)] == base + i + 1); other++
        od;
        other = 0;
        result[SLOT(me, i)] = base + i + 1
    }
    published[me] = base + i + 1
}

inline collect(i)
{
    do
    :: other == RANKS -> break
    :: other == me -> other++
    :: other < RANKS && other != me && published[other] >= base + i + 1 ->
        assert(result[SLOT(other, i)] == base + i + 1);
        collected[me * RANKS + other] = base + i + 1;
        other++
    od;
    other = 0
}

proctype rank(byte me)
{
    byte call = 1, base, floor, step, other;
    do
    :: call > CALLS -> break
    :: else ->
        assert(call <= 2 || floor >= call - 2); /* the half was drained already */
        entered[me] = call;
        stage(0);
        do
        :: other == RANKS -> break
        :: other < RANKS && entered[other] >= call -> other++
        od;
        other = 0;
        floor = call - 1;
        do
        :: step == chunks[call] + 2 -> break
        :: else ->
            if
            :: step > 0 && step < chunks[call] -> stage(step)
            :: else
            fi;
            if
            :: step >= 1 && step - 1 < chunks[call] -> reduce((step - 1))
            :: else
            fi;
            if
            :: step >= 2 -> collect((step - 2))
            :: else
            fi;
            step++
        od;
        step = 0;
        base = base + chunks[call];
        call++
    od
}

init
{
    atomic {
        byte i = 1, length;
        do
        :: i > CALLS -> break
        :: else ->
            select(length : 1 .. CHUNKS);
            chunks[i] = length;
            i++
        od;
        i = 0;
        do
        :: i < RANKS -> run rank(i); i++
        :: else -> break
        od
    }
}
