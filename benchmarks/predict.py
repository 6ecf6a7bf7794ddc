# SPDX-License-Identifier: Apache-2.0
"""How long collectives take between nodes, by a model of the network and the core's own schedules (predict.c, play.h).

--steps measure runs pmrun's collectives over network namespaces, on free links and on shaped ones. --steps fit finds the model's
parameters from the layouts in FITTED and predicts the others, which it has not seen; then it predicts gangs of up to
16,384 ranks on an assumed cluster. The namespaces' CPUs are those of one machine, and the model is told so: what is
measured here is mostly the kernel moving bytes, on the shaped links mostly the link. Output: JSON lines for
bench_report.py. Invariant: a point counts as fitted or as predicted by its layout alone.

    python benchmarks/predict.py                               # all of it
    python benchmarks/predict.py --steps measure --mbit 1000   # a slice: adds to build/bench/predict.jsonl
    python benchmarks/predict.py --steps fit --link-gbit 100
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import bench_wire
import nodes
import peers
from nodes import Layout

from pmrun.bench.points import KIB, MIB, human_bytes
from pmrun.launcher.bench.record import cores

FOLDER = peers.HERE.parent / "build" / "bench"
PROGRAM = FOLDER / "predict"
OUTPUT = FOLDER / "predict.jsonl"
STEPS = ("measure", "fit")
OPERATIONS = ("allreduce", "broadcast", "allgather", "reduce_scatter", "alltoall")
SIZES = (64, 16 * KIB, 256 * KIB, 4 * MIB)
LAYOUTS = tuple(Layout.parse(text) for text in ("2x1", "4x1", "2x2", "4x2", "8x1"))
FITTED = ("2x1", "4x1", "2x2")
RATES_MBIT = (0, 1000)  # 0: as fast as the machine moves bytes
LOOPS, LOOP_S = 5, 0.006
BUDGET_S, GRACE_S = 30.0, 30.0
CALLS_MAX = 16
SEGMENT, FRAME = 1448, 1514  # bytes of a TCP segment, and of the Ethernet frame that carries it

# What is fitted, in the model's units (play.h), and where the search begins.
START = {
    "call_us": 2.0, "send_us": 4.0, "send_kib_us": 0.3, "receive_us": 3.0, "receive_kib_us": 0.1, "wake_us": 3.0,
    "latency_us": 1.0, "work_us": 0.2, "work_kib_us": 0.1, "node_us": 1.0, "node_kib_us": 0.1,
}  # fmt: skip
FACTORS = (3.0, 1.7, 1.3, 1.1)  # by which the search changes one parameter at a time
SWEEPS = 4  # with each factor at most

# Gangs that nobody measured: each rank has a CPU.
FAR_NODES = (16, 128, 1024, 2048)
FAR_RANKS = 8
FAR_POINTS = {
    "allreduce": (64, MIB, 64 * MIB), "broadcast": (64, MIB, 64 * MIB), "allgather": (64, 16 * KIB),
    "reduce_scatter": (MIB, 64 * MIB), "alltoall": (MIB, 16 * MIB), "barrier": (0,),
}  # fmt: skip


class Question(NamedTuple):
    """One call, and how many of them follow each other."""

    op: str
    size: int
    nodes: int
    per_node: int
    calls: int


class Answer(NamedTuple):
    us: float  # negative: the program could not tell
    algorithm: str
    steps: int
    mode: str


class Player:
    """The program, which answers questions until it is closed."""

    def __init__(self) -> None:
        self._process = subprocess.Popen([str(PROGRAM)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __enter__(self) -> Player:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()

    def set(self, parameters: dict[str, float]) -> None:
        assert self._process.stdin is not None
        self._process.stdin.writelines(f"set {name} {value:.9g}\n" for name, value in parameters.items())

    def ask(self, question: Question, mode: str = "auto") -> Answer:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(f"time {' '.join(map(str, question))} {mode}\n")
        self._process.stdin.flush()
        words = self._process.stdout.readline().split()
        if len(words) != 4:
            raise SystemExit(f"predict: no answer to {question}: see the line above")
        return Answer(float(words[0]), words[1], int(words[2]), words[3])


def write(path: Path, lines: list[dict[str, Any]], mode: str) -> None:
    with path.open(mode, encoding="utf-8") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)


def read(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        raise SystemExit(f"predict: there is no {path}: run 'predict.py --steps measure' first")
    return [json.loads(text) for text in path.read_text(encoding="utf-8").splitlines()]


# ---- measuring --------------------------------------------------------------------------------------------


def measure(options: argparse.Namespace) -> None:
    """Add points to the file; each layout is one gang on each kind of link."""
    plan = {
        "operations": list(OPERATIONS), "sizes": list(SIZES), "loops": LOOPS, "loop_s": LOOP_S, "budget_s": BUDGET_S,
    }  # fmt: skip
    count = max(layout.nodes for layout in options.layouts)
    write(options.out, [peers.machine_line()], "a")
    with tempfile.TemporaryDirectory() as folder, nodes.opened_cluster(Path(folder), count) as cluster:
        for mbit in options.mbit:
            nodes.shape(cluster, mbit)
            for layout in options.layouts:
                contender = next(one for one in nodes.contenders(layout) if (one.name, one.variant) == ("pmrun", "tcp"))
                lines = peers.measured(
                    contender, plan, BUDGET_S + GRACE_S,
                    lambda who, words, timeout_s: nodes.run(cluster, who, words, timeout_s),
                )  # fmt: skip
                place = {"kind": "predict point", "mbit": mbit, "nodes": layout.nodes, "per_node": layout.per_node}
                write(options.out, [{**line, **place} for line in lines if line["kind"] == "point"], "a")
                print(f"{layout}, {mbit or 'no'} Mbit/s: {len(lines)} lines", flush=True)


# ---- fitting ----------------------------------------------------------------------------------------------


class Point(NamedTuple):
    mbit: int
    question: Question
    measured_us: float
    fitted: bool


def points_of(lines: list[dict[str, Any]]) -> list[Point]:
    """The median over rounds of each point's median over loops."""
    found: dict[tuple[int, int, int, str, int], list[float]] = {}
    for line in lines:
        if line["kind"] == "predict point":
            key = (line["mbit"], line["nodes"], line["per_node"], line["op"], line["bytes"])
            found.setdefault(key, []).append(statistics.median(line["loops_us"]))
    points = []
    for (mbit, count, per_node, op, size), values in sorted(found.items()):
        us = statistics.median(values)
        calls = max(1, min(CALLS_MAX, int(LOOP_S * 1e6 / us)))
        points.append(Point(mbit, Question(op, size, count, per_node, calls), us, f"{count}x{per_node}" in FITTED))
    return points


def link_kib_us(mbit: float) -> float:
    """What a KiB of payload takes on a link of that rate; 0 where there is no limit."""
    return KIB * 8 * FRAME / SEGMENT / mbit if mbit else 0.0


def predict(player: Player, parameters: dict[str, float], points: list[Point]) -> list[float]:
    player.set(parameters)
    found, mbit = [], -1
    for point in points:
        if point.mbit != mbit:
            mbit = point.mbit
            player.set({"link_kib_us": link_kib_us(mbit)})
        found.append(player.ask(point.question).us)
    return found


def factors(points: list[Point], predicted: list[float]) -> list[float]:
    """How far off each prediction is, either way: at least 1."""
    return [math.exp(abs(math.log(us / point.measured_us))) for point, us in zip(points, predicted, strict=True)]


def typical(values: list[float]) -> float:
    """Their geometric mean."""
    return math.exp(statistics.fmean(map(math.log, values)))


def fit(player: Player, points: list[Point]) -> dict[str, float]:
    """Change one parameter after the other while that brings predictions nearer, in ever smaller steps."""
    parameters = {**START, "cpus": float(cores()), "shared": 1.0, "burst_kib": nodes.BURST_BYTES / KIB}

    def error(candidate: dict[str, float]) -> float:
        return typical(factors(points, predict(player, candidate, points)))

    best = error(parameters)
    for step in FACTORS:
        for _ in range(SWEEPS):
            before = best
            for name in START:
                for factor in (step, 1 / step):
                    candidate = {**parameters, name: parameters[name] * factor}
                    now = error(candidate)
                    if now < best:
                        best, parameters = now, candidate
                        break
            if best > 0.999 * before:
                break
        print(f"fit: steps of {step}: typically off by a factor of {best:.3f}", flush=True)
    return parameters


def far(player: Player, parameters: dict[str, float], options: argparse.Namespace) -> list[dict[str, Any]]:
    """Gangs of many nodes, each with a CPU for every rank and a link of its own."""
    player.set({
        **parameters, "shared": 0.0, "cpus": float(FAR_RANKS), "burst_kib": 0.0, "latency_us": options.latency_us,
        "link_kib_us": link_kib_us(1000 * options.link_gbit),
    })  # fmt: skip
    lines = []
    for op, sizes in FAR_POINTS.items():
        for size in sizes:
            for count in FAR_NODES:
                answer = player.ask(Question(op, size, count, FAR_RANKS, 1))
                place = {"op": op, "bytes": size, "nodes": count, "per_node": FAR_RANKS}
                lines.append({"kind": "far prediction", **place, **answer._asdict()})
                print(f"{op} {human_bytes(size)} on {count}x{FAR_RANKS}: {answer}", flush=True)
    return lines


def fit_and_predict(options: argparse.Namespace) -> None:
    """Write what the measurements and the model say to the file that the report reads."""
    measured = read(options.out)
    machine = next(line for line in measured if line["kind"] == "machine")
    points = points_of(measured)
    seen = [point for point in points if point.fitted]
    if not seen:
        raise SystemExit(f"predict: {options.out} has no points of {', '.join(FITTED)}: measure these layouts, too")
    bench_wire.build(PROGRAM, "predict.c", "play.c", "play_link.c")
    with Player() as player:
        parameters = fit(player, seen)
        predicted = predict(player, parameters, points)
        lines = far(player, parameters, options)
    assumed = {"link_gbit": options.link_gbit, "latency_us": options.latency_us}
    model = {"kind": "prediction model", "machine": machine, "parameters": parameters, "assumed": assumed}
    for point, us in zip(points, predicted, strict=True):
        place = {"mbit": point.mbit, **point.question._asdict(), "fitted": point.fitted}
        lines.append({"kind": "prediction", **place, "measured_us": point.measured_us, "predicted_us": us})
    write(options.predictions, [model, *lines], "w")
    for fitted, what in ((True, "fitted"), (False, "predicted")):
        group = [
            value for value, point in zip(factors(points, predicted), points, strict=True) if point.fitted is fitted
        ]
        if group:
            print(f"{what}: {len(group)} points, typically off by a factor of {typical(group):.2f}")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Fit a model of the network to measurements and predict with it.")
    parser.add_argument("--steps", nargs="+", choices=STEPS, default=list(STEPS))
    parser.add_argument("--out", type=Path, default=OUTPUT, help="the measurements; added to")
    parser.add_argument("--predictions", type=Path, default=FOLDER / "predictions.jsonl", help="what the report reads")
    parser.add_argument("--layouts", type=Layout.parse, nargs="+", default=list(LAYOUTS), metavar="NODESxRANKS")
    parser.add_argument("--mbit", type=int, nargs="+", default=list(RATES_MBIT), help="of the links; 0: no limit")
    parser.add_argument("--link-gbit", type=float, default=25.0, help="of each node of the assumed cluster")
    parser.add_argument("--latency-us", type=float, default=15.0, help="of its wire, one way")
    return parser.parse_args()


def main() -> int:
    options = parse_arguments()
    FOLDER.mkdir(parents=True, exist_ok=True)
    if "measure" in options.steps:
        measure(options)
    if "fit" in options.steps:
        fit_and_predict(options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
