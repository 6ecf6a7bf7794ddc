/* SPDX-License-Identifier: Apache-2.0
 *
 * flag.pml: nobody sleeps for ever on a flag that was raised (_native/core/flag.h, wait.c).
 *
 * One writer raises the flag ROUNDS times; each sleeper waits for every value in turn. Stores go through a store buffer per
 * process, as on x86: the process itself is ahead of what the others see, until the buffer drains. An exchange
 * or a fetch-and-add waits for its own buffer and changes memory at once. The kernel's part of a futex is one step: it
 * compares and sleeps. It may wake a sleeper for no reason, here SPURIOUS times.
 *
 * What is proved: no deadlock (a lost wake-up is one, since nothing but the writer ends a sleep), and what was
 * written before the flag is seen after it. Variants that take a part away, and must fail:
 *   WRITER_UNFENCED    the writer's store is a plain one: it looks at `waiters` before its store is seen
 *   SLEEPER_UNFENCED   the sleeper registers by a plain store
 *   NO_REGISTRATION    the sleeper never registers
 *   NO_COMPARE         the kernel sleeps whatever the value is
 * SLICE lets every sleep time out, as the real ones do: then a lost wake-up costs a slice and nothing hangs.
 */
#ifndef ROUNDS
#define ROUNDS 3
#endif
#ifndef SLEEPERS
#define SLEEPERS 2
#endif
#define SPURIOUS 1

mtype = { DATA, VALUE };

byte data, value, waiters;
bool asleep[SLEEPERS];
byte spurious = SPURIOUS;

chan writer_stores = [2] of { mtype, byte };
chan sleeper_stores[SLEEPERS] = [1] of { bit }; /* a buffered registration */

/* What the processors do with their store buffers, and the kernel without being asked. */
active proctype memory()
{
    byte v;
end:
    do
    :: atomic { writer_stores ? DATA, v -> data = v; v = 0 }
    :: atomic { writer_stores ? VALUE, v -> value = v; v = 0 }
    :: atomic { sleeper_stores[0] ? _ -> waiters++ }
#if SLEEPERS > 1
    :: atomic { sleeper_stores[1] ? _ -> waiters++ }
#endif
    :: atomic { spurious > 0 && asleep[0] -> asleep[0] = false; spurious-- }
#ifdef SLICE
    :: asleep[0] -> asleep[0] = false
#if SLEEPERS > 1
    :: asleep[1] -> asleep[1] = false
#endif
#endif
    od
}

active proctype writer()
{
    byte v = 1, i;
    do
    :: v > ROUNDS -> break
    :: else ->
        writer_stores ! DATA, v;
#ifdef WRITER_UNFENCED
        writer_stores ! VALUE, v;
#else
        atomic { empty(writer_stores) -> value = v };
#endif
        if
        :: waiters > 0 ->
            d_step {
                i = 0;
                do
                :: i < SLEEPERS -> asleep[i] = false; i++
                :: else -> break
                od;
                i = 0
            }
        :: else
        fi;
        v++
    od
}

proctype sleeper(byte me)
{
    byte target = 1, seen;
    do
    :: target > ROUNDS -> break
    :: else ->
        do
        :: value >= target -> break
        :: else ->
#ifndef NO_REGISTRATION
#ifdef SLEEPER_UNFENCED
            sleeper_stores[me] ! 1;
#else
            waiters++;
#endif
#endif
            seen = value;
            if
            :: seen < target ->
                atomic {
                    if
#ifndef NO_COMPARE
                    :: value != seen
#endif
                    :: else -> asleep[me] = true
                    fi
                }
                !asleep[me]
            :: else
            fi;
            seen = 0;
#ifndef NO_REGISTRATION
            atomic { empty(sleeper_stores[me]) -> waiters-- }
#endif
        od;
        assert(data >= target);
        target++
    od
}

init
{
    atomic {
        byte i = 0;
        do
        :: i < SLEEPERS -> run sleeper(i); i++
        :: else -> break
        od
    }
}
