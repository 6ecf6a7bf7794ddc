# SPDX-License-Identifier: Apache-2.0
"""What checkpoints and `pm.should_stop()` cost a step: `python benchmarks/bench_checkpoint.py` for 1 and 2 ranks.

A step is a matrix product and a barrier. It is timed with nothing beside it and while `isave` writes 256 MiB, which takes
a CPU of its own for a while: where every CPU has a rank, steps share theirs with it. Run as a rank it measures; run by
hand it starts itself under pmrun, in a directory of the current one.
"""

from __future__ import annotations

import os

os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")  # before numpy loads: a rank is one thread

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

import pmrun as pm
from pmrun import env

SIZES = (1, 2)
ARRAYS, ARRAY_BYTES = 16, 16 << 20
STEPS = 60
CALLS = 5000


def ms(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return (time.perf_counter() - start) * 1e3


def each_us(call: Callable[[], object]) -> float:
    return ms(lambda: [call() for _ in range(CALLS)]) / CALLS * 1e3


def measure(folder: Path) -> None:
    world = pm.init()
    matrix = np.full((1000, 1000), 0.5, np.float32)
    state = {f"w{number}": np.full(ARRAY_BYTES, number, np.uint8) for number in range(ARRAYS)}
    copy = [array.copy() for array in state.values()]

    def step() -> None:
        np.matmul(matrix, matrix)
        world.barrier()

    step()
    alone = [ms(step) for _ in range(STEPS)]
    with pm.Checkpoint(folder / str(world.size), keep=1) as checkpoint:
        whole = ms(lambda: checkpoint.save(1, state))
        checkpoint.isave(2, state).wait()  # the first one also takes the memory of the copy
        copied = ms(lambda: [np.copyto(a, b) for a, b in zip(copy, state.values(), strict=True)])
        save = None

        def start() -> None:
            nonlocal save
            save = checkpoint.isave(3, state)

        call, beside = ms(start), []
        assert save is not None
        while not world.allreduce(int(save.done()), op="min"):
            beside.append(ms(step))
    asked, reduced = each_us(pm.should_stop), each_us(lambda: world.allreduce(0, op="max"))
    if world.rank == 0:
        print(f"ranks: {world.size}, state: {ARRAYS * ARRAY_BYTES >> 20} MiB")
        print(f"  save {whole:.0f} ms; isave {call:.1f} ms, of it the copy {copied:.1f} ms")
        print(f"  a step alone: median {np.median(alone):.1f} ms, at most {max(alone):.1f}")
        print(f"  beside the save ({len(beside)}): median {np.median(beside):.1f} ms, at most {max(beside):.1f}")
        print(f"  should_stop {asked:.2f} µs; an allreduce of one number {reduced:.2f} µs", flush=True)


def main() -> int:
    if env.RANK in os.environ:
        measure(Path(sys.argv[1]))
        return 0
    pmrun = Path(sys.executable).with_name("pmrun")
    with tempfile.TemporaryDirectory(dir=".") as folder:
        for size in SIZES:
            command = [str(pmrun), "-n", str(size), "--no-tag", __file__, folder]
            subprocess.run(command, check=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
