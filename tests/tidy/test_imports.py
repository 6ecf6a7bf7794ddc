# SPDX-License-Identifier: Apache-2.0
"""Imports: every module stands alone, and the command line loads nothing heavy."""

from __future__ import annotations

import subprocess
import sys

import pytest
import source_tree

HEAVY = ("pmrun._native", "numpy", "zmq", "boto3", "kubernetes", "rich", "asyncio", "click", "torch")
MODULES = [source_tree.module_name(path) for path in source_tree.having(".py", under=("src", "launcher"))]


def python(code: str) -> subprocess.CompletedProcess[str]:
    """Isolated: neither the current directory nor the environment helps an import; a warning is an error."""
    return subprocess.run(
        [sys.executable, "-I", "-W", "error", "-c", code], text=True, capture_output=True, check=False
    )


@pytest.mark.parametrize("name", sorted(MODULES))
def test_every_module_can_be_imported_first(name: str) -> None:
    run = python(f"import {name}")
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize("name", ["pmrun", "pmrun.env", "pmrun.errors", "pmrun.launcher.cli"])
def test_light_modules_load_nothing_heavy(name: str) -> None:
    run = python(f"import sys, {name}; print(*(set({HEAVY!r}) & set(sys.modules)))")
    assert (run.returncode, run.stdout.strip()) == (0, ""), run.stderr


def test_the_local_backend_loads_no_numbers_and_no_network() -> None:
    run = python(f"import sys, pmrun.launcher.backends.local; print(*(set({HEAVY!r}) & set(sys.modules)))")
    assert (run.returncode, run.stdout.strip()) == (0, ""), run.stderr
