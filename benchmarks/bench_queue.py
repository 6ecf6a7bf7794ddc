# SPDX-License-Identifier: Apache-2.0
"""How many items a second `pm.WorkQueue` deals out and takes back, and whether kills lose or double any.

    python benchmarks/bench_queue.py [--items 1000000]              # 8 ranks here, and 2 nodes × 4 ranks
    python benchmarks/bench_queue.py --kills 100 [--seed 1]         # 4 ranks under --max-restarts

The nodes are network namespaces. An item costs one multiplication, so what is measured is the queue. Under kills an item
takes a millisecond; while the gang makes progress a random rank is killed, and the end is compared item by item. Run as a
rank it is the program. Invariant: a result that is wrong, missing or in the wrong place makes the exit code 1.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pmrun as pm
from pmrun import env

PMRUN = str(Path(sys.executable).with_name("pmrun"))
ROUNDS = 5
RANKS_KILLED = 4
ITEM_S = 0.001
LONGEST_S = 1.6  # between a start and its kill; starts that end within a second are followed ever more slowly
SHORTEST_S = 1.1


def measure(items: int) -> None:
    """As a rank: some queues one after another; rank 0 prints items per second."""
    rates = []
    for number in range(ROUNDS):
        pm.Barrier(f"before {number}").wait()
        began = time.perf_counter()
        queue = pm.WorkQueue(range(items))
        for task in queue:
            task.result = task.item * 3
        if pm.rank() == 0:
            results = queue.results()
            rates.append(items / (time.perf_counter() - began))
            assert results == list(range(0, 3 * items, 3))
    if pm.rank() == 0:
        print(json.dumps(rates), flush=True)


def endure(items: int) -> None:
    """As a rank: one queue, whose items take a while; rank 0 prints how many attempts left results in it."""
    attempt = int(os.environ[env.ATTEMPT])

    def work(item: int) -> tuple[int, int]:
        time.sleep(ITEM_S)
        return item, attempt

    results = pm.WorkQueue(range(items), "endure").run(work)
    if pm.rank() == 0:
        assert [item for item, _ in results] == list(range(items))
        print(json.dumps([items, len({attempt for _, attempt in results})]), flush=True)


def own(how: str, items: int) -> list[str]:
    return [str(Path(__file__).resolve()), how, "--items", str(items)]


def throughput(items: int) -> None:
    """One machine, then two."""
    import nodes  # only here: it makes network namespaces

    here = subprocess.run([PMRUN, "--no-tag", "-n", "8", *own("measure", items)], check=True, stdout=subprocess.PIPE)
    tell("8 ranks here", json.loads(here.stdout))
    with tempfile.TemporaryDirectory() as folder, nodes.opened_cluster(Path(folder), 2) as cluster:
        words = [PMRUN, "--no-tag", "--hosts", "a:4,b:4", *own("measure", items)]
        there = subprocess.run(cluster["a"].inside(words), check=True, stdout=subprocess.PIPE)
    tell("2 nodes × 4 ranks", json.loads(there.stdout))


def tell(where: str, rates: list[float]) -> None:
    ordered = [f"{rate:,.0f}" for rate in sorted(rates)]
    print(f"{where}: {statistics.median(rates):,.0f} items/s (of {len(rates)} rounds: {ordered[0]} to {ordered[-1]})")


def kills(count: int, seed: int) -> None:
    """One job that is killed again and again."""
    chance = random.Random(seed)
    print(f"seed {seed}", flush=True)
    items = round(count * LONGEST_S * RANKS_KILLED / ITEM_S)
    with tempfile.TemporaryDirectory() as folder:
        events = Path(folder, "events")
        words = [PMRUN, "--no-tag", "-n", str(RANKS_KILLED), "--max-restarts", str(count + 1)]
        words += ["--json-events", str(events), *own("endure", items)]
        done = 0
        with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as job:
            while done < count and job.poll() is None:
                pids = started(events, done)
                if pids:
                    time.sleep(chance.uniform(SHORTEST_S, LONGEST_S))
                    os.kill(chance.choice(pids), signal.SIGKILL)
                    done += 1
                else:
                    time.sleep(0.005)
            assert job.stdout is not None
            text = job.stdout.read()
        if job.returncode or done < count:
            raise SystemExit(f"bench_queue: exit code {job.returncode} after {done} kills: {text.decode()!r}")
    kept, attempts = json.loads(text)
    print(f"{done} kills: {kept} of {items} items have one result each, out of {attempts} attempts")


def started(events: Path, attempt: int) -> list[int]:
    """The ranks' pids of an attempt whose gang has started; none yet."""
    lines = [json.loads(line) for line in events.read_text().splitlines()] if events.exists() else []
    starts = [place for place, line in enumerate(lines) if line["event"] == "gang_started"]
    if len(starts) <= attempt:
        return []
    return [line["pid"] for line in lines[: starts[attempt]] if line["event"] == "rank_started"][-RANKS_KILLED:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("how", nargs="?", choices=("measure", "endure"), help=argparse.SUPPRESS)
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--kills", type=int, default=0)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**32))
    asked = parser.parse_args()
    if asked.how is not None:
        (measure if asked.how == "measure" else endure)(asked.items)
    elif asked.kills:
        kills(asked.kills, asked.seed)
    else:
        throughput(asked.items)


if __name__ == "__main__":
    main()
