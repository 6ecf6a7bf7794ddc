# SPDX-License-Identifier: Apache-2.0
"""What bench_overhead.py starts under pmrun: call times, the machine's copy rate, resident memory, a flood of lines.

Every mode but `flood` ends with rank 0 writing its figures as one JSON object to the file it was given.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

MIB = 1 << 20
COPY_BYTES = 64 * MIB
LOOPS = 7
FLOOD_LINE = b"x" * 127 + b"\n"


def allreduce_ns(world: Any, array: Any, calls: int) -> float:
    """Return nanoseconds per call, written as a user writes it: two keywords, nothing around it but the loop."""
    allreduce = world.allreduce
    start = time.perf_counter_ns()
    for _ in range(calls):
        allreduce(array, op="sum", out=array)
    return (time.perf_counter_ns() - start) / calls


def empty_call_ns(calls: int) -> float:
    """Return nanoseconds per call of a function that takes the same arguments and does nothing."""

    def nothing(array: object, op: str, out: object) -> None:
        pass

    start = time.perf_counter_ns()
    for _ in range(calls):
        nothing(None, op="sum", out=None)
    return (time.perf_counter_ns() - start) / calls


def slowest(world: Any, values: list[float]) -> list[float]:
    return [float(value) for value in world.allreduce(np.array(values), op="max")]


def call_times(world: Any, module: Any) -> dict[str, list[float]]:
    """Time a small allreduce, and an empty function for comparison."""
    array = module.empty(1 if world.size == 1 else 2, np.float32)
    array[:] = 0
    calls = 200_000 if world.size == 1 else 20_000
    world.barrier()
    reduce_ns = [allreduce_ns(world, array, calls) for _ in range(LOOPS)]
    empty_ns = [empty_call_ns(calls) for _ in range(LOOPS)]
    return {"allreduce_ns": slowest(world, reduce_ns), "empty_call_ns": slowest(world, empty_ns)}


def seconds(world: Any, work: Callable[[], object], loops: int = 5) -> list[float]:
    """Return, per loop, the time from the first rank's start to the last one's end, by the clock that all share.

    Where ranks share CPUs, some leave the barrier when others are done: a rank's own time does not have what it waited there.
    """
    found = []
    for _ in range(loops + 1):
        world.barrier()
        start = time.perf_counter()
        work()
        found.append((start, time.perf_counter()))
    all_found = world.allgather(np.array(found[1:])).reshape(world.size, loops, 2)
    return [float(value) for value in all_found[:, :, 1].max(axis=0) - all_found[:, :, 0].min(axis=0)]


def efficiency(world: Any, module: Any) -> dict[str, list[float]]:
    """Time copies and allreduces of COPY_BYTES in turn. A copy moves 2·M bytes per rank: so does the floor."""
    count = COPY_BYTES // 4
    private = np.zeros(count, np.float32), np.ones(count, np.float32)
    library = module.empty(count, np.float32), module.empty(count, np.float32)
    for array in library:
        array[:] = 0
    found: dict[str, list[float]] = {"copy_private_s": [], "copy_library_s": [], "allreduce_s": []}
    for _ in range(3):
        found["copy_private_s"] += seconds(world, lambda: np.copyto(*private))
        found["copy_library_s"] += seconds(world, lambda: np.copyto(*library))
        found["allreduce_s"] += seconds(world, lambda: world.allreduce(library[0], op="sum", out=library[0]))
    return found


def resident_kib() -> dict[str, int]:
    """Return this process's Rss, Pss and private memory."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/smaps_rollup").read_text().splitlines()[1:])
    kib = {name: int(text.split()[0]) for name, text in fields.items() if text.strip().endswith("kB")}
    return {"rss": kib["Rss"], "pss": kib["Pss"], "private": kib["Private_Clean"] + kib["Private_Dirty"]}


def flood(total_bytes: int) -> None:
    """Write this rank's share of lines as fast as they are taken."""
    block = FLOOD_LINE * 512
    for _ in range(total_bytes // int(os.environ["WORLD_SIZE"]) // len(block)):
        os.write(1, block)


def main() -> None:
    mode, out = sys.argv[1], sys.argv[2]
    if mode == "flood":
        flood(int(out))
        return
    if mode == "plain":  # what a rank is without pmrun: numpy alone
        if os.environ.get("RANK", "0") == "0":
            Path(out).write_text(json.dumps(resident_kib()))
        return
    import pmrun

    world = pmrun.init()
    found: dict[str, Any]
    if mode == "memory":
        world.allreduce(np.zeros(256, np.float32), op="sum")
        world.barrier()
        found = resident_kib()
        world.barrier()
    else:
        found = call_times(world, pmrun) if mode == "calls" else efficiency(world, pmrun)
    if world.rank == 0:
        Path(out).write_text(json.dumps(found))


if __name__ == "__main__":
    main()
