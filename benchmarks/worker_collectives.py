# SPDX-License-Identifier: Apache-2.0
"""What each rank of a contender's gang runs: every point, checked once, then timed.

For a point: one call on known data is checked; a few calls warm up and tell how many make a loop of
`--loop-ms`; then `--loops` loops are timed, each after a barrier. A loop's figure is the slowest rank's time per
call. Rank 0 writes one JSON line per point to `--out`. Invariant: all ranks make the same calls, as every
decision (loop length, budget) is rank 0's, sent to all.
"""

from __future__ import annotations

import argparse
import json
import time

import numpy as np
from bindings import Binding, Floats, Operation, open_binding
from points import add_point_arguments, chosen_points, elements

WARM_CALLS = 6  # MPICH takes its shared-memory algorithms only after five calls on a communicator
LARGE_BYTES = 4 << 20
MAX_CALLS = 4000


class WrongResult(Exception):
    """A contender's operation gave a wrong answer: its time means nothing."""


def fill(op: str, send: Floats, rank: int, size: int) -> None:
    """Put data into `send` whose result `check` knows."""
    if op in ("allreduce", "allgather"):
        send[:] = rank + 1
    elif op == "broadcast":
        send[:] = 7 if rank == 0 else 0
    elif op == "reduce_scatter":
        send.reshape(size, -1)[:] = (rank + 1) * np.arange(1, size + 1, dtype=np.float32)[:, None]
    elif op == "alltoall":
        send.reshape(size, -1)[:] = rank * size + np.arange(size, dtype=np.float32)[:, None]


def check(op: str, recv: Floats, rank: int, size: int) -> None:
    """Raise WrongResult unless `recv` is what `op` makes of `fill`'s data."""
    total = size * (size + 1) // 2
    ranks = np.arange(size, dtype=np.float32)[:, None]
    expected = {
        "barrier": True,
        "allreduce": op != "allreduce" or bool((recv == total).all()),
        "broadcast": op != "broadcast" or bool((recv == 7).all()),
        "allgather": op != "allgather" or bool((recv.reshape(size, -1) == ranks + 1).all()),
        "reduce_scatter": op != "reduce_scatter" or bool((recv == (rank + 1) * total).all()),
        "alltoall": op != "alltoall" or bool((recv.reshape(size, -1) == ranks * size + rank).all()),
    }
    if not expected[op]:
        raise WrongResult(f"{op} on rank {rank}: {recv[:4]} is wrong")


def seconds_per_call(barrier: Operation, call: Operation, calls: int) -> float:
    barrier()
    start = time.perf_counter()
    for _ in range(calls):
        call()
    return (time.perf_counter() - start) / calls


def measure(binding: Binding, op: str, size: int, loops: int, loop_s: float) -> list[float]:
    """Return this rank's seconds per call of each loop."""
    sent, received = elements(op, size, binding.size)
    send = binding.empty(sent)
    recv = send if op in ("allreduce", "broadcast") else binding.empty(received)
    fill(op, send, binding.rank, binding.size)
    barrier, call = binding.operation("barrier", send, recv), binding.operation(op, send, recv)
    call()
    check(op, recv, binding.rank, binding.size)
    send[:] = 0  # sums in place must not run into infinities or denormals
    warm = 1 if size >= LARGE_BYTES else WARM_CALLS
    seconds_per_call(barrier, call, warm)
    estimate = seconds_per_call(barrier, call, warm)
    calls = binding.from_root(max(1, min(MAX_CALLS, int(loop_s / max(estimate, 1e-9)))))
    return [seconds_per_call(barrier, call, calls) for _ in range(loops)]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("binding")
    parser.add_argument("option")
    parser.add_argument("--out", required=True)
    add_point_arguments(parser)
    parser.add_argument("--loops", type=int, default=5)
    parser.add_argument("--loop-ms", type=float, default=20)
    parser.add_argument("--budget-s", type=float, default=120)
    options = parser.parse_args()

    binding = open_binding(options.binding, options.option)
    end = time.monotonic() + options.budget_s
    done: list[tuple[str, int]] = []
    mine: list[list[float]] = []
    for op, size in chosen_points(options):
        if not binding.from_root(time.monotonic() < end):
            break  # the driver reports the points that are missing
        mine.append(measure(binding, op, size, options.loops, options.loop_ms / 1e3))
        done.append((op, size))
    slowest = binding.maximum(np.array(mine).reshape(-1)).reshape(len(done), options.loops)
    if binding.rank == 0:
        with open(options.out, "w", encoding="utf-8") as file:
            for (op, size), times in zip(done, slowest, strict=True):
                loops_us = [round(1e6 * float(second), 3) for second in times]
                file.write(json.dumps({"op": op, "bytes": size, "loops_us": loops_us}) + "\n")
    binding.close()


if __name__ == "__main__":
    main()
