# SPDX-License-Identifier: Apache-2.0
"""The agent's part in standard input: passes it to the ranks that take it, and asks for more as the slowest took some.

Invariant: credit is given for what every rank that still reads has taken, and -1 once, when none reads any more.
"""

from __future__ import annotations

from pmrun import wire
from pmrun.launcher.link import Link
from pmrun.launcher.poller import GONE, WRITE, Poller
from pmrun.launcher.rank_streams import InputStream


class AgentInput:
    """The standard input of one node's ranks."""

    def __init__(self, link: Link, poller: Poller) -> None:
        self._link = link
        self._poller = poller
        self._streams: dict[int, InputStream] = {}  # by rank
        self._taken = 0

    def add(self, rank: int, fd: int) -> None:
        """A rank takes input, by this end of a pipe."""
        self._streams[rank] = InputStream(fd)
        self._watch(rank, -1)

    def feed(self, data: bytes) -> None:
        """Pass input on; empty is its end."""
        for rank, stream in self._streams.items():
            fd = stream.fd
            stream.feed(data)
            self._watch(rank, fd)
        self._grant()

    def close(self, rank: int) -> None:
        """The rank takes no more, if it ever did."""
        stream = self._streams.get(rank)
        if stream is not None and stream.fd >= 0:
            self._poller.forget(stream.fd)
            stream.close()
            self._grant()

    def close_all(self) -> None:
        """No rank is left."""
        for rank in self._streams:
            self.close(rank)

    def _watch(self, rank: int, fd: int) -> None:
        """Poll for what the stream needs now; `fd` is what it had before it was written to."""
        stream = self._streams[rank]
        if stream.fd >= 0:
            self._poller.watch(stream.fd, WRITE if stream.pending else 0, lambda events: self._on_ready(rank, events))
        elif fd >= 0:
            self._poller.forget(fd)

    def _on_ready(self, rank: int, events: int) -> None:
        stream = self._streams[rank]
        fd = stream.fd
        if events & GONE:
            stream.close()
        else:
            stream.write()
        self._watch(rank, fd)
        self._grant()

    def _grant(self) -> None:
        """Ask for as much more as the slowest rank took; -1 once when none takes any."""
        if self._taken < 0:
            return
        taken = [stream.taken for stream in self._streams.values() if stream.fd >= 0]
        if not taken:
            self._taken = -1
            self._link.send(wire.StdinCredit(-1))
        elif min(taken) > self._taken:
            self._link.send(wire.StdinCredit(min(taken) - self._taken))
            self._taken = min(taken)
