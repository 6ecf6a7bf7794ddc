# SPDX-License-Identifier: Apache-2.0
"""A skewed load, dealt out beforehand and as ranks become free:  pmrun -n 4 examples/work_queue.py

Item k takes in proportion to k squared, so of equal parts the last is by far the longest. `pm.WorkQueue` gives an item to whoever
is free; `pm.shard` with weights does as well where the cost of each item is known beforehand.
"""

from __future__ import annotations

import argparse
import time

import pmrun as pm


def work(seconds: float) -> int:
    """Something that takes a while; on a machine with a CPU per rank it would compute."""
    time.sleep(seconds)
    return pm.rank()


def tell(how: str, began: float, items: int) -> None:
    """Rank 0 prints how long it took until all were ready, and how many items each did."""
    pm.store.set(f"{how}/{pm.rank()}", str(items))
    shares = pm.store.get_many(f"{how}/{rank}" for rank in range(pm.world_size()))
    if pm.rank() == 0:
        took_s = time.monotonic() - began
        print(f"{how:>12}: {took_s:.2f} s, items of each rank: {', '.join(map(bytes.decode, shares))}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--items", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=4.0, help="of all items together")
    asked = parser.parse_args()
    costs = [float(k * k) for k in range(asked.items)]
    scale = asked.seconds / sum(costs)
    costs = [cost * scale for cost in costs]

    for how, mine in (("equal parts", pm.shard(costs)), ("by weight", pm.shard(costs, weights=costs))):
        pm.Barrier(f"before {how}").wait()
        began = time.monotonic()
        for cost in mine:
            work(cost)
        tell(how, began, len(mine))

    pm.Barrier("before queue").wait()
    began = time.monotonic()
    did_what = pm.WorkQueue(costs, lease=1).run(work)  # the result of an item is the rank that did it
    tell("work queue", began, did_what.count(pm.rank()))


if __name__ == "__main__":
    main()
