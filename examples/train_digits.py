# SPDX-License-Identifier: Apache-2.0
"""Data-parallel training of a small network on handwritten digits, in numpy alone.

    pmrun -n 8 examples/train_digits.py                      # eight ranks on this machine
    pmrun -n 8 examples/train_digits.py --memory private     # the same bits from ordinary numpy arrays
    pmrun -n 8 examples/train_digits.py --checkpoint runs/a  # the same bits, however often it is ended and started again
    python examples/train_digits.py                          # no launcher: a world of one

What happens: rank 0 reads scikit-learn's 1797 images of 8x8 pixels and the ranks share them out; weights start
on rank 0 and are broadcast; in each step a rank computes the gradient of its part of the batch, and as soon as
the gradient of a layer is complete its reduction starts and runs while the earlier layers' are being computed.

Invariant: with one seed and one world size the final weights have the same bits on every rank, in every run and
in either kind of memory. Three things make it so: pmrun adds contributions in a fixed order, BLAS runs on one
thread, and every array has the same shape and the same alignment in every run (kernels may choose by both).
"""

from __future__ import annotations

import os

# Before numpy loads: another number of threads would split the sums elsewhere.
os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1")

import argparse
import hashlib
import itertools
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

import pmrun as pm

Floats = npt.NDArray[np.float32]

ALIGNMENT_BYTES = 64  # of every array here; pm.empty promises the same
TEST_SHARE = 0.2
MOMENTUM = np.float32(0.9)
CALIBRATE_EVERY = 3  # each third epoch waits for every reduction at once: the yardstick for overlap


def private_empty(count: int) -> Floats:
    """Return an ordinary array that starts at a multiple of ALIGNMENT_BYTES, as pm.empty's do."""
    spare = ALIGNMENT_BYTES // 4
    raw = np.empty(count + spare, np.float32)
    skip = -raw.ctypes.data % ALIGNMENT_BYTES // 4
    return raw[skip : skip + count]


def library_empty(count: int) -> Floats:
    """Return an array that collectives reach without a copy."""
    array: Floats = pm.empty(count, np.float32)
    return array


# ---- the network ------------------------------------------------------------------------------------------


class Layer:
    """A dense layer: weights and bias in one flat array, their gradient in another, so one reduction does both.

    Only `gradient` is what collectives touch in training; it lies in the memory that the user chose.
    """

    def __init__(self, inputs: int, outputs: int, rows: int, gradient: Floats) -> None:
        split = inputs * outputs
        self.parameters = private_empty(split + outputs)
        self.velocity = private_empty(split + outputs)
        self.gradient = gradient
        self.weights, self.bias = self.parameters[:split].reshape(inputs, outputs), self.parameters[split:]
        self.d_weights, self.d_bias = gradient[:split].reshape(inputs, outputs), gradient[split:]
        self.output = private_empty(rows * outputs).reshape(rows, outputs)
        self.delta = private_empty(rows * outputs).reshape(rows, outputs)  # d loss / d (x @ weights + bias)
        self.velocity[:] = 0

    def forward(self, x: Floats, rectify: bool) -> Floats:
        np.matmul(x, self.weights, out=self.output)
        self.output += self.bias
        if rectify:
            np.maximum(self.output, 0, out=self.output)
        return self.output

    def backward(self, x: Floats) -> None:
        """From `delta`, compute the gradient (a sum over this rank's rows)."""
        np.matmul(x.T, self.delta, out=self.d_weights)
        np.sum(self.delta, axis=0, out=self.d_bias)

    def update(self, rate: np.float32, samples: int) -> None:
        """Take one step of descent; `gradient` holds the sum over `samples` rows of all ranks."""
        self.gradient *= np.float32(1 / samples)
        self.velocity *= MOMENTUM
        self.velocity += self.gradient
        np.multiply(self.velocity, -rate, out=self.gradient)
        self.parameters += self.gradient


@dataclass
class Stopwatch:
    """Seconds that one epoch took, and how many of them this rank stood in communication calls."""

    blocked: float = 0.0
    total: float = 0.0


class Network:
    """A multilayer perceptron whose gradients are reduced over a communicator."""

    def __init__(self, world: Any, sizes: list[int], rows: int, memory: str) -> None:
        allocate = library_empty if memory == "library" else private_empty
        self.world = world
        self.layers = [Layer(i, o, rows, allocate(i * o + o)) for i, o in itertools.pairwise(sizes)]
        self.column = private_empty(rows).reshape(rows, 1)  # for softmax

    def start_from(self, seed: int) -> None:
        """Draw the weights on rank 0 and send them to all."""
        if self.world.rank == 0:
            rng = np.random.default_rng(seed)
            for layer in self.layers:
                spread = np.float32(np.sqrt(2 / layer.weights.shape[0]))
                layer.weights[:] = rng.standard_normal(layer.weights.shape, np.float32) * spread
                layer.bias[:] = 0
        for layer in self.layers:
            self.world.broadcast(layer.parameters, root=0)

    def state(self) -> list[dict[str, Floats]]:
        """Return what training changes; the arrays are the network's own."""
        return [{"parameters": layer.parameters, "velocity": layer.velocity} for layer in self.layers]

    def restore(self, state: list[dict[str, Floats]]) -> None:
        """Go on from a `state` of the same network."""
        for layer, saved in zip(self.layers, state, strict=True):
            layer.parameters[:], layer.velocity[:] = saved["parameters"], saved["velocity"]

    def predict(self, x: Floats) -> Floats:
        """Return the scores of the ten classes, one row per image."""
        for layer in self.layers:
            x = layer.forward(x, rectify=layer is not self.layers[-1])
        return x

    def loss(self, labels: npt.NDArray[np.int64], weight: Floats) -> float:
        """Cross entropy of the last prediction, summed over rows of weight 1; leaves d loss in the last delta."""
        last, rows = self.layers[-1], np.arange(len(labels))
        np.max(last.output, axis=1, keepdims=True, out=self.column)
        np.subtract(last.output, self.column, out=last.delta)
        np.exp(last.delta, out=last.delta)
        np.sum(last.delta, axis=1, keepdims=True, out=self.column)
        last.delta /= self.column
        losses = -np.log(last.delta[rows, labels])
        last.delta[rows, labels] -= 1
        last.delta *= weight
        return float(losses @ weight[:, 0])

    def descend(self, x: Floats, rate: np.float32, samples: int, overlap: bool, watch: Stopwatch) -> None:
        """Run the backward pass, the reductions beside it, and the update.

        The last layer's gradient is complete first: it travels while the layers before it are computed. With
        `overlap` off every reduction is waited for where it starts; the arithmetic is the same.
        """
        requests = []
        for index in reversed(range(len(self.layers))):
            layer = self.layers[index]
            below = self.layers[index - 1] if index else None
            layer.backward(below.output if below else x)
            start = time.perf_counter()
            request = self.world.iallreduce(layer.gradient, op="sum", out=layer.gradient)
            if not overlap:
                request.wait()
            watch.blocked += time.perf_counter() - start
            requests.append((layer, request))
            if below:
                np.matmul(layer.delta, layer.weights.T, out=below.delta)
                below.delta *= below.output > 0
        for layer, request in requests:  # in the order they were started: the first has had the most time
            start = time.perf_counter()
            request.wait()
            watch.blocked += time.perf_counter() - start
            layer.update(rate, samples)

    def digest(self) -> bytes:
        """Return the SHA-256 of all parameters."""
        total = hashlib.sha256()
        for layer in self.layers:
            total.update(layer.parameters.tobytes())
        return total.digest()


# ---- the data ---------------------------------------------------------------------------------------------


def load_digits(world: Any) -> tuple[Floats, npt.NDArray[np.int64]]:
    """Return all images (pixels 0..1) and labels. Rank 0 reads them: importing scikit-learn once is enough."""
    images, labels = np.empty((1797, 64), np.float32), np.empty(1797, np.int64)
    if world.rank == 0:
        try:
            from sklearn import datasets
        except ImportError as error:
            sys.exit(f"train_digits: cannot load scikit-learn ({error}); run: pip install 'scikit-learn>=1.3'")
        bunch = datasets.load_digits()
        images[:], labels[:] = bunch.data / 16, bunch.target
    world.broadcast(images, root=0)
    world.broadcast(labels, root=0)
    return images, labels


@dataclass
class Shard:
    """The part of a data set that one rank sees: every size-th row, from row `rank` on.

    Shards differ by a row where the data does not divide evenly, yet ranks must take the same number of steps
    over batches of one shape. So all step as often as the longest shard needs, a batch that runs out is filled
    with rows of weight 0, and `samples` tells, without asking anybody, how many rows of all ranks count.
    """

    images: Floats
    labels: npt.NDArray[np.int64]
    rank: int
    size: int
    rows: int  # of a batch on one rank
    x: Floats = field(init=False)
    weight: Floats = field(init=False)

    def __post_init__(self) -> None:
        self.x = private_empty(self.rows * self.images.shape[1]).reshape(self.rows, -1)
        self.weight = private_empty(self.rows).reshape(self.rows, 1)

    def length(self, rank: int) -> int:
        return len(range(rank, len(self.images), self.size))

    def samples(self, step: int) -> int:
        """Return how many rows that count all ranks together have in this step."""
        done = step * self.rows
        return sum(min(self.rows, max(0, self.length(rank) - done)) for rank in range(self.size))

    def batches(self, order: npt.NDArray[np.int64]) -> Iterator[tuple[int, npt.NDArray[np.int64]]]:
        """Yield (step, labels) with `x` and `weight` filled; `order` permutes this rank's rows."""
        mine = np.arange(self.rank, len(self.images), self.size)[order]
        for step in range(-(-self.length(0) // self.rows)):
            chosen = mine[step * self.rows : (step + 1) * self.rows]
            labels = np.zeros(self.rows, np.int64)
            self.x[:], self.weight[:] = 0, 0
            self.x[: len(chosen)], self.weight[: len(chosen)] = self.images[chosen], 1
            labels[: len(chosen)] = self.labels[chosen]
            yield step, labels


# ---- training ---------------------------------------------------------------------------------------------


def train_epoch(network: Network, shard: Shard, seed: list[int], rate: float, overlap: bool) -> tuple[float, Stopwatch]:
    """Go through the data once; return the mean loss over all ranks and this rank's times."""
    watch = Stopwatch()
    order = np.random.default_rng([*seed, shard.rank]).permutation(shard.length(shard.rank))
    total = 0.0
    network.world.barrier()
    start = time.perf_counter()
    for step, labels in shard.batches(order):
        network.predict(shard.x)
        total += network.loss(labels, shard.weight)
        network.descend(shard.x, np.float32(rate), shard.samples(step), overlap, watch)
    watch.total = time.perf_counter() - start
    loss = network.world.allreduce(np.array([total]), op="sum")[0] / len(shard.images)
    return float(loss), watch


def accuracy(network: Network, shard: Shard) -> float:
    """Return the share of all ranks' rows that are classified correctly."""
    correct = 0
    for _, labels in shard.batches(np.arange(shard.length(shard.rank))):
        guesses = network.predict(shard.x).argmax(axis=1)
        correct += int(np.sum((guesses == labels) & (shard.weight[:, 0] > 0)))
    counted = network.world.allreduce(np.array([correct]), op="sum")[0]
    return float(counted) / len(shard.images)


def over_ranks(world: Any, watches: list[Stopwatch]) -> Stopwatch:
    """Return the mean over ranks of the median epoch: means of the median `blocked` and the median `total`."""
    medians = np.median([(watch.blocked, watch.total) for watch in watches], axis=0)
    blocked, total = world.allreduce(medians, op="sum") / world.size
    return Stopwatch(float(blocked), float(total))


def describe_overlap(world_size: int, overlapped: Stopwatch, at_once: Stopwatch) -> str:
    """Say what the overlap was worth, from epochs of both kinds that alternated in this run."""
    hidden = max(0.0, 1 - overlapped.blocked / at_once.blocked)
    if world_size == 1:
        return f"time per epoch {overlapped.total * 1e3:.1f} ms"
    return (
        f"time per epoch {overlapped.total * 1e3:.1f} ms, of it {overlapped.blocked * 1e3:.1f} ms waiting for "
        f"reductions\nwaited for at once: {at_once.total * 1e3:.1f} ms, of it {at_once.blocked * 1e3:.1f} ms waiting\n"
        f"communication hidden by overlap {hidden:.0%}"
    )


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train a small network on handwritten digits, data-parallel.")
    parser.add_argument("--epochs", type=int, default=24)
    parser.add_argument("--batch", type=int, default=64, help="images per step, over all ranks")
    parser.add_argument("--lr", type=float, default=0.1, help="learning rate")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--memory", choices=("library", "private"), default="library", help="where gradients lie")
    parser.add_argument("--checkpoint", metavar="DIR", help="save each epoch there, and go on from the last one")
    parser.add_argument("--hidden", type=int, nargs="+", default=[256, 256], help="widths of the hidden layers")
    options = parser.parse_args()
    if options.epochs < 1 or options.batch < 1 or min(options.hidden) < 1:
        parser.error("--epochs, --batch and --hidden must be at least 1")
    return options


def main() -> int:
    options = parse_arguments()
    world = pm.init()

    def say(text: str) -> None:
        if world.rank == 0:
            print(text, flush=True)

    images, labels = load_digits(world)
    shuffled = np.random.default_rng(options.seed).permutation(len(images))  # the same on every rank
    test, train = np.split(shuffled, [int(len(images) * TEST_SHARE)])
    rows = -(-options.batch // world.size)
    training = Shard(images[train], labels[train], world.rank, world.size, rows)
    testing = Shard(images[test], labels[test], world.rank, world.size, rows)

    sizes = [images.shape[1], *options.hidden, 10]
    network = Network(world, sizes, rows, options.memory)
    network.start_from(options.seed)
    parameters = sum(layer.parameters.size for layer in network.layers)
    say(f"world size {world.size}: {len(train)} images to train on, {len(test)} to test, {rows} per rank and step")
    say(f"network {'-'.join(map(str, sizes))}, {parameters:,} weights, gradients in {options.memory} memory")

    checkpoint = pm.Checkpoint(options.checkpoint) if options.checkpoint else None
    first = 0  # epoch that is still to do; each is a function of seed, epoch and world size
    if checkpoint:
        first, saved = checkpoint.load(network.state())
        network.restore(saved)

    watches: dict[bool, list[Stopwatch]] = {True: [], False: []}
    for epoch in range(first, options.epochs):
        overlap = epoch % CALIBRATE_EVERY != CALIBRATE_EVERY - 1
        loss, watch = train_epoch(network, training, [options.seed, epoch], options.lr, overlap)
        if checkpoint:
            checkpoint.isave(epoch + 1, network.state())  # written while the next epoch runs
            if pm.should_stop():  # SIGTERM, or a spot notice
                checkpoint.wait()
                pm.exit_resumable()
        if epoch > first:  # the first also loads caches and wakes the progress engine
            watches[overlap].append(watch)
        if epoch % 4 == 0 or epoch == options.epochs - 1:
            say(f"epoch {epoch + 1:3d}  loss {loss:.4f}  test accuracy {accuracy(network, testing):.4f}")
    if checkpoint:
        checkpoint.wait()
    if watches[True] and watches[False]:
        say(describe_overlap(world.size, over_ranks(world, watches[True]), over_ranks(world, watches[False])))

    mine = np.frombuffer(network.digest(), np.uint8)
    digests = world.allgather(mine).reshape(world.size, -1)
    if not (digests == digests[0]).all():
        print(f"rank {world.rank}: weights {bytes(mine).hex()[:16]} differ between ranks", file=sys.stderr)
        return 1
    final = accuracy(network, testing)
    say(f"test accuracy {final:.4f}")
    say(f"weights sha256 {bytes(mine).hex()[:16]} on every rank")
    return 0


if __name__ == "__main__":
    sys.exit(main())
