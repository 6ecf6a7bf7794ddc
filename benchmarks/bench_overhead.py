# SPDX-License-Identifier: Apache-2.0
"""What pmrun itself costs: nanoseconds per call, the distance from the copy floor, resident memory, an output flood.

Invariant: each figure that is compared with another was measured in the same gang or in alternating ones.
"""

from __future__ import annotations

import argparse
import json
import os
import selectors
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import peers

WORKER = peers.HERE / "worker_overhead.py"
OUTPUT = peers.HERE.parent / "build" / "bench" / "overhead.jsonl"
EFFICIENCY_RANKS = (2, 4, 8)
FLOOD_RANKS, FLOOD_BYTES = 8, 1 << 30
STALL_S = 5.0
SAMPLE_S = 0.05


def run_worker(mode: str, ranks: int) -> dict[str, Any]:
    """Run one mode of the worker under pmrun and return rank 0's figures."""
    contender = peers.pmrun_contenders(ranks)[0]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "figures.json"
        peers.run_gang(contender, contender.script(WORKER, mode, str(out)), timeout_s=300)
        found: dict[str, Any] = json.loads(out.read_text())
    return found


def figure(what: str, unit: str, values: list[float]) -> dict[str, Any]:
    rounded = [float(f"{value:.5g}") for value in values]
    return {"kind": "figure", "what": what, "who": "pmrun", "unit": unit, "values": rounded}


def call_figures(rounds: int) -> list[dict[str, Any]]:
    one = [run_worker("calls", 1) for _ in range(rounds)]
    two = [run_worker("calls", 2) for _ in range(rounds)]
    return [
        figure("4-byte allreduce in a world of one", "ns", [statistics.median(r["allreduce_ns"]) for r in one]),
        figure("an empty Python call, for comparison", "ns", [statistics.median(r["empty_call_ns"]) for r in one]),
        figure("8-byte allreduce, 2 ranks", "ns", [statistics.median(r["allreduce_ns"]) for r in two]),
    ]


def efficiency_figures(rounds: int) -> list[dict[str, Any]]:
    """Return floor over measured time; the floor is the faster of the two copies, made by all ranks at once."""
    found = []
    for ranks in EFFICIENCY_RANKS:
        values = []
        for _ in range(rounds):
            times = {name: statistics.median(seconds) for name, seconds in run_worker("efficiency", ranks).items()}
            values.append(min(times["copy_private_s"], times["copy_library_s"]) / times["allreduce_s"])
        found.append(figure(f"allreduce of 64 MiB, library arrays, {ranks} ranks: share of the copy floor", "", values))
    return found


def memory_figures(rounds: int) -> list[dict[str, Any]]:
    """Return what a rank has resident beyond a process that only imported numpy, in gangs of two."""
    beyond: dict[str, list[float]] = {"rss": [], "pss": [], "private": []}
    for _ in range(rounds):
        plain, full = run_worker("plain", 2), run_worker("memory", 2)
        for name, values in beyond.items():
            values.append((full[name] - plain[name]) / 1024)
    return [figure(f"resident per rank beyond numpy, {name}", "MiB", values) for name, values in beyond.items()]


# ---- output flood -----------------------------------------------------------------------------------------


def parents() -> dict[int, int]:
    """Return pid -> parent's pid of every process that can be read."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text()
            except (FileNotFoundError, ProcessLookupError):
                continue  # ended meanwhile
            found[int(entry.name)] = int(stat.rpartition(")")[2].split()[1])
    return found


def launcher_processes(root: int) -> list[int]:
    """Return `root` and its descendants that are no ranks: a rank's command line names the worker, not pmrun."""
    tree, family = [root], parents()
    for pid in tree:
        tree += [child for child, parent in family.items() if parent == pid]
    found = []
    for pid in tree:
        try:
            command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except (FileNotFoundError, ProcessLookupError):
            continue
        if pid == root or not any(part.endswith(WORKER.name.encode()) for part in command[:2]):
            found.append(pid)
    return found


def resident_mib(pids: list[int]) -> float:
    total = 0
    for pid in pids:
        try:
            total += int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        except (FileNotFoundError, ProcessLookupError):
            continue
    return total * os.sysconf("SC_PAGE_SIZE") / (1 << 20)


def flood_figures(total_bytes: int) -> list[dict[str, Any]]:
    """Let 8 ranks print while nobody reads, then read all of it; return pmrun's growth and what arrived."""
    contender = peers.pmrun_contenders(FLOOD_RANKS)[0]
    command = contender.script(WORKER, "flood", str(total_bytes))
    with subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            selector.select(60)  # first bytes: pmrun is up, ranks print
        samples = [resident_mib(launcher_processes(process.pid))]
        end = time.monotonic() + STALL_S
        while time.monotonic() < end:
            time.sleep(SAMPLE_S)
            samples.append(resident_mib(launcher_processes(process.pid)))
        stalled, received, start = max(samples), 0, time.monotonic()
        next_sample = start
        while chunk := os.read(process.stdout.fileno(), 1 << 20):
            received += len(chunk)
            if time.monotonic() >= next_sample:
                samples.append(resident_mib(launcher_processes(process.pid)))
                next_sample = time.monotonic() + SAMPLE_S
        seconds = time.monotonic() - start
    if process.returncode != 0:
        raise peers.GangFailed(f"pmrun ended with {process.returncode} in the output flood")
    expected = total_bytes // FLOOD_RANKS // (128 * 512) * (128 * 512) * FLOOD_RANKS
    flood = f"{FLOOD_RANKS} ranks print {total_bytes / (1 << 30):g} GiB"
    return [
        figure(f"growth of pmrun while {flood} and nobody reads", "MiB", [stalled - samples[0]]),
        figure("growth of pmrun until all was read", "MiB", [max(samples) - samples[0]]),
        figure("share of the printed bytes that arrived", "", [received / expected]),
        figure("rate of reading it all", "MiB/s", [received / seconds / (1 << 20)]),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description="Measure pmrun's own costs.")
    parser.add_argument("--out", type=Path, default=OUTPUT)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    if not peers.PMRUN.exists():
        print(f"bench_overhead: no pmrun beside {sys.executable}; run 'pip install .' there first", file=sys.stderr)
        return 2
    rounds = 1 if options.quick else options.rounds
    figures = call_figures(rounds) + efficiency_figures(rounds) + memory_figures(rounds)
    figures += flood_figures(FLOOD_BYTES // 16 if options.quick else FLOOD_BYTES)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text("".join(json.dumps(line) + "\n" for line in figures), encoding="utf-8")
    for line in figures:
        print(f"{line['what']:78} {statistics.median(line['values']):.4g} {line['unit']}")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (peers.GangFailed, subprocess.SubprocessError) as error:
        sys.exit(f"bench_overhead: {error}")
