# SPDX-License-Identifier: Apache-2.0
"""A few random blows on a training run; tests/failure/chaos.py gives more of them by hand."""

import subprocess
import sys
from pathlib import Path

CHAOS = Path(__file__).with_name("chaos.py")


def test_the_weights_are_those_of_an_undisturbed_run(rng):
    seed = rng.randrange(2**32)
    words = ["--kills", "3", "--ranks", "2", "--within", "0.5", "--seed", str(seed)]
    run = subprocess.run([sys.executable, CHAOS, *words], capture_output=True, text=True, timeout=60, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "3 restarts" in run.stdout and "the same bits" in run.stdout, run.stdout
