# SPDX-License-Identifier: Apache-2.0
"""`pm.shard`: this rank's part of the work, where everybody can tell beforehand who does what. Pure, without messages.

    for batch in pm.shard(batches): ...              # a run of them; parts differ by at most one
    for index in pm.shard(1000): ...                 # of range(1000)
    for file in pm.shard(files, weights=sizes): ...  # parts of about the same weight

Invariant: each item is in exactly one rank's part, and every rank would compute the same parts.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import Any, TypeVar, overload

from pmrun import current
from pmrun.errors import UsageError

T = TypeVar("T")


@overload
def shard(items: int, weights: None = None, *, rank: int | None = None, size: int | None = None) -> range: ...
@overload
def shard(items: int, weights: Sequence[float], *, rank: int | None = None, size: int | None = None) -> list[int]: ...
@overload
def shard(
    items: Sequence[T], weights: Sequence[float] | None = None, *, rank: int | None = None, size: int | None = None
) -> Sequence[T]: ...


def shard(
    items: int | Sequence[T],
    weights: Sequence[float] | None = None,
    *,
    rank: int | None = None,
    size: int | None = None,
) -> Sequence[T] | Sequence[int]:
    """Return a rank's part of some items.

    Parameters
    ----------
    items : int or sequence
        A number stands for the numbers below it.
    weights : sequence of float, optional
        What each item costs. Then the heaviest item that is left goes to the rank with the least so far (R. L. Graham,
        Bounds on multiprocessing timing anomalies, 1969), whose part is at most 4/3 of the best there is. Default: all cost
        the same, and each rank's part is a run of neighbours.
    rank, size : int, optional
        Whose part, of how many. Default: this rank's, of all.

    Returns
    -------
    range, list, or what a slice of `items` is
        In the order of `items`.

    Raises
    ------
    UsageError
        `weights` has another length, or a negative or unordered one (NaN); `rank` is not below `size`.
    """
    rank = current.rank() if rank is None else rank
    size = current.world_size() if size is None else size
    if not 0 <= rank < size:
        raise UsageError(f"shard: rank {rank} of {size}: it must be from 0 to {size - 1}")
    everything: Sequence[Any] = range(items) if isinstance(items, int) else items
    count = len(everything)
    if weights is None:
        return everything[count * rank // size : count * (rank + 1) // size]
    if len(weights) != count:
        raise UsageError(f"shard: {len(weights)} weights for {count} items: give one for each")
    for place, weight in enumerate(weights):
        if not weight >= 0:
            raise UsageError(f"shard: weight {place} is {weight}: it must be 0 or more")
    loads = [(0.0, other) for other in range(size)]
    mine: list[int] = []
    for place in sorted(range(count), key=lambda place: -weights[place]):  # a stable sort: equal on all ranks
        load, lightest = loads[0]
        heapq.heapreplace(loads, (load + float(weights[place]), lightest))
        if lightest == rank:
            mine.append(place)
    mine.sort()
    return [everything[place] for place in mine]
