# SPDX-License-Identifier: Apache-2.0
"""The scripts that strike gangs and count what is left, on a few gangs each; benchmarks/ gives more of them by hand."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import machines

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def out(tmp_path):
    return tmp_path / "lines.jsonl"


@pytest.fixture
def bench(out):
    """Run a script to its end: what it printed, and the lines of its file."""
    if machines.why_not():
        pytest.skip(machines.why_not())

    def go(name, *words):
        command = [sys.executable, str(BENCHMARKS / name), "--out", str(out), *words]
        run = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
        assert run.returncode == 0, run.stdout + run.stderr
        return run.stdout, [json.loads(line) for line in out.read_text().splitlines()]

    return go


@pytest.mark.slow
def test_deaths_in_slices(bench, out, rng):
    seed = rng.randrange(10**6)
    earlier = {"kind": "death", "where": "1", "seed": seed, "how": "aborts", "problem": "", "left": []}
    out.write_text(json.dumps({**earlier, **dict.fromkeys(("gone_s", "told_s", "ended_s", "clean_s"), 0.5)}) + "\n")
    printed, lines = bench("bench_deaths.py", "--append", "--count", "2", "--seed", str(seed))
    assert "2 of 2 blamed rightly, with the right code and nothing left" in printed
    assert [line["seed"] for line in lines] == [seed, seed + 1], "the first was there already"


@pytest.mark.slow
def test_losses(bench, rng):
    words = ("--count", "1", "--seed", str(rng.randrange(10**6)), "--only", "an agent is killed", "--slack", "20")
    printed, (line,) = bench("bench_losses.py", *words)
    assert "1 of 1 told rightly and in time, with nothing left" in printed
    assert line["gone_s"] <= line["clean_s"] and line["told_s"] <= line["ended_s"] < 10
