# SPDX-License-Identifier: Apache-2.0
"""Known data for every operation, and what must come out of it.

A rank's vector repeats a pattern of PERIOD small integers, which differs by rank, by element and by `turn` (the number
of the call), so that data in a cache, in the wrong block or of an earlier call is told from the right one. The integers
are such that every dtype holds every result exactly, whatever the order of the additions. Invariant: what is expected is
made by numpy from the patterns, never by a collective.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from .points import REDUCTIONS

Array = npt.NDArray[Any]
PERIOD = 251  # a prime, so that no block length is a multiple of it by chance
_UFUNCS = {"sum": np.add, "prod": np.multiply, "max": np.maximum, "min": np.minimum}


class WrongResult(Exception):
    """An operation gave a wrong answer, so its time means nothing. One line."""


def pattern(rank: int, size: int, turn: int, op: str, dtype: npt.DTypeLike) -> Array:
    """What a rank's vector repeats."""
    place = np.arange(PERIOD) + turn
    if op == "prod":  # one rank has another factor than 1 at each element
        values = np.where(place % size == rank, 1 + place % 3, 1)
    elif size <= 16:
        values = (place * 7 + rank * 3) % 8  # at most 7 * 16, which int8 holds
    else:
        values = ((place * 7 + rank * 3) % -(-size // 100) == 0) * 1  # about 100 ranks of any number: int8 again
    return values.astype(dtype)


def stretch(values: Array, offset: int, count: int) -> Array:
    """Elements `offset` to `offset + count` of the vector that repeats `values`."""
    return np.resize(np.roll(values, -(offset % PERIOD)), count)


def reduced(ranks: range, size: int, turn: int, op: str, dtype: npt.DTypeLike) -> Array:
    """The pattern of the reduction over these ranks."""
    result = pattern(ranks[0], size, turn, op, dtype)
    for rank in ranks[1:]:
        result = _UFUNCS[op](result, pattern(rank, size, turn, op, dtype))
    return result


def fill(name: str, send: Array, rank: int, size: int, turn: int, op: str) -> None:
    """Put the data of call `turn` of operation `name` into what a rank sends."""
    if name == "broadcast" and rank != 0:
        send[:] = 0
    elif send.size:
        send[:] = stretch(pattern(rank, size, turn, op, send.dtype), 0, send.size)


def expected(name: str, count: int, rank: int, size: int, turn: int, op: str, dtype: npt.DTypeLike) -> Array | None:
    """What this rank must get, `count` elements; None where it gets nothing."""
    rooted = name in ("reduce", "gather")
    if name == "barrier" or (rooted and rank != 0) or (name == "exscan" and rank == 0):
        return None
    block = count // size
    if name in REDUCTIONS:
        ranks = range(rank + 1) if name == "scan" else range(rank) if name == "exscan" else range(size)
        offset = rank * count if name == "reduce_scatter" else 0
        return stretch(reduced(ranks, size, turn, op, dtype), offset, count)
    if name in ("allgather", "gather"):
        parts = [stretch(pattern(other, size, turn, op, dtype), 0, block) for other in range(size)]
        return np.concatenate(parts)
    if name == "alltoall":
        parts = [stretch(pattern(other, size, turn, op, dtype), rank * block, block) for other in range(size)]
        return np.concatenate(parts)
    offset = rank * count if name == "scatter" else 0
    return stretch(pattern(0, size, turn, op, dtype), offset, count)


def check(name: str, recv: Array, rank: int, size: int, turn: int, op: str) -> None:
    """Raise WrongResult unless `recv` is what `name` makes of `fill`'s data."""
    wanted = expected(name, recv.size, rank, size, turn, op, recv.dtype)
    if wanted is not None:
        compare(name, recv, wanted, rank)


def compare(name: str, got: Array, wanted: Array, rank: int) -> None:
    """Raise WrongResult with the first element that differs."""
    wrong = np.flatnonzero(got != wanted)
    if wrong.size:
        at = int(wrong[0])
        raise WrongResult(
            f"{name} of {got.nbytes} bytes ({got.dtype}): rank {rank} got {got[at]} instead of {wanted[at]} at element "
            f"{at}; {wrong.size} of {got.size} elements are wrong"
        )
