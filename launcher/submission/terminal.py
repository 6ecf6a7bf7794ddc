# SPDX-License-Identifier: Apache-2.0
"""The follower's clock, terminal and signals, as they are.

Lines of the log go to the standard output: node 0's as they are, which are those of all ranks, others with their node
in front. pmrun's own go to the standard error. Invariant: between `__enter__` and `__exit__` Ctrl-C, SIGTERM and SIGHUP
raise KeyboardInterrupt, and never inside `held`.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any, Final

from pmrun.errors import ExitCode
from pmrun.launcher.submission.contract import LogLine

_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_ANSWERS: Final = {"c": "cancel", "d": "detach", "g": "go on"}


class Terminal:
    """Surroundings of a `pmrun` that somebody started."""

    def __init__(self) -> None:
        self.signal = 0  # the last one
        self._holds = 0
        self._due = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Terminal:
        self._before = {number: signal.signal(number, self._on_signal) for number in _SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.signal = number
        if self._holds:
            self._due = True
        else:
            raise KeyboardInterrupt

    # ---- what a follower needs ----------------------------------------------------------------------------

    def now(self) -> float:
        return time.clock_gettime(time.CLOCK_BOOTTIME)

    def wait(self, seconds: float) -> None:
        time.sleep(seconds)

    @contextmanager
    def held(self) -> Iterator[None]:
        self._holds += 1
        try:
            yield
        finally:
            self._holds -= 1
        if self._due:
            self._due = False
            raise KeyboardInterrupt

    def show(self, lines: list[LogLine]) -> None:
        write(b"".join(shown(line) for line in lines))

    def tell(self, text: str) -> None:
        print(f"pmrun: {text}", file=sys.stderr, flush=True)

    # ---- Ctrl-C -------------------------------------------------------------------------------------------

    def choose(self, name: str, on_interrupt: str) -> str:
        """ "cancel", "detach" or "go on", after KeyboardInterrupt."""
        if self.signal != signal.SIGINT:
            return "detach"  # this pmrun is to end, not the job
        if on_interrupt != "ask":
            return on_interrupt
        if not (os.isatty(0) and os.isatty(2)):
            return "detach"
        try:
            while True:
                print(
                    f"\npmrun: {name}: (c)ancel it, (d)etach from it, or (g)o on? ", end="", file=sys.stderr, flush=True
                )
                answer = _ANSWERS.get(sys.stdin.readline().strip().lower()[:1] or "?")
                if answer is not None:
                    return answer
        except KeyboardInterrupt:
            return "detach"

    @property
    def interrupted(self) -> int:
        """The exit code of who was interrupted."""
        return 128 + self.signal if self.signal else ExitCode.INTERRUPTED


def shown(line: LogLine) -> bytes:
    """A line of the log, as it is shown."""
    return (b"" if line.node_rank == 0 else b"[node %d] " % line.node_rank) + line.text + b"\n"


def write(data: bytes) -> None:
    """All of it, to the standard output."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(1, rest) :]
