# SPDX-License-Identifier: Apache-2.0
"""Random blows on a training run with --max-restarts: its weights must be those of an undisturbed run, bit by bit.

    python tests/failure/chaos.py --kills 200 [--ranks 4] [--seed 1] [-- train.py --checkpoint {saved}]

The program runs once in peace and once under blows: at a random moment after each start of the gang, a random rank is
killed, stopped and then killed, made to crash, or the agent is killed. `{saved}` becomes a place for what the program
saves, another one in each run. Compared is the last line of output that names weights; where the program says "begin N"
and "saved N", every attempt must begin with what was saved last. Invariant: the same seed gives the same blows.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

PMRUN = [sys.executable, "-m", "pmrun"]
OWN = Path(__file__).with_name("chaos_training.py")
PACE_S = 0.01  # of a step of the program of our own
QUIET_S = 60.0  # without an event, beyond what the whole run took in peace: something hangs
LOOK_S = 0.002


class Blow(NamedTuple):
    """What is to happen."""

    after_s: float  # the gang started
    kind: str  # kill, stop, crash, agent
    rank: int


def blows(seed: int, count: int, ranks: int, within_s: float) -> list[Blow]:
    """All of them, from the seed alone."""
    chance = random.Random(seed)
    kinds = ["kill"] * 6 + ["stop", "crash", "agent", "agent"]
    return [Blow(chance.random() * within_s, chance.choice(kinds), chance.randrange(ranks)) for _ in range(count)]


def strike(blow: Blow, pids: dict[int, int], launcher: int) -> None:
    """Carry it out; whoever has ended already is past it."""
    try:
        if blow.kind == "agent":
            children = Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()
            os.kill(int(children[0]), signal.SIGKILL)
            return
        if blow.kind == "stop":
            os.kill(pids[blow.rank], signal.SIGSTOP)
            select.select([], [], [], 0.1)
        os.kill(pids[blow.rank], signal.SIGSEGV if blow.kind == "crash" else signal.SIGKILL)
    except (ProcessLookupError, IndexError):
        return


def follow(path: Path, process: subprocess.Popen[bytes], quiet_s: float) -> Iterator[dict[str, Any]]:
    """The job's events as they come, to its end."""
    with open(path, "rb") as file:
        rest, quiet_by = b"", time.monotonic() + quiet_s
        while True:
            ended = process.poll() is not None
            *lines, rest = (rest + file.read()).split(b"\n")
            for line in lines:
                quiet_by = time.monotonic() + quiet_s
                yield json.loads(line)
            if ended:
                return
            if time.monotonic() > quiet_by:
                process.kill()
                raise SystemExit(f"chaos: no event for {quiet_s:.0f} s: something hangs")
            select.select([], [], [], LOOK_S)


def storm(
    command: list[str], plan: list[Blow], folder: Path, output: Path, quiet_s: float
) -> tuple[int, list[float], int]:
    """Run under blows: exit code, time from each blow to the next start of the gang, and blows that came too late."""
    path = folder / "events"
    path.touch()
    words = [*PMRUN, "--max-restarts", str(len(plan) + 1), "--json-events", str(path), *command]
    pending, times, struck_at = list(reversed(plan)), [], 0.0
    pids: dict[int, int] = {}
    with open(output, "wb") as file, subprocess.Popen(words, stdout=file, stderr=subprocess.STDOUT) as process:
        for event in follow(path, process, quiet_s):
            if event["event"] == "rank_started":
                pids[event["rank"]] = event["pid"]
            elif event["event"] == "gang_started":
                if struck_at:
                    times.append(event["time"] - struck_at)
                if pending:
                    blow = pending.pop()
                    if not wait(process, blow.after_s):
                        strike(blow, pids, process.pid)
                    struck_at = time.time()
    return process.returncode, times, len(pending)


def wait(process: subprocess.Popen[bytes], seconds: float) -> bool:
    """Let time pass; True when the job ended meanwhile."""
    end_fd = os.pidfd_open(process.pid)
    try:
        return bool(select.select([end_fd], [], [], seconds)[0])
    finally:
        os.close(end_fd)


def weights_of(text: str) -> str:
    """The last line that names weights, without its tag."""
    found = [line.partition("] ")[2] or line for line in text.splitlines() if "weights" in line]
    return found[-1] if found else ""


def lost_steps(text: str) -> list[str]:
    """Attempts that did not begin with what was saved last, in the words of the program."""
    wrong, last = [], 0
    for word, number in re.findall(r"^(?:\[[^]]*\] )?(begin|saved) (\d+)$", text, re.MULTILINE):
        if word == "begin" and int(number) < last:
            wrong.append(f"began with {number}, and {last} had been saved")
        last = max(last, int(number))
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**32))
    parser.add_argument("--within", type=float, default=2.0, help="seconds after a start in which a blow falls")
    parser.add_argument("command", nargs="*", help="script and arguments, after --")
    asked = parser.parse_args()
    print(f"seed {asked.seed}", flush=True)
    steps = round((0.55 * asked.kills + 1) * asked.within / PACE_S)  # somewhat more than fit between the blows
    with tempfile.TemporaryDirectory(prefix="chaos-") as name:
        folder = Path(name)
        own = [str(OWN), "{saved}", str(steps)]
        calm, stormy = (
            [word.replace("{saved}", str(folder / run)) for word in asked.command or [*own, pace]]
            for run, pace in (("calm", "0"), ("storm", str(PACE_S)))
        )
        ranks = ["-n", str(asked.ranks)]
        began = time.monotonic()
        calm_run = subprocess.run([*PMRUN, *ranks, *calm], stdout=subprocess.PIPE, text=True, check=True)
        quiet_s = QUIET_S + time.monotonic() - began
        output = folder / "output"
        plan = blows(asked.seed, asked.kills, asked.ranks, asked.within)
        code, times, missed = storm([*ranks, *stormy], plan, folder, output, quiet_s)
        text = output.read_text(errors="replace")
    problems = [f"exit code {code}"] if code else []
    problems += [f"{missed} blows came too late: the run was too short"] if missed else []
    problems += lost_steps(text)
    if not weights_of(text) or weights_of(text) != weights_of(calm_run.stdout):
        problems.append(f"weights differ: {weights_of(calm_run.stdout)!r} in peace, {weights_of(text)!r} under blows")
    for line in [*text.splitlines()[-20:], *problems] if problems else []:
        print(f"chaos: {line}")
    ordered = sorted(times) or [0.0]
    print(f"{len(plan) - missed} blows, {len(times)} restarts; from blow to the next start: median "
          f"{ordered[len(ordered) // 2]:.2f} s, most {ordered[-1]:.2f} s; {'FAILED' if problems else 'the same bits'}")  # fmt: skip
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
