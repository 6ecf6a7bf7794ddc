# SPDX-License-Identifier: Apache-2.0
"""The transports between nodes beside the plain TCP socket under them: wire.c, built without Python, on this machine.

Two processes over the loop-back interface, both ways at once; each contender in turn, best of several rounds. Printed
as a table with the ratio to the plain socket; the figures go to build/bench/wire.json as well.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

from pmrun import libzmq

ROOT = Path(__file__).resolve().parent.parent
OUTPUT = ROOT / "build" / "bench" / "wire.json"
PROGRAM = ROOT / "build" / "bench" / "wire"
FLAGS = ("-std=c11", "-D_GNU_SOURCE", "-O3", "-g1", "-ffp-contract=off", "-fno-math-errno", "-pthread")


def build(program: Path, *sources: str) -> None:
    """A program of this folder with the core, all in one call: a minute at most, and nothing to keep up to date."""
    core = sorted(path for path in (ROOT / "_native").rglob("*.c") if path.parent.name != "bindings")
    program.parent.mkdir(parents=True, exist_ok=True)
    words = ["cc", *FLAGS, f"-I{ROOT / '_native'}", *(str(ROOT / "benchmarks" / name) for name in sources)]
    subprocess.run([*words, *map(str, core), "-o", str(program), "-lm", "-ldl"], check=True)


def measure(transports: list[str]) -> dict[str, dict[int, tuple[float, float]]]:
    """(microseconds per exchange, GB/s and direction) by contender and bytes."""
    words = [str(PROGRAM), libzmq.find() or "", *transports]
    run = subprocess.run(words, text=True, stdout=subprocess.PIPE, check=True, timeout=600)
    figures: dict[str, dict[int, tuple[float, float]]] = {}
    for line in run.stdout.splitlines():
        name, size, microseconds, rate = line.split()
        figures.setdefault(name, {})[int(size)] = (float(microseconds), float(rate))
    return figures


def main() -> int:
    parser = argparse.ArgumentParser(description="Compare the transports with a plain TCP socket.")
    parser.add_argument("transports", nargs="*", default=["tcp", "zmq"], help="which (tcp, zmq)")
    transports = parser.parse_args().transports
    build(PROGRAM, "wire.c")
    figures = measure(transports)
    print("| bytes | " + " | ".join(f"{name} us | GB/s | x plain" for name in figures) + " |")
    print("|" + "---|" * (1 + 3 * len(figures)))
    for size, (plain_us, _) in figures["plain"].items():
        cells = [
            f"{us:.1f} | {rate:.2f} | {us / plain_us:.2f}" for us, rate in (each[size] for each in figures.values())
        ]
        print(f"| {size} | " + " | ".join(cells) + " |")
    OUTPUT.write_text(json.dumps(figures))
    return 0


if __name__ == "__main__":
    sys.exit(main())
