# SPDX-License-Identifier: Apache-2.0
"""From measurements to a page: reads the benchmarks' JSON lines, writes benchmarks/RESULTS.md and docs/collectives.svg.

A contender's figure at a point is the median over rounds of the median over loops; a peer's is that of its
better variant. A ratio is the best peer's figure over pmrun's: above 1, pmrun is faster; its spread is that of
the same ratio within single rounds. Invariant: the page says nothing that is not in its input.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peers
from points import MEANING, OPERATIONS, human_bytes

RESULTS = peers.HERE / "RESULTS.md"
PLOT = peers.HERE.parent / "docs" / "collectives.svg"
INPUTS = peers.HERE.parent / "build" / "bench"
MEMORIES = ("private", "library")  # pmrun's variants on one machine
TRANSPORTS = ("tcp", "zmq")  # and over several

World = int | str  # ranks, or nodes and ranks as in "2x4"
Point = tuple[str, World, int]  # operation, world, bytes
Line = dict[str, Any]
Among = tuple[str, ...]  # names of peers; none: all


@dataclass(frozen=True)
class Comparison:
    """One of pmrun's variants against the best peer, at one point."""

    us: float
    best_peer: str
    best_us: float
    low: float  # the smallest and the largest ratio that a single round gave
    high: float

    @property
    def ratio(self) -> float:
        return self.best_us / self.us


class Collectives:
    """All measured points, with the figures that the page and the plot show."""

    def __init__(self, lines: Iterable[Line], kind: str = "point", ours: tuple[str, ...] = MEMORIES) -> None:
        self.ours = ours
        self.rounds: dict[Point, dict[tuple[str, str], dict[int, float]]] = defaultdict(lambda: defaultdict(dict))
        for line in lines:
            if line["kind"] == kind:
                point = (line["op"], line["ranks"], line["bytes"])
                who = (line["contender"], line["variant"])
                self.rounds[point][who][line["round"]] = statistics.median(line["loops_us"])

    def points(self) -> list[Point]:
        known = [point for point in self.rounds if point[0] in OPERATIONS]
        return sorted(known, key=lambda point: (_size(point[1]), OPERATIONS.index(point[0]), point[2]))

    def figures(self, point: Point) -> dict[tuple[str, str], float]:
        """Return the µs of every (contender, variant)."""
        return {who: statistics.median(rounds.values()) for who, rounds in self.rounds[point].items()}

    def peers_best(self, point: Point) -> dict[str, tuple[float, str]]:
        """Return each peer's µs and the variant that reached it."""
        best: dict[str, tuple[float, str]] = {}
        for (name, variant), us in self.figures(point).items():
            if name != "pmrun" and (name not in best or us < best[name][0]):
                best[name] = (us, variant)
        return best

    def compare(self, point: Point, ours_is: str, among: Among = ()) -> Comparison | None:
        """Return pmrun's standing at a point, against all or `among` some; None where pmrun or every peer is missing."""
        ours = self.rounds[point].get(("pmrun", ours_is))
        ranking = {name: best for name, best in self.peers_best(point).items() if not among or name in among}
        if not ours or not ranking:
            return None
        peer = min(ranking, key=lambda name: ranking[name][0])
        us, variant = ranking[peer]
        theirs = self.rounds[point][(peer, variant)]
        ratios = [theirs[turn] / ours[turn] for turn in ours if turn in theirs] or [math.nan]
        return Comparison(statistics.median(ours.values()), peer, us, min(ratios), max(ratios))

    def comparisons(self, ours_is: str, among: Among = ()) -> dict[Point, Comparison]:
        found = {point: self.compare(point, ours_is, among) for point in self.points()}
        return {point: comparison for point, comparison in found.items() if comparison}


def _size(world: World) -> tuple[int, str]:
    """What worlds are sorted by."""
    return (world, "") if isinstance(world, int) else (math.prod(map(int, world.split("x"))), world)


def geometric_mean(values: Iterable[float]) -> float:
    logs = [math.log(value) for value in values]
    return math.exp(statistics.fmean(logs))


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


def summary_section(data: Collectives) -> list[str]:
    rows, lost = [], []
    for memory in data.ours:
        found = data.comparisons(memory)
        if not found:
            continue
        ratios = [comparison.ratio for comparison in found.values()]
        behind = {point: comparison for point, comparison in found.items() if comparison.ratio < 1}
        mean, smallest = f"{geometric_mean(ratios):.2f}×", f"{min(ratios):.2f}×"
        rows.append([memory, str(len(found)), mean, smallest, str(len(behind))])
        for (op, ranks, size), comparison in behind.items():
            lost.append(
                f"- {memory}: {op}, {ranks} {'ranks' if isinstance(ranks, int) else 'nodes × ranks'}, {human_bytes(size)}: {microseconds(comparison.us)} µs against "
                f"{microseconds(comparison.best_us)} µs of {comparison.best_peer} "
                f"({comparison.ratio:.2f}×, rounds {comparison.low:.2f}–{comparison.high:.2f})"
            )
    if not rows:
        return ["No point has both pmrun and a peer."]
    head = ["pmrun", "points", "geometric mean", "smallest ratio", "points lost"]
    return [*table(head, rows), "", "Points lost:" if lost else "No point is lost.", "", *lost]


def means_section(data: Collectives) -> list[str]:
    """One geometric mean per operation, ranks and kind of memory."""
    worlds = sorted({ranks for _, ranks, _ in data.points()}, key=_size)
    rows = []
    for op in OPERATIONS:
        row = [op]
        for memory in data.ours:
            found = data.comparisons(memory)
            for ranks in worlds:
                ratios = [c.ratio for (name, world, _), c in found.items() if name == op and world == ranks]
                row.append(f"{geometric_mean(ratios):.2f}×" if ratios else "-")
        rows.append(row)
    return table(["operation", *(f"{memory}, {ranks}" for memory in data.ours for ranks in worlds)], rows)


def points_section(data: Collectives) -> list[str]:
    """Return one table per number of ranks with every point."""
    names = sorted({name for point in data.points() for name in data.peers_best(point)})
    lines: list[str] = []
    for ranks in sorted({ranks for _, ranks, _ in data.points()}, key=_size):
        rows = []
        for point in (point for point in data.points() if point[1] == ranks):
            row = [f"{point[0]} {human_bytes(point[2])}"]
            best = data.peers_best(point)
            row += [microseconds(best[name][0]) if name in best else "-" for name in names]
            for memory in data.ours:
                found = data.compare(point, memory)
                row.append(microseconds(found.us) if found else "-")
                row.append(f"{found.ratio:.2f} ({found.low:.2f}–{found.high:.2f})" if found else "-")
            rows.append(row)
        head = ["µs", *names]
        for memory in data.ours:
            head += [f"pmrun {memory}", "ratio"]
        title = f"{ranks} ranks" if isinstance(ranks, int) else f"{ranks} nodes × ranks"
        lines += [f"### {title}", "", *table(head, rows), ""]
    return lines


def figures_section(lines: list[Line], kind: str = "figure") -> list[str]:
    """Return the start and overhead figures: one row per (what, who), medians with spread."""
    rows = []
    for line in (line for line in lines if line["kind"] == kind):
        values = line["values"]
        median = f"{statistics.median(values):.4g} {line['unit']}".strip() if values else "-"
        spread = f"{min(values):.4g}–{max(values):.4g}" if len(values) > 1 else "-"
        rows.append([line["what"], line["who"], median, spread, str(line.get("failed") or "-")])
    return table(["what", "who", "median", "spread", "hung or failed"], rows) if rows else []


def groups_section(data: Collectives) -> list[str]:
    """Geometric mean, smallest ratio and points lost against Gloo, and against the best MPI."""
    rows = []
    for transport in data.ours:
        for who, among in (("Gloo", ("Gloo",)), ("best MPI", ("MPICH", "Intel MPI", "Open MPI"))):
            ratios = [comparison.ratio for comparison in data.comparisons(transport, among).values()]
            if ratios:
                behind = [str(sum(ratio < bound for ratio in ratios)) for bound in (1, 0.8)]
                mean, least = geometric_mean(ratios), min(ratios)
                rows.append([f"{transport} against {who}", str(len(ratios)), f"{mean:.2f}×", f"{least:.2f}×", *behind])
    return table(["pmrun", "points", "geometric mean", "smallest ratio", "below 1", "below 0.8"], rows) if rows else []


def plain_rows(lines: list[Line]) -> list[list[str]]:
    """What a plain TCP connection did in the same run: medians over rounds."""
    found: dict[tuple[str, int], list[float]] = defaultdict(list)
    for line in lines:
        if line["kind"] == "nodes point" and line["contender"] == "plain TCP":
            found[line["op"], line["bytes"]].append(statistics.median(line["loops_us"]))
    rows = []
    for (op, size), values in found.items():
        us = statistics.median(values)
        rate = f"{size / us / 1e3:.2f}" if op == "exchange" else "-"
        rows.append([f"{op} of {human_bytes(size)}", microseconds(us), rate])
    return rows


def shaped_rows(lines: list[Line]) -> list[list[str]]:
    """Bus bandwidth and overlap on limited links: medians over rounds, and their range."""
    found: dict[tuple[int, int, str, str], list[Line]] = defaultdict(list)
    for line in (line for line in lines if line["kind"] == "overlap"):
        found[line["mbit"], line["bytes"], line["contender"], line["variant"]].append(line)
    rows = []
    for (mbit, size, name, variant), measured in sorted(found.items(), key=lambda item: (-item[0][0], *item[0][1:])):
        bus = statistics.median(line["bus_gbit"] for line in measured)
        overlaps = [line["overlap"] for line in measured]
        spread = f"{statistics.median(overlaps):.0f} % ({min(overlaps):.0f}–{max(overlaps):.0f})"
        rows.append([f"{mbit} Mbit/s, {human_bytes(size)}, {name} ({variant})", f"{bus:.3f}", spread])
    return rows


def nodes_section(lines: list[Line]) -> list[str]:
    """Everything that bench_nodes.py measured."""
    data = Collectives(lines, "nodes point", TRANSPORTS)
    plain, shaped, figures = plain_rows(lines), shaped_rows(lines), figures_section(lines, "nodes figure")
    if not (data.rounds or shaped or figures):
        return []
    parts = ["", "## Over several machines", "", "Network namespaces of one machine, joined by veth and a bridge."]
    if data.points():
        parts += ["", *groups_section(data), "", *summary_section(data)]
        parts += ["", "Geometric means of the ratio to the best peer:", "", *means_section(data), ""]
    if plain:
        parts += ["", "One plain TCP connection:", "", *table(["what", "µs", "GB/s each way"], plain)]
    if shaped:
        parts += ["", "On limited links, allreduce on 2 nodes, overlap as IMB-NBC defines it, with fixed compute:", ""]
        parts += table(["link, bytes, who", "bus Gbit/s", "overlap"], shaped)
    if figures:
        parts += ["", *figures]
    return [*parts, "", *points_section(data)] if data.points() else parts


def page(lines: list[Line], data: Collectives) -> str:
    machine = next((line for line in lines if line["kind"] == "machine"), None)
    origin = "Written by benchmarks/bench_report.py; benchmarks/README.md tells what is measured and how."
    parts = ["# Results", "", origin]
    parts += ["", *(machine_section(machine) if machine else [])]
    if data.rounds:
        parts += ["", "## Collectives", "", *summary_section(data)]
        parts += ["", "Geometric means of the ratio to the best peer, by operation:", "", *means_section(data)]
        parts += ["", "A size is what one rank puts in:", "", *(f"- {op}: {text}" for op, text in MEANING.items())]
        parts += ["", f"![time per call over message size](../docs/{PLOT.name})", "", *points_section(data)]
    figures = figures_section(lines)
    if figures:
        parts += ["", "## Start, overhead, memory", "", *figures]
    parts += nodes_section(lines)
    return "\n".join(parts).rstrip() + "\n"


def plot_input(data: Collectives) -> list[Line]:
    """Return what plot_collectives.py draws: one curve per operation, ranks and contender."""
    curves: dict[tuple[str, int, str], list[tuple[int, float]]] = defaultdict(list)
    for point in data.points():
        op, ranks, size = point
        for name, (us, _) in data.peers_best(point).items():
            curves[op, ranks, name].append((size, us))
        for memory in MEMORIES:
            us_or_none = data.figures(point).get(("pmrun", memory))
            if us_or_none is not None:
                curves[op, ranks, f"pmrun, {memory}"].append((size, us_or_none))
    return [{"op": op, "ranks": ranks, "who": who, "points": pairs} for (op, ranks, who), pairs in curves.items()]


def draw(data: Collectives, target: Path) -> None:
    """Draw the plot with the environment that holds matplotlib."""
    script = peers.HERE / "plot_collectives.py"
    command = [str(peers.python_of("plot")), str(script), str(target)]
    subprocess.run(command, input=json.dumps(plot_input(data)), text=True, check=True)


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
    data = Collectives(lines)
    options.results.write_text(page(lines, data), encoding="utf-8")
    if data.rounds:
        options.plot.parent.mkdir(parents=True, exist_ok=True)
        draw(data, options.plot)
    return 0


if __name__ == "__main__":
    sys.exit(main())
