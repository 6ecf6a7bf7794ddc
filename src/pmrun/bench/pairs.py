# SPDX-License-Identifier: Apache-2.0
"""Latency and bandwidth between every two nodes (on one node: between every two ranks), as two matrices.

A node takes part with its first rank; pairs are measured one after the other, so that none disturbs another.
Invariant: the matrices are symmetric, with nothing (None) on the diagonal.
"""

from __future__ import annotations

import statistics

from .bindings import Binding, Operation
from .measure import Line, Plan, measure_between

LATENCY_BYTES, BANDWIDTH_BYTES = 8, 1 << 20
PLACES_MAX = 64  # a wider matrix is neither read nor measured in reasonable time


def places(binding: Binding) -> list[tuple[str, int]]:
    """Name and rank of each row."""
    if len(binding.nodes) > 1:
        return binding.nodes[:PLACES_MAX]
    return [(f"rank {rank}", rank) for rank in range(min(binding.size, PLACES_MAX))]


def measure_pairs(binding: Binding, barrier: Operation, plan: Plan) -> Line:
    """Both matrices, with the names of their rows."""
    rows = places(binding)
    latency: list[list[float | None]] = [[None] * len(rows) for _ in rows]
    rate: list[list[float | None]] = [[None] * len(rows) for _ in rows]
    for one, (_, first) in enumerate(rows):
        for two in range(one + 1, len(rows)):
            pair = (first, rows[two][1])
            us = statistics.median(measure_between(binding, barrier, "latency", LATENCY_BYTES, pair, plan))
            latency[one][two] = latency[two][one] = us
            us = statistics.median(measure_between(binding, barrier, "bandwidth", BANDWIDTH_BYTES, pair, plan))
            rate[one][two] = rate[two][one] = round(BANDWIDTH_BYTES / us / 1e3, 4)
    return {"kind": "pairs", "op": "pairs", "names": [name for name, _ in rows], "latency_us": latency, "gb_s": rate}
