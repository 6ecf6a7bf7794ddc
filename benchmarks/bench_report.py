# SPDX-License-Identifier: Apache-2.0
"""From measurements to a page: reads the benchmarks' JSON lines, writes benchmarks/RESULTS.md and docs/collectives.svg.

What a figure and a ratio are is said in launcher/bench/standings.py. Invariant: the page says nothing that is not in its
input, but for sections that the input has nothing for, which stay as they were.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import peers
from peers import MEMORIES, TRANSPORTS

from pmrun.bench.points import COLLECTIVES, KIB, MEANING, human_bytes, rates
from pmrun.launcher.bench.plot import draw
from pmrun.launcher.bench.standings import Standings, by_size, geometric_mean, named, world_size

RESULTS = peers.HERE / "RESULTS.md"
PLOT = peers.HERE.parent / "docs" / "collectives.svg"
INPUTS = peers.HERE.parent / "build" / "bench"
MPI = ("MPICH", "Intel MPI", "Open MPI")
LARGE_BYTES = 16 * KIB  # of a prediction: from here on the network's rate counts
MEASURED_ON = "Measured on"
PLAIN = "plain TCP"  # no contender but the floor under them

Line = dict[str, Any]
Variants = tuple[str, ...]  # of pmrun


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
        f"{MEASURED_ON} {machine['date']}: {machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB, "
        f"Linux {machine['kernel']}; load before the start {machine['load_at_start']}.",
        "",
        f"Versions: {versions}.",
    ]


def summary_section(data: Standings, variants: Variants = MEMORIES) -> list[str]:
    rows, lost = [], []
    for own in variants:
        found = data.comparisons(own)
        if not found:
            continue
        ratios = [comparison.ratio for comparison in found.values()]
        behind = {point: comparison for point, comparison in found.items() if comparison.ratio < 1}
        mean, smallest = f"{geometric_mean(ratios):.2f}×", f"{min(ratios):.2f}×"
        rows.append([own, str(len(found)), mean, smallest, str(len(behind))])
        for (op, world, size), comparison in behind.items():
            lost.append(
                f"- {own}: {op}, {named(world)}, {human_bytes(size)}: {microseconds(comparison.us)} µs against "
                f"{microseconds(comparison.best_us)} µs of {comparison.best_peer} "
                f"({comparison.ratio:.2f}×, rounds {comparison.low:.2f}–{comparison.high:.2f})"
            )
    if not rows:
        return ["No point has both pmrun and a peer."]
    head = ["pmrun", "points", "geometric mean", "smallest ratio", "points lost"]
    return [*table(head, rows), "", "Points lost:" if lost else "No point is lost.", "", *lost]


def means_section(data: Standings, variants: Variants = MEMORIES) -> list[str]:
    """One geometric mean per operation, world and variant of pmrun."""
    worlds = sorted({world for _, world, _ in data.points()}, key=by_size)
    rows = []
    for op in measured_operations(data):
        row = [op]
        for own in variants:
            found = data.comparisons(own)
            for world in worlds:
                ratios = [c.ratio for (name, where, _), c in found.items() if name == op and where == world]
                row.append(f"{geometric_mean(ratios):.2f}×" if ratios else "-")
        rows.append(row)
    return table(["operation", *(f"{own}, {world}" for own in variants for world in worlds)], rows)


def points_section(data: Standings, variants: Variants = MEMORIES) -> list[str]:
    """Return one table per world with every point."""
    names = sorted({name for point in data.points() for name in data.peers_best(point)})
    lines: list[str] = []
    for world in sorted({world for _, world, _ in data.points()}, key=by_size):
        rows = []
        for point in (point for point in data.points() if point[1] == world):
            row = [f"{point[0]} {human_bytes(point[2])}"]
            best = data.peers_best(point)
            row += [microseconds(best[name][0]) if name in best else "-" for name in names]
            for own in variants:
                found = data.compare(point, own)
                row.append(microseconds(found.us) if found else "-")
                row.append(f"{found.ratio:.2f} ({found.low:.2f}–{found.high:.2f})" if found else "-")
            rows.append(row)
        head = ["µs", *names]
        for own in variants:
            head += [f"pmrun {own}", "ratio"]
        lines += [f"### {named(world)}", "", *table(head, rows), ""]
    return lines


def figures_section(lines: list[Line], kind: str = "figure") -> list[str]:
    """Return the start and overhead figures: one row per (what, who), medians with spread, over all slices of a run."""
    found: dict[tuple[str, str], list[Line]] = defaultdict(list)
    for line in (line for line in lines if line["kind"] == kind):
        found[line["what"], line["who"]].append(line)
    rows = []
    for (what, who), slices in found.items():
        values = [value for line in slices for value in line["values"]]
        median = f"{statistics.median(values):.4g} {slices[0]['unit']}".strip() if values else "-"
        spread = f"{min(values):.4g}–{max(values):.4g}" if len(values) > 1 else "-"
        rows.append([what, who, median, spread, str(sum(line.get("failed") or 0 for line in slices) or "-")])
    return table(["what", "who", "median", "spread", "hung or failed"], rows) if rows else []


# ---- over several machines --------------------------------------------------------------------------------


def groups_section(data: Standings) -> list[str]:
    """Geometric mean, smallest ratio and points lost against Gloo, and against the best MPI."""
    rows = []
    for own in TRANSPORTS:
        for who, among in (("Gloo", ("Gloo",)), ("best MPI", MPI)):
            ratios = [comparison.ratio for comparison in data.comparisons(own, among).values()]
            if ratios:
                behind = [str(sum(ratio < bound for ratio in ratios)) for bound in (1, 0.8)]
                mean, least = geometric_mean(ratios), min(ratios)
                rows.append([f"{own} against {who}", str(len(ratios)), f"{mean:.2f}×", f"{least:.2f}×", *behind])
    return table(["pmrun", "points", "geometric mean", "smallest ratio", "below 1", "below 0.8"], rows) if rows else []


def plain_rows(lines: list[Line]) -> list[list[str]]:
    """What a plain TCP connection did in the same run: medians over rounds."""
    found: dict[tuple[str, int], list[float]] = defaultdict(list)
    for line in lines:
        found[line["op"], line["bytes"]].append(statistics.median(line["loops_us"]))
    rows = []
    for (op, size), values in found.items():
        us = statistics.median(values)
        rate = f"{size / us / 1e3:.2f}" if op == "exchange" else "-"
        rows.append([f"{op} of {human_bytes(size)}", microseconds(us), rate])
    return rows


def floor_rows(points: list[Line]) -> list[list[str]]:
    """pmrun on 2x1 against the plain connection of the same round: latency, and what an allreduce sends each way."""
    us: dict[tuple[str, str, str, int], dict[int, float]] = defaultdict(dict)
    for line in (line for line in points if line["ranks"] == "2x1"):
        who = (line["contender"], line["variant"], line["op"], line["bytes"])
        us[who][line["round"]] = statistics.median(line["loops_us"])
    rows = []
    for own in TRANSPORTS:
        for (contender, _, op, size), floor in sorted(us.items()):
            ours = us.get(("pmrun", own, "allreduce", size), {})
            turns = [turn for turn in floor if turn in ours]
            if contender != PLAIN or not turns:
                continue
            if op == "exchange":
                what = f"{own}: rate each way of an allreduce of {human_bytes(size)} over plain TCP's"
                rows.append([what, spread_of([floor[turn] / ours[turn] for turn in turns]), "at least 0.8"])
            else:
                what = f"{own}: time of an allreduce of {human_bytes(size)} over plain TCP's there and back"
                rows.append([what, spread_of([ours[turn] / floor[turn] for turn in turns]), "at most 1.5"])
    return rows


def spread_of(values: list[float], digits: int = 2) -> str:
    """The median, and the range."""
    low, middle, high = (f"{value:.{digits}f}" for value in (min(values), statistics.median(values), max(values)))
    return f"{middle} ({low}–{high})"


def strangers_rows(lines: list[Line]) -> list[list[str]]:
    """What attempts to get in did to a running job: ratios of step times within turns."""
    steps: dict[str, dict[tuple[int, int], Line]] = defaultdict(dict)
    for line in (line for line in lines if line["kind"] == "nodes strangers"):
        steps[line["sort"]][line["round"], line["turn"]] = line

    def ratio(sort: str, to: str) -> str:
        turns = [turn for turn in steps[sort] if turn in steps[to]]
        return spread_of([steps[sort][turn]["step_us"] / steps[to][turn]["step_us"] for turn in turns], 3)

    tried = list(steps["strangers"].values())
    if not tried:
        return []
    accepted, refused = (sum(line[key] for line in tried) for key in ("accepted", "refused"))
    rates = ", ".join(f"{rate:.0f}" for rate in sorted({line["rate"] for line in tried}))
    alone = statistics.median(line["step_us"] for line in steps["nobody"].values())
    return [
        [f"attempts, {rates} a second, at {tried[0]['ports']} ports", f"{accepted + refused:,}"],
        ["let in", f"{accepted:,}"],
        ["a step without them, µs", microseconds(alone)],
        ["step time with them, over that", ratio("strangers", "nobody")],
        ["with the same attempts at a listener elsewhere, over that", ratio("elsewhere", "nobody")],
        ["with them, over with the same elsewhere", ratio("strangers", "elsewhere")],
    ]


def bus_gbit(line: Line) -> float:
    """The rate at which the busiest link carried what was measured alone."""
    found = rates(line["op"], line["bytes"], world_size(line["ranks"]), line["pure_us"] / 1e6)
    return 8 * found[1] if found else 0.0


def shaped_rows(lines: list[Line]) -> list[list[str]]:
    """Bus bandwidth and overlap on limited links: medians over rounds, and their range."""
    found: dict[tuple[int, int, str, str], list[Line]] = defaultdict(list)
    for line in (line for line in lines if line["kind"] == "nodes overlap"):
        found[line["mbit"], line["bytes"], line["contender"], line["variant"]].append(line)
    rows = []
    for (mbit, size, name, variant), measured in sorted(found.items(), key=lambda item: (-item[0][0], *item[0][1:])):
        bus = statistics.median(map(bus_gbit, measured))
        overlaps = [line["imb_percent"] for line in measured]
        spread = f"{statistics.median(overlaps):.0f} % ({min(overlaps):.0f}–{max(overlaps):.0f})"
        rows.append([f"{mbit} Mbit/s, {human_bytes(size)}, {name} ({variant})", f"{bus:.3f}", spread])
    return rows


def nodes_section(lines: list[Line]) -> list[str]:
    """Everything that bench_nodes.py measured."""
    points = [line for line in lines if line["kind"] == "nodes point"]
    data = Standings((line for line in points if line["contender"] != PLAIN), "nodes point")
    plain = plain_rows([line for line in points if line["contender"] == PLAIN])
    shaped, figures, strangers = shaped_rows(lines), figures_section(lines, "nodes figure"), strangers_rows(lines)
    if not (points or shaped or figures or strangers):
        return []
    parts = ["", "## Over several machines", "", "Network namespaces of one machine, joined by veth and a bridge."]
    if data.rounds:
        parts += ["", *groups_section(data), "", *summary_section(data, TRANSPORTS)]
        parts += ["", "Geometric means of the ratio to the best peer:", "", *means_section(data, TRANSPORTS)]
    if plain:
        parts += ["", "One plain TCP connection:", "", *table(["what", "µs", "GB/s each way"], plain)]
        floor = floor_rows(points)
        parts += ["", *table(["2 nodes, in the same round", "ratio", "goal"], floor)] if floor else []
    if shaped:
        parts += ["", "On limited links, allreduce on 2 nodes, overlap as IMB-NBC defines it, with fixed compute:", ""]
        parts += table(["link, bytes, who", "bus Gbit/s", "overlap"], shaped)
    if strangers:
        parts += ["", *table(["a running job among strangers", "median (range over turns)"], strangers)]
    if figures:
        parts += ["", *figures]
    return [*parts, "", *points_section(data, TRANSPORTS)] if data.rounds else parts


# ---- predictions ------------------------------------------------------------------------------------------


def off_by(lines: list[Line]) -> float:
    """How far off predictions typically are, either way: a factor."""
    ratios = [line["predicted_us"] / line["measured_us"] for line in lines]
    return geometric_mean([max(ratio, 1 / ratio) for ratio in ratios])


def off_by_rows(lines: list[Line]) -> list[list[str]]:
    """For each kind of link: layouts that the model was fitted to, and those that it had not seen."""
    rows = []
    for mbit in sorted({line["mbit"] for line in lines}):
        row = [f"{mbit} Mbit/s" if mbit else "no limit"]
        for fitted in (True, False):
            for large in (False, True):
                group = [
                    line for line in lines
                    if (line["mbit"], line["fitted"], line["size"] >= LARGE_BYTES) == (mbit, fitted, large)
                ]  # fmt: skip
                row.append(f"{off_by(group):.2f}× ({len(group)})" if group else "-")
        rows.append(row)
    return rows


def prediction_rows(lines: list[Line]) -> list[list[str]]:
    """One row per call, one column per layout: predicted, measured and their ratio."""
    layouts = sorted({(line["nodes"], line["per_node"]) for line in lines})
    found = {(line["op"], line["size"], line["nodes"], line["per_node"]): line for line in lines}
    rows = []
    for op, size in sorted({key[:2] for key in found}, key=lambda key: (COLLECTIVES.index(key[0]), key[1])):
        row = [f"{op} {human_bytes(size)}"]
        for layout in layouts:
            line = found.get((op, size, *layout))
            if line is None:
                row.append("-")
                continue
            us, measured = line["predicted_us"], line["measured_us"]
            row.append(f"{microseconds(us)} / {microseconds(measured)} = {us / measured:.2f}")
        rows.append(row)
    return rows


def far_rows(lines: list[Line]) -> list[list[str]]:
    nodes = sorted({line["nodes"] for line in lines})
    found: dict[tuple[str, int], dict[int, Line]] = defaultdict(dict)
    for line in lines:
        found[line["op"], line["bytes"]][line["nodes"]] = line
    rows = []
    for (op, size), by_nodes in found.items():
        cells = [f"{microseconds(by_nodes[count]['us'])} ({by_nodes[count]['algorithm']})" for count in nodes]
        rows.append([f"{op} {human_bytes(size)}", *cells])
    return rows


def prediction_section(lines: list[Line]) -> list[str]:
    """Everything that predict.py found: the model against measurements, and gangs that nobody measured."""
    model = next((line for line in lines if line["kind"] == "prediction model"), None)
    points = [line for line in lines if line["kind"] == "prediction"]
    far = [line for line in lines if line["kind"] == "far prediction"]
    if model is None:
        return []
    parameters = ", ".join(f"{name} {value:.3g}" for name, value in model["parameters"].items())
    parts = [
        "",
        "## Predicted by playing the schedules",
        "",
        "`python benchmarks/predict.py`; benchmarks/README.md says how.",
    ]
    parts += ["", *machine_section(model["machine"])[:1], "", f"Fitted parameters (benchmarks/play.h): {parameters}."]
    head = ["links", "fitted, small", "fitted, large", "not seen, small", "not seen, large"]
    parts += [
        "",
        f"Typical factor between prediction and measurement, either way; large is from {human_bytes(LARGE_BYTES)} on:",
    ]
    parts += ["", *table(head, off_by_rows(points))]
    for mbit in sorted({line["mbit"] for line in points}, reverse=True):
        here = [line for line in points if line["mbit"] == mbit]
        layouts = sorted({(line["nodes"], line["per_node"], line["fitted"]) for line in here})
        names = [f"{nodes}x{per_node}{'' if fitted else ', not seen'}" for nodes, per_node, fitted in layouts]
        limit = f"links of {mbit} Mbit/s" if mbit else "links without a limit"
        parts += [
            "",
            f"On {limit}, µs predicted / measured = ratio:",
            "",
            *table(["call", *names], prediction_rows(here)),
        ]
    if far:
        assumed, per_node = model["assumed"], far[0]["per_node"]
        parts += [
            "", f"Nodes of {per_node} ranks that have a CPU each, links of {assumed['link_gbit']:g} Gbit/s, "
            f"{assumed['latency_us']:g} µs one way; nobody has measured these. µs:", "",
        ]  # fmt: skip
        names = [f"{count} nodes, {count * per_node:,} ranks" for count in sorted({line["nodes"] for line in far})]
        parts += table(["call", *names], far_rows(far))
    return parts


# ---- the page ---------------------------------------------------------------------------------------------


def sections(text: str) -> dict[str, str]:
    """What stands under each heading of the second order; under "" what stands before them."""
    parts = re.split(r"^## (.*)\n", text, flags=re.MULTILINE)
    return {"": parts[0], **dict(zip(parts[1::2], parts[2::2], strict=True))}


def with_kept(new: str, old: str) -> str:
    """The old page with the sections of the new one; its head too stays where the input names no machine."""
    fresh, merged = sections(new), sections(old)
    if old and MEASURED_ON not in fresh[""]:
        del fresh[""]
    for title in merged.keys() - fresh.keys():
        print(f"bench_report: '{title or 'the head'}' stays: the input has nothing for it", file=sys.stderr)
    merged.update(fresh)
    return "\n\n".join((f"## {title}\n{text}" if title else text).rstrip() for title, text in merged.items()) + "\n"


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
    parts += nodes_section(lines)
    parts += prediction_section(lines)
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
    old = options.results.read_text(encoding="utf-8") if options.results.exists() else ""
    options.results.write_text(with_kept(page(lines, data), old), encoding="utf-8")
    if data.rounds:
        options.plot.parent.mkdir(parents=True, exist_ok=True)
        draw(data, options.plot)
    return 0


if __name__ == "__main__":
    sys.exit(main())
