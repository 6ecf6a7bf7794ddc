# SPDX-License-Identifier: Apache-2.0
"""The agent's part in the store: it holds the other ends of its ranks' sockets and knows where requests go.

Where the gang is on this node alone, its table is here, but for keys that outlive attempts. Else the requests go over the link to the controller's
(launcher/store_route.py), and none is read while the link is full. Until a rank says its first word the sockets are
only watched, and the store's modules not loaded: most gangs never use it. Invariant: a rank's line is closed
before its end is told.
"""

from __future__ import annotations

import socket
import time
from typing import TYPE_CHECKING

from pmrun import wire
from pmrun.launcher.link import Link
from pmrun.launcher.poller import GONE, READ, Poller

if TYPE_CHECKING:
    from pmrun.store_host import OwnTable, StoreHost


class AgentStore:
    """The store of one node's ranks."""

    def __init__(self, link: Link, poller: Poller) -> None:
        self._link = link
        self._poller = poller
        self._silent: dict[int, socket.socket] = {}  # lines of ranks, while none of them has said anything
        self._start: wire.Start | None = None
        self._data_key = b""
        self._host: StoreHost | None = None
        self._table: OwnTable | None = None  # the gang's, where no other node needs it
        self._ended: list[int] = []  # ranks, before there was a table
        self._full = False  # the link
        self._gang_ended: tuple[int, int, str, str] | None = None

    def open(self, start: wire.Start, data_key: bytes) -> None:
        """The gang is known."""
        self._start = start
        self._data_key = data_key

    def line_of(self, rank: int) -> socket.socket:
        """Make a rank's line, and return the end that it will inherit."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        if self._host is not None:
            self._host.add(rank, ours)
        else:
            self._silent[rank] = ours
            self._poller.watch(ours.fileno(), READ, lambda events: self._on_first_word(rank, events))
        return theirs

    def reply(self, message: wire.StoreReply) -> None:
        """The controller answered a request."""
        if self._host is not None:
            from pmrun import store_wire

            self._host.reply(message.rank, store_wire.decode(message.word, store_wire.reply_decoder))

    def close(self, rank: int) -> None:
        """The rank's process is gone."""
        self._ended.append(rank)
        self._drop_silent(rank)
        if self._host is not None:
            self._host.close(rank)
        if self._table is not None:
            self._table.ended(rank)

    def end_gang(self, state: int, rank: int, node: str, text: str) -> None:
        """Tell all that wait, or ask later, why the gang ends."""
        if self._host is not None:
            self._host.end_gang(state, rank, node, text)
        else:
            self._gang_ended = self._gang_ended or (state, rank, node, text)

    def pause(self, full: bool) -> None:
        """Whether the link is full."""
        self._full = full
        if self._host is not None and self._table is None:
            self._host.pause(full)

    def waits(self) -> dict[int, tuple[str, float]]:
        """Which ranks wait, for which key, and how long, where the table is here."""
        return {} if self._table is None else self._table.waits()

    def deadline(self) -> float | None:
        """When `on_tick` has something to do."""
        return None if self._table is None else self._table.deadline()

    def on_tick(self, now: float) -> None:
        """Time has passed."""
        if self._table is not None:
            self._table.on_tick(now)

    def _on_first_word(self, rank: int, events: int) -> None:
        if events & GONE:
            self._drop_silent(rank)
        elif self._host is None:
            self._begin()

    def _drop_silent(self, rank: int) -> None:
        sock = self._silent.pop(rank, None)
        if sock is not None:
            self._poller.forget(sock.fileno())
            sock.close()

    def _begin(self) -> None:
        """From now on there is a host, which watches the lines itself."""
        from pmrun.launcher.polled_host import PolledHost
        from pmrun.launcher.store_route import LinkRoute, SplitRoute
        from pmrun.store_host import OwnTable
        from pmrun.store_server import StoreServer

        assert self._start is not None
        self._host = PolledHost(self._poller, self._data_key, lambda text: self._link.send(wire.Notice(text)))
        if self._start.local_world_size == self._start.world_size:
            self._table = OwnTable(StoreServer(self._start.world_size), self._host, time.monotonic)
            self._host.route = SplitRoute(self._table, LinkRoute(self._link))
            for rank in self._ended:
                self._table.ended(rank)
        else:
            self._host.route = LinkRoute(self._link)
            self._host.pause(self._full)
        for rank, sock in self._silent.items():
            self._host.add(rank, sock)
        self._silent.clear()
        if self._gang_ended is not None:
            self._host.end_gang(*self._gang_ended)
