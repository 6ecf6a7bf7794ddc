# SPDX-License-Identifier: Apache-2.0
"""From measurements to a page: reads the benchmarks' JSON lines, writes benchmarks/RESULTS.md and docs/collectives.svg.

What a figure and a ratio are is said in launcher/bench/standings.py. Invariant: the page says nothing that is not in its
input.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

import peers

from pmrun.bench.points import COLLECTIVES, MEANING, human_bytes
from pmrun.launcher.bench.plot import draw
from pmrun.launcher.bench.standings import Standings, geometric_mean

RESULTS = peers.HERE / "RESULTS.md"
PLOT = peers.HERE.parent / "docs" / "collectives.svg"
INPUTS = peers.HERE.parent / "build" / "bench"
MEMORIES = ("private", "library")

Line = dict[str, Any]


def measured_operations(data: Standings) -> list[str]:
    return [op for op in COLLECTIVES if any(point[0] == op for point in data.rounds)]


def microseconds(us: float) -> str:
    """Return three significant digits, at most one decimal place below 100."""
    if us >= 100:
        return f"{us:,.0f}"
    return f"{us:.1f}" if us >= 10 else f"{us:.2f}"


def table(head: list[str], rows: list[list[str]]) -> list[str]:
    """Return a markdown table; the first column is text, the others numbers."""
    rule = ["---", *("---:" for _ in head[1:])]
    return ["| " + " | ".join(cells) + " |" for cells in (head, rule, *rows)]


# ---- sections of the page ---------------------------------------------------------------------------------


def machine_section(machine: Line) -> list[str]:
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    return [
        f"Measured on {machine['date']}: {machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB, "
        f"Linux {machine['kernel']}; load before the start {machine['load_at_start']}.",
        "",
        f"Versions: {versions}.",
    ]


def summary_section(data: Standings) -> list[str]:
    rows, lost = [], []
    for memory in MEMORIES:
        found = data.comparisons(memory)
        if not found:
            continue
        ratios = [comparison.ratio for comparison in found.values()]
        behind = {point: comparison for point, comparison in found.items() if comparison.ratio < 1}
        mean, smallest = f"{geometric_mean(ratios):.2f}×", f"{min(ratios):.2f}×"
        rows.append([memory, str(len(found)), mean, smallest, str(len(behind))])
        for (op, ranks, size), comparison in behind.items():
            lost.append(
                f"- {memory}: {op}, {ranks} ranks, {human_bytes(size)}: {microseconds(comparison.us)} µs against "
                f"{microseconds(comparison.best_us)} µs of {comparison.best_peer} "
                f"({comparison.ratio:.2f}×, rounds {comparison.low:.2f}–{comparison.high:.2f})"
            )
    if not rows:
        return ["No point has both pmrun and a peer."]
    head = ["arrays", "points", "geometric mean", "smallest ratio", "points lost"]
    return [*table(head, rows), "", "Points lost:" if lost else "No point is lost.", "", *lost]


def means_section(data: Standings) -> list[str]:
    """One geometric mean per operation, ranks and kind of memory."""
    worlds = sorted({ranks for _, ranks, _ in data.points()})
    rows = []
    for op in measured_operations(data):
        row = [op]
        for memory in MEMORIES:
            found = data.comparisons(memory)
            for ranks in worlds:
                ratios = [c.ratio for (name, world, _), c in found.items() if name == op and world == ranks]
                row.append(f"{geometric_mean(ratios):.2f}×" if ratios else "-")
        rows.append(row)
    return table(["operation", *(f"{memory}, {ranks}" for memory in MEMORIES for ranks in worlds)], rows)


def points_section(data: Standings) -> list[str]:
    """Return one table per number of ranks with every point."""
    names = sorted({name for point in data.points() for name in data.peers_best(point)})
    lines: list[str] = []
    for ranks in sorted({ranks for _, ranks, _ in data.points()}):
        rows = []
        for point in (point for point in data.points() if point[1] == ranks):
            row = [f"{point[0]} {human_bytes(point[2])}"]
            best = data.peers_best(point)
            row += [microseconds(best[name][0]) if name in best else "-" for name in names]
            for memory in MEMORIES:
                found = data.compare(point, memory)
                row.append(microseconds(found.us) if found else "-")
                row.append(f"{found.ratio:.2f} ({found.low:.2f}–{found.high:.2f})" if found else "-")
            rows.append(row)
        head = ["µs", *names]
        for memory in MEMORIES:
            head += [f"pmrun {memory}", "ratio"]
        lines += [f"### {ranks} ranks", "", *table(head, rows), ""]
    return lines


def figures_section(lines: list[Line]) -> list[str]:
    """Return the start and overhead figures: one row per (what, who), medians with spread."""
    rows = []
    for line in (line for line in lines if line["kind"] == "figure"):
        values = line["values"]
        median = f"{statistics.median(values):.4g} {line['unit']}".strip() if values else "-"
        spread = f"{min(values):.4g}–{max(values):.4g}" if len(values) > 1 else "-"
        rows.append([line["what"], line["who"], median, spread, str(line.get("failed") or "-")])
    return table(["what", "who", "median", "spread", "hung or failed"], rows) if rows else []


def page(lines: list[Line], data: Standings) -> str:
    machine = next((line for line in lines if line["kind"] == "machine"), None)
    origin = "Written by benchmarks/bench_report.py; benchmarks/README.md tells what is measured and how."
    parts = ["# Results", "", origin]
    parts += ["", *(machine_section(machine) if machine else [])]
    if data.rounds:
        parts += ["", "## Collectives", "", *summary_section(data)]
        parts += ["", "Geometric means of the ratio to the best peer, by operation:", "", *means_section(data)]
        parts += [
            "",
            "A size is what one rank puts in:",
            "",
            *(f"- {op}: {MEANING[op]}" for op in measured_operations(data)),
        ]
        parts += ["", f"![time per call over message size](../docs/{PLOT.name})", "", *points_section(data)]
    figures = figures_section(lines)
    if figures:
        parts += ["", "## Start, overhead, memory", "", *figures]
    return "\n".join(parts).rstrip() + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description="Turn measurements into RESULTS.md and a plot.")
    parser.add_argument("inputs", type=Path, nargs="*", help="default: all of build/bench")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--plot", type=Path, default=PLOT)
    options = parser.parse_args()
    inputs = options.inputs or sorted(INPUTS.glob("*.jsonl"))
    if not inputs:
        print(f"bench_report: nothing in {INPUTS}; run 'make bench' first", file=sys.stderr)
        return 2
    lines = [json.loads(text) for path in inputs for text in path.read_text(encoding="utf-8").splitlines()]
    data = Standings(lines)
    options.results.write_text(page(lines, data), encoding="utf-8")
    if data.rounds:
        options.plot.parent.mkdir(parents=True, exist_ok=True)
        draw(data, options.plot)
    return 0


if __name__ == "__main__":
    sys.exit(main())
