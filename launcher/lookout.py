# SPDX-License-Identifier: Apache-2.0
"""The agent's eye on its ranks: how long they have been waiting in which calls, and where they are.

Everything comes from the flight recorders in the window and from /proc; a rank notices nothing. Ages are kept on the
agent's own clock: a call counts from the look that found it first, or, where the rank's own time of entering lies
between that look and the one before, from then. Invariant: `look` says something only when it has changed.
"""

from __future__ import annotations

import time
from typing import Final

from pmrun import wire
from pmrun.launcher import process_state
from pmrun.window import KINDS, Call, Membership, Window

INTERVAL_S: Final = 1.0  # at most, between two looks
_PARTS: Final = 8  # looks within a timeout, at least
_LEAST_INTERVAL_S: Final = 0.02
_TOLD_FROM: Final = 0.25  # of the timeout: what has waited less long is not worth a message
_LINES: Final = frozenset(KINDS[-2:])


class Lookout:
    """Over one node's ranks.

    Parameters
    ----------
    window : Window
    first_rank : int
        The world rank of local rank 0.
    pids : list of int
        What was started, by local rank.
    alone : bool
        There is no other node, whose ranks might wait for one that is here.
    timeout_s : float
        --hang-timeout; 0: nobody wants to know how long ranks wait.
    now : float
        A monotonic time, as all that follow.
    """

    def __init__(
        self, window: Window, first_rank: int, pids: list[int], alone: bool, timeout_s: float, now: float
    ) -> None:
        self._window = window
        self._alone = alone
        self._first_rank = first_rank
        self._alive = {first_rank + local_rank: pid for local_rank, pid in enumerate(pids)}
        self._timeout_s = timeout_s
        self._interval_s = max(_LEAST_INTERVAL_S, min(INTERVAL_S, timeout_s / _PARTS))
        self._looked_at = now
        self._since: dict[tuple[int, int], float] = {}  # by rank and number of the call it waits in
        self._in_pdb: set[int] = set()
        self._told: tuple[tuple[int, int] | None, tuple[int, ...]] = (None, ())

    def on_exit(self, rank: int) -> None:
        """The rank's process is gone."""
        self._alive.pop(rank, None)
        self._in_pdb.discard(rank)

    def on_debugger(self, rank: int, inside: bool) -> None:
        """The rank says that it waits in its debugger, or that it goes on."""
        (self._in_pdb.add if inside else self._in_pdb.discard)(rank)

    def deadline(self) -> float | None:
        """When `look` is due."""
        return self._looked_at + self._interval_s if self._timeout_s and self._alive else None

    def look(self, now: float) -> wire.Waits | None:
        """Look at all ranks; what the controller should know that it does not."""
        self._note_waits(now)
        oldest = min(self._since, key=lambda key: self._since[key], default=None)
        age_s = now - self._since[oldest] if oldest is not None else -1.0
        # Nobody is in a debugger's way while nobody waits, which may be on another node.
        debugged = self._debugged() if age_s >= self._interval_s or not self._alone else ()
        if age_s < _TOLD_FROM * self._timeout_s:
            oldest, age_s = None, -1.0
        self._looked_at = now
        if (oldest, debugged) == self._told:
            return None
        self._told = (oldest, debugged)
        return wire.Waits(age_s, debugged)

    def sights(self, now: float) -> dict[int, wire.Sight]:
        """Where every rank is that runs, without its stack."""
        self._note_waits(now)
        return {rank: self._sight(rank, now) for rank in sorted(self._alive)}

    def _note_waits(self, now: float) -> None:
        clock = time.time()
        since: dict[tuple[int, int], float] = {}
        for rank in self._alive:
            call = self._window.waiting(rank - self._first_rank)
            if call is None:
                continue
            key = (rank, call.number)
            found_s = min(max(clock - call.entered_s, 0.0), now - self._looked_at)
            since[key] = self._since.get(key, now - found_s)
        self._since = since

    def _debugged(self) -> tuple[int, ...]:
        return tuple(rank for rank in sorted(self._alive) if self._with_a_person(rank))

    def _with_a_person(self, rank: int) -> bool:
        return rank in self._in_pdb or process_state.with_a_person(self._pid(rank))

    def _pid(self, rank: int) -> int:
        """Of the process that calls pmrun: a shell that was started may have started it."""
        return self._window.pid(rank - self._first_rank) or self._alive[rank]

    def _sight(self, rank: int, now: float) -> wire.Sight:
        local_rank = rank - self._first_rank
        pid = self._pid(rank)
        state = process_state.ProcessState("in pdb", held=True) if rank in self._in_pdb else process_state.look_at(pid)
        rooms = self._window.memberships(local_rank)
        waits = self._window.waiting(local_rank)
        last = None if waits is not None else self._window.last_call(local_rank)
        newest = self._window.newest_calls(local_rank)
        entered = tuple((room.comm, room.group, newest.get(room.comm, 0)) for room in rooms.values())
        return wire.Sight(
            rank=rank,
            pid=pid,
            state=state.text,
            held=state.held,
            waits=None if waits is None else _pending(waits, rooms, now - self._since.get((rank, waits.number), now)),
            last=None if last is None else _pending(last, rooms, max(0.0, time.time() - last.entered_s)),
            entered=entered,
            pace=self._window.pace(local_rank),
        )


def _pending(call: Call, rooms: dict[int, Membership], age_s: float) -> wire.Pending:
    room = rooms.get(call.comm)
    message = call.name in _LINES
    # Elsewhere a peer is a number within its communicator, which does not say which rank of the world that is.
    peer = call.peer if message and call.comm == 0 else -1
    return wire.Pending(
        text=str(call),
        age_s=age_s,
        comm=call.comm,
        group=room.group if room else 0,
        size=room.size if room else 0,
        seq=call.seq,
        peer=peer,
    )
