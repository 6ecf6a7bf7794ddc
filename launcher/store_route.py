# SPDX-License-Identifier: Apache-2.0
"""The store of a gang that spans nodes: the agents pass requests over their links to the controller's table.

`LinkRoute` is the agent's side (the sockets themselves are pmrun.store_host's), `GangStore` the controller's. Where the
gang is on one node, a `SplitRoute` passes on only what outlives the attempt.
Invariant: replies wait as references to what the table holds and become bytes only while the node's link has
room, so that a value that a thousand ranks wait for is not kept a thousand times.
"""

from __future__ import annotations

import bisect
import collections
import contextlib
import itertools
from collections.abc import Mapping, Sequence
from typing import Final, Protocol

from pmrun import store_wire, wire
from pmrun.store_host import OwnTable
from pmrun.store_server import NOTHING, Replies, StoreServer, is_lasting
from pmrun.store_wire import Ask, Cancel, Reply

BACKLOG_BYTES: Final = 1 << 20  # of a link: above this no reply is given to it


class Way(Protocol):
    """What leads from a node to the controller."""

    def send(self, message: wire.Message) -> None:
        """Queue a message."""


class LinkRoute:
    """A node's requests, on their way to the controller."""

    def __init__(self, link: Way) -> None:
        self._link = link

    def request(self, rank: int, request: Ask) -> None:
        self._link.send(wire.StoreRequest(rank, store_wire.encode(request)))

    def closed(self, rank: int) -> None:
        self._link.send(wire.StoreClosed(rank))


class SplitRoute:
    """For a gang on one node: its own table, but what outlives the attempt goes to the controller, which does too.

    What is under way bounds what waits in the link, so that nobody has to watch it for room.
    """

    def __init__(self, table: OwnTable, link: LinkRoute) -> None:
        self._table = table
        self._link = link
        self._passed_on = False  # anything

    def request(self, rank: int, request: Ask) -> None:
        if is_lasting(request):
            self._passed_on = True
            self._link.request(rank, request)
            return
        if isinstance(request, Cancel) and self._passed_on:  # of either; numbers are a rank's own
            self._link.request(rank, request)
        self._table.request(rank, request)

    def closed(self, rank: int) -> None:
        if self._passed_on:
            self._link.closed(rank)
        self._table.closed(rank)


class Outlet(Protocol):
    """What the controller's table needs of the links to the nodes."""

    def send(self, peer: int, message: wire.Message) -> None:
        """Queue a message; for a peer that is gone it is dropped."""

    def backlog_bytes(self, peer: int) -> int:
        """How much is queued for a peer."""


class GangStore:
    """The table in the controller, and the replies on their way to the nodes.

    Parameters
    ----------
    layout : sequence of int
        Ranks of each node.
    outlet : Outlet
    peers : sequence of int
        The outlet's number of each node.
    lasting : mapping of str to bytes
        What an earlier attempt left.
    """

    def __init__(
        self, layout: Sequence[int], outlet: Outlet, peers: Sequence[int], lasting: Mapping[str, bytes] = NOTHING
    ) -> None:
        *self._first_ranks, world_size = itertools.accumulate(layout, initial=0)
        self._server = StoreServer(world_size, lasting)
        self._outlet = outlet
        self._peers = peers
        self._ranks = [range(first, first + count) for first, count in zip(self._first_ranks, layout, strict=True)]
        self._replies: list[collections.deque[tuple[int, Reply]]] = [collections.deque() for _ in layout]

    def on_message(self, node: int, message: wire.StoreRequest | wire.StoreClosed, now: float) -> None:
        """An agent passed something on. It may speak for its own ranks alone."""
        if message.rank not in self._ranks[node]:
            return
        if isinstance(message, wire.StoreClosed):
            self._server.on_closed(message.rank)
            return
        with contextlib.suppress(store_wire.StoreWireError):  # the agent has checked it
            request = store_wire.decode(message.word, store_wire.ask_decoder)
            self._queue(self._server.on_request(message.rank, request, now))

    def on_rank_ended(self, rank: int) -> None:
        """The rank's process is gone."""
        self._server.on_rank_ended(rank)

    def on_node_lost(self, node: int) -> None:
        """Nothing more goes to this node."""
        self._replies[node].clear()
        for rank in self._ranks[node]:
            self._server.on_rank_ended(rank)

    def lasting(self) -> dict[str, bytes]:
        """What the next attempt begins with."""
        return self._server.lasting()

    def waits(self, now: float) -> dict[int, tuple[str, float]]:
        """Which ranks wait, for which key, and how long."""
        return self._server.waits(now)

    def deadline(self) -> float | None:
        """When `on_tick` has something to do."""
        return self._server.deadline()

    def on_tick(self, now: float) -> None:
        """Time has passed, or a link has room again."""
        self._queue(self._server.on_tick(now))

    def _queue(self, replies: Replies) -> None:
        """Send what the links have room for; the rest waits for the next event or tick."""
        for rank, reply in replies:
            self._replies[bisect.bisect(self._first_ranks, rank) - 1].append((rank, reply))
        for waiting, peer in zip(self._replies, self._peers, strict=True):
            while waiting and self._outlet.backlog_bytes(peer) <= BACKLOG_BYTES:
                rank, reply = waiting.popleft()
                self._outlet.send(peer, wire.StoreReply(rank, store_wire.encode(reply)))
