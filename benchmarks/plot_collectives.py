# SPDX-License-Identifier: Apache-2.0
"""Draws time over message size, a panel per operation and number of ranks. Runs where matplotlib is installed.

Reads bench_report.plot_input's JSON from standard input, writes the file named on the command line.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.ticker import FixedFormatter, FixedLocator, FuncFormatter, NullFormatter
from points import OPERATIONS, human_bytes

# Peers recede, pmrun stands out: its two kinds of memory share a colour, library memory is the full line.
STYLES: dict[str, dict[str, Any]] = {
    "Gloo": {"color": "#b8a88f", "marker": "v"},
    "MPICH": {"color": "#7fa6a0", "marker": "s"},
    "Open MPI": {"color": "#8c9cc4", "marker": "^"},
    "Intel MPI": {"color": "#a58bb5", "marker": "D"},
    "pmrun, private": {"color": "#d1495b", "marker": "o", "linestyle": (0, (4, 1.5)), "linewidth": 1.9},
    "pmrun, library": {"color": "#d1495b", "marker": "o", "linewidth": 2.2},
}
TICKS = (8, 1 << 10, 64 << 10, 1 << 20, 64 << 20)


def microseconds(value: float, _: int) -> str:
    if value >= 1e6:
        return f"{value / 1e6:g} s"
    return f"{value / 1e3:g} ms" if value >= 1e3 else f"{value:g} µs"


def draw_curves(axes: Any, curves: dict[str, list[tuple[int, float]]]) -> None:
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.xaxis.set_major_locator(FixedLocator(TICKS))
    axes.xaxis.set_major_formatter(FixedFormatter([human_bytes(tick) for tick in TICKS]))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_formatter(FuncFormatter(microseconds))
    axes.grid(True, which="major", color="#e6e6e6", linewidth=0.7)
    axes.tick_params(labelsize=7.5, length=2.5, color="#999999")
    for who, style in STYLES.items():
        if who in curves:
            sizes, times = zip(*curves[who], strict=True)
            axes.plot(sizes, times, markersize=2.8, label=who, **{"linewidth": 1.2, **style})


def draw_bars(axes: Any, curves: dict[str, list[tuple[int, float]]]) -> None:
    """A barrier has no size: one bar per contender."""
    names = [who for who in STYLES if who in curves]
    times = [curves[who][0][1] for who in names]
    bars = axes.barh(names, times, color=[STYLES[who]["color"] for who in names], height=0.62)
    axes.set_xscale("log")
    axes.set_xlim(min(times) / 3, max(times) * 12)
    labels = [f"{time:,.0f} µs" if time >= 100 else f"{time:.3g} µs" for time in times]
    axes.bar_label(bars, labels, padding=3, fontsize=7.5, color="#444444")
    axes.tick_params(labelsize=7.5, length=0)
    axes.xaxis.set_major_formatter(FuncFormatter(microseconds))
    axes.xaxis.set_minor_formatter(NullFormatter())


def main() -> None:
    panels: dict[tuple[str, int], dict[str, list[tuple[int, float]]]] = defaultdict(dict)
    for curve in json.load(sys.stdin):
        panels[curve["op"], curve["ranks"]][curve["who"]] = curve["points"]
    worlds = sorted({ranks for _, ranks in panels})
    operations = [op for op in OPERATIONS if any((op, ranks) in panels for ranks in worlds)]
    pyplot.rcParams.update({"font.family": "DejaVu Sans", "svg.fonttype": "none", "svg.hashsalt": "pmrun"})
    figure, grid = pyplot.subplots(
        len(operations), len(worlds), figsize=(4.1 * len(worlds), 2.5 * len(operations) + 0.9), squeeze=False
    )
    for row, op in zip(grid, operations, strict=True):
        for axes, ranks in zip(row, worlds, strict=True):
            axes.set_title(f"{op}, {ranks} ranks", fontsize=9, loc="left", color="#222222")
            for side in ("top", "right"):
                axes.spines[side].set_visible(False)
            for side in ("left", "bottom"):
                axes.spines[side].set_color("#999999")
            if (op, ranks) in panels:
                (draw_bars if op == "barrier" else draw_curves)(axes, panels[op, ranks])
    handles: dict[str, Any] = {}
    for axes in grid.flat:
        lines, labels = axes.get_legend_handles_labels()
        handles.update(zip(labels, lines, strict=True))
    ordered = [who for who in reversed(STYLES) if who in handles]
    figure.legend(
        [handles[who] for who in ordered], ordered, loc="upper center", ncols=len(ordered), frameon=False, fontsize=9
    )
    figure.tight_layout(rect=(0, 0, 1, 1 - 0.5 / (2.5 * len(operations) + 0.9)))
    figure.savefig(sys.argv[1], metadata={"Date": None} if sys.argv[1].endswith(".svg") else None, dpi=110)


if __name__ == "__main__":
    main()
