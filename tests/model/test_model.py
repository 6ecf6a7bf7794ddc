# SPDX-License-Identifier: Apache-2.0
"""The shared-memory protocol, model-checked: every interleaving of small worlds, by spin.

A model proves what it says at its head when the checker, having seen all states, reports no error. Each model also
has variants that lack a part of the protocol: they must fail, or the proof would prove nothing.

All variants that are asked for are checked before the first test, as many at a time as there are CPUs.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

HERE = Path(__file__).parent
TIMEOUT_S = 100
MEMORY_MIB = 1500

PROVED = [
    "flag",
    "flag ROUNDS=4 SLEEPERS=1",
    "flag SLICE",
    "flag SLICE WRITER_UNFENCED",
    "meeting CALLS=4",
    "meeting RANKS=2 CALLS=5 SLOTS=3",
    "sliced",
    "sliced RANKS=3 CALLS=1 CHUNKS=7",
    "sliced RANKS=3 CALLS=2 CHUNKS=3",
    "sliced SAME_CUTS SLOTS=3",
    "claimed CHUNKS=8",
    "claimed RANKS=3 CALLS=1 CHUNKS=8",
    "claimed RANKS=3 CHUNKS=3",
    "claimed SLOTS=2 ONE_HALF",
    "claimed UNGATED",
    "death",
    "death RANKS=2 CALLS=3 DEATHS=2",
    "death CALLS=1 DEATHS=2",
    "death RECORD_ONLY",
    "death CALLS=1 DEATHS=2 STATES_ONLY",
    "turns CALLS=2",
    "turns CHUNKS=2",
    "turns RANKS=3 CALLS=1 CHUNKS=2 DEATHS=2",
    "turns RANKS=3 CALLS=2 CHUNKS=2 DEATHS=0",
    "exchange",
    "exchange CHUNKS=2 DEATHS=2 REDUCING",
    "exchange CALLS=3 CHUNKS=2 DEATHS=0",
    "exchange RANKS=3 CALLS=1 DEATHS=0",
    "exchange RANKS=3 CALLS=1 CHUNKS=2 DEATHS=0 REDUCING",
    "rings CALLS=2",
    "rings CALLS=2 CHUNKS=2 DEATHS=2 ROOT_SLOTS=2",
    "rings CHUNKS=2 DEATHS=0",
    "rings CALLS=2 CHUNKS=4 DEATHS=0 AHEAD",
    "rings CALLS=2 AHEAD",
    "rings RANKS=3 CALLS=1 DEATHS=0 ROOT_SLOTS=2",
]
REFUTED = [
    "flag WRITER_UNFENCED",
    "flag SLEEPER_UNFENCED",
    "flag NO_REGISTRATION",
    "flag NO_COMPARE",
    "meeting CALLS=4 NO_DRAIN",
    "meeting CALLS=4 NO_DONE",
    "meeting CALLS=4 EARLY_OPEN",
    "meeting CALLS=4 SHORT_DRAIN",
    "sliced SLOTS=4",
    "sliced ONE_HALF",
    "sliced RANKS=3 CALLS=1 CHUNKS=8 SLOTS=4",
    "sliced SAME_CUTS SLOTS=2",
    "claimed SLOTS=1",
    "claimed UNGATED BARE_INDEX",
    "claimed UNGATED LATE_RESET",
    "death CALLS=1 DEATHS=2 UNBOUNDED",
    "death BLIND",
    "turns CALLS=2 TURNS=1",
    "turns CALLS=2 SHOW_AHEAD",
    "turns CALLS=2 ALWAYS_DIRECT",
    "turns CALLS=2 BLIND",
    "exchange ONE_BUFFER",
    "exchange SHOW_AHEAD",
    "exchange SILENT",
    "exchange NO_RELEASE",
    "exchange BLIND",
    "rings CALLS=2 DEATHS=0 SLOTS=1",
    "rings CALLS=2 NO_DRAIN",
    "rings CALLS=2 CHUNKS=4 EARLY_ROOM",
    "rings CALLS=2 CHUNKS=4 EARLY_OUT",
    "rings CALLS=2 CHUNKS=4 AHEAD EARLY_ROOM",
    "rings CALLS=2 BLIND",
]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(300),  # of the first test, which waits for all
    pytest.mark.skipif(not shutil.which("spin"), reason="spin is not installed ('apt-get install spin')"),
]


def run(*command: str, folder: Path) -> str:
    done = subprocess.run(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=TIMEOUT_S, check=False
    )
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}"
    return done.stdout


def check(variant: str, folder: Path) -> tuple[int, str]:
    """Number of errors that the checker found in `variant` ("model NAME NAME=VALUE"), and all it said."""
    model, *defines = variant.split()
    run("spin", "-a", *(f"-D{define}" for define in defines), str(HERE / f"{model}.pml"), folder=folder)
    options = ["-DSAFETY", "-DCOLLAPSE", "-DVECTORSZ=2048", f"-DMEMLIM={MEMORY_MIB}"]
    effort = "-O2" if variant in PROVED else "-O0"  # an error is found long before the compiler would pay
    run("cc", effort, "-w", *options, "pan.c", "-o", "pan", folder=folder)
    said = run("./pan", "-m100000", "-n", folder=folder)
    found = re.search(r"errors: (\d+)", said)
    assert found, said
    return int(found[1]), said


Answers = dict[str, Future[tuple[int, str]]]


@pytest.fixture(scope="module")
def answers(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Answers:
    """What the checker says of each variant that one of the selected tests asks for."""
    tests = [item for item in request.session.items if isinstance(item, pytest.Function) and item.path == request.path]
    wanted = [item.callspec.params["variant"] for item in tests if "variant" in item.fixturenames]
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        return {variant: pool.submit(check, variant, tmp_path_factory.mktemp("model")) for variant in wanted}


@pytest.mark.parametrize("variant", PROVED)
def test_proved(variant: str, answers: Answers) -> None:
    errors, said = answers[variant].result()
    assert errors == 0, said
    # all states were seen, and a world without steps has no errors either
    assert "max search depth too small" not in said, said
    assert "Search not completed" not in said, said
    states = re.search(r"(\d+) states, stored", said)
    assert states, said
    assert int(states[1]) > 1000, said


@pytest.mark.parametrize("variant", REFUTED)
def test_refuted(variant: str, answers: Answers) -> None:
    errors, said = answers[variant].result()
    assert errors > 0, said
    assert "assertion violated" in said or "invalid end state" in said, said


def test_each_model_is_proved_and_refuted() -> None:
    models = {path.stem for path in HERE.glob("*.pml")}
    for variants in (PROVED, REFUTED):
        assert {variant.split()[0] for variant in variants} == models
