/* SPDX-License-Identifier: Apache-2.0
 *
 * death.pml: nobody waits for ever for a rank that died, wherever it died (_native/core/wait.c, comm/trouble.c, core/window.c).
 *
 * RANKS ranks go through CALLS barriers, by entries or by the gate (drawn). Up to DEATHS of them die, each between any two of its
 * steps, also while it writes the abort record. The agent sees a death some time later: it writes the rank's
 * state, then the abort record unless that is claimed. A waiting rank looks, once a slice, at the abort word, then for a
 * member that is gone and whose part is missing; whoever finds one claims the abort record and fills it. Slices
 * are fair, so a look is a step that can always be taken: a wait is over when it would find something.
 *
 * What is proved: every rank that lives ends, either behind all barriers or with an error (no deadlock); an error
 * only after a death; nobody passes a barrier that somebody has not entered. Either sign of the agent's suffices:
 *   RECORD_ONLY  waiters look at the abort word alone
 *   STATES_ONLY  the agent writes no record
 * What must fail:
 *   UNBOUNDED    who finds the record claimed waits for its text however long: the claimer may be dead (needs two deaths)
 *   BLIND        waiters look at nothing but their flag
 */
#ifndef RANKS
#define RANKS 3
#endif
#ifndef CALLS
#define CALLS 2
#endif
#ifndef DEATHS
#define DEATHS 1
#endif

bool by_gate[CALLS + 1];
byte gates[CALLS + 1];      /* number of the gate's meeting in each call */
byte entry[RANKS];          /* newest entry: two barriers need no ring */
byte finished[RANKS];       /* the flight recorder: last call that was closed */
byte arrived, opened;
bool failed[RANKS];         /* rank_state */
bool abort_claim, abort_state;

bool dead[RANKS];
byte deaths, ended;
byte entered[CALLS + 1];

/* Member `r` is gone, and its part of this call is missing. */
#define GONE(r) (failed[r] && (entry[r] < call || finished[r] < call))
#if RANKS > 2
#define SOMEBODY_GONE (GONE(0) || GONE(1) || GONE(2))
#else
#define SOMEBODY_GONE (GONE(0) || GONE(1))
#endif

#ifdef BLIND
#define TROUBLE false
#else
#ifdef RECORD_ONLY
#define TROUBLE abort_state
#else
#define TROUBLE (abort_state || SOMEBODY_GONE)
#endif
#endif

/* What pmr_comm_check does once it found something. */
inline end_gang()
{
    if
    :: abort_state
    :: else ->
        d_step { claimed = !abort_claim; abort_claim = true };
        if
        :: claimed ->
            skip; /* the text is being written: here it may die */
            abort_state = true
        :: else ->
#ifdef UNBOUNDED
            abort_state
#else
            skip /* waits a while for the story of whoever claimed the record; tells its own if none comes */
#endif
        fi
    fi;
    assert(deaths > 0);
    goto out
}

proctype rank(byte me)
{
    byte call = 1, cursor;
    bool claimed;
    {
        do
        :: call > CALLS -> break
        :: else ->
            d_step { entry[me] = call; entered[call]++ };
            if
            :: !by_gate[call] ->
                do
                :: cursor == RANKS -> break
                :: cursor < RANKS && entry[cursor] >= call -> cursor++
                :: cursor < RANKS && entry[cursor] < call && TROUBLE -> end_gang()
                od;
                cursor = 0
            :: else ->
                d_step { arrived++; cursor = arrived };
                if
                :: cursor == gates[call] * RANKS -> opened = gates[call]
                :: else ->
                    if
                    :: opened >= gates[call]
                    :: opened < gates[call] && TROUBLE -> end_gang()
                    fi
                fi;
                cursor = 0
            fi;
            assert(entered[call] == RANKS);
            finished[me] = call;
            call++
        od;
out:    ended++
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

active proctype agent()
{
    byte who;
    bool claimed;
end:
    do
    :: atomic { dead[0] && !failed[0] -> who = 0 } goto see
    :: atomic { dead[1] && !failed[1] -> who = 1 } goto see
#if RANKS > 2
    :: atomic { dead[2] && !failed[2] -> who = 2 } goto see
#endif
    od;
see:
    failed[who] = true;
#ifndef STATES_ONLY
    claimed = abort_claim;
    if
    :: claimed
    :: else ->
        abort_claim = true;
        abort_state = true
    fi;
#endif
    who = 0;
    claimed = false;
    goto end
}


init
{
    atomic {
        byte i = 1, meetings;
        do
        :: i > CALLS -> break
        :: else ->
            if
            :: by_gate[i] = true; meetings++
            :: skip
            fi;
            gates[i] = meetings;
            i++
        od;
        i = 0;
        do
        :: i < RANKS -> run rank(i); i++
        :: else -> break
        od
    }
}
