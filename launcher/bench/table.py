# SPDX-License-Identifier: Apache-2.0
"""The table that fills while it runs: a line for each point as it comes, columns of fixed width.

A kind of line (a point, an overlap, a matrix of pairs) has columns of its own; where the kind changes, a new head is
written. Invariant: all lines under one head have their columns at the same places, also in a pipe.
"""

from __future__ import annotations

from typing import Any, TextIO

from pmrun.bench.points import ITEM_BYTES, elements, human_bytes, rates
from pmrun.launcher.bench.record import Key, Spread, spread, verdict

_POINT = (("operation", -16), ("size", 10), ("time µs", 12), ("min to max", 22), ("algbw GB/s", 12), ("busbw GB/s", 12))
_OLD = (("old µs", 12), ("new/old", 9), ("", -8))
_OVERLAP = (
    ("overlap of", -16), ("size", 10), ("alone µs", 12), ("compute µs", 12), ("together µs", 13), ("OSU %", 8),
    ("IMB %", 8),
)  # fmt: skip


def number(value: float) -> str:
    """Three or four significant digits."""
    if value >= 1000:
        return f"{value:,.0f}"
    if value >= 100:
        return f"{value:.1f}"
    return f"{value:.2f}" if value >= 0.1 else f"{value:.4f}"


def row(cells: list[str], columns: tuple[tuple[str, int], ...]) -> str:
    """One line; a negative width is for text, which begins at the left."""
    parts = [
        f"{cell:<{-width}}" if width < 0 else f"{cell:>{width}}"
        for cell, (_, width) in zip(cells, columns, strict=True)
    ]
    return " ".join(parts).rstrip()


class Table:
    """Writes lines as they come."""

    def __init__(self, out: TextIO, ranks: int, dtype: str, old: dict[Key, Spread] | None) -> None:
        self._out = out
        self._ranks = ranks
        self._item_bytes = ITEM_BYTES[dtype]
        self._old = old
        self._columns: tuple[tuple[str, int], ...] = ()
        self.slower = 0  # points that are, beyond the spread
        self.compared = 0

    def add(self, line: dict[str, Any]) -> None:
        """Show one line of a gang."""
        if line["kind"] == "point":
            self._point(line)
        elif line["kind"] == "overlap":
            times = [number(line[name]) for name in ("pure_us", "compute_us", "overall_us")]
            shares = [f"{line[name]:.0f}" for name in ("osu_percent", "imb_percent")]
            self._write([line["op"], human_bytes(line["bytes"]), *times, *shares], _OVERLAP)
        elif line["kind"] == "pairs":
            self._matrix("latency µs", line["names"], line["latency_us"])
            self._matrix("bandwidth GB/s", line["names"], line["gb_s"])

    def end(self) -> None:
        """What there is to say of all points."""
        if self._old is not None:
            self._say(f"\n{self.slower} of {self.compared} points that both have are slower beyond the spread of both")

    def _point(self, line: dict[str, Any]) -> None:
        op, size = line["op"], line["bytes"]
        found = spread(line["loops_us"])
        moved = elements(op, size, self._ranks, self._item_bytes)[0] * self._item_bytes
        rate = rates(op, moved, self._ranks, found.us / 1e6)
        cells = [op, human_bytes(size), number(found.us), f"{number(found.low)} to {number(found.high)}"]
        cells += [number(value) for value in rate] if rate else ["-", "-"]
        if self._old is None:
            self._write(cells, _POINT)
            return
        old = self._old.get((op, size, line["contender"], line["variant"]))
        if old is None:
            self._write([*cells, "-", "-", ""], (*_POINT, *_OLD))
            return
        mark = verdict(found, old)
        self.compared += 1
        self.slower += mark == "slower"
        self._write([*cells, number(old.us), f"{found.us / old.us:.2f}", mark], (*_POINT, *_OLD))

    def _matrix(self, title: str, names: list[str], values: list[list[float | None]]) -> None:
        wide = max(10, *map(len, names))
        columns = ((title, -max(16, wide)), *((name, wide) for name in names))
        self._head(columns)
        for name, cells in zip(names, values, strict=True):
            self._say(row([name, *("-" if value is None else number(value) for value in cells)], columns))

    def _write(self, cells: list[str], columns: tuple[tuple[str, int], ...]) -> None:
        if columns != self._columns:
            self._head(columns)
        self._say(row(cells, columns))

    def _head(self, columns: tuple[tuple[str, int], ...]) -> None:
        self._say(("\n" if self._columns else "") + row([name for name, _ in columns], columns))
        self._columns = columns

    def _say(self, text: str) -> None:
        self._out.write(text + "\n")
        self._out.flush()
