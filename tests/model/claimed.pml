/* SPDX-License-Identifier: Apache-2.0
 *
 * claimed.pml: slices that whoever runs takes (_native/coll/allreduce_claimed.c).
 *
 * CALLS calls of 1 to CHUNKS chunks of SLICES slices each follow one another; chunks are numbered through all calls, from 1:
 * that is the meeting number beside the next slice in the claim word. A rank stages chunk i + 1, waits for the gate of chunk
 * i, takes slices of it until none is left, waits until all are finished, copies the result. Reading a slot takes
 * time: what lies there is looked at when it begins and when it ends. A claim is a load and a compare-and-swap with
 * anything between them, so late claimers are there.
 *
 * What is proved: reductions and copies read the chunk they want, each slice of each chunk is reduced once, no deadlock.
 * It holds with two slots and one half already (ONE_HALF); and, thanks to the meeting number in the claim word, without
 * the wait for a chunk's gate (UNGATED). What must fail:
 *   SLOTS=1
 *   UNGATED, BARE_INDEX   the claim word is the index alone: slices are taken before the chunk is there
 *   UNGATED, LATE_RESET   `finished` is reset after the claims are open
 */
#ifndef RANKS
#define RANKS 2
#endif
#ifndef CALLS
#define CALLS 2
#endif
#ifndef CHUNKS
#define CHUNKS 6
#endif
#ifndef SLOTS
#define SLOTS 5
#endif
#define SLICES 2

#ifdef ONE_HALF
#define HALF 0
#else
#define HALF (call % 2)
#endif
#define STAGED(rank, i) staged[((rank) * 2 + HALF) * SLOTS + (i) % SLOTS]
#define RESULT(slice, i) result[((slice) * 2 + HALF) * SLOTS + (i) % SLOTS]

byte chunks[CALLS + 1];
byte meet_arrived, meet_open;
byte arrived[SLOTS], opened[SLOTS];
byte claim_meeting[SLOTS], claim_index[SLOTS];
byte finished[SLOTS], ready[SLOTS];

/* the chunk that lies there */
byte staged[RANKS * 2 * SLOTS];
byte result[SLICES * 2 * SLOTS];
byte reduced[CALLS * CHUNKS + 1]; /* slices of each chunk that were reduced */

inline open_claims(i)
{
#ifndef LATE_RESET
    finished[(i) % SLOTS] = 0;
#endif
    d_step { claim_meeting[(i) % SLOTS] = base + (i) + 1; claim_index[(i) % SLOTS] = 0 };
#ifdef LATE_RESET
    finished[(i) % SLOTS] = 0;
#endif
}

inline check_sources(i)
{
    d_step {
        do
        :: other == RANKS -> break
        :: else -> assert(STAGED(other, i) == base + i + 1); other++
        od;
        other = 0
    }
}

inline check_results(i)
{
    d_step {
        do
        :: other == SLICES -> break
        :: else -> assert(RESULT(other, i) == base + i + 1); other++
        od;
        other = 0
    }
}

#ifdef BARE_INDEX
#define MINE(i) true
#define UNCHANGED(i) (claim_index[(i) % SLOTS] == index)
#else
#define MINE(i) (seen == base + (i) + 1)
#define UNCHANGED(i) (claim_index[(i) % SLOTS] == index && claim_meeting[(i) % SLOTS] == seen)
#endif

inline work(i)
{
    do
    :: d_step { seen = claim_meeting[(i) % SLOTS]; index = claim_index[(i) % SLOTS] };
        if
        :: MINE(i) && index < SLICES ->
            d_step { /* compare and swap */
                won = false;
                if
                :: UNCHANGED(i) -> claim_index[(i) % SLOTS] = index + 1; won = true
                :: else
                fi
            }
            if
            :: won ->
                check_sources(i);
                d_step {
                    RESULT(index, i) = base + i + 1;
                    reduced[base + i + 1]++;
                    assert(reduced[base + i + 1] <= SLICES)
                }
                check_sources(i);
                d_step { finished[(i) % SLOTS]++; index = finished[(i) % SLOTS]; won = false };
                if
                :: index == SLICES -> ready[(i) % SLOTS] = base + i + 1
                :: else
                fi
            :: else
            fi
        :: else -> break
        fi
    od;
    seen = 0;
    index = 0
}

inline stage_and_arrive(i)
{
    STAGED(me, i) = base + i + 1;
    d_step { gate_meetings[(i) % SLOTS]++; arrived[(i) % SLOTS]++; index = arrived[(i) % SLOTS] };
    if
    :: index == gate_meetings[(i) % SLOTS] * RANKS ->
        open_claims(i);
        opened[(i) % SLOTS] = gate_meetings[(i) % SLOTS]
    :: else
    fi;
    index = 0
}

proctype rank(byte me)
{
    byte call = 1, base, step, other, seen, index;
    bool won;
    byte gate_meetings[SLOTS];
    do
    :: call > CALLS -> break
    :: else ->
        STAGED(me, 0) = base + 1;
        d_step { meet_arrived++; index = meet_arrived };
        if
        :: index == call * RANKS -> open_claims(0); meet_open = call
        :: else -> meet_open >= call
        fi;
        index = 0;
        do
        :: step == chunks[call] -> break
        :: else ->
            if
            :: step + 1 < chunks[call] -> stage_and_arrive((step + 1))
            :: else
            fi;
#ifndef UNGATED
            step == 0 || opened[step % SLOTS] >= gate_meetings[step % SLOTS];
#endif
            work(step);
            ready[step % SLOTS] >= base + step + 1;
            check_results(step);
            check_results(step);
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
