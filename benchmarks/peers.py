# SPDX-License-Identifier: Apache-2.0
"""The peers as these benchmarks have them: in .venv-bench of the repository; made or removed by this script.

How each is started, and in which variants, is `pmrun bench`'s business on one machine (launcher/bench/peers.py), nodes.py's
over several. Invariant: nothing here touches the environment that pmrun is installed in.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pmrun.launcher.bench.choices import MEMORIES
from pmrun.launcher.bench.gangs import Contender, GangFailed, Run, measured, run_gang
from pmrun.launcher.bench.peers import PEERS, Environments
from pmrun.launcher.bench.record import machine

__all__ = ["MEMORIES", "Contender", "GangFailed", "Run", "measured", "run_gang"]  # for those that import this

HERE = Path(__file__).resolve().parent
ENVIRONMENTS = Environments(HERE.parent / ".venv-bench")
PMRUN = Path(sys.executable).with_name("pmrun")
TRANSPORTS = ("tcp", "zmq")  # pmrun's variants over several machines, as MEMORIES are on one


def prepare() -> None:
    """Make every environment that is not there yet."""
    for name in ENVIRONMENTS.install(list(PEERS)):
        print(f"peers: {name} could not be installed and will not be measured", file=sys.stderr)


def pmrun_contenders(ranks: int) -> list[Contender]:
    command = (str(PMRUN), "-n", str(ranks), "--no-tag")
    return [Contender("pmrun", memory, command, (), ("pmrun", memory)) for memory in MEMORIES]


def contenders(ranks: int, cores: int) -> list[Contender]:
    """Return every contender in every variant that is worth a measurement with this many ranks."""
    own = pmrun_contenders(ranks) if PMRUN.exists() else []
    return own + ENVIRONMENTS.contenders(ENVIRONMENTS.available(), ranks, cores)


def first_variants(found: Iterable[Contender]) -> dict[str, Contender]:
    """Return each name once, with the variant that comes first."""
    first: dict[str, Contender] = {}
    for contender in found:
        first.setdefault(contender.name, contender)
    return first


def machine_line() -> dict[str, Any]:
    """Where and with what a run is made: the first line of its file."""
    return {"kind": "machine", **machine(), "versions": ENVIRONMENTS.versions()}


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the environments of the peers in .venv-bench.")
    parser.add_argument("--clean", action="store_true", help="remove them instead")
    if parser.parse_args().clean:
        shutil.rmtree(ENVIRONMENTS.home, ignore_errors=True)
        return
    prepare()
    print(f"peers: ready: {', '.join(ENVIRONMENTS.available())}")


if __name__ == "__main__":
    main()
