# SPDX-License-Identifier: Apache-2.0
"""Every plain C test of this folder, built against the core without Python and run.

--sanitize=address,undefined and --sanitize=thread (make asan, make tsan) build and run them instrumented,
--machine=aarch64 (make arm64) for another machine, under an emulator where there is one. A program passes by ending
with 0; what it printed is shown when it does not.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from native_build import NativeBuild
from pmrun import libzmq

PROGRAMS = sorted(Path(__file__).parent.glob("test_*.c"))
LIBRARIES = {"LIBZMQ": path} if (path := libzmq.find()) else {}
SHORTER = {"test_reduce_op": ["6"]}  # where emulated: every 6th combination
TIMEOUT_S = 550  # under a sanitizer on a busy machine; plain ones take seconds
SANITIZER_OPTIONS = {
    "ASAN_OPTIONS": "detect_leaks=1:strict_string_checks=1:detect_stack_use_after_return=1",
    "UBSAN_OPTIONS": "print_stacktrace=1",
    "TSAN_OPTIONS": "halt_on_error=1:second_deadlock_stack=1",
}


@pytest.fixture(scope="session")
def native(request: pytest.FixtureRequest) -> NativeBuild:
    return NativeBuild(request.config.getoption("--sanitize"), request.config.getoption("--machine"))


@pytest.mark.timeout(600)  # the first one compiles the core
@pytest.mark.parametrize("source", PROGRAMS, ids=lambda path: path.stem)
def test_program(source: Path, native: NativeBuild, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    seed = str(request.config.getoption("--seed"))
    program, emulator = native.program(source), native.emulator()
    if emulator and not shutil.which(emulator[0]):
        pytest.skip(f"compiled, but {emulator[0]} is not installed to run it ('apt-get install qemu-user')")
    run = subprocess.run(
        [*emulator, program, seed, *(SHORTER.get(source.stem, []) if emulator else [])],
        cwd=tmp_path,
        env={**os.environ, **SANITIZER_OPTIONS, **({} if emulator else LIBRARIES)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        timeout=TIMEOUT_S,
        check=False,
    )
    assert run.returncode == 0, f"{source.name} (seed {seed}) ended with {run.returncode}\n{run.stdout}"
