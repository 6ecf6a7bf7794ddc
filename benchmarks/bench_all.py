# SPDX-License-Identifier: Apache-2.0
"""`make bench`: every benchmark in turn, then the page and the plot. Options are passed on (`--quick`)."""

from __future__ import annotations

import argparse
import subprocess
import sys

import peers

STEPS = ("bench_start.py", "bench_overhead.py", "bench_collectives.py")


def main() -> int:
    parser = argparse.ArgumentParser(description="Run all benchmarks and write RESULTS.md.")
    parser.add_argument("--quick", action="store_true", help="a smoke run: the figures mean little")
    passed_on = ["--quick"] if parser.parse_args().quick else []
    peers.prepare()
    worst = 0
    for step in STEPS:
        print(f"== {step}", flush=True)
        worst = max(worst, subprocess.run([sys.executable, str(peers.HERE / step), *passed_on], check=False).returncode)
    report = subprocess.run([sys.executable, str(peers.HERE / "bench_report.py")], check=False).returncode
    return max(worst, report)


if __name__ == "__main__":
    sys.exit(main())
