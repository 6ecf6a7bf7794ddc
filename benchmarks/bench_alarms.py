# SPDX-License-Identifier: Apache-2.0
"""Whether a gang over several nodes lives undisturbed while all cores are loaded by others: no false alarm.

The ranks, on namespaces joined by ssh, meet in a barrier once a second, for as long as is asked, with pmrun's own limits;
beside them as many processes as the machine has cores compute without a pause, at the same priority. Told are the barriers,
the longest time between two, the share of the cores that was idle, and every word that pmrun said. Invariant: any word,
any other exit code than 0 and a barrier that is missing make the exit code 1.

    python benchmarks/bench_alarms.py [--minutes 30] [--layout 2x1] [--load 2]
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import nodes
from nodes import Layout

from pmrun.launcher.rank_process import die_with_parent

GRACE_S = 120.0  # beyond the time asked for: the start, and steps that came late
PROGRAM = """
import sys, time
import pmrun as pm
world = pm.init()
world.barrier()
last, longest = time.monotonic(), 0.0
for _ in range(int(sys.argv[1])):
    time.sleep(1.0)
    world.barrier()
    now = time.monotonic()
    longest, last = max(longest, now - last), now
if world.rank == 0:
    print(sys.argv[1], longest)
"""


@contextlib.contextmanager
def loaded(count: int) -> Iterator[None]:
    """So many processes that compute without a pause."""
    ends = functools.partial(die_with_parent, os.getpid(), signal.SIGKILL)
    burning = [subprocess.Popen([sys.executable, "-c", "while True: pass"], preexec_fn=ends) for _ in range(count)]
    try:
        yield
    finally:
        for process in burning:
            process.kill()
            process.wait()


def cpu_ticks() -> tuple[int, int]:
    """Ticks of all cores since the machine started: all, and the idle ones."""
    values = [int(word) for word in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    return sum(values), values[3] + values[4]


def watch(layout: Layout, minutes: float, load: int, folder: Path) -> tuple[list[str], str]:
    """What was wrong, and what is to be told."""
    steps = max(1, round(minutes * 60))
    script = folder / "meets.py"
    script.write_text(PROGRAM)
    machines_folder = folder / "cluster"
    machines_folder.mkdir()
    words = [*layout.place.pmrun, str(script), str(steps)]
    with nodes.opened_cluster(machines_folder, layout.nodes) as cluster, loaded(load):
        all_before, idle_before = cpu_ticks()
        try:
            done = cluster[nodes.NAMES[0]].run(*words, timeout=steps * 2 + GRACE_S)
        except subprocess.TimeoutExpired:
            return [f"the gang had not ended after {steps * 2 + GRACE_S:g} s"], ""
        finally:
            nodes.end_all(cluster)
        all_after, idle_after = cpu_ticks()
    problems = [f"exit code {done.returncode}"] if done.returncode else []
    problems += done.stderr.splitlines()
    count, _, longest = done.stdout.strip().partition(" ")
    if count != str(steps):
        return [*problems, f"the ranks did not come to the end: {done.stdout.strip()!r}"], ""
    idle = (idle_after - idle_before) / (all_after - all_before)
    return problems, f"{count} barriers, the longest time between two {float(longest):.2f} s, cores idle {idle:.1%}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--layout", type=Layout.parse, default=Layout(2, 1), metavar="NODESxRANKS")
    parser.add_argument("--load", type=int, default=os.cpu_count(), help="processes that compute beside the gang")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        problems, told = watch(asked.layout, asked.minutes, asked.load, Path(folder))
    for line in problems:
        print(f"not as it should be: {line}")
    print(f"{asked.layout} ranks, {asked.minutes:g} minutes, {asked.load} processes beside: {told or 'FAILED'}")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
