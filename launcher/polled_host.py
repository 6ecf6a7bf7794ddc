# SPDX-License-Identifier: Apache-2.0
"""A host of the store whose lines a `Poller` watches: the agent's, and the steward's.

Invariant: a line is polled for what the host wants of it now, and for nothing once it is closed.
"""

from __future__ import annotations

from collections.abc import Callable

from pmrun.launcher.poller import GONE, READ, WRITE, Poller
from pmrun.store_host import Line, StoreHost


class PolledHost(StoreHost):
    """The store sockets of a node's ranks, in a process that lives in a poll loop."""

    def __init__(self, poller: Poller, data_key: bytes, complain: Callable[[str], None]) -> None:
        super().__init__(data_key, self._poll, complain)
        self._poller = poller

    def _poll(self, line: Line, read: bool, write: bool) -> None:
        if read or write:
            events = (READ if read else 0) | (WRITE if write else 0)
            self._poller.watch(line.fd, events, lambda found: self._on_line(line, found))
        else:
            self._poller.forget(line.fd)

    def _on_line(self, line: Line, events: int) -> None:
        if events & WRITE:
            self.on_writable(line)
        if events & (READ | GONE):
            self.on_readable(line)
