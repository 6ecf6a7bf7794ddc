# SPDX-License-Identifier: Apache-2.0
"""Reads pmrun's standard input for the ranks that take it, as fast as the slowest of them does.

Reading follows the agents' credit. A terminal is read only while pmrun is in the foreground: SIGTTIN is
ignored, the read then fails with EIO, and another try follows later, so a background job goes on. Invariant:
the bytes and their end reach every node that takes input once, in order.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Final

from pmrun import wire
from pmrun.launcher.poller import READ, Poller

WINDOW_BYTES: Final = 256 << 10  # how far reading may run ahead of the slowest rank
_RETRY_S: Final = 0.5


class StdinSource:
    """Standard input and the nodes it goes to."""

    def __init__(self, nodes: list[int], send: Callable[[int, wire.Message], None]) -> None:
        self._credit = dict.fromkeys(nodes, WINDOW_BYTES)
        self._send = send
        self._retry_at: float | None = None
        self._started = False
        self._ended = not nodes

    def start(self) -> None:
        """The ranks run: reading may begin."""
        self._started = True

    def on_credit(self, node: int, count: int) -> None:
        """A node took `count` bytes; -1: wants no more."""
        if count < 0:
            self._credit.pop(node, None)
            self._ended = self._ended or not self._credit
        elif node in self._credit:
            self._credit[node] += count

    def watch(self, poller: Poller, now: float) -> None:
        """Poll standard input when there is credit for it."""
        if self._retry_at is not None and now >= self._retry_at:
            self._retry_at = None
        if self._started and not self._ended and self._retry_at is None and min(self._credit.values()) > 0:
            poller.watch(0, READ, lambda _: self._read(now))
        else:
            poller.forget(0)

    def deadline(self) -> float | None:
        """When to try a terminal again."""
        return None if self._ended else self._retry_at

    def _read(self, now: float) -> None:
        if self._ended:  # said by an agent in this very round
            return
        try:
            data = os.read(0, min(min(self._credit.values()), wire.MAX_DATA_BYTES))
        except BlockingIOError:
            return
        except OSError:
            self._retry_at = now + _RETRY_S  # a terminal that belongs to another job at the moment
            if not os.isatty(0):
                self._retry_at = None
                data = b""
            else:
                return
        for node in self._credit:
            self._credit[node] -= len(data)
            self._send(node, wire.Stdin(data))
        if not data:
            self._ended = True
