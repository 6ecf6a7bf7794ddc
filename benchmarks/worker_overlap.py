# SPDX-License-Identifier: Apache-2.0
"""What each rank of a contender's gang runs for overlap: an allreduce alone, computing alone, and both at once.

Computing is a fixed number of passes over a small array, as many as take about as long as the allreduce; so what the
allreduce takes from the CPU while it runs is charged, as in IMB-NBC: overlap is (alone + computing - both) over the
larger of the first two, in percent, on the rank whose "both" is longest. Rank 0 writes one JSON line per size to
`--out`. Invariant: all ranks make the same calls, as rank 0's number of passes is sent to all.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable

import numpy as np
from bindings import Binding, open_binding
from points import elements

CALIBRATION_PASSES = 2000
WARM_CALLS = 2


def seconds(binding: Binding, barrier: Callable[[], object], call: Callable[[], object]) -> float:
    """Return the time of one call; everybody begins together."""
    barrier()
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def overlap_percent(alone: float, computing: float, both: float) -> float:
    return 100 * max(0.0, min(1.0, (alone + computing - both) / max(alone, computing)))


def measure(binding: Binding, size: int, rounds: int) -> tuple[float, float, float]:
    """Return this rank's medians: allreduce alone, computing alone, both at once."""
    array = binding.empty(elements("allreduce", size, binding.size)[0])
    array[:] = 0
    barrier = binding.operation("barrier", array, array)
    small = np.ones(4096, np.float32)

    def compute(passes: int) -> None:
        for _ in range(passes):
            np.multiply(small, 1.0, out=small)

    def alone() -> None:
        binding.start_allreduce(array)()

    def both() -> None:
        wait = binding.start_allreduce(array)
        compute(passes)
        wait()

    for _ in range(WARM_CALLS):
        seconds(binding, barrier, alone)
    pure = statistics.median(seconds(binding, barrier, alone) for _ in range(rounds))
    one_pass = seconds(binding, barrier, lambda: compute(CALIBRATION_PASSES)) / CALIBRATION_PASSES
    passes = binding.from_root(max(1, int(pure / one_pass)))
    times: list[list[float]] = [[], [], []]
    for _ in range(rounds):
        for kind, call in enumerate((alone, lambda: compute(passes), both)):
            times[kind].append(seconds(binding, barrier, call))
    return statistics.median(times[0]), statistics.median(times[1]), statistics.median(times[2])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("binding")
    parser.add_argument("option")
    parser.add_argument("--out", required=True)
    parser.add_argument("--sizes", type=int, nargs="+", required=True)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    binding = open_binding(options.binding, options.option)
    lines = []
    for size in options.sizes:
        mine = np.zeros((binding.size, 3))
        mine[binding.rank] = measure(binding, size, options.rounds)
        everyone = binding.maximum(mine.reshape(-1)).reshape(binding.size, 3)
        alone, computing, both = map(float, everyone[int(everyone[:, 2].argmax())])
        bus_bits = 8 * size * 2 * (binding.size - 1) / binding.size
        bus = bus_bits / float(everyone[:, 0].max()) / 1e9
        percent = overlap_percent(alone, computing, both)
        lines.append({"bytes": size, "bus_gbit": round(bus, 4), "overlap": round(percent, 1)})
    if binding.rank == 0:
        with open(options.out, "w", encoding="utf-8") as file:
            file.writelines(json.dumps(line) + "\n" for line in lines)
    binding.close()


if __name__ == "__main__":
    main()
