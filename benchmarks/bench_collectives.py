# SPDX-License-Identifier: Apache-2.0
"""Collectives of pmrun and its peers on one machine, alternating in one run.

For each world size, each of `--rounds` rounds starts one gang per contender, in turn, and each gang measures all
points once; so drift of the machine falls on everybody alike. Output: JSON lines, the machine's description
first, for bench_report.py. Invariant: a contender that fails is reported and left out of that round; nothing else
is.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

import peers
from points import WORLD_SIZES, add_point_arguments, chosen_points

WORKER = peers.HERE / "worker_collectives.py"
OUTPUT = peers.HERE.parent / "build" / "bench" / "collectives.jsonl"
Run = Callable[[peers.Contender, list[str], float], None]  # peers.run_gang, or the like on other machines


def cores() -> int:
    return len(os.sched_getaffinity(0))


def cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def machine() -> dict[str, Any]:
    """Describe where and with what a run was made."""
    memory_kib = int(Path("/proc/meminfo").read_text().split()[1])
    return {
        "kind": "machine",
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "cpu": cpu_model(),
        "cores": cores(),
        "memory_gib": round(memory_kib / (1 << 20), 1),
        "kernel": platform.release(),
        "load_at_start": round(os.getloadavg()[0], 2),
        "versions": peers.versions(),
    }


def estimate_s(options: argparse.Namespace) -> float:
    """Return about how long a run takes: starts, plus loops that are at least as long as the largest calls."""
    gangs = sum(len(peers.contenders(ranks, cores())) for ranks in options.ranks) * options.rounds
    loops_s = len(chosen_points(options)) * 7 * options.loop_ms / 1e3
    return gangs * (2 + loops_s + (2 if options.quick or options.sizes else 12))


def measure(contender: peers.Contender, options: argparse.Namespace, run: Run) -> list[dict[str, Any]]:
    """Return one contender's lines of one round."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "points.jsonl"
        arguments = ["--out", str(out), "--loops", str(options.loops), "--loop-ms", str(options.loop_ms)]
        arguments += ["--budget-s", str(options.budget_s), *(["--quick"] if options.quick else [])]
        arguments += ["--operations", *options.operations]
        arguments += ["--sizes", *map(str, options.sizes)] if options.sizes else []
        run(contender, contender.script(WORKER, *contender.binding, *arguments), options.budget_s + options.grace_s)
        return [json.loads(line) for line in out.read_text().splitlines()]


def one_round(
    file: TextIO, place: dict[str, Any], everyone: list[peers.Contender], options: argparse.Namespace, run: Run
) -> int:
    """Run each contender once, in turn; write its points with `place`; return how many failed."""
    expected, failed = len(chosen_points(options)), 0
    for contender in everyone:
        if options.only and contender.name not in options.only:
            continue
        label = f"{place['ranks']} ranks, round {place['round'] + 1}: {contender.name} ({contender.variant})"
        start = time.monotonic()
        try:
            lines = measure(contender, options, run)
        except peers.GangFailed as error:
            failed += 1
            print(f"{label}: {error}", file=sys.stderr, flush=True)
            continue
        for line in lines:
            who = {"contender": contender.name, "variant": contender.variant}
            file.write(json.dumps({**place, **who, **line}) + "\n")
        file.flush()
        missing = f", {expected - len(lines)} points over budget" if len(lines) < expected else ""
        print(f"{label}: {time.monotonic() - start:.1f} s{missing}", flush=True)
    return failed


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """What bench_nodes.py takes, too."""
    add_point_arguments(parser)
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--only", nargs="+", help="names of contenders, e.g. pmrun MPICH")
    parser.add_argument("--loops", type=int)
    parser.add_argument("--loop-ms", type=float)
    parser.add_argument("--budget-s", type=float, help="per gang; points that remain are left out")
    parser.add_argument("--grace-s", type=float, default=60.0, help="for start, import, and the last point")


def set_defaults(options: argparse.Namespace) -> argparse.Namespace:
    defaults = (1, 3, 4.0, 12.0) if options.quick else (3, 5, 20.0, 120.0)
    for name, value in zip(("rounds", "loops", "loop_ms", "budget_s"), defaults, strict=True):
        if getattr(options, name) is None:
            setattr(options, name, value)
    return options


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure collectives of pmrun and its peers.")
    parser.add_argument("--out", type=Path, default=OUTPUT)
    parser.add_argument("--ranks", type=int, nargs="+", default=list(WORLD_SIZES))
    add_run_arguments(parser)
    return set_defaults(parser.parse_args())


def main() -> int:
    options = parse_arguments()
    peers.prepare()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    guess = estimate_s(options)
    print(f"bench_collectives: about {guess / 60:.0f} minutes; to {options.out}", flush=True)
    failed = 0
    with options.out.open("w", encoding="utf-8") as file:
        file.write(json.dumps(machine()) + "\n")
        for ranks in options.ranks:
            for turn in range(options.rounds):
                place = {"kind": "point", "ranks": ranks, "round": turn}
                failed += one_round(file, place, peers.contenders(ranks, cores()), options, peers.run_gang)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
