/* SPDX-License-Identifier: Apache-2.0
 *
 * meeting.pml: the ways in which ranks meet, in any mixture, over entries that are used again and again (_native/comm/meet.h).
 *
 * A program of CALLS calls is drawn, the same for all ranks: barriers by entries (gather), barriers by the gate (arrive,
 * open), and broadcasts by rank 0 or the last rank, whose root runs ahead. Each rank has SLOTS entries (16 in the
 * code). Waiting is a condition here: flag.pml proves that sleeping is as good.
 *
 * What is proved: nobody leaves a barrier before all have entered it; an entry is written only when everyone is
 * done with the call it held; who reads an entry finds the call it is in; the gate is opened once per meeting; no
 * deadlock. Variants that must fail:
 *   NO_DRAIN     entries are used again without asking
 *   NO_DONE      broadcasts do not raise `done` (here: completed)
 *   EARLY_OPEN   the last but one opens the gate
 *   SHORT_DRAIN  the drain stops one call too early
 */
#ifndef RANKS
#define RANKS 3
#endif
#ifndef CALLS
#define CALLS 5
#endif
#ifndef SLOTS
#define SLOTS 2
#endif

#define FLAT 0
#define GATE 1
#define FROM_FIRST 2
#define FROM_LAST 3

byte kind[CALLS + 1];
byte entry[RANKS * SLOTS];      /* the call in the slot */
byte completed[RANKS];
byte arrived, opened;

/* what the proof looks at and the code does not have */
byte entered[CALLS + 1];        /* how many have entered the call */
byte left[RANKS];               /* last call that this rank returned from */

#define ENTRY(rank, call) entry[(rank) * SLOTS + (call) % SLOTS]
#define AT_ROOT(call) ((kind[call] == FROM_FIRST && me == 0) || (kind[call] == FROM_LAST && me == RANKS - 1))
#define ROOT(call) (kind[call] == FROM_FIRST -> 0 : RANKS - 1)

#ifdef SHORT_DRAIN
#define REUSED(call) ((call) - SLOTS - 1)
#else
#define REUSED(call) ((call) - SLOTS)
#endif

proctype rank(byte me)
{
    byte call = 1, floor, meetings, cursor;
    do
    :: call > CALLS -> break
    :: else ->
#ifndef NO_DRAIN
        if
        :: call <= SLOTS || floor >= REUSED(call)
        :: else ->
            do
            :: cursor == RANKS -> break
            :: cursor == me -> cursor++
            :: cursor < RANKS && cursor != me && completed[cursor] >= REUSED(call) -> cursor++
            od;
            cursor = 0;
            floor = REUSED(call)
        fi;
#endif
        d_step {
            do
            :: cursor == RANKS -> break
            :: else ->
                assert(call <= SLOTS || cursor == me || left[cursor] >= call - SLOTS);
                cursor++
            od;
            cursor = 0;
            ENTRY(me, call) = call;
            entered[call]++
        };
        if
        :: kind[call] == FLAT ->
            do
            :: cursor == RANKS -> break
            :: cursor < RANKS && ENTRY(cursor, call) >= call ->
                assert(ENTRY(cursor, call) == call);
                cursor++
            od;
            cursor = 0;
            floor = call - 1
        :: kind[call] == GATE ->
            meetings++;
            d_step { arrived++; cursor = arrived };
            if
#ifdef EARLY_OPEN
            :: cursor == meetings * RANKS - 1 ->
#else
            :: cursor == meetings * RANKS ->
                cursor = 0;
                do
                :: cursor == RANKS -> break
                :: cursor < RANKS -> assert(ENTRY(cursor, call) == call); cursor++
                od;
#endif
                assert(opened == meetings - 1);
                opened = meetings
            :: else -> opened >= meetings
            fi;
            cursor = 0;
            floor = call - 1
        :: kind[call] >= FROM_FIRST ->
            if
            :: AT_ROOT(call)
            :: else ->
                ENTRY(ROOT(call), call) >= call;
                assert(ENTRY(ROOT(call), call) == call) /* the data beside it is this call's */
            fi
        fi;
        d_step {
            assert(kind[call] >= FROM_FIRST || entered[call] == RANKS);
            left[me] = call
        };
#ifndef NO_DONE
        if
        :: kind[call] >= FROM_FIRST -> completed[me] = call
        :: else
        fi;
#endif
        call++
    od
}

init
{
    atomic {
        byte i = 1;
        do
        :: i > CALLS -> break
        :: else ->
            if
            :: kind[i] = FLAT
            :: kind[i] = GATE
            :: kind[i] = FROM_FIRST
            :: kind[i] = FROM_LAST
            fi;
            i++
        od;
        i = 0;
        do
        :: i < RANKS -> run rank(i); i++
        :: else -> break
        od
    }
}
