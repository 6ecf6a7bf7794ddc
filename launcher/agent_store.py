# SPDX-License-Identifier: Apache-2.0
"""The agent's part in the store: it holds the other ends of its ranks' sockets and knows where requests go.

Where the gang is on this node alone, its table is here. Else the requests go over the link to the controller's
(launcher/store_route.py), and none is read while the link is full. Invariant: a rank's line is closed before its end is told.
"""

from __future__ import annotations

import socket
import time

from pmrun import wire
from pmrun.launcher.link import Link
from pmrun.launcher.polled_host import PolledHost
from pmrun.launcher.poller import Poller
from pmrun.launcher.store_route import LinkRoute
from pmrun.store_host import OwnTable
from pmrun.store_server import StoreServer


class AgentStore:
    """The store of one node's ranks."""

    def __init__(self, link: Link, poller: Poller) -> None:
        self._link = link
        self._poller = poller
        self._host = PolledHost(poller, b"", self._complain)
        self._table: OwnTable | None = None  # the gang's, where no other node needs it

    def open(self, start: wire.Start, data_key: bytes) -> None:
        """The gang is known."""
        self._host = PolledHost(self._poller, data_key, self._complain)
        if start.local_world_size == start.world_size:
            self._table = OwnTable(StoreServer(start.world_size), self._host, time.monotonic)
            self._host.route = self._table
        else:
            self._host.route = LinkRoute(self._link)

    def line_of(self, rank: int) -> socket.socket:
        """Make a rank's line, and return the end that it will inherit."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self._host.add(rank, ours)
        return theirs

    def reply(self, message: wire.StoreReply) -> None:
        """The controller answered a request."""
        self._host.reply(message.rank, message.reply)

    def close(self, rank: int) -> None:
        """The rank's process is gone."""
        self._host.close(rank)
        if self._table is not None:
            self._table.ended(rank)

    def end_gang(self, state: int, rank: int, node: str, text: str) -> None:
        """Tell all that wait why the gang ends."""
        self._host.end_gang(state, rank, node, text)

    def pause(self, full: bool) -> None:
        """Whether the link is full."""
        if self._table is None:
            self._host.pause(full)

    def deadline(self) -> float | None:
        """When `on_tick` has something to do."""
        return None if self._table is None else self._table.deadline()

    def on_tick(self, now: float) -> None:
        """Time has passed."""
        if self._table is not None:
            self._table.on_tick(now)

    def _complain(self, text: str) -> None:
        self._link.send(wire.Notice(text))
