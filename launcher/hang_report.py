# SPDX-License-Identifier: Apache-2.0
"""The hang report: who has not entered which call, who waits for it, and where every rank is. Pure text.

Waiting ranks point at those they wait for: members that have not entered their call, or are held inside it, or the
other end of a message. Following these leads to a rank that waits for none of them, the culprit, or round in a circle,
a deadlock. Invariant: the first line names who is to blame as far as the recorders tell, and claims no more than that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import msgspec

from pmrun.launcher import stragglers
from pmrun.launcher.describe import rank_list
from pmrun.launcher.hang import LOOK_S, Found
from pmrun.wire import Pending, Sight

_GROUPS_MAX = 12
_CIRCLE_MAX = 4


class HangReport(msgspec.Struct, frozen=True):
    """What a look found, in words."""

    headline: str  # one line
    lines: tuple[str, ...]
    culprits: tuple[int, ...]


def compose(found: Found, node_names: tuple[str, ...], node_of: Callable[[int], str]) -> HangReport:
    """Put a look into words.

    Parameters
    ----------
    found : Found
    node_names : tuple of str
        By node.
    node_of : callable
        Name of a rank's node.
    """
    sights = {sight.rank: sight for looked in found.looked.values() for sight in looked.sights}
    view = _View(sights, node_of if len(node_names) > 1 else None)
    culprits, headline = view.blame()
    lines = view.groups(culprits)
    several = len(node_names) > 1
    for node, looked in sorted(found.looked.items()):
        if looked.problem:
            lines.append(f"  {node_names[node]}: {looked.problem}" if several else f"  {looked.problem}")
    lines += [f"  {node_names[node]} did not tell where its ranks are within {LOOK_S:g} s" for node in found.silent]
    straggler = stragglers.find({rank: sight.pace for rank, sight in sights.items()})
    if straggler is not None:
        lines.append(f"  {straggler}")
    return HangReport(headline, tuple(lines), tuple(culprits))


class _View:
    """All ranks, and who waits for whom."""

    def __init__(self, sights: dict[int, Sight], node_of: Callable[[int], str] | None) -> None:
        self._sights = dict(sorted(sights.items()))
        self._node_of = node_of  # None: there is one
        self._blockers = {rank: self._find_blockers(sight) for rank, sight in self._sights.items() if _waits(sight)}

    def blame(self) -> tuple[list[int], str]:
        """The ranks that are to blame, and the first line."""
        oldest = sorted(self._blockers, key=lambda rank: -_pending(self._sights[rank]).age_s)
        for rank in oldest:
            idle = [blocker for blocker in self._blockers[rank] if not self._blockers.get(blocker)]
            if idle:
                return idle, self._blamed(rank, idle)
        circle = self._circle(oldest)
        if circle:
            return circle, "deadlock: " + "; ".join(self._link(rank) for rank in circle[:_CIRCLE_MAX])
        if oldest:
            call = _pending(self._sights[oldest[0]])
            why = "" if not call.seq else ", and every rank of its communicator has entered it"
            return [], f"{self._waiters(call, call.text)}{why}"
        return [], "no rank waits in a call"

    def groups(self, culprits: Iterable[int]) -> list[str]:
        """A paragraph for each group of ranks that are in the same place; culprits first, those that wait last."""
        folded: dict[tuple[object, ...], list[int]] = {}
        for rank, sight in self._sights.items():
            call = (sight.waits or sight.last or Pending("", 0.0)).text
            state = "" if _waits(sight) else sight.state
            folded.setdefault((state, sight.waits is None, call, sight.stack, sight.threads), []).append(rank)
        blamed = set(culprits)
        members = sorted(
            folded.values(), key=lambda ranks: (blamed.isdisjoint(ranks), _waits(self._sights[ranks[0]]), ranks)
        )
        lines: list[str] = []
        for ranks in members[:_GROUPS_MAX]:
            sight = self._sights[ranks[0]]
            shown = [*sight.stack, *sight.threads]
            lines.append(f"  {self._standing(ranks)}{':' if shown else ''}")
            lines += [f"    {line}" for line in shown]
        rest = [rank for ranks in members[_GROUPS_MAX:] for rank in ranks]
        return [*lines, f"  {rank_list(rest)} elsewhere"] if rest else lines

    # ---- who waits for whom ---------------------------------------------------------------------------

    def _find_blockers(self, sight: Sight) -> list[int]:
        call = _pending(sight)
        if not call.seq:
            return [call.peer] if call.peer in self._sights and call.peer != sight.rank else []
        blockers = []
        for rank, other in self._sights.items():
            entered = next((newest for comm, group, newest in other.entered if (comm, group) == _room(call)), None)
            if entered is None and call.comm != 0:
                continue  # not a member; but of the world all are, also those that have not said so yet
            inside = other.waits is not None and _same(other.waits, call)
            if (entered or 0) < call.seq or (other.held and inside):
                blockers.append(rank)
        return blockers

    def _circle(self, ranks: list[int]) -> list[int]:
        """Ranks that wait for each other in a ring, beginning with the lowest; [] where there is none."""
        for start in ranks:
            path: list[int] = []
            rank = start
            while rank in self._blockers and self._blockers[rank] and rank not in path:
                path.append(rank)
                rank = self._blockers[rank][0]
            if rank in path:
                circle = path[path.index(rank) :]
                low = circle.index(min(circle))
                return circle[low:] + circle[:low]
        return []

    # ---- words ----------------------------------------------------------------------------------------

    def _blamed(self, waiter: int, idle: list[int]) -> str:
        call = _pending(self._sights[waiter])
        first = self._sights[idle[0]]
        if not call.seq:
            return f"{self._waiters(call, call.text)}; rank {idle[0]} {self._place(first)}"
        inside = [rank for rank in idle if (waits := self._sights[rank].waits) is not None and _same(waits, call)]
        if len(inside) == len(idle):
            head = f"{rank_list(idle)} {_is(idle)} {first.state} inside {call.text}{self._on(idle[0])}"
            return f"{head}; {self._waiters(call, 'it')}"
        missing = [rank for rank in idle if rank not in inside]
        first = self._sights[missing[0]]
        who = "it" if len(missing) == 1 else f"rank {missing[0]}"
        return (
            f"{rank_list(missing)} never entered {call.text}; {who} {self._place(first)}; {self._waiters(call, 'it')}"
        )

    def _waiters(self, call: Pending, name: str) -> str:
        """ "ranks 0-4, 6 have waited in it for 300 s" """
        ranks = [rank for rank in self._blockers if _same(_pending(self._sights[rank]), call)]
        ages = [_pending(self._sights[rank]).age_s for rank in ranks]
        return f"{rank_list(ranks)} {'has' if len(ranks) == 1 else 'have'} waited in {name} for {_seconds(max(ages))}"

    def _link(self, rank: int) -> str:
        call = _pending(self._sights[rank])
        blocker = self._blockers[rank][0]
        how = f"which rank {blocker} has not entered" if call.seq else f"and rank {blocker} does not come to it"
        return f"rank {rank} waits in {call.text}, {how}"

    def _place(self, sight: Sight) -> str:
        """ "is at data.py:44 in load_batch (node b, computing)" """
        if _waits(sight):
            return f"waits in {_pending(sight).text}{self._on(sight.rank)}"
        where = self._on(sight.rank, sight.state)
        if sight.place:
            return f"is at {sight.place}{where}"
        if sight.last is not None:
            return f"came out of {sight.last.text} last{where}"
        return f"has made no call{where}"

    def _on(self, rank: int, *more: str) -> str:
        words = [*([f"node {self._node_of(rank)}"] if self._node_of else []), *more]
        return f" ({', '.join(words)})" if words else ""

    def _standing(self, ranks: list[int]) -> str:
        sights = [self._sights[rank] for rank in ranks]
        first = sights[0]
        nodes = {self._node_of(rank) for rank in ranks} if self._node_of else set()
        words = [f"node {next(iter(nodes))}"] if len(nodes) == 1 else []
        words += [f"pid {first.pid}"] if len(ranks) == 1 else []
        text = rank_list(ranks) + (f" ({', '.join(words)})" if words else "")
        if first.waits is not None:
            ages = [_pending(sight).age_s for sight in sights]
            state = f", {first.state}," if first.held else ""
            return f"{text}{state} {_is(ranks)} in {first.waits.text} since {_seconds(max(ages))}"
        text += f", {first.state}, {_is(ranks)} in no call"
        if first.last is None:
            return f"{text} and made none before"
        age = _seconds(min(sight.last.age_s for sight in sights if sight.last is not None))
        return f"{text}; {'its' if len(ranks) == 1 else 'their'} last was {first.last.text}, {age} ago"


def _waits(sight: Sight) -> bool:
    """Whether a rank waits for others; one that is held would not go on if they came."""
    return sight.waits is not None and not sight.held


def _pending(sight: Sight) -> Pending:
    assert sight.waits is not None
    return sight.waits


def _room(call: Pending) -> tuple[int, int]:
    return call.comm, call.group


def _same(one: Pending, other: Pending) -> bool:
    """Whether it is one call of several ranks; messages are each rank's own."""
    if not one.seq or not other.seq:
        return one is other or one.text == other.text
    return (*_room(one), one.seq) == (*_room(other), other.seq)


def _is(ranks: list[int]) -> str:
    return "is" if len(ranks) == 1 else "are"


def _seconds(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
