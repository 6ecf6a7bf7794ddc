# SPDX-License-Identifier: Apache-2.0
"""The agent's part in the hang report: looks at its ranks now and then, and closely when the controller asks.

The eye is launcher/lookout.py, the stacks are launcher/stacks.py; here both meet the link and the loop's clock.
Invariant: one close look is under way at a time, and the loop never waits for it.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import msgspec

from pmrun import wire
from pmrun.launcher.hang import StoreWaits, with_store_wait
from pmrun.launcher.link import Link
from pmrun.launcher.lookout import Lookout
from pmrun.launcher.poller import Poller
from pmrun.launcher.stacks import Stack, Survey
from pmrun.window import Window


class AgentWatch:
    """Over one node's ranks."""

    def __init__(self, link: Link, poller: Poller, store_waits: Callable[[], StoreWaits]) -> None:
        self._link = link
        self._poller = poller
        self._store_waits = store_waits
        self._lookout: Lookout | None = None
        self._survey: Survey | None = None
        self._cwd: str | None = None
        self._cpus = 1

    def open(self, start: wire.Start, window: Window, pids: list[int], cpus: int, now: float) -> None:
        """The ranks have been started."""
        self._lookout = Lookout(window, start.first_rank, pids, len(start.layout) <= 1, start.hang_timeout_s, now)
        self._cwd = os.fsdecode(start.cwd) if start.cwd is not None else _here()
        self._cpus = cpus

    def on_exit(self, rank: int) -> None:
        """A rank's process is gone."""
        if self._lookout is not None:
            self._lookout.on_exit(rank)

    def on_debugger(self, rank: int, inside: bool) -> None:
        """The rank waits in its debugger, or goes on."""
        if self._lookout is not None:
            self._lookout.on_debugger(rank, inside)

    def look_around(self, number: int, now: float) -> None:
        """The controller wants to know where all ranks are."""
        if self._lookout is None or self._survey is not None:
            self._link.send(wire.Looked(number, (), "its ranks had not been started"))
            return
        sights = self._lookout.sights(now)  # before anything else runs on their CPUs

        def tell(stacks: dict[int, Stack], problem: str) -> None:
            self._survey = None
            self._link.send(wire.Looked(number, tuple(self._join(sights, stacks)), problem))

        pids = {rank: sight.pid for rank, sight in sights.items()}
        self._survey = survey = Survey(self._poller, pids, self._cwd, self._cpus, tell)
        survey.begin(now)

    def close(self) -> None:
        """Nobody listens any more."""
        self._lookout = None

    def deadline(self) -> float | None:
        """When `on_tick` has something to do."""
        times = [item.deadline() for item in (self._lookout, self._survey) if item is not None]
        return min((at for at in times if at is not None), default=None)

    def on_tick(self, now: float) -> None:
        """Time has passed."""
        if self._survey is not None:
            self._survey.on_tick(now)
        if self._lookout is None:
            return
        at = self._lookout.deadline()
        if at is not None and now >= at:
            news = self._lookout.look(now)
            if news is not None:
                self._link.send(news)

    def _join(self, sights: dict[int, wire.Sight], stacks: dict[int, Stack]) -> list[wire.Sight]:
        waits = self._store_waits()
        joined = []
        for rank, sight in sights.items():
            stack = stacks.get(rank, Stack())
            sight = msgspec.structs.replace(sight, stack=stack.frames, place=stack.place, threads=stack.threads)
            joined.append(with_store_wait(sight, waits))
        return joined


def _here() -> str | None:
    try:
        return os.getcwd()
    except FileNotFoundError:
        return None
