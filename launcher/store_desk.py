# SPDX-License-Identifier: Apache-2.0
"""The controller's part in the store: the table of each attempt, and the keys that outlive attempts.

Where the gang spans nodes, all requests come here. Where it is on one node, its agent has the table, and only those for
lasting keys come. Invariant: an attempt begins with exactly the lasting keys that the one before it left, and its
table is made no sooner than somebody needs it: most gangs never do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from pmrun import wire

if TYPE_CHECKING:
    from pmrun.launcher.store_route import GangStore, Outlet


class StoreDesk:
    """Over all attempts of a job."""

    def __init__(self) -> None:
        self.lasting: Mapping[str, bytes] = {}  # as the last attempt that is over left them
        self._table: GangStore | None = None
        self._place: tuple[Sequence[int], Outlet, Sequence[int]] | None = None
        self._ended: list[int] = []  # ranks, before there was a table

    def begin(self, layout: Sequence[int], outlet: Outlet, peers: Sequence[int]) -> None:
        """An attempt begins; the arguments are those of `GangStore`."""
        self.end()
        self._place = (layout, outlet, peers)

    def end(self) -> None:
        """The attempt is over: nobody is answered any more."""
        if self._table is not None:
            self.lasting = self._table.lasting()
        self._table = self._place = None
        self._ended.clear()

    def on_message(self, node: int, message: wire.StoreRequest | wire.StoreClosed, now: float) -> None:
        """An agent passed on what a rank asks for."""
        if self._table is None:
            if self._place is None or isinstance(message, wire.StoreClosed):
                return
            from pmrun.launcher.store_route import GangStore

            self._table = GangStore(*self._place, self.lasting)
            for rank in self._ended:
                self._table.on_rank_ended(rank)
        self._table.on_message(node, message, now)

    def on_rank_ended(self, rank: int) -> None:
        """The rank's process is gone."""
        if self._table is None:
            self._ended.append(rank)
        else:
            self._table.on_rank_ended(rank)

    def on_node_lost(self, node: int) -> None:
        """Nothing more goes to this node."""
        if self._table is not None:
            self._table.on_node_lost(node)
        elif self._place is not None:
            first = sum(self._place[0][:node])
            self._ended.extend(range(first, first + self._place[0][node]))

    def waits(self, now: float) -> dict[int, tuple[str, float]]:
        """Which ranks wait here, for which key, and how long."""
        return {} if self._table is None else self._table.waits(now)

    def deadline(self) -> float | None:
        """When `on_tick` has something to do."""
        return None if self._table is None else self._table.deadline()

    def on_tick(self, now: float) -> None:
        """Time has passed, or a link has room again."""
        if self._table is not None:
            self._table.on_tick(now)
