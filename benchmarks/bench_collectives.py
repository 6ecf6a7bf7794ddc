# SPDX-License-Identifier: Apache-2.0
"""Collectives of pmrun and its peers on one machine, alternating in one run.

For each world size, each of `--rounds` rounds starts one gang per contender, in turn, and each gang measures all
points once; so drift of the machine falls on everybody alike. Output: JSON lines, the machine's description
first, for bench_report.py. Invariant: a contender that fails is reported and left out of that round; nothing else
is.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any, TextIO

import peers

from pmrun.bench.points import KIB, MIB
from pmrun.launcher.bench.record import cores
from pmrun.launcher.bench.standings import named

OPERATIONS = ("barrier", "allreduce", "broadcast", "allgather", "reduce_scatter", "alltoall")
SIZES = (8, 64, KIB, 4 * KIB, 16 * KIB, 64 * KIB, 256 * KIB, MIB, 4 * MIB, 16 * MIB, 64 * MIB)
QUICK_SIZES = (8, KIB, 64 * KIB, MIB, 16 * MIB)
WORLD_SIZES = (2, 4, 8)
OUTPUT = peers.HERE.parent / "build" / "bench" / "collectives.jsonl"


def count_points(options: argparse.Namespace) -> int:
    """Return how many points each gang measures: a barrier has no size."""
    sized = sum(op != "barrier" for op in options.operations)
    return sized * len(options.sizes) + ("barrier" in options.operations)


def estimate_s(options: argparse.Namespace) -> float:
    """Return about how long a run takes: starts, plus loops that are at least as long as the largest calls."""
    gangs = sum(len(peers.contenders(ranks, cores())) for ranks in options.ranks) * options.rounds
    loops_s = count_points(options) * 7 * options.loop_ms / 1e3
    return gangs * (2 + loops_s + (2 if options.quick else 12))


def measure(contender: peers.Contender, options: argparse.Namespace, run: peers.Run) -> list[dict[str, Any]]:
    """Return one contender's lines of one round."""
    plan = {
        "operations": options.operations,
        "sizes": options.sizes,
        "loops": options.loops,
        "loop_s": options.loop_ms / 1e3,
        "budget_s": options.budget_s,
        "by_size": True,
    }
    lines = peers.measured(contender, plan, options.budget_s + options.grace_s, run)
    return [line for line in lines if line["kind"] == "point"]


def one_round(
    file: TextIO,
    place: dict[str, Any],
    everyone: list[peers.Contender],
    options: argparse.Namespace,
    run: peers.Run = peers.run_gang,
) -> int:
    """Run each contender once, in turn; write its points with `place`; return how many failed."""
    expected, failed = count_points(options), 0
    for contender in everyone:
        if options.only and contender.name not in options.only:
            continue
        label = f"{named(place['ranks'])}, round {place['round'] + 1}: {contender.name} ({contender.variant})"
        start = time.monotonic()
        try:
            lines = measure(contender, options, run)
        except peers.GangFailed as error:
            failed += 1
            print(f"{label}: {error}", file=sys.stderr, flush=True)
            continue
        for line in lines:
            who = {"contender": contender.name, "variant": contender.variant}
            file.write(json.dumps({**line, **place, **who}) + "\n")
        file.flush()
        missing = f", {expected - len(lines)} points over budget" if len(lines) < expected else ""
        print(f"{label}: {time.monotonic() - start:.1f} s{missing}", flush=True)
    return failed


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """What bench_nodes.py takes, too."""
    parser.add_argument("--quick", action="store_true", help="few sizes and short loops")
    parser.add_argument("--operations", nargs="+", choices=OPERATIONS, default=list(OPERATIONS))
    parser.add_argument("--sizes", nargs="+", type=int, metavar="BYTES")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--only", nargs="+", help="names of contenders, e.g. pmrun MPICH")
    parser.add_argument("--loops", type=int)
    parser.add_argument("--loop-ms", type=float)
    parser.add_argument("--budget-s", type=float, help="per gang; points that remain are left out")
    parser.add_argument("--grace-s", type=float, default=60.0, help="for start, import, and the last point")


def set_defaults(options: argparse.Namespace) -> argparse.Namespace:
    options.sizes = options.sizes or list(QUICK_SIZES if options.quick else SIZES)
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
        file.write(json.dumps(peers.machine_line()) + "\n")
        for ranks in options.ranks:
            for turn in range(options.rounds):
                place = {"kind": "point", "ranks": ranks, "round": turn}
                failed += one_round(file, place, peers.contenders(ranks, cores()), options)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
