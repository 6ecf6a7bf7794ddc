# SPDX-License-Identifier: Apache-2.0
"""The example that `make demo` ends with: it learns, and its weights are a function of seed and world size alone."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("sklearn", reason="the example reads scikit-learn's digits")

SCRIPT = Path(__file__).parents[2] / "examples" / "train_digits.py"
PMRUN = Path(sys.executable).with_name("pmrun")
WORLD_SIZES = (1, 2, 4, 8)


def train(world_size: int, *options: str, cpus: set[int] | None = None) -> str:
    command = [str(PMRUN), "-n", str(world_size), "--no-tag", str(SCRIPT), *options]
    if cpus is not None:
        command = ["taskset", "--cpu-list", ",".join(map(str, sorted(cpus))), *command]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def weights_hash(output: str) -> str:
    found = re.search(r"^weights sha256 ([0-9a-f]{16}) on every rank$", output, re.MULTILINE)
    assert found, output
    return found[1]


def final_accuracy(output: str) -> float:
    found = re.search(r"^test accuracy (\d\.\d+)$", output, re.MULTILINE)
    assert found, output
    return float(found[1])


@pytest.mark.parametrize("world_size", WORLD_SIZES)
@pytest.mark.timeout(300)
def test_learns_and_has_the_same_bits_in_either_memory_and_every_run(world_size: int) -> None:
    outputs = [train(world_size, "--memory", memory) for memory in ("private", "library", "private", "library")]
    assert [final_accuracy(output) >= 0.96 for output in outputs] == [True] * 4, outputs[0]
    assert len({weights_hash(output) for output in outputs}) == 1
    assert all("ms" in output and "time per epoch" in output for output in outputs)


def test_another_seed_gives_other_weights_and_fewer_cpus_the_same() -> None:
    """With fewer CPUs than ranks other algorithms run, and OMP_NUM_THREADS differs."""
    first, second = (weights_hash(train(2, "--epochs", "1", "--seed", seed)) for seed in ("1", "2"))
    crowded = weights_hash(train(2, "--epochs", "1", "--seed", "1", cpus={min(os.sched_getaffinity(0))}))
    assert (first != second, first == crowded) == (True, True)


def test_a_batch_that_does_not_divide_evenly_is_the_same_on_all_ranks_and_in_every_run() -> None:
    hashes = {weights_hash(train(3, "--epochs", "2", "--batch", "100", "--hidden", "33", "17")) for _ in range(2)}
    assert len(hashes) == 1


def test_plain_python_is_a_world_of_one_with_the_same_weights() -> None:
    options = ["--epochs", "2"]
    alone = subprocess.run(
        [sys.executable, str(SCRIPT), *options], capture_output=True, text=True, timeout=120, check=False
    )
    assert alone.returncode == 0, alone.stderr
    assert weights_hash(alone.stdout) == weights_hash(train(1, *options))


def test_goes_on_from_its_checkpoint_to_the_same_weights(tmp_path: Path) -> None:
    saved = ("--checkpoint", str(tmp_path / "runs"))
    train(2, "--epochs", "2", *saved)
    resumed = train(2, "--epochs", "4", *saved)
    assert "epoch   1" not in resumed
    assert weights_hash(resumed) == weights_hash(train(2, "--epochs", "4"))
