# SPDX-License-Identifier: Apache-2.0
"""`pmrun agent --code`: a node works in what was submitted, and leaves nothing of it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pmrun.errors import ExitCode
from pmrun.launcher.code_package.archive import pack
from pmrun.launcher.code_package.place_directory import Directory
from pmrun.version import RELEASE


@pytest.fixture
def address(tmp_path: Path) -> str:
    (tmp_path / "code" / "pkg").mkdir(parents=True)
    (tmp_path / "code" / "pkg" / "__init__.py").write_text("WORD = 'packed'\n")
    (tmp_path / "code" / "pmrun.toml").write_text("code = '.'\n")
    (tmp_path / "code" / "msgspec.py").write_text("raise ImportError('of the program, not of pmrun')\n")
    (tmp_path / "code" / "train.py").write_text(
        "import os, sys, pkg; open('made', 'w').close(); print(pkg.WORD, os.getcwd()); sys.exit(int(sys.argv[1]))"
    )
    place = Directory(str(tmp_path))
    with pack(str(tmp_path / "code")) as package:
        place.keep(package)
        return place.address(package.digest)


def node(tmp_path: Path, *words: str) -> subprocess.CompletedProcess[str]:
    (tmp_path / "tmp").mkdir()
    return subprocess.run(
        [sys.executable, "-m", "pmrun", "agent", *words], cwd=tmp_path, text=True, capture_output=True, check=False,
        env={**os.environ, "TMPDIR": str(tmp_path / "tmp"), "PMRUN_SECRET": "5" * 64},
    )  # fmt: skip


ALONE = ("--submitted-by", RELEASE, "-n", "1", "--nnodes", "1", "--node-rank", "0")


def test_a_node_works_in_the_code(tmp_path: Path, address: str) -> None:
    done = node(tmp_path, *ALONE, "--no-tag", "--code", address, "train.py", "3")
    folder = done.stdout.removeprefix("packed ").rstrip("\n")
    assert done.returncode == 3 and folder.startswith(f"{tmp_path}/tmp/pmrun-code-"), done.stdout + done.stderr
    assert f" has the code of {address} in {folder}\n" in done.stderr
    assert not os.listdir(tmp_path / "tmp")


def test_a_package_that_is_not_there(tmp_path: Path) -> None:
    done = node(tmp_path, *ALONE, "--code", f"/nonexistent/{'0' * 64}.tar.gz", "train.py")
    assert done.returncode == ExitCode.START_FAILED
    assert done.stderr.startswith("pmrun: cannot read the code package /nonexistent/") and done.stderr.count("\n") == 1


def test_another_release_submitted_the_job(tmp_path: Path) -> None:
    done = node(tmp_path, "--submitted-by", "9.9", "--an-option-of-9.9", "train.py")
    assert done.returncode == ExitCode.USAGE
    assert done.stderr.startswith(f"pmrun: here is pmrun {RELEASE}, and pmrun 9.9 submitted the job: ")
