# SPDX-License-Identifier: Apache-2.0
"""The stub of the extension says what the extension has."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.timeout(300)
def test_the_stub_equals_the_extension(root: Path, tmp_path: Path) -> None:
    allowed = tmp_path / "allowed"
    allowed.write_text(r"pmrun\._native\.__(test|pyx_capi|reduce_cython|setstate_cython)__" + "\n")
    run = subprocess.run(
        [sys.executable, "-m", "mypy.stubtest", "pmrun._native", "--allowlist", str(allowed), "--ignore-unused-allowlist"],
        cwd=tmp_path, env={**os.environ, "MYPYPATH": str(root / "src")}, text=True, capture_output=True, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout + run.stderr
