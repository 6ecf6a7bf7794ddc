# SPDX-License-Identifier: Apache-2.0
"""What is measured: operations, what a size means for each, and how rates follow from a time.

The launcher, the ranks and the reports share this file. algbw and busbw are those of nccl-tests: algbw is the whole
array of the operation over the time of a call, busbw the rate at which the busiest link must carry data for that.
Invariant: it imports nothing outside the standard library, and nothing of pmrun.
"""

from __future__ import annotations

# `bytes` of a point is what one rank puts in (the root's part of scatter, another rank's of gather: a block). Blocks hold
# at least one element, so that the smallest points of reduce_scatter and alltoall are ranks * the element where that is more.
MEANING = {
    "barrier": "no data",
    "allreduce": "the vector, reduced in place",
    "broadcast": "the vector, from rank 0",
    "reduce": "the vector that a rank puts in; rank 0 has the result",
    "allgather": "the block that a rank sends; its result is ranks times as long",
    "gather": "the block that a rank sends; rank 0's result is ranks times as long",
    "scatter": "the vector of rank 0, a block of 1/ranks of it to each rank",
    "reduce_scatter": "the vector that a rank puts in; its result is a block of 1/ranks of it",
    "alltoall": "the vector that a rank sends, a block of 1/ranks of it to each rank",
    "scan": "the vector that a rank puts in; its result is as long",
    "exscan": "the vector that a rank puts in; its result is as long",
    "latency": "a message there and back between two ranks; the time is half of that",
    "bandwidth": "one of many messages under way from one rank to another",
    "bibandwidth": "the same, both ways at once; the rate is that of both ways together",
}
POINT_TO_POINT = ("latency", "bandwidth", "bibandwidth")
COLLECTIVES = tuple(op for op in MEANING if op not in POINT_TO_POINT)
OVERLAPPED = tuple(f"i{op}" for op in COLLECTIVES)
PAIRS = "pairs"  # latency and bandwidth between all nodes, or all ranks of one
REDUCTIONS = ("allreduce", "reduce", "reduce_scatter", "scan", "exscan")
IN_PLACE = ("allreduce", "broadcast")  # one array goes in and comes out

GROUPS = {
    "p2p": POINT_TO_POINT,
    "collectives": COLLECTIVES,
    "overlap": OVERLAPPED,
    "all": (*POINT_TO_POINT, PAIRS, *COLLECTIVES, *OVERLAPPED),
}

KIB, MIB = 1 << 10, 1 << 20
ITEM_BYTES = {
    "int8": 1, "uint8": 1, "int16": 2, "uint16": 2, "int32": 4, "uint32": 4, "int64": 8, "uint64": 8,
    "float16": 2, "bfloat16": 2, "float32": 4, "float64": 8, "complex64": 8, "complex128": 16,
}  # fmt: skip
OPS = ("sum", "prod", "max", "min")


def known() -> list[str]:
    """All words that name something to measure."""
    return [*GROUPS, *GROUPS["all"]]


def expand(words: list[str]) -> list[str]:
    """Operations in the order given, groups spelled out, each once."""
    found: dict[str, None] = {}
    for word in words:
        found.update(dict.fromkeys(GROUPS.get(word, (word,))))
    return list(found)


def base(op: str) -> str:
    """The collective behind a nonblocking one's name."""
    return op[1:] if op in OVERLAPPED else op


def size_range(smallest: int, largest: int, factor: int) -> list[int]:
    """Sizes in bytes, each `factor` times the one before."""
    sizes = [smallest]
    while sizes[-1] * factor <= largest:
        sizes.append(sizes[-1] * factor)
    return sizes


def plan(operations: list[str], sizes: list[int], *, by_size: bool = False) -> list[tuple[str, int]]:
    """All (operation, bytes): operation by operation, or size by size, so that an early end leaves out the largest."""
    found = []
    for op in operations:
        found += [(op, size) for size in ([0] if base(op) == "barrier" or op == PAIRS else sizes)]
    return sorted(found, key=lambda point: point[1]) if by_size else found


def elements(op: str, size: int, world_size: int, item_bytes: int = 4) -> tuple[int, int]:
    """The element counts of the arrays that a rank passes in and gets out."""
    whole = max(1, size // item_bytes)
    block = max(1, whole // world_size)
    shapes = {
        "barrier": (0, 0),
        "allgather": (whole, whole * world_size),
        "gather": (whole, whole * world_size),
        "scatter": (block * world_size, block),
        "reduce_scatter": (block * world_size, block),
        "alltoall": (block * world_size, block * world_size),
    }
    return shapes.get(op, (whole, whole))


def rates(op: str, size: int, world_size: int, seconds: float) -> tuple[float, float] | None:
    """algbw and busbw in GB/s (10^9), or None where the operation has none."""
    op = base(op)
    if op in ("barrier", "scan", "exscan", PAIRS) or seconds <= 0.0:
        return None
    whole = size * world_size if op in ("allgather", "gather") else size * 2 if op == "bibandwidth" else size
    part = (world_size - 1) / world_size
    factors = {
        "allreduce": 2 * part, "allgather": part, "gather": part, "scatter": part, "reduce_scatter": part,
        "alltoall": part,
    }  # fmt: skip
    algbw = whole / seconds / 1e9
    return algbw, algbw * factors.get(op, 1.0)


def human_bytes(size: int) -> str:
    """ "64 KiB" for 65536, "-" for no data."""
    if size == 0:
        return "-"
    for unit, name in ((MIB, "MiB"), (KIB, "KiB")):
        if size >= unit and size % unit == 0:
            return f"{size // unit} {name}"
    return f"{size} B"
