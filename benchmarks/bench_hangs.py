# SPDX-License-Identifier: Apache-2.0
"""How soon a hang is named, and how often rightly: deadlocks made from a seed, under the real command.

Each gang has 2 to 5 ranks and one of them, in turn, sleeps, spins, is stopped, is inside C with the interpreter's lock,
takes two communicators in the other order, or sends to nobody. Told are the time from when the first rank entered the
call that hangs to the report, beyond --hang-timeout, and whether its first line names that rank. Invariant: a gang whose
report is late, wrong or missing makes the exit code 1, and its seed is printed.

    python benchmarks/bench_hangs.py [--count 100] [--seed 1] [--timeout 0.5]
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ALLOWED_S = 2.0  # beyond the timeout
HEAD = """
import ctypes, os, signal, time
import pmrun as pm
world = pm.init()
wrong = world.rank == CULPRIT
a, b = world.dup(), world.dup()
for _ in range(BEFORE):
    world.allreduce(1.0)
def entering():
    print("entering", time.time(), flush=True)
def goes_astray():
    HOW
"""
LATE = "if wrong:\n    goes_astray()\nentering()\nworld.CALL\n"
ASTRAY = {
    "sleeps": "signal.pause()",
    "spins": "while True: pass",
    "is stopped": "os.kill(os.getpid(), signal.SIGSTOP)",
    "is inside C": "ctypes.PyDLL(None).pause()",
}
CROSSED = "first, second = (b, a) if wrong else (a, b)\nentering()\nfirst.barrier()\nsecond.barrier()\n"
NEVER_SENT = "if wrong:\n    signal.pause()\nentering()\nworld.recv_object(source=CULPRIT)\n"
CALLS = ("barrier()", "allreduce(1.0)", "allgather(1.0)", "iallreduce(1.0).wait()", "allreduce_object(1, max)")


def generate(rng: random.Random) -> tuple[int, int, str, str]:
    """Ranks, the one that goes astray, how, and the program."""
    ranks = rng.randint(2, 5)
    culprit = rng.randrange(ranks)
    how = rng.choice([*ASTRAY, "crosses", "never sends"])
    body = {"crosses": CROSSED, "never sends": NEVER_SENT}.get(how, LATE)
    text = HEAD + body
    for word, value in (
        ("CULPRIT", str(culprit)), ("BEFORE", str(rng.choice([0, 3, 400]))), ("CALL", rng.choice(CALLS)),
        ("HOW", ASTRAY.get(how, "pass")),
    ):  # fmt: skip
        text = text.replace(word, value)
    return ranks, culprit, how, text


def named(headline: str, culprit: int, how: str) -> bool:
    """Whether the first line of a report blames the right rank."""
    if how == "crosses":
        return headline.startswith("hang: deadlock: ") and f"rank {culprit} " in headline
    if how == "never sends":
        return f"; rank {culprit} is at " in headline
    return headline.startswith(f"hang: rank {culprit} never entered ")


def measure(seed: int, timeout_s: float, folder: Path) -> tuple[str, float, bool, str]:
    """How a gang went astray, how late it was told, whether rightly, and the first line of the report."""
    ranks, culprit, how, text = generate(random.Random(seed))
    script, events = folder / "hangs.py", folder / "events.json"
    script.write_text(text)
    pmrun = Path(sys.executable).parent / "pmrun"
    words = [pmrun, "-n", str(ranks), "--hang-timeout", str(timeout_s), "--grace", "0", "--no-tag"]
    done = subprocess.run([*words, "--json-events", events, script], capture_output=True, text=True, timeout=60)
    entered = [float(line.split()[1]) for line in done.stdout.splitlines() if line.startswith("entering ")]
    told = [event for line in events.read_text().splitlines() if (event := json.loads(line))["event"] == "hang"]
    headline = done.stderr.partition("\n")[0].removeprefix("pmrun: ")
    if not told or not entered:
        return how, float("inf"), False, headline
    return how, told[0]["time"] - min(entered) - timeout_s, named(headline, culprit, how), headline


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--timeout", type=float, default=0.5)
    asked = parser.parse_args()
    late: dict[str, list[float]] = {}
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(asked.seed, asked.seed + asked.count):
            how, late_s, right, headline = measure(seed, asked.timeout, Path(folder))
            late.setdefault(how, []).append(late_s)
            if not right or late_s > ALLOWED_S:
                failed += 1
                print(f"seed {seed}: a rank {how}, told {late_s:.3f} s after the timeout: {headline}")
    print("| one rank | gangs | told after the timeout, median | at most |\n|---|---|---|---|")
    for how, values in sorted(late.items()):
        print(f"| {how} | {len(values)} | {statistics.median(values):.2f} s | {max(values):.2f} s |")
    print(f"{asked.count - failed} of {asked.count} named rightly within {ALLOWED_S:g} s of the timeout")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
