# SPDX-License-Identifier: Apache-2.0
"""What the fingerprint and the flight recorder cost: an 8-byte allreduce on 2 ranks, with and without them.

Builds the core once more with PMR_WITHOUT_RECORDS in build/without-records, then runs the two builds in turn. The look-up
of the call site in the bindings is in both. Each gang makes many short loops, of which the fastest quarter counts, and each build's
fastest gang: what else runs, and the phases of the machine's caches, only ever add. Invariant: builds take turns.

    python benchmarks/bench_records.py [--rounds 10]
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BARE = ROOT / "build" / "without-records"
WORKER = """
import time
import numpy as np
import pmrun as pm
world = pm.init()
x = np.ones(2, np.float32)
def per_call(calls=1000):
    world.barrier()
    world.barrier()
    start = time.perf_counter()
    for _ in range(calls):
        world.allreduce(x, out=x)
    return (time.perf_counter() - start) / calls * 1e9
loops = world.allreduce(np.array([per_call() for _ in range(80)]), op="max")
if world.rank == 0:
    print(float(np.sort(loops)[20]))
"""


def build() -> None:
    """The same sources, compiled with PMR_WITHOUT_RECORDS."""
    shutil.rmtree(BARE, ignore_errors=True)
    BARE.mkdir(parents=True)
    for name in ("src", "launcher", "_native"):
        shutil.copytree(ROOT / name, BARE / name, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, BARE / name)
    environment = {**os.environ, "CFLAGS": "-DPMR_WITHOUT_RECORDS"}
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    subprocess.run(command, cwd=BARE, env=environment, check=True, capture_output=True)
    (BARE / "src" / "pmrun" / "launcher").symlink_to(BARE / "launcher")  # the package as installed


def measure(source: Path | None) -> float:
    """Nanoseconds per call, of the slower rank; None: of pmrun as installed."""
    worker = BARE / "worker.py"
    worker.write_text(WORKER)
    environment = {**os.environ, "PYTHONPATH": str(source)} if source else dict(os.environ)
    command = [str(Path(sys.executable).parent / "pmrun"), "--no-tag", "-n", "2", str(worker)]
    run = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    return float(run.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=10)
    rounds = parser.parse_args().rounds
    build()
    records, bare = [], []
    for number in range(rounds):
        records.append(measure(None))
        bare.append(measure(BARE / "src"))
        print(f"round {number + 1}: {records[-1]:.0f} ns with, {bare[-1]:.0f} ns without")
    ratios = [one / other for one, other in zip(records, bare, strict=True)]
    print(f"ratio of the fastest {min(records) / min(bare):.3f}, median of the rounds {statistics.median(ratios):.3f}")


if __name__ == "__main__":
    main()
