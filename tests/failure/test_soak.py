# SPDX-License-Identifier: Apache-2.0
"""A few seconds of tests/failure/soak.py, which gives more of them by hand."""

import subprocess
import sys
from pathlib import Path

import pytest

SOAK = Path(__file__).with_name("soak.py")


@pytest.mark.slow
def test_a_gang_that_works_holds_no_more_than_it_held(rng):
    """Memory is given more room than by hand: in so short a time not every kind of call has come once."""
    words = ["--seconds", "2", "--ranks", "2", "--memory-kib", "30000", "--seed", str(rng.randrange(2**32))]
    run = subprocess.run([sys.executable, SOAK, *words], capture_output=True, text=True, timeout=100, check=False)
    assert run.returncode == 0 and "flat over 2 s" in run.stdout, run.stdout + run.stderr
