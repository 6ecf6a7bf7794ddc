# SPDX-License-Identifier: Apache-2.0
"""How soon a gang is gone after one of its ranks died, and how often the right one is blamed: deaths made from a seed.

Each gang has 2 to 8 ranks on one machine, or those of --layout on several, that meet in collectives. One of them is
killed from outside, or ends itself in one of several ways at a random call; in a cascade two more are killed as soon as
it is dead. Told are the times from the death until every rank on every machine is gone, until `pmrun` has named the
culprit, until it has ended, and until nothing at all runs for the gang, ssh included; and whether the report's first line
names the rank, whether the exit code is its own, and what is left (struck.py). Invariant: a wrong blame, a wrong code or
something left makes the exit code 1, and its seed is printed.

    python benchmarks/bench_deaths.py [--layout 4x2] [--count 1000] [--seed 1]
    python benchmarks/bench_deaths.py --append --budget-s 80    # again and again: a run in slices, joined in --out
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import signal
import sys
import time
from typing import NamedTuple

import struck
from nodes import Layout
from peers import HERE
from struck import Field, Gang, Line

OUTPUT = HERE.parent / "build" / "bench" / "deaths.jsonl"
KIND = "death"
PROGRAM = f"""
import ctypes, os, signal, sys, time
import pmrun as pm
world = pm.init()
{struck.HELLO}
def dies():
    say("ready")
    open("GO", "rb").read(1)
    say("dies", time.time())
    HOW
for call in range(10**9):
    if call == CALL and world.rank == CULPRIT:
        dies()
    world.allreduce(float(world.rank))
    if call == CALL and world.rank == 0:
        say("ready")
"""
WAYS = {  # how a rank ends itself, and with which code
    "leaves with 0": ("os._exit(0)", None),
    "exits with 3": ("sys.exit(3)", 3),
    "raises": ("raise ValueError('lost')", 1),
    "crashes": ("ctypes.string_at(0)", 128 + signal.SIGSEGV),
    "aborts": ("os.abort()", 128 + signal.SIGABRT),
}
OUTSIDE = ("is killed", "is killed, then others")
TIMES = ("gone_s", "told_s", "ended_s", "clean_s")


class Death(NamedTuple):
    """What a seed says."""

    ranks: int
    culprit: int
    how: str
    call: int
    followers: tuple[int, ...]


def draw(seed: int, layout: Layout | None = None) -> Death:
    chance = random.Random(seed)
    ranks = chance.randint(2, 8)
    ranks = layout.ranks if layout else ranks
    culprit = chance.randrange(ranks)
    how = chance.choice([*WAYS, *OUTSIDE, *OUTSIDE])
    others = [rank for rank in range(ranks) if rank != culprit]
    chance.shuffle(others)
    return Death(ranks, culprit, how, chance.choice([1, 20, 300]), tuple(others[:2]))


def strike(gang: Gang, pids: dict[int, int], death: Death) -> float:
    """Let the culprit die, and in a cascade kill two others as soon as it is dead; the time of the death.

    A process that is killed dies when it gets a CPU, so that another one may be dead before it.
    """
    if death.how in WAYS:
        return gang.go()
    begin = time.time()
    os.kill(pids[death.culprit], signal.SIGKILL)
    if death.how == OUTSIDE[1]:
        gang.wait(lambda: pids[death.culprit] in gang.ended)
        for rank in death.followers:
            with contextlib.suppress(ProcessLookupError):  # it was ended already
                os.kill(pids[rank], signal.SIGKILL)
    return begin


def play(field: Field, _: str, seed: int) -> Line:
    """One gang and its death."""
    death = draw(seed, field.layout)
    statement, code = WAYS.get(death.how, ("pass", 128 + signal.SIGKILL))
    own = death.culprit if death.how in WAYS else -1
    words = {"HOW": statement, "CALL": death.call, "CULPRIT": own, "GO": field.fifo}
    with struck.started(field, [*field.command(death.ranks), field.script(PROGRAM, words)]) as gang:
        gang.wait(lambda: gang.has_ended() or (len(gang.lines("rank")) == death.ranks and gang.lines("ready")))
        if gang.has_ended():
            raise SystemExit(f"seed {seed}: the gang did not start: {gang.err.decode()}")
        pids = gang.ranks()
        gang.watch(gang.all_processes())
        at = strike(gang, pids, death)
        return {
            "kind": KIND,
            "where": field.name,
            "seed": seed,
            "how": death.how,
            **outcome(gang, pids, death, code, at),
        }


def outcome(gang: Gang, pids: dict[int, int], death: Death, code: int | None, at: float) -> Line:
    """How long each end took, and what is wrong."""
    problem = "" if gang.wait(gang.all_ended) else "a process did not end"
    found = gang.times(at, pids.values(), f"pmrun: rank {death.culprit} ")
    returned = gang.process.wait() if gang.has_ended() else -1
    problem = problem or judge(death, gang.err.decode(errors="replace"), returned, code)
    left = gang.left()
    return {**found, "problem": problem, "left": left}


def judge(death: Death, err: str, returned: int, code: int | None) -> str:
    """What is wrong with the report or the exit code."""
    headline = next((line for line in err.splitlines() if line.startswith("pmrun: ")), "no report")
    if not headline.startswith(f"pmrun: rank {death.culprit} "):
        return f"rank {death.culprit} {death.how}, but: {headline}"
    if returned == 0 or (code is not None and returned != code):
        return f"rank {death.culprit} {death.how}, exit code {returned}"
    return ""


def table(lines: list[Line]) -> None:
    """Print what came of all deaths."""
    print("| a rank | gangs | all ranks gone: median, 99 %, most | culprit named | `pmrun` ended | nothing runs |")
    print("|---|---:|---:|---:|---:|---:|")
    ways = sorted({line["how"] for line in lines})
    for how in [*ways, "all"]:
        part = [line for line in lines if how in ("all", line["how"])]
        columns = [struck.spread([line[name] for line in part]) for name in TIMES]
        print(f"| {how} | {len(part)} | {' | '.join(columns)} |")
    right = sum(not struck.wrong(line) for line in lines)
    print(f"{right} of {len(lines)} blamed rightly, with the right code and nothing left")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    struck.add_arguments(parser, OUTPUT, count=1000)
    asked = parser.parse_args()
    plan = [("", seed) for seed in range(asked.seed, asked.seed + asked.count)]
    with struck.opened(asked.layout) as field:
        lines = struck.in_slices(asked, KIND, field, plan, play)
    table(lines)
    return 1 if any(map(struck.wrong, lines)) else 0


if __name__ == "__main__":
    sys.exit(main())
