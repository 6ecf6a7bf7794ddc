# SPDX-License-Identifier: Apache-2.0
"""The log of one pod, read as it is written.

A pod's log goes with the pod, and pods go soon after one of them failed: who asked now and then would miss the last
lines, which are the report. So a thread follows the log; when the connection breaks it is followed again from the last
line's time. Invariant: each line is kept once, in order, until it was taken.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

from pmrun.errors import EngineError
from pmrun.launcher.jobset.reasons import seconds
from pmrun.launcher.submission.contract import LogLine

Open = Callable[[str], Iterator[bytes]]  # lines with the time of each, from a time on; "": from the beginning


class PodLog:
    """One pod's, followed from the moment on when this is made."""

    def __init__(self, node_rank: int, follow: Open) -> None:
        self.node_rank = node_rank
        self._follow = follow
        self._lock = threading.Lock()
        self._lines: list[LogLine] = []
        self.first = 0  # the number of the first line that is kept
        self._last = ("", 0)  # the time of the last line, and how many lines have it
        self._error: EngineError | None = None
        self._thread = self._begin()

    def take(self, number: int, at_most: int) -> list[LogLine]:
        """Lines from a number on; those before it are kept no longer. What broke the connection is raised once."""
        with self._lock:
            self._lines = self._lines[max(0, number - self.first) :]
            self.first = max(self.first, number)
            page = self._lines[:at_most]
            error, self._error = self._error, None
        if error is not None:
            self._thread = self._begin()
            if not page:
                raise error
        return page

    def wait(self, timeout_s: float) -> None:
        """Until the log's end was read: its pod has ended."""
        self._thread.join(timeout_s)

    def _begin(self) -> threading.Thread:
        thread = threading.Thread(target=self._read, name=f"log of node {self.node_rank}", daemon=True)
        thread.start()
        return thread

    def _read(self) -> None:
        time, seen = self._last
        known = seen
        try:
            for line in self._follow(time):
                stamp, _, text = line.rstrip(b"\n").partition(b" ")
                at = stamp.decode(errors="replace")
                if time and (seconds(at), at) < (seconds(time), time):
                    continue  # the API knows whole seconds
                if at == time and known > 0:
                    known -= 1
                    continue
                with self._lock:
                    self._last = (at, self._last[1] + 1 if at == self._last[0] else 1)
                    self._lines.append(LogLine(self.node_rank, seconds(at), text))
        except EngineError as error:
            with self._lock:
                self._error = error


def lines_of(answer: Any) -> Iterator[bytes]:
    """Whole lines of an answer that is being read; the last one may have no end."""
    rest = b""
    for piece in answer.stream():
        *lines, rest = (rest + piece).split(b"\n")
        yield from lines
    if rest:
        yield rest
