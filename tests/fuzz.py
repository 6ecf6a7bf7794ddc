# SPDX-License-Identifier: Apache-2.0
"""Gives the wire's decoders to libFuzzer: `python tests/fuzz.py CLANG SECONDS`, for each target (make fuzz).

A target is a C test with LLVMFuzzerTestOneInput (tests/native/fuzz.h). It begins with inputs that the plain test writes,
and what it learns stays in build/fuzz/<target>, for the next time. An input that breaks it is written to build/fuzz,
named, and ends this with an error.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from native_build import ROOT, NativeBuild

FOLDER = ROOT / "build" / "fuzz"
MEMORY_MIB = 2048
INPUT_S = 25  # longer is a hang


def targets() -> list[Path]:
    """The tests that are fuzz targets."""
    return [path for path in sorted((ROOT / "tests/native").glob("test_*.c")) if "LLVMFuzzer" in path.read_text()]


def fuzz(source: Path, clang: str, seconds: int) -> int:
    """Exit code of the fuzzer."""
    corpus = FOLDER / source.stem
    corpus.mkdir(parents=True, exist_ok=True)
    subprocess.run([NativeBuild("").program(source), str(seconds), corpus], check=True)
    program = NativeBuild("fuzzer,address,undefined", compiler=clang).program(source)
    # A process for some inputs only: what an ended context leaves mapped (arrays may be in use) adds up.
    words = ["-fork=1", f"-max_total_time={seconds}", f"-timeout={INPUT_S}", f"-rss_limit_mb={MEMORY_MIB}"]
    words += ["-ignore_timeouts=0", "-ignore_ooms=0", f"-artifact_prefix={FOLDER}/{source.stem}-"]
    options = {"ASAN_OPTIONS": "detect_leaks=0", "UBSAN_OPTIONS": "print_stacktrace=1"}
    return subprocess.run([program, *words, corpus], env={**os.environ, **options}, check=False).returncode


if __name__ == "__main__":
    sys.exit(max(fuzz(source, sys.argv[1], int(sys.argv[2])) for source in targets()))
