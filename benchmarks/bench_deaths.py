# SPDX-License-Identifier: Apache-2.0
"""How soon a gang is gone after one of its ranks died, and how often the right one is blamed: deaths made from a seed.

Each gang has 2 to 8 ranks that compute and meet in collectives. One of them is killed from outside, or ends itself in
one of several ways at a random call; in a cascade two more are killed as soon as it is dead. Told are the time from the death
to the moment when every process of the gang is gone and when `pmrun` itself has ended, whether the report's first line
names the rank, whether the exit code is its own, and what is left: processes that carry the job's mark, names in
/dev/shm, files in the job's TMPDIR. Invariant: a wrong blame, a wrong code or a leftover makes the exit code 1, and its
seed is printed.

    python benchmarks/bench_deaths.py [--count 1000] [--seed 1]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import select
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

MARK = "BENCH_OF_DEATHS"  # no option: a variable that every process of the gang inherits, whatever becomes of it
PMRUN = Path(sys.executable).parent / "pmrun"
PATIENCE_S = 30.0
HEAD = """
import ctypes, os, signal, sys, time
import pmrun as pm
world = pm.init()
def dies():
    print("dies", time.time(), flush=True)
    HOW
for call in range(100000):
    if call == CALL and world.rank == CULPRIT:
        dies()
    world.allreduce(float(world.rank))
    if call == CALL and world.rank == 0:
        print("there", time.time(), flush=True)
"""
WAYS = {  # how a rank ends itself, and with which code
    "leaves with 0": ("os._exit(0)", None),
    "exits with 3": ("sys.exit(3)", 3),
    "raises": ("raise ValueError('lost')", 1),
    "crashes": ("ctypes.string_at(0)", 128 + signal.SIGSEGV),
    "aborts": ("os.abort()", 128 + signal.SIGABRT),
}
OUTSIDE = ("is killed", "is killed, then others")


class Death(NamedTuple):
    """What a seed says."""

    ranks: int
    culprit: int
    how: str
    call: int
    followers: tuple[int, ...]


class Found(NamedTuple):
    """What came of it."""

    how: str
    gone_s: float  # from the death to the end of the last rank
    ended_s: float  # to pmrun's own end
    problem: str


def draw(seed: int) -> Death:
    chance = random.Random(seed)
    ranks = chance.randint(2, 8)
    culprit = chance.randrange(ranks)
    how = chance.choice([*WAYS, *OUTSIDE, *OUTSIDE])
    others = [rank for rank in range(ranks) if rank != culprit]
    chance.shuffle(others)
    return Death(ranks, culprit, how, chance.choice([1, 20, 300]), tuple(others[:2]))


def watch_ends(pids: list[int]) -> list[int]:
    """Descriptors that become readable when these processes end."""
    found = []
    for pid in pids:
        try:
            found.append(os.pidfd_open(pid))
        except ProcessLookupError:
            continue
    return found


def await_ends(descriptors: list[int]) -> float:
    """The moment when the last of them ended."""
    waiting = set(descriptors)
    until = time.monotonic() + PATIENCE_S
    while waiting and time.monotonic() < until:
        readable, _, _ = select.select(list(waiting), [], [], PATIENCE_S)
        waiting -= set(readable)
    now = time.time()
    for descriptor in descriptors:
        os.close(descriptor)
    return float("inf") if waiting else now


def kill(pids: dict[int, int], death: Death) -> float:
    """Kill the culprit, and in a cascade two others as soon as it is dead; the time of the first blow.

    A process that is killed dies when it gets a CPU, so that another one may be dead before it.
    """
    watched = watch_ends([pids[death.culprit]])
    begin = time.time()
    os.kill(pids[death.culprit], signal.SIGKILL)
    await_ends(watched)
    for rank in death.followers if death.how == OUTSIDE[1] else ():
        with contextlib.suppress(ProcessLookupError):  # it was ended already
            os.kill(pids[rank], signal.SIGKILL)
    return begin


def left_behind(mark: str, folder: Path, shared: set[str]) -> str:
    """Processes with the job's mark, names in /dev/shm and files in its TMPDIR; "" if there is nothing."""
    found = [f"/dev/shm/{name}" for name in set(os.listdir("/dev/shm")) - shared]
    found += [str(path) for path in folder.iterdir()]
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdecimal() and mark.encode() in (entry / "environ").read_bytes():
                found.append(f"process {entry.name}")
        except OSError:
            continue  # it ended, or is somebody else's
    return ", ".join(found)


def until_there(job: subprocess.Popen[str], events: Path) -> tuple[float, dict[int, int]]:
    """Wait until the gang is there or a rank says that it dies now; when that is, and process ids by rank."""
    assert job.stdout is not None
    for line in job.stdout:
        if line.startswith(("there", "dies")):
            at = float(line.split()[1])
            break
    else:
        raise RuntimeError(f"the gang did not start: {job.communicate()[1]}")
    lines = [json.loads(line) for line in events.read_text().splitlines()]
    return at, {event["rank"]: event["pid"] for event in lines if event["event"] == "rank_started"}


def play(seed: int, place: Path) -> Found:
    death = draw(seed)
    statement, code = WAYS.get(death.how, ("pass", 128 + signal.SIGKILL))
    text = HEAD
    for word, value in (
        ("HOW", statement), ("CALL", str(death.call)),
        ("CULPRIT", str(death.culprit if death.how in WAYS else -1)),
    ):  # fmt: skip
        text = text.replace(word, value)
    script, events, folder = place / "dies.py", place / "events.json", place / "tmp"
    script.write_text(text)
    mark = f"{MARK}={os.getpid()}-{seed}"
    environment = {**os.environ, "TMPDIR": str(folder), MARK: mark.partition("=")[2]}
    shared = set(os.listdir("/dev/shm"))
    words = [str(PMRUN), "-n", str(death.ranks), "--no-tag", "--json-events", str(events), str(script)]
    job = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    at, pids = until_there(job, events)
    descriptors = watch_ends(list(pids.values()))
    if death.how in OUTSIDE:
        at = kill(pids, death)
    gone = await_ends(descriptors)
    _, err = job.communicate(timeout=PATIENCE_S)
    ended = time.time()
    problem = judge(death, err, job.returncode, code) or left_behind(mark, folder, shared)
    return Found(death.how, max(0.0, gone - at), ended - at, problem)


def judge(death: Death, err: str, returned: int, code: int | None) -> str:
    """What is wrong with the report or the exit code."""
    headline = next((line for line in err.splitlines() if line.startswith("pmrun: ")), "no report")
    if not headline.startswith(f"pmrun: rank {death.culprit} "):
        return f"rank {death.culprit} {death.how}, but: {headline}"
    if returned == 0 or (code is not None and returned != code):
        return f"rank {death.culprit} {death.how}, exit code {returned}"
    return ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    by_way: dict[str, list[Found]] = {}
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "tmp").mkdir()
        for seed in range(asked.seed, asked.seed + asked.count):
            found = play(seed, Path(folder))
            by_way.setdefault(found.how, []).append(found)
            if found.problem:
                failed += 1
                print(f"seed {seed}: {found.problem}", flush=True)
    print(
        "| a rank | gangs | all ranks gone: median, 99 %, most | pmrun ended: median, 99 %, most |\n|---|---|---|---|"
    )
    for how, all_found in [*sorted(by_way.items()), ("all", [item for found in by_way.values() for item in found])]:
        columns = []
        for values in ([item.gone_s for item in all_found], [item.ended_s for item in all_found]):
            late = statistics.quantiles(values, n=100)[98] if len(values) > 1 else values[0]
            columns.append(f"{statistics.median(values):.3f}, {late:.3f}, {max(values):.3f} s")
        print(f"| {how} | {len(all_found)} | {columns[0]} | {columns[1]} |")
    print(f"{asked.count - failed} of {asked.count} blamed rightly, with the right code and nothing left")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
