# SPDX-License-Identifier: Apache-2.0
"""How soon nothing is left when `pmrun` or an agent is killed, and how soon a node that is cut off is noticed.

On one machine, or over those of --layout by ssh: `pmrun`, an agent, its keeper, or all at once are killed; a node's cable
is pulled, or what it sends, or what is sent to it, is lost. The node is drawn from the seed, among those on which pmrun
itself does not run. Told are the times until every rank on every machine is gone, until the loss was told by name, until
`pmrun` has ended, and until nothing runs for the gang; and what is left (struck.py). sshd notices a cut connection only
after minutes: its session on a node that was cut off is ended by hand at the end, which is the only thing that may be.
Invariant: a loss that is told wrongly or late, and something left, make the exit code 1, and the seed is printed.

    python benchmarks/bench_losses.py [--layout 4x2] [--count 10] [--seed 1] [--only "a cable is pulled"]
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import struck
from nodes import NAMES
from peers import HERE
from struck import Field, Gang, Line, Machine

OUTPUT = HERE.parent / "build" / "bench" / "losses.jsonl"
KIND = "loss"
RANKS = 4  # on one machine
LOST = 76  # exit code
PROGRAM = f"""
import os
import pmrun as pm
world = pm.init()
{struck.HELLO}
while True:
    world.allreduce(float(world.rank))
"""
TIMES = ("told_s", "gone_s", "ended_s", "clean_s")
ONE_CLEAN_S, SEVERAL_CLEAN_S = 0.5, 5.0
NOTICED_S = 10.0  # a cut
CUT_CLEAN_S = 30.0  # the lease, and the time after which a node that nobody reaches has ended its ranks
PATIENCE_S = 60.0


class Loss(NamedTuple):
    """One sort."""

    strike: Callable[[Gang, Machine, bool], None]  # False: mend what it cut
    places: tuple[bool, ...]  # where it can happen: on one machine (False), on several (True)
    told: bool = True  # pmrun lives to tell of it
    cuts: bool = False  # it is mended at the end


def kill(*pids: int) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):  # it died with the one before
            os.kill(pid, signal.SIGKILL)


def agents_of(gang: Gang, machine: Machine) -> tuple[int, ...]:
    """The keeper's and the agent's process id; a gang on one machine has no keeper."""
    if gang.field.layout:
        return machine.agents()
    pid = gang.launcher()
    return (int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0]),)


def kill_all(gang: Gang, machine: Machine, _: bool) -> None:
    """pmrun and all of its agents, but no rank."""
    kill(gang.launcher(), *(pid for each in gang.field.machines() for pid in agents_of(gang, each)))


def kill_ssh(gang: Gang, machine: Machine, _: bool) -> None:
    here = gang.field.cluster[NAMES[0]].processes()
    kill(next(pid for pid, words in here.items() if words.startswith("ssh ") and f" {machine.name} " in words))


def others(gang: Gang, machine: Machine) -> list[Machine]:
    return [other for other in gang.field.machines() if other is not machine]


def mute(gang: Gang, machine: Machine, cut: bool) -> None:
    machine.lose(others(gang, machine), cut)


def deafen(gang: Gang, machine: Machine, cut: bool) -> None:
    for other in others(gang, machine):
        other.lose([machine], cut)


BOTH, SEVERAL = (False, True), (True,)
LOSSES = {
    "`pmrun` is killed": Loss(lambda gang, *_: kill(gang.launcher()), BOTH, told=False),
    "`pmrun` and all agents are killed": Loss(kill_all, BOTH, told=False),
    "an agent is killed": Loss(lambda gang, node, _: kill(agents_of(gang, node)[-1]), BOTH),
    "a keeper is killed": Loss(lambda gang, node, _: kill(node.agents()[0]), SEVERAL),
    "a keeper and its agent are killed": Loss(lambda gang, node, _: kill(*node.agents()), SEVERAL),
    "the ssh to a node is killed": Loss(kill_ssh, SEVERAL),
    "a cable is pulled": Loss(lambda _, node, cut: node.link(not cut), SEVERAL, cuts=True),
    "what a node sends is lost": Loss(mute, SEVERAL, cuts=True),
    "what is sent to a node is lost": Loss(deafen, SEVERAL, cuts=True),
}


def limits(loss: Loss, several: bool, slack: float) -> tuple[float, float]:
    """By when it must be told, and by when nothing may run."""
    if loss.cuts:
        return NOTICED_S * slack, CUT_CLEAN_S * slack
    bound_s = (SEVERAL_CLEAN_S if several else ONE_CLEAN_S) * slack
    return bound_s, bound_s


def play(slack: float, field: Field, how: str, seed: int) -> Line:
    """One gang and its loss."""
    loss, several = LOSSES[how], field.layout is not None
    ranks = field.layout.ranks if field.layout else RANKS
    machine = random.Random(f"{how}:{seed}").choice(field.machines()[1:] if several else field.machines())
    with struck.started(field, [*field.command(ranks), field.script(PROGRAM)]) as gang:
        gang.wait(lambda: gang.has_ended() or len(gang.lines("rank")) == ranks)
        if gang.has_ended():
            raise SystemExit(f"{how}, seed {seed}: the gang did not start: {gang.err.decode()}")
        pids = gang.ranks()
        unheard = set(machine.sessions()) if loss.cuts else set()
        gang.watch([pid for pid in gang.all_processes() if pid not in unheard])
        at = time.time()
        loss.strike(gang, machine, True)
        try:
            ended = gang.wait(gang.all_ended, PATIENCE_S)
            found = gang.times(at, pids.values(), f"the agent on {machine.name} is lost")
        finally:
            if loss.cuts:
                kill(*unheard)
                loss.strike(gang, machine, False)
        problem = judge(loss, limits(loss, several, slack), found, gang) if ended else "a process did not end"
        return {"kind": KIND, "where": field.name, "seed": seed, "how": how, **found, "problem": problem,
                "left": gang.left()}  # fmt: skip


def judge(loss: Loss, allowed: tuple[float, float], found: dict[str, float], gang: Gang) -> str:
    """What is wrong with what was told, and with the times."""
    told_s, clean_s = allowed
    said = gang.err.decode(errors="replace").strip() or "nothing"
    if loss.told and found["told_s"] == struck.NEVER:
        return f"the node was not named: {said}"
    if loss.told and gang.process.wait() != LOST:
        return f"exit code {gang.process.returncode}: {said}"
    if loss.told and found["told_s"] > told_s:
        return f"told after {found['told_s']:.2f} s"
    return f"gone after {found['clean_s']:.2f} s" if found["clean_s"] > clean_s else ""


def table(lines: list[Line]) -> None:
    """Print what came of all losses."""
    print("| | gangs | told: median, 99 %, most | all ranks gone | `pmrun` ended | nothing runs |")
    print("|---|---:|---:|---:|---:|---:|")
    for how, loss in LOSSES.items():
        part = [line for line in lines if line["how"] == how]
        if part:
            columns = [struck.spread([line[name] for line in part]) for name in TIMES]
            told = columns[0] if loss.told else "-"
            print(f"| {how} | {len(part)} | {told} | {' | '.join(columns[1:])} |")
    right = sum(not struck.wrong(line) for line in lines)
    print(f"{right} of {len(lines)} told rightly and in time, with nothing left")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=list(LOSSES), default=list(LOSSES), metavar="LOSS")
    parser.add_argument(
        "--slack", type=float, default=1.0, help="the limits of the times, so often: on a loaded machine"
    )
    struck.add_arguments(parser, OUTPUT, count=10)
    asked = parser.parse_args()
    several = asked.layout is not None
    plan = [
        (how, seed)
        for seed in range(asked.seed, asked.seed + asked.count)
        for how in asked.only
        if several in LOSSES[how].places
    ]
    with struck.opened(asked.layout) as field:
        lines = struck.in_slices(asked, KIND, field, plan, functools.partial(play, asked.slack))
    table(lines)
    return 1 if any(map(struck.wrong, lines)) else 0


if __name__ == "__main__":
    sys.exit(main())
