# SPDX-License-Identifier: Apache-2.0
"""Draws time over message size, both in powers, a panel per operation and number of ranks.

Needs matplotlib, which is imported when something is drawn and not before. Invariant: the same figures give the same
SVG, byte for byte.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pmrun.bench.points import MEANING, human_bytes
from pmrun.errors import UsageError
from pmrun.launcher.bench.standings import Standings, World, by_size, named

Curves = Mapping[str, list[tuple[int, float]]]

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
_BESIDE = 3  # panels in a row, where there is one number of ranks


def draw_lines(lines: list[dict[str, Any]], target: str) -> None:
    """Draw the points among a run's lines; UsageError where there is nothing to draw or the file cannot be written."""
    standings = Standings(lines)
    if not standings.rounds:
        raise UsageError(f"--plot {target}: none of these operations has a time over sizes; nothing is drawn")
    try:
        draw(standings, Path(target))
    except OSError as error:
        raise UsageError(f"--plot {target}: {error.strerror}; nothing is drawn") from None


def draw(standings: Standings, target: Path) -> None:
    """Draw all points: a row per operation and a column per number of ranks, or, for one number, rows of panels."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    panels = standings.curves()
    worlds = sorted({world for _, world in panels}, key=by_size)
    operations = [op for op in MEANING if any((op, world) in panels for world in worlds)]
    places = [(op, world) for op in operations for world in worlds]
    columns = len(worlds) if len(worlds) > 1 else min(_BESIDE, len(places))
    rows = -(-len(places) // columns)
    high = 2.5 * rows + 0.9
    pyplot.rcParams.update({"font.family": "DejaVu Sans", "svg.fonttype": "none", "svg.hashsalt": "pmrun"})
    figure, grid = pyplot.subplots(rows, columns, figsize=(4.1 * columns, high), squeeze=False)
    for axes, place in zip(grid.flat, places, strict=False):
        _frame(axes, place)
        if place in panels:
            (_bars if place[0] == "barrier" else _curves)(axes, panels[place])
    for axes in list(grid.flat)[len(places) :]:
        axes.remove()
    _legend(figure, grid)
    figure.tight_layout(rect=(0, 0, 1, 1 - 0.5 / high))
    figure.savefig(target, metadata={"Date": None} if target.suffix.lower() == ".svg" else None, dpi=110)
    pyplot.close(figure)


def _legend(figure: Any, grid: Any) -> None:
    handles: dict[str, Any] = {}
    for axes in grid.flat:
        lines, labels = axes.get_legend_handles_labels()
        handles.update(zip(labels, lines, strict=True))
    ordered = [who for who in reversed(STYLES) if who in handles]
    if ordered:
        shown = [handles[who] for who in ordered]
        figure.legend(shown, ordered, loc="upper center", ncols=len(ordered), frameon=False, fontsize=9)


def _frame(axes: Any, place: tuple[str, World]) -> None:
    axes.set_title(f"{place[0]}, {named(place[1])}", fontsize=9, loc="left", color="#222222")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color("#999999")


def _microseconds(value: float, _: int) -> str:
    if value >= 1e6:
        return f"{value / 1e6:g} s"
    return f"{value / 1e3:g} ms" if value >= 1e3 else f"{value:g} µs"


def _curves(axes: Any, curves: Curves) -> None:
    from matplotlib.ticker import FixedFormatter, FixedLocator, FuncFormatter, NullFormatter

    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.xaxis.set_major_locator(FixedLocator(TICKS))
    axes.xaxis.set_major_formatter(FixedFormatter([human_bytes(tick) for tick in TICKS]))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_formatter(FuncFormatter(_microseconds))
    axes.grid(True, which="major", color="#e6e6e6", linewidth=0.7)
    axes.tick_params(labelsize=7.5, length=2.5, color="#999999")
    for who, style in STYLES.items():
        if who in curves:
            sizes, times = zip(*curves[who], strict=True)
            axes.plot(sizes, times, markersize=2.8, label=who, **{"linewidth": 1.2, **style})


def _bars(axes: Any, curves: Curves) -> None:
    """A barrier has no size: one bar per contender."""
    from matplotlib.ticker import FuncFormatter, NullFormatter

    names = [who for who in STYLES if who in curves]
    times = [curves[who][0][1] for who in names]
    bars = axes.barh(names, times, color=[STYLES[who]["color"] for who in names], height=0.62)
    axes.set_xscale("log")
    axes.set_xlim(min(times) / 3, max(times) * 12)
    labels = [f"{time:,.0f} µs" if time >= 100 else f"{time:.3g} µs" for time in times]
    axes.bar_label(bars, labels, padding=3, fontsize=7.5, color="#444444")
    axes.tick_params(labelsize=7.5, length=0)
    axes.xaxis.set_major_formatter(FuncFormatter(_microseconds))
    axes.xaxis.set_minor_formatter(NullFormatter())
