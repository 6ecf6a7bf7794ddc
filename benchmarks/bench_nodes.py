# SPDX-License-Identifier: Apache-2.0
"""pmrun and its peers over several machines, which are network namespaces of this one, alternating in one run.

Steps, each of which can be chosen: "points", the collectives of bench_collectives.py on each layout of nodes × ranks;
"shaped", allreduce and its overlap with computing on links of 1 Gbit/s and 200 Mbit/s; "start", whole commands over 4
nodes × 2 ranks; "strangers", a running job with and without attempts to get into it. A plain TCP connection is measured
in each round of the points of 2x1. Output: JSON lines for bench_report.py; with --append, rounds beyond those that the
file has. Invariant: as in bench_collectives.py, a contender that fails is reported and left out of that round; nothing
else is.

    python benchmarks/bench_nodes.py --quick --layouts 2x1 --only pmrun MPICH
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

import nodes
import peers
import strangers
from bench_collectives import add_run_arguments, one_round, set_defaults
from nodes import Cluster, Layout

from pmrun.bench.points import MIB

OUTPUT = peers.HERE.parent / "build" / "bench" / "nodes.jsonl"
STEPS = ("points", "shaped", "start", "strangers")
LAYOUTS = tuple(Layout.parse(text) for text in ("2x1", "4x1", "2x2", "2x4"))
RATES_MBIT = (1000, 200)
SHAPED_SIZES = (4 * MIB, 16 * MIB)
SHAPED_LOOP_S = 1.0  # one allreduce of the larger takes most of it at the lower rate
START_LAYOUT = Layout(4, 2)
START_TIMEOUT_S = 30.0
RAW_PORT = 7000
RAW_TIMEOUT_S = 60.0


Place = dict[str, Any]  # what a line says of where and when


def rounds_of(path: Path) -> dict[tuple[str, str, int], int]:
    """How many rounds of each kind of line, layout and limit a file holds."""
    found: dict[tuple[str, str, int], int] = {}
    for line in map(json.loads, path.read_text(encoding="utf-8").splitlines()):
        if "round" in line:
            key = round_key(line)
            found[key] = max(found.get(key, 0), line["round"] + 1)
    return found


def round_key(place: Place) -> tuple[str, str, int]:
    return place["kind"], place["ranks"], place.get("mbit", 0)


# ---- the floor --------------------------------------------------------------------------------------------


def build_raw(folder: Path) -> Path:
    program = folder / "raw_tcp"
    source = str(peers.HERE / "raw_tcp.c")
    subprocess.run(["cc", "-std=c11", "-D_GNU_SOURCE", "-O3", source, "-o", str(program)], check=True)
    return program


def measure_raw(cluster: Cluster, program: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    """One plain connection between the first two machines."""
    first, second = (cluster[name] for name in nodes.NAMES[:2])
    words = [second.address, str(RAW_PORT), str(options.loops)]
    with second.popen([str(program), "listen", *words], stdout=subprocess.PIPE, text=True) as listener:
        try:
            if listener.stdout is None or listener.stdout.readline() != "listening\n":
                raise peers.GangFailed("raw_tcp does not listen")
            done = first.run(str(program), "connect", *words, timeout=RAW_TIMEOUT_S)
            if done.returncode:
                raise peers.GangFailed(f"raw_tcp: {done.stderr.strip()}")
        finally:
            nodes.end_all(cluster)
    return [json.loads(line) for line in done.stdout.splitlines()]


def write_raw(file: TextIO, place: Place, lines: list[dict[str, Any]]) -> None:
    for line in lines:
        file.write(json.dumps({**place, "contender": "plain TCP", "variant": "-", **line}) + "\n")
        print(f"plain TCP, {line['op']} of {line['bytes']} bytes: {statistics.median(line['loops_us']):.1f} us")


# ---- the steps --------------------------------------------------------------------------------------------


class Run:
    """What the steps share."""

    def __init__(
        self, cluster: Cluster, folder: Path, file: TextIO, options: argparse.Namespace, earlier: dict[Any, int]
    ) -> None:
        self.cluster, self.file, self.options, self.earlier = cluster, file, options, earlier
        self.raw = build_raw(folder)
        self.failed = 0

    def gang(self, contender: peers.Contender, command: list[str], timeout_s: float) -> str:
        return nodes.run(self.cluster, contender, command, timeout_s)

    def turns(self, place: Place) -> Iterator[Place]:
        """The place of each round that is to be measured there, beyond those of the file."""
        first = self.earlier.get(round_key(place), 0)
        for turn in range(first, first + self.options.rounds):
            yield {**place, "round": turn}

    def points(self) -> None:
        for layout in self.options.layouts:
            for place in self.turns({"kind": "nodes point", "ranks": str(layout)}):
                if layout == LAYOUTS[0]:
                    write_raw(self.file, place, measure_raw(self.cluster, self.raw, self.options))
                self.failed += one_round(self.file, place, nodes.contenders(layout), self.options, self.gang)

    def shaped(self) -> None:
        """Allreduce alone and beside computing, on links that are the limit."""
        for mbit in RATES_MBIT:
            nodes.shape(self.cluster, mbit)
            for place in self.turns({"kind": "nodes overlap", "mbit": mbit, "ranks": str(LAYOUTS[0])}):
                for contender in nodes.overlap_contenders(LAYOUTS[0]):
                    if not self.options.only or contender.name in self.options.only:
                        self.overlap(contender, place)
        nodes.shape(self.cluster, 0)

    def overlap(self, contender: peers.Contender, place: Place) -> None:
        plan = {
            "operations": ["iallreduce"],
            "sizes": self.options.shaped_sizes,
            "loops": self.options.loops,
            "loop_s": SHAPED_LOOP_S,
            "budget_s": self.options.budget_s,
        }
        who = {"contender": contender.name, "variant": contender.variant}
        try:
            lines = peers.measured(contender, plan, self.options.budget_s + self.options.grace_s, self.gang)
        except peers.GangFailed as error:
            self.failed += 1
            print(f"shaped: {error}", file=sys.stderr, flush=True)
            return
        for line in lines:
            if line["kind"] == "overlap":
                self.file.write(json.dumps({**line, **place, **who}) + "\n")
                print(f"{place['mbit']} Mbit/s: {contender.name} ({contender.variant}): {line}", flush=True)

    def figure(self, what: str, who: str, values: list[float], failed: int) -> None:
        line = {"kind": "nodes figure", "what": what, "who": who, "unit": "s", "values": values, "failed": failed}
        self.file.write(json.dumps(line, ensure_ascii=False) + "\n")
        shown = f"{statistics.median(values):.3f} s" if values else "no time"
        print(f"{what}: {who}: {shown}", flush=True)

    def start(self) -> None:
        """Whole commands, alternating; the first round only warms caches."""
        everyone = [
            contender
            for name, contender in peers.first_variants(nodes.contenders(START_LAYOUT)).items()
            if name != "Gloo" and (not self.options.only or name in self.options.only)  # Gloo has no launcher here
        ]
        seconds: dict[str, list[float]] = {contender.name: [] for contender in everyone}
        failed = dict.fromkeys(seconds, 0)
        for turn in range(self.options.rounds + 1):
            for contender in everyone:
                start = time.perf_counter()
                command = contender.script(peers.HERE / "worker_start.py", contender.binding[0])
                try:
                    self.gang(contender, command, START_TIMEOUT_S)
                except peers.GangFailed as error:
                    failed[contender.name] += 1
                    print(f"start: {error}", file=sys.stderr, flush=True)
                    continue
                if turn:
                    seconds[contender.name].append(round(time.perf_counter() - start, 4))
        for name, values in seconds.items():
            self.figure(f"{START_LAYOUT} × Python, init and one barrier", name, values, failed[name])
        self.failed += sum(failed.values())

    def strangers(self) -> None:
        options = self.options
        for place in self.turns({"kind": "nodes strangers", "ranks": str(strangers.LAYOUT)}):
            try:
                lines = strangers.measure(self.cluster, options.attempts, options.attempt_rate, strangers.TURNS)
            except peers.GangFailed as error:
                self.failed += 1
                print(f"strangers: {error}", file=sys.stderr, flush=True)
                continue
            for line in lines:
                self.file.write(json.dumps({**line, **place}) + "\n")
                print(f"strangers: {line}", flush=True)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure pmrun and its peers over network namespaces.")
    parser.add_argument("--out", type=Path, default=OUTPUT)
    parser.add_argument("--append", action="store_true", help="keep what --out holds: a run in slices")
    parser.add_argument("--steps", nargs="+", choices=STEPS, default=list(STEPS))
    parser.add_argument("--layouts", type=Layout.parse, nargs="+", default=list(LAYOUTS), metavar="NODESxRANKS")
    parser.add_argument("--attempts", type=int, help="of the strangers")
    parser.add_argument("--attempt-rate", type=float, default=strangers.RATE, help="per second")
    add_run_arguments(parser)
    options = parser.parse_args()
    options.attempts = options.attempts or (strangers.QUICK_ATTEMPTS if options.quick else strangers.ATTEMPTS)
    options.shaped_sizes = options.sizes or list(SHAPED_SIZES)
    return set_defaults(options)


def main() -> int:
    options = parse_arguments()
    peers.prepare()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    kept = options.append and options.out.exists()
    earlier = rounds_of(options.out) if kept else {}
    with (
        tempfile.TemporaryDirectory() as folder,
        options.out.open("a" if kept else "w", encoding="utf-8") as file,
        nodes.opened_cluster(
            Path(folder), max(nodes.MACHINES, *(layout.nodes for layout in options.layouts))
        ) as cluster,
    ):
        if not kept:
            file.write(json.dumps(peers.machine_line()) + "\n")
        run = Run(cluster, Path(folder), file, options, earlier)
        for step in options.steps:
            getattr(run, step)()
    return 1 if run.failed else 0


if __name__ == "__main__":
    sys.exit(main())
