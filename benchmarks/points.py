# SPDX-License-Identifier: Apache-2.0
"""What the collective benchmark measures: operations, sizes, and what a size means for each operation.

The driver, the workers and the report share this file. Invariant: it imports nothing outside the standard
library, as it is read under every contender's interpreter.
"""

from __future__ import annotations

import argparse

ITEM_BYTES = 4  # all messages are float32

# `bytes` of a point is what one rank puts in. Blocks hold at least one element, so that the smallest points
# of reduce_scatter and alltoall are ranks * 4 bytes where that is more.
MEANING = {
    "barrier": "no data",
    "allreduce": "the vector, reduced in place",
    "broadcast": "the vector, from rank 0",
    "allgather": "the block that a rank sends; its result is ranks times as long",
    "reduce_scatter": "the vector that a rank puts in; its result is a block of 1/ranks of it",
    "alltoall": "the vector that a rank sends, a block of 1/ranks of it to each rank",
}
OPERATIONS = tuple(MEANING)

KIB, MIB = 1 << 10, 1 << 20
SIZES = (8, 64, KIB, 4 * KIB, 16 * KIB, 64 * KIB, 256 * KIB, MIB, 4 * MIB, 16 * MIB, 64 * MIB)
QUICK_SIZES = (8, KIB, 64 * KIB, MIB, 16 * MIB)
WORLD_SIZES = (2, 4, 8)


def points(sizes: tuple[int, ...]) -> list[tuple[str, int]]:
    """Return all (operation, bytes); sizes outside, so that a slow contender's budget cuts off the largest."""
    return [("barrier", 0)] + [(op, size) for size in sizes for op in OPERATIONS if op != "barrier"]


def elements(op: str, size: int, world_size: int) -> tuple[int, int]:
    """Return the element counts of the arrays that a rank passes in and gets out."""
    whole = max(1, size // ITEM_BYTES)
    block = max(1, whole // world_size)
    shapes = {
        "barrier": (0, 0),
        "allreduce": (whole, whole),
        "broadcast": (whole, whole),
        "allgather": (whole, whole * world_size),
        "reduce_scatter": (block * world_size, block),
        "alltoall": (block * world_size, block * world_size),
    }
    return shapes[op]


def human_bytes(size: int) -> str:
    """Return "64 KiB" for 65536, "-" for no data."""
    if size == 0:
        return "-"
    for unit, name in ((MIB, "MiB"), (KIB, "KiB")):
        if size >= unit:
            return f"{size // unit} {name}"
    return f"{size} B"


def add_point_arguments(parser: argparse.ArgumentParser) -> None:
    """Let a command line choose a part of the points."""
    parser.add_argument("--quick", action="store_true", help="few sizes and short loops")
    parser.add_argument("--operations", nargs="+", choices=OPERATIONS, default=list(OPERATIONS))
    parser.add_argument("--sizes", nargs="+", type=int, metavar="BYTES")


def chosen_points(options: argparse.Namespace) -> list[tuple[str, int]]:
    """Return the points that the command line asks for."""
    sizes = tuple(options.sizes) if options.sizes else QUICK_SIZES if options.quick else SIZES
    return [(op, size) for op, size in points(sizes) if op in options.operations]
