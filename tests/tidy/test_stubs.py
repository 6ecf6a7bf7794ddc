# SPDX-License-Identifier: Apache-2.0
"""What type checkers see is what there is: in the extension's stub, and in the package."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import pmrun


@pytest.mark.timeout(300)
def test_the_stub_equals_the_extension(root: Path, tmp_path: Path) -> None:
    allowed = tmp_path / "allowed"
    allowed.write_text(r"pmrun\._native\.__(test|pyx_capi|reduce_cython|setstate_cython)__" + "\n")
    run = subprocess.run(
        [sys.executable, "-m", "mypy.stubtest", "pmrun._native", "--allowlist", str(allowed), "--ignore-unused-allowlist"],
        cwd=tmp_path, env={**os.environ, "MYPYPATH": str(root / "src")}, text=True, capture_output=True, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout + run.stderr


@pytest.mark.timeout(300)
def test_type_checkers_find_every_public_name(root: Path, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text("import pmrun as pm\n" + "".join(f"reveal_type(pm.{name})\n" for name in pmrun.__all__))
    run = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", str(program)],
        cwd=tmp_path, env={**os.environ, "MYPYPATH": str(root / "src")}, text=True, capture_output=True, check=False,
    )  # fmt: skip
    types = [line.split("Revealed type is ")[1] for line in run.stdout.splitlines() if "Revealed type" in line]
    untyped = [name for name, kind in zip(pmrun.__all__, types, strict=True) if kind == '"Any"']
    assert (run.returncode, untyped) == (0, []), run.stdout + run.stderr
