# SPDX-License-Identifier: Apache-2.0
"""The meeting at the start: agents say hello, and when all are there everybody's place is known.

Sans-I/O: events and the time in, actions out; the driver is launcher/controller.py. A seat is a node of the job:

    EMPTY -> TAKEN (a Hello that fits) -> EMPTY (its connection ended before the meeting did)

The meeting is OPEN until all seats are taken (one Meet), or it failed (one Fail): a seat's agent ended, or the time
ran out. Where fewer are `Enough`, a seat whose agent ended is given up, and after some patience those who are there meet
without the others. Agents that know their number take that seat; the others get the free ones in the end: that of their
machine in the attempt before, or in natural order of their machines' names, so that the same machines get the same
places at every attempt. Invariant: exactly one of Meet and Fail comes, and after it every further Hello is refused,
with the reason.
"""

from __future__ import annotations

import enum
import re
from typing import Final

import msgspec

from pmrun import wire

TELL_AFTER_S: Final = 5.0  # a start that takes longer is explained while it lasts
_TELL_EVERY_S: Final = 15.0


class Seat(msgspec.Struct):
    """One node of the job, before it is known to be there."""

    name: str  # as the user called it; "" where nobody did
    note: str = ""  # what is known while it is missing: "10.0.0.7 dialled, no answer"
    host: str = ""  # the machine that sat here in the attempt before


class Phase(enum.Enum):
    """How far the meeting is."""

    OPEN = "open"
    MET = "met"
    FAILED = "failed"


class Guest(msgspec.Struct, frozen=True):
    """An agent that said hello."""

    peer: int
    hello: wire.Hello


class Refuse(msgspec.Struct, frozen=True):
    """Send the agent away."""

    peer: int
    text: str
    late: bool = False  # the gang is whole without it


class Say(msgspec.Struct, frozen=True):
    """A line for the user, now."""

    text: str


class Meet(msgspec.Struct, frozen=True):
    """All are there, in node order, or as many as are enough."""

    guests: tuple[Guest, ...]
    seats: tuple[int, ...]  # theirs


class Fail(msgspec.Struct, frozen=True):
    """There will be no gang; whoever is there must go."""

    text: str


Action = Refuse | Say | Meet | Fail


class Enough(msgspec.Struct, frozen=True):
    """When fewer than all may begin."""

    nodes: int
    patience_s: float  # so long all are waited for


def natural_key(name: str) -> tuple[tuple[int, int, str], ...]:
    """Sorts node2 before node10."""
    parts = re.findall(r"\d+|\D+", name)
    return tuple((0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts)


class Rendezvous:
    """State of one meeting."""

    def __init__(
        self,
        seats: tuple[Seat, ...],
        world_size: int,
        release: str,
        start_timeout_s: float,
        now: float,
        enough: Enough | None = None,
    ) -> None:
        self.phase = Phase.OPEN
        self._seats = seats
        self._world_size = world_size
        self._release = release
        self._start_timeout_s = start_timeout_s
        self._end = now + start_timeout_s
        self._least = len(seats) if enough is None else enough.nodes
        self._patience_s = start_timeout_s if enough is None else enough.patience_s
        self._patient_until = now + self._patience_s
        self._given_up: set[int] = set()  # seats
        self._tell_at = now + TELL_AFTER_S
        self._taken: dict[int, Guest] = {}  # by seat
        self._unplaced: dict[int, Guest] = {}  # by peer: they do not know their number
        self._refused = ""

    # ---- events ---------------------------------------------------------------------------------------

    def on_hello(self, peer: int, hello: wire.Hello, now: float) -> list[Action]:
        """An agent is there."""
        if any(guest.peer == peer for guest in self.guests()):
            return []  # it said so before
        problem = self._problem(hello)
        if problem is not None:
            same = hello.version == wire.VERSION and hello.release == self._release
            return self._refuse(peer, problem, late=same and self.phase is Phase.MET)
        guest = Guest(peer, hello)
        if hello.node_rank < 0:
            self._unplaced[peer] = guest
        else:
            self._taken[hello.node_rank] = guest
        return self._meet(now)

    def on_gone(self, peer: int) -> list[Action]:
        """An agent's connection ended: it may come again."""
        if self.phase is Phase.OPEN:
            self._unplaced.pop(peer, None)
            for seat, guest in list(self._taken.items()):
                if guest.peer == peer:
                    del self._taken[seat]
                    self._seats[seat].note = f"{_whose(guest.hello)} was there and left"
        return []

    def on_note(self, seat: int, text: str) -> list[Action]:
        """Something is known of a node that has not come yet."""
        self._seats[seat].note = text
        return []

    def on_called(self, seat: int, now: float) -> list[Action]:
        """Another machine was called to a seat, and needs as much time as the first one."""
        self._patient_until = now + self._patience_s
        return []

    def on_ended(self, seat: int, text: str) -> list[Action]:
        """The agent that was started for a seat is no more: it will not come."""
        if self.phase is not Phase.OPEN:
            return []
        self._given_up.add(seat)
        self._taken.pop(seat, None)
        if len(self._seats) - len(self._given_up) < self._least:
            return self._fail(f"{text}{self._aside()}")
        self._seats[seat].note = text
        return [Say(f"{text}; going on without it"), *self._meet(None)]

    def on_tick(self, now: float) -> list[Action]:
        """Time has passed."""
        if self.phase is not Phase.OPEN:
            return []
        if now >= self._patient_until:
            met = self._meet(now)
            if met:
                return met
        if now >= self._end:
            return self._fail(
                f"not all nodes came within --start-timeout {self._start_timeout_s:g} s: {self.missing()}"
            )
        if now >= self._tell_at:
            self._tell_at = now + _TELL_EVERY_S
            return [Say(self.missing())]
        return []

    def deadline(self) -> float | None:
        """When `on_tick` has something to do."""
        if self.phase is not Phase.OPEN:
            return None
        here = len(self._taken) + len(self._unplaced)
        patience = self._patient_until if here >= self._least else self._end
        return min(patience, self._end, self._tell_at)

    def guests(self) -> list[Guest]:
        """All that are there."""
        return [*self._taken.values(), *self._unplaced.values()]

    def missing(self, verb: str = "waiting for") -> str:
        """One line: who has not come, and what is known of them."""
        free = [number for number in range(len(self._seats)) if number not in self._taken]
        lacking = len(free) - len(self._unplaced)
        if self._unplaced:
            head = f"{verb} {lacking} more of {len(self._seats)} nodes"
        else:
            which = "node" if lacking == 1 else "nodes"
            head = f"{verb} {which} {', '.join(map(str, free))} of {len(self._seats)}"
        known = [note for number in free if (note := self._known(self._seats[number]))]
        return head + (": " + "; ".join(known) if known else "") + self._aside()

    # ---- details --------------------------------------------------------------------------------------

    def _known(self, seat: Seat) -> str:
        if not seat.note or seat.name in seat.note:
            return seat.note or seat.name
        return f"{seat.name}: {seat.note}" if seat.name else seat.note

    def _aside(self) -> str:
        return f" ({self._refused})" if self._refused else ""

    def _problem(self, hello: wire.Hello) -> str | None:
        """Why an agent cannot take part, or None."""
        if hello.version != wire.VERSION or hello.release != self._release:
            theirs = f"pmrun {hello.release or '?'} (protocol {hello.version})"
            ours = f"pmrun {self._release or '?'} (protocol {wire.VERSION})"
            return f"{_whose(hello)} runs {theirs}, the main node {ours}: install one version on all nodes"
        if self.phase is Phase.MET:
            return f"{_whose(hello)} came after the gang had started with {_nodes(len(self._taken))}"
        if self.phase is Phase.FAILED:
            return f"{_whose(hello)} came after the start had failed"
        if hello.num_nodes and hello.num_nodes != len(self._seats):
            return f"{_whose(hello)} was started with --nnodes {hello.num_nodes}, the main node with {len(self._seats)}"
        if hello.world_size and hello.world_size != self._world_size:
            return f"{_whose(hello)} was started with -n {hello.world_size}, the main node with -n {self._world_size}"
        if hello.node_rank >= len(self._seats):
            return f"{_whose(hello)} says it is node {hello.node_rank}: nodes are 0 to {len(self._seats) - 1}"
        if hello.node_rank in self._given_up:
            return f"{_whose(hello)} came after node {hello.node_rank} had been given up"
        there = self._taken.get(hello.node_rank)
        if there is not None:
            return (
                f"node {hello.node_rank} is there already ({_whose(there.hello)}); {_whose(hello)} has the same number"
            )
        return None

    def _refuse(self, peer: int, text: str, late: bool) -> list[Action]:
        actions: list[Action] = [Refuse(peer, text, late)]
        if self.phase is Phase.OPEN and self._refused != text:
            self._refused = text
            actions.append(Say(f"refused: {text}"))
        return actions

    def _meet(self, now: float | None) -> list[Action]:
        """All that can come are there, or enough of them when it is time."""
        free = [
            number for number in range(len(self._seats)) if number not in self._taken and number not in self._given_up
        ]
        lacking = len(free) - len(self._unplaced)
        impatient = now is not None and now >= self._patient_until
        if lacking > 0 and not (impatient and len(self._taken) + len(self._unplaced) >= self._least):
            return []
        late = [Say(self.missing("going on without"))] if lacking > 0 else []
        self._place(free)
        self.phase = Phase.MET
        seats = tuple(sorted(self._taken))
        return [*late, Meet(tuple(self._taken[number] for number in seats), seats)]

    def _place(self, free: list[int]) -> None:
        """Those without a number: in the seats that their machines had before, the others in natural order."""
        ordered = sorted(
            self._unplaced.values(), key=lambda guest: (natural_key(guest.hello.host), natural_key(guest.hello.address))
        )
        for guest in list(ordered):
            former = next((seat for seat in free if self._seats[seat].host == guest.hello.host), None)
            if former is not None:
                free.remove(former)
                ordered.remove(guest)
                self._taken[former] = guest
        self._taken.update(zip(free, ordered, strict=False))
        for seat, guest in self._taken.items():
            self._seats[seat].host = guest.hello.host

    def _fail(self, text: str) -> list[Action]:
        if self.phase is not Phase.OPEN:
            return []
        self.phase = Phase.FAILED
        return [Fail(text)]


def _nodes(count: int) -> str:
    return "1 node" if count == 1 else f"{count} nodes"


def _whose(hello: wire.Hello) -> str:
    """ "node7 (10.0.0.7)"."""
    if not hello.host or hello.host == hello.address:
        return hello.address or "an agent"
    return f"{hello.host} ({hello.address})" if hello.address else hello.host
