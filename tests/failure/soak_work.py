# SPDX-License-Identifier: Apache-2.0
"""What the ranks of tests/failure/soak.py do: `soak_work.py SEED FOLDER`, until somebody asks them to stop.

All ranks draw the same numbers, so that they make the same calls. Invariant: nothing that a round made outlives it.
"""

import random
import sys

import numpy as np

import pmrun as pm

KINDS = ("allreduce", "allgather", "alltoall", "reduce_scatter", "broadcast", "reduce", "gather", "scan")
PARTS = ("alltoall", "reduce_scatter")
LENGTHS = (1, 100, 5_000, 200_000)
SAVE_EVERY = 200


def collectives(world, chance):
    kind, length = chance.choice(KINDS), chance.choice(LENGTHS)
    data = np.full(length * (world.size if kind in PARTS else 1), 1.0)
    if chance.random() < 0.3:
        data = pm.zeros(len(data), np.float64)
    if chance.random() < 0.5:
        getattr(world, kind)(data)
    else:
        pm.wait_all([getattr(world, f"i{kind}")(data) for _ in range(chance.randint(1, 4))])


def messages(world, chance):
    data = np.zeros(chance.choice(LENGTHS))
    there, back = (world.rank + 1) % world.size, (world.rank - 1) % world.size
    world.sendrecv(data, there, out=np.empty_like(data), source=back)


def communicators(world, chance):
    with world.split(world.rank % 2) as half:
        half.allreduce(1.0)


def objects(world, chance):
    value = {"text": "x" * chance.choice(LENGTHS), "list": list(range(20))}
    assert world.broadcast_object(value if world.rank == 0 else None, root=0) == value


def keys(world, chance):
    name = f"round/{world.rank}"
    pm.store.set(name, b"x" * chance.choice((1, 3000)))
    pm.store.get(name)
    pm.store.delete(name)


def main():
    world = pm.init()
    chance = random.Random(int(sys.argv[1]))
    checkpoint = pm.Checkpoint(sys.argv[2], keep=2)
    number = 0
    while not pm.should_stop():
        number += 1
        chance.choice((collectives, collectives, messages, communicators, objects, keys))(world, chance)
        if number % SAVE_EVERY == 0:
            checkpoint.isave(number, {"step": number, "w": np.zeros(20_000)})
            print("round", number, flush=True)
        elif number == 1:
            print("begin", flush=True)
    checkpoint.wait()
    pm.exit_resumable()


main()
