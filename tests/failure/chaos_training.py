# SPDX-License-Identifier: Apache-2.0
"""A small training run that goes on from what it saved: `chaos_training.py FILE STEPS PACE`, for tests/failure/chaos.py.

Each step takes at least PACE seconds, most of them idle, so that many blows fit. Rank 0 saves every tenth step and says
so. Invariant: the weights at the end depend on the steps and the number of ranks alone.
"""

import hashlib
import os
import select
import sys

import numpy as np

import pmrun as pm

EVERY = 10


def save(path, step, weights):
    """All of it, or what was there before."""
    with open(f"{path}.new", "wb") as file:
        np.savez(file, step=step, weights=weights)
        file.flush()
        os.fsync(file.fileno())
    os.replace(f"{path}.new", path)
    print(f"saved {step}", flush=True)


def main():
    path, steps, pace_s = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
    world = pm.init()
    first, weights = 0, np.zeros(512)
    if world.rank == 0 and os.path.exists(path):
        with np.load(path) as saved:
            first, weights = int(saved["step"]), saved["weights"]
    first = world.broadcast_object(first, root=0)
    weights = world.broadcast(weights, root=0)
    if world.rank == 0:
        print(f"begin {first}", flush=True)
    for step in range(first, steps):
        noise = np.random.default_rng([step, world.rank]).standard_normal(weights.size)
        weights -= 0.01 * world.allreduce(np.tanh(weights + noise))
        select.select([], [], [], pace_s)
        if world.rank == 0 and (step + 1) % EVERY == 0:
            save(path, step + 1, weights)
    world.barrier()
    if world.rank == 0:
        print(f"weights {hashlib.sha256(weights.tobytes()).hexdigest()}", flush=True)


main()
