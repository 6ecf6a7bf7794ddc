# SPDX-License-Identifier: Apache-2.0
"""An engine in memory and the surroundings of a follower, for tests: time passes when somebody waits, and at no other time.

The engine answers as its script says; a call may fail before or after it was carried out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import ClassVar

from pmrun.errors import EngineError
from pmrun.launcher.job import Job
from pmrun.launcher.submission.contract import Cursor, Finding, JobStatus, LogLine, NoSuchJob, Request, State

NAME = "toy/1"


class World:
    """Clock and terminal."""

    def __init__(self) -> None:
        self.time_s = 1000.0
        self.shown: list[LogLine] = []
        self.told: list[str] = []
        self.waits: list[float] = []
        self.on_wait: Callable[[float], None] = lambda seconds: None

    def now(self) -> float:
        return self.time_s

    def wait(self, seconds: float) -> None:
        self.waits.append(seconds)
        self.time_s += seconds
        self.on_wait(seconds)

    @contextmanager
    def held(self) -> Iterator[None]:
        yield

    def show(self, lines: list[LogLine]) -> None:
        self.shown += lines

    def tell(self, text: str) -> None:
        self.told.append(text)


class Engine:
    """One job: its states by time since the start, its lines with the time of each, and what goes wrong."""

    calls_per_minute: ClassVar[int] = 12
    settle_s: ClassVar[float] = 0.0

    def __init__(self, world: World, states: list[tuple[float, JobStatus]], lines: list[tuple[float, LogLine]]) -> None:
        self.world = world
        self.begin = world.time_s
        self.states = states
        self.lines = lines
        self.page_lines = 1000
        self.errors: Callable[[str], EngineError | None] = lambda call: None
        self.calls: list[tuple[float, str, int]] = []  # when, which, lines that it brought
        self.cancelled = False

    def request(self, job: Job) -> Request:
        return {"command": list(job.command)}

    def submit(self, request: Request) -> str:
        self._called("submit")
        return NAME

    def status(self, name: str) -> JobStatus:
        self._called("status")
        known = [status for at, status in self.states if at <= self._age]
        if not known:
            raise NoSuchJob(f"there is no job {name}")
        return known[-1]

    def read_logs(self, name: str, cursor: Cursor) -> tuple[list[LogLine], Cursor]:
        begin = int(dict(cursor.positions).get("all", "0"))
        there = [line for at, line in self.lines if at <= self._age]
        page = there[begin : begin + self.page_lines]
        self._called("logs", len(page))
        return page, Cursor((("all", str(begin + len(page))),))

    def cancel(self, name: str) -> None:
        self._called("cancel")
        self.cancelled = True
        self.states.append((self._age, JobStatus(NAME, State.CANCELLED)))

    def jobs(self) -> list[JobStatus]:
        return [self.states[-1][1]]

    def why(self, name: str) -> list[Finding]:
        return [Finding("no node is free", "wait, or ask for less")]

    @property
    def _age(self) -> float:
        return self.world.time_s - self.begin

    def _called(self, call: str, lines: int = 0) -> None:
        error = self.errors(call)
        self.calls.append((self.world.time_s, call, 0 if error else lines))
        if error is not None:
            raise error
