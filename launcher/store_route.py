# SPDX-License-Identifier: Apache-2.0
"""The store of a gang that spans nodes: the agents pass requests over their links to the controller's table.

`LinkRoute` is the agent's side (the sockets themselves are pmrun.store_host's), `GangStore` the controller's.
Invariant: replies wait as references to what the table holds and become bytes only while the node's link has
room, so that a value that a thousand ranks wait for is not kept a thousand times.
"""

from __future__ import annotations

import bisect
import collections
from collections.abc import Sequence
from typing import Final

from pmrun import wire
from pmrun.launcher.link import Link
from pmrun.store_server import Replies, StoreServer
from pmrun.store_wire import Ask, Reply

BACKLOG_BYTES: Final = 1 << 20  # of a link: above this no reply is given to it


class LinkRoute:
    """A node's requests, on their way to the controller."""

    def __init__(self, link: Link) -> None:
        self._link = link

    def request(self, rank: int, request: Ask) -> None:
        self._link.send(wire.StoreRequest(rank, request))

    def closed(self, rank: int) -> None:
        self._link.send(wire.StoreClosed(rank))


class GangStore:
    """The table in the controller, and the replies on their way to the nodes."""

    def __init__(self, starts: Sequence[wire.Start], links: Sequence[Link]) -> None:
        self._server = StoreServer(starts[0].world_size)
        self._links = links
        self._ranks = [range(start.first_rank, start.first_rank + start.local_world_size) for start in starts]
        self._first_ranks = [start.first_rank for start in starts]
        self._replies: list[collections.deque[tuple[int, Reply]]] = [collections.deque() for _ in starts]

    def on_message(self, node: int, message: wire.StoreRequest | wire.StoreClosed, now: float) -> None:
        """An agent passed something on. It may speak for its own ranks alone."""
        if message.rank not in self._ranks[node]:
            return
        if isinstance(message, wire.StoreRequest):
            self._queue(self._server.on_request(message.rank, message.request, now))
        else:
            self._server.on_closed(message.rank)

    def on_rank_ended(self, rank: int) -> None:
        """The rank's process is gone."""
        self._server.on_rank_ended(rank)

    def on_node_lost(self, node: int) -> None:
        """Nothing more goes to this node."""
        self._replies[node].clear()
        for rank in self._ranks[node]:
            self._server.on_rank_ended(rank)

    def deadline(self) -> float | None:
        """When `on_tick` has something to do."""
        return self._server.deadline()

    def on_tick(self, now: float) -> None:
        """Time has passed."""
        self._queue(self._server.on_tick(now))

    def pump(self) -> None:
        """Send what the links have room for."""
        for replies, link in zip(self._replies, self._links, strict=True):
            while replies and link.backlog_bytes <= BACKLOG_BYTES:
                link.send(wire.StoreReply(*replies.popleft()))

    def _queue(self, replies: Replies) -> None:
        for rank, reply in replies:
            self._replies[bisect.bisect(self._first_ranks, rank) - 1].append((rank, reply))
        self.pump()
