# SPDX-License-Identifier: Apache-2.0
"""How long a gang takes from the command to its end: pmrun, MPICH's mpiexec, Open MPI's mpirun, torchrun.

Contenders alternate: each round runs every command once, in turn. Wall-clock seconds of the whole command; the
first round only warms caches. A peer that hangs or fails (mpirun does, now and then, with 64 ranks) loses that
round and is named with the count. Invariant: a time is only kept of a command that ended well.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import time
from pathlib import Path

import peers

WORKER = peers.HERE / "worker_start.py"
OUTPUT = peers.HERE.parent / "build" / "bench" / "start.jsonl"
TIMEOUT_S, TORCHRUN_TIMEOUT_S = 15.0, 90.0  # many times what each takes
COMMANDS = {"pmrun": "pmrun", "MPICH": "mpiexec", "Open MPI": "mpirun", "Gloo": "torchrun"}


def first_variants(ranks: int) -> list[peers.Contender]:
    """Return each launcher once; one core, so that every contender's oversubscribed form is taken."""
    found = peers.first_variants(peers.contenders(ranks, cores=1))
    return [found[name] for name in COMMANDS if name in found]


def commands() -> dict[tuple[str, str], tuple[peers.Contender, list[str]]]:
    """Return (what, who) -> how to run it."""
    true = shutil.which("true") or "/bin/true"
    found: dict[tuple[str, str], tuple[peers.Contender, list[str]]] = {}
    for ranks in (8, 64):
        for contender in first_variants(ranks):
            if contender.name != "Gloo":  # torchrun starts Python programs only
                separator = ["--"] if contender.name == "pmrun" else []
                command = [*contender.command, *separator, true]
                found[f"{ranks} × true", COMMANDS[contender.name]] = (contender, command)
    for contender in first_variants(8):
        command = contender.script(WORKER, contender.binding[0])
        found["8 × Python, init and one barrier", COMMANDS[contender.name]] = (contender, command)
    for contender in first_variants(8)[:1]:
        if contender.name == "pmrun":
            found["pmrun --help", "pmrun"] = (contender, [str(peers.PMRUN), "--help"])
    bare = peers.Contender("no launcher", "-", (), (sys.executable,), ("-", "-"))
    found["1 × import numpy", "python"] = (bare, [sys.executable, "-c", "import numpy"])
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description="Time the start of gangs.")
    parser.add_argument("--out", type=Path, default=OUTPUT)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--slow-rounds", type=int, default=3, help="rounds that torchrun takes part in")
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.slow_rounds = 3, 1
    peers.prepare()
    todo = commands()
    seconds: dict[tuple[str, str], list[float]] = {key: [] for key in todo}
    failed = dict.fromkeys(todo, 0)
    for turn in range(options.rounds + 1):
        for key, (contender, command) in todo.items():
            if key[1] == "torchrun" and turn > options.slow_rounds:
                continue
            limit_s = TORCHRUN_TIMEOUT_S if key[1] == "torchrun" else TIMEOUT_S
            start = time.perf_counter()
            try:
                peers.run_gang(contender, command, limit_s)
            except peers.GangFailed as error:
                failed[key] += 1
                print(f"bench_start: {key[0]}: {error}", file=sys.stderr, flush=True)
                continue
            if turn > 0:
                seconds[key].append(round(time.perf_counter() - start, 4))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with options.out.open("w", encoding="utf-8") as file:
        for (what, who), values in seconds.items():
            line = {"kind": "figure", "what": what, "who": who, "unit": "s", "values": values}
            file.write(json.dumps({**line, "failed": failed[what, who]}, ensure_ascii=False) + "\n")
            times = f"{statistics.median(values):.3f} s ({min(values):.3f}–{max(values):.3f})" if values else "no time"
            print(f"{what:34} {who:10} {times}")
    return 1 if any(count for (_, who), count in failed.items() if who == "pmrun") else 0


if __name__ == "__main__":
    sys.exit(main())
