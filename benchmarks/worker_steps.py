# SPDX-License-Identifier: Apache-2.0
"""A job as programs are: steps of a fixed amount of computing and an allreduce, timed in blocks on demand.

Rank 0 reads a number of seconds per line, which all ranks step for, and answers with a JSON line: the step times in µs. The
amount is calibrated once. Invariant: every result is compared with what it must be.
"""

from __future__ import annotations

import json
import sys
import time

import numpy as np

import pmrun
from pmrun.bench.overlap import calibrate, compute

COMPUTE_S = 0.002
COUNT = 16384  # float32: 64 KiB


def main() -> None:
    world = pmrun.init()
    amount = np.array([calibrate(COMPUTE_S)])
    world.broadcast(amount)
    array, told = np.empty(COUNT, np.float32), np.zeros(1)
    wanted = world.size * (world.size + 1) / 2
    if world.rank == 0:
        print("ready", flush=True)
    while True:
        told[0] = float((sys.stdin.readline() if world.rank == 0 else "") or 0)
        world.broadcast(told)
        if not told[0]:
            return
        steps: list[float] = []
        going, begin = np.ones(1, np.int8), time.perf_counter()
        while going[0]:
            start = time.perf_counter()
            compute(int(amount[0]))
            array[:] = world.rank + 1
            world.allreduce(array, out=array)
            end = time.perf_counter()
            steps.append(round(1e6 * (end - start), 1))
            if not (array == wanted).all():
                raise SystemExit(f"rank {world.rank}: a wrong sum")
            going[0] = end - begin < told[0]
            world.broadcast(going)
        if world.rank == 0:
            print(json.dumps(steps), flush=True)


if __name__ == "__main__":
    main()
