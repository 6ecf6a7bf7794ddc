# SPDX-License-Identifier: Apache-2.0
"""What the store costs: `python benchmarks/bench_store.py` prints a table for 2, 8 and 64 ranks of this machine.

Latencies are rank 0's, the best of ROUNDS rounds, while the other ranks wait in the store. An exchange ends when the
slowest rank has read what all have set. Run as a rank it measures; run by hand it starts itself under pmrun.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pmrun as pm
from pmrun import env

SIZES = (2, 8, 64)
KEYS = 100  # that each rank sets in an exchange
CALLS = 500
ROUNDS = 5


def meet(name: str) -> None:
    pm.store.set(f"{name}/{pm.rank()}", b"")
    pm.store.wait(f"{name}/{rank}" for rank in range(pm.world_size()))


def latency_us(call: Callable[[], object]) -> float:
    best = float("inf")
    for _ in range(ROUNDS):
        start = time.perf_counter()
        for _ in range(CALLS):
            call()
        best = min(best, (time.perf_counter() - start) / CALLS)
    return best * 1e6


def set_and_get() -> None:
    pm.store.set("x", b"0123456789")
    pm.store.get("x")


def exchange_s() -> float:
    """Seconds until every rank has read all keys of all ranks, by the slowest one's clock."""
    rank, size = pm.rank(), pm.world_size()
    meet("begin")
    start = time.perf_counter()
    pm.store.set_many({f"key/{rank}/{number}": b"0123456789" for number in range(KEYS)})
    values = pm.store.get_many(f"key/{other}/{number}" for other in range(size) for number in range(KEYS))
    took_s = time.perf_counter() - start
    assert len(values) == size * KEYS
    pm.store.set(f"took/{rank}", str(took_s))
    return max(map(float, pm.store.get_many(f"took/{other}" for other in range(size))))


def measure() -> None:
    meet("here")
    if pm.rank() == 0:
        both_us = latency_us(set_and_get)
        get_us = latency_us(lambda: pm.store.get("x"))
        add_us = latency_us(lambda: pm.store.add("n"))
        print(f"{pm.world_size():5} {get_us:9.1f} {both_us:13.1f} {add_us:9.1f}", end="", flush=True)
        pm.store.set("measured", b"")
    pm.store.wait("measured", timeout=120)
    took_s = exchange_s()
    if pm.rank() == 0:
        print(f" {took_s * 1e3:15.1f}", flush=True)


def main() -> None:
    if env.RANK in os.environ:
        measure()
        return
    print(f"ranks   get, us  set + get, us   add, us   exchange of {KEYS} keys a rank, ms", flush=True)
    command = Path(sys.executable).with_name("pmrun")
    for size in SIZES:
        subprocess.run([command, "--no-tag", "-n", str(size), __file__], check=True)


if __name__ == "__main__":
    main()
