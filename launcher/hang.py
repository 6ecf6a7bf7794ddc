# SPDX-License-Identifier: Apache-2.0
"""Decides that the gang hangs: the state machine behind --hang-timeout and SIGQUIT.

Sans-I/O, as the gang's: events and the time in, actions out; the driver is launcher/controller.py. Agents say how long
their ranks have been waiting (`Waits`), on clocks of their own. A hang is a call in which some rank has waited for
longer than the timeout, whoever it waits for. Then every agent is asked where its ranks are (`Ask`); when all have
answered, or LOOK_S is over, the answers become a report (`Tell`).

    WATCHING -> (a wait is too old, or SIGQUIT) -> LOOKING -> (answers) -> WATCHING, or, where the gang ends by it, OFF

While a rank is in a debugger, or pmrun itself is suspended, the clock of all waits stands still. A hang that was told
and goes on is told again after another timeout. Invariant: one look is under way at a time.
"""

from __future__ import annotations

import msgspec

from pmrun import wire

LOOK_S = 6.0  # for the agents' answers: longer than each has for its stacks
_STILL = 0.9  # of the timeout: ages come from clocks that are read at different moments
_SUSPENDED = -1  # in place of a node, where it is pmrun that stands still

StoreWaits = dict[int, tuple[str, float]]  # by rank: the key that it waits for, and how long


class Ask(msgspec.Struct, frozen=True):
    """Ask these nodes where their ranks are."""

    nodes: tuple[int, ...]
    look: wire.Look


class Found(msgspec.Struct, frozen=True):
    """Where the ranks are, as a look brought it."""

    asked: bool  # by SIGQUIT; else the gang hangs
    looked: dict[int, wire.Looked]  # by node
    silent: tuple[int, ...]  # nodes that did not answer in time


Action = Ask | Found


def with_store_wait(sight: wire.Sight, waits: StoreWaits) -> wire.Sight:
    """A rank that waits for a key of the store, as one that waits."""
    if sight.waits is not None or sight.rank not in waits:
        return sight
    key, age_s = waits[sight.rank]
    return msgspec.structs.replace(sight, waits=wire.Pending(f"the store for key {key!r}", age_s, comm=-1))


class HangWatch:
    """Over one attempt of a gang.

    Parameters
    ----------
    nodes : int
        How many agents there are.
    timeout_s : float
        --hang-timeout; 0: only SIGQUIT makes it look.
    """

    def __init__(self, nodes: int, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._open = set(range(nodes))
        self._since: dict[int, float] = {}  # by node: when its oldest wait began
        self._debugging: set[int] = set()
        self._paused_at = 0.0
        self._pauses: list[tuple[float, float]] = []
        self._told_at = float("-inf")
        self._number = 0  # of the last look
        self._asked = False
        self._answers: dict[int, wire.Looked] | None = None  # of the look that is under way
        self._answer_by = 0.0
        self._off = False

    # ---- events ---------------------------------------------------------------------------------------

    def on_waits(self, node: int, waits: wire.Waits, now: float) -> None:
        """An agent tells how long its ranks have waited."""
        if node not in self._open:
            return
        if waits.age_s < 0:
            self._since.pop(node, None)
        else:
            self._since[node] = now - waits.age_s
        self._pause(node, bool(waits.debugged), now)

    def on_suspend(self, stop: bool, now: float) -> None:
        """pmrun stops, as by Ctrl-Z, or goes on."""
        self._pause(_SUSPENDED, stop, now)

    def on_looked(self, node: int, looked: wire.Looked, now: float) -> list[Action]:
        """An agent tells where its ranks are."""
        if self._answers is None or looked.number != self._number or node not in self._open:
            return []
        self._answers[node] = looked
        return self._conclude(now)

    def on_node_over(self, node: int, now: float) -> list[Action]:
        """Nothing more comes from a node."""
        self._open.discard(node)
        self._since.pop(node, None)
        self._pause(node, False, now)
        return self._conclude(now)

    def on_quit(self, now: float) -> list[Action]:
        """The user wants to see where the ranks are."""
        if self._off or self._answers is not None:
            return []
        return self._look(True, now)

    def stop(self) -> None:
        """The gang is being ended: nothing is said any more."""
        self._off = True
        self._answers = None

    def deadline(self, now: float) -> float | None:
        """When `on_tick` has something to do."""
        if self._off:
            return None
        if self._answers is not None:
            return self._answer_by
        if not self._timeout_s or not self._since or self._debugging:
            return None
        return now + self._timeout_s - self._waited_s(now)

    def on_tick(self, now: float) -> list[Action]:
        """Time has passed."""
        at = self.deadline(now)
        if at is None or now < at:
            return []
        return self._conclude(now) if self._answers is not None else self._look(False, now)

    # ---- details --------------------------------------------------------------------------------------

    def _look(self, asked: bool, now: float) -> list[Action]:
        self._number += 1
        self._asked = asked
        self._answers = {}
        self._answer_by = now + LOOK_S
        return [Ask(tuple(sorted(self._open)), wire.Look(self._number))]

    def _conclude(self, now: float) -> list[Action]:
        """Every answer is there, or its time is up."""
        answers = self._answers
        if answers is None or (self._open - answers.keys() and now < self._answer_by):
            return []
        self._answers = None
        if not self._asked:
            if not self._still_hangs(answers, now):
                return []
            self._told_at = now
        return [Found(self._asked, answers, tuple(sorted(self._open - answers.keys())))]

    def _still_hangs(self, answers: dict[int, wire.Looked], now: float) -> bool:
        """Whether what made it look is still there: who was waited for may have come meanwhile."""
        for node in answers.keys() & self._open:
            ages = [sight.waits.age_s for sight in answers[node].sights if sight.waits is not None]
            self._since.pop(node, None)
            if ages:
                self._since[node] = now - max(ages)
        return bool(self._open - answers.keys()) or bool(self._since and self._waited_s(now) > _STILL * self._timeout_s)

    def _waited_s(self, now: float) -> float:
        """How long the oldest wait has lasted, as far as it counts."""
        begin = max(min(self._since.values()), self._told_at)
        idle = sum(max(0.0, min(to, now) - max(since, begin)) for since, to in self._pauses)
        return now - begin - idle

    def _pause(self, who: int, stands: bool, now: float) -> None:
        before = bool(self._debugging)
        (self._debugging.add if stands else self._debugging.discard)(who)
        if self._debugging and not before:
            self._paused_at = now
        elif before and not self._debugging:
            self._pauses.append((self._paused_at, now))
