# SPDX-License-Identifier: Apache-2.0
"""`--peers`: pmrun and others in the same place, in alternating rounds, with the ratios and their spread.

Each round starts a gang per contender and variant, in turn, and each gang measures all points once, so that drift of the
machine falls on everybody alike. Invariant: a peer that fails is reported and left out of that round; nothing else is.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections import defaultdict
from typing import Any, TextIO

from pmrun.bench.points import human_bytes
from pmrun.launcher.bench.gangs import Contender, GangFailed, Line, measured
from pmrun.launcher.bench.standings import Standings, geometric_mean
from pmrun.launcher.bench.table import number, row

_GRACE_S = 60.0  # start, import, and slow points


def rounds(contenders: list[Contender], plan: dict[str, Any], ranks: int, count: int) -> tuple[list[Line], int]:
    """All lines of all rounds, and how many gangs failed; what goes on is told on standard error."""
    points = len(plan["operations"]) * len(plan["sizes"])
    limit_s = _GRACE_S + points * (1.0 + 4.0 * plan["loop_s"] * plan["loops"])
    lines: list[Line] = []
    failed = 0
    for turn in range(count):
        for contender in contenders:
            start = time.monotonic()
            label = f"round {turn + 1} of {count}: {contender.name} ({contender.variant})"
            try:
                found = measured(contender, plan, limit_s)
            except GangFailed as error:
                failed += 1
                print(f"pmrun bench: {label}: {error}", file=sys.stderr, flush=True)
                continue
            place = {"contender": contender.name, "variant": contender.variant, "round": turn, "ranks": ranks}
            lines += [{**line, **place} for line in found if line["kind"] != "world"]
            print(f"{label}: {time.monotonic() - start:.1f} s", file=sys.stderr, flush=True)
    return lines, failed


def show(lines: list[Line], memory: str, out: TextIO) -> None:
    """The times of all beside each other, and, under them, what overlaps."""
    standings = Standings(lines)
    if standings.rounds:
        _show_points(standings, memory, out)
    overlaps: dict[tuple[str, int, str, str], list[Line]] = defaultdict(list)
    for line in lines:
        if line["kind"] == "overlap":
            overlaps[line["op"], line["bytes"], line["contender"], line["variant"]].append(line)
    if not overlaps:
        return
    columns = (
        ("overlap of", -16), ("size", 10), ("who", -22), ("alone µs", 12), ("compute µs", 12), ("together µs", 13),
        ("OSU %", 8), ("IMB %", 8),
    )  # fmt: skip
    out.write("\n" + row([name for name, _ in columns], columns) + "\n")
    for (op, size, name, variant), found in sorted(overlaps.items(), key=lambda item: item[0][:2]):
        times = [number(_median(found, key)) for key in ("pure_us", "compute_us", "overall_us")]
        shares = [f"{_median(found, key):.0f}" for key in ("osu_percent", "imb_percent")]
        out.write(row([op, human_bytes(size), f"{name} ({variant})", *times, *shares], columns) + "\n")


def _median(lines: list[Line], key: str) -> float:
    return float(statistics.median(line[key] for line in lines))


def _show_points(standings: Standings, memory: str, out: TextIO) -> None:
    names = sorted({name for point in standings.points() for name in standings.peers_best(point)})
    columns = (
        ("operation", -16), ("size", 10), ("pmrun µs", 12), *((f"{name} µs", 14) for name in names),
        ("best/pmrun", 11), ("in rounds", 16),
    )  # fmt: skip
    out.write(row([name for name, _ in columns], columns) + "\n")
    for point in standings.points():
        best = standings.peers_best(point)
        ours = standings.figures(point).get(("pmrun", memory))
        cells = [point[0], human_bytes(point[2]), "-" if ours is None else number(ours)]
        cells += [number(best[name][0]) if name in best else "-" for name in names]
        found = standings.compare(point, memory)
        cells += ["-", "-"] if found is None else [f"{found.ratio:.2f}", f"{found.low:.2f} to {found.high:.2f}"]
        out.write(row(cells, columns) + "\n")
    ratios = [comparison.ratio for comparison in standings.comparisons(memory).values()]
    if ratios:
        out.write(
            f"\nbest peer's time over pmrun's: geometric mean {geometric_mean(ratios):.2f} over {len(ratios)} points, "
            f"smallest {min(ratios):.2f}; pmrun is slower at {sum(ratio < 1 for ratio in ratios)}\n"
        )
