# SPDX-License-Identifier: Apache-2.0
"""Which files are code: with git and without, the same ones."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pmrun.errors import UsageError
from pmrun.launcher.code_package.listing import list_files

Listed = Callable[[Path], list[str]]


@pytest.fixture(params=["git", "no git"])
def listed(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Listed:
    """`list_files`, where git is installed and where it is not."""

    def call(root: Path) -> list[str]:
        with monkeypatch.context() as patch:
            if request.param == "no git":
                patch.setenv("PATH", "")
            return list_files(str(root))

    return call


def git(folder: Path, *words: str) -> None:
    subprocess.run(["git", "-C", str(folder), *words], check=True, capture_output=True)


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A repository with all that makes a difference."""
    root = tmp_path / "project"
    write(
        root,
        {
            ".gitignore": "*.log\n/data/*\n!/data/small.csv\nbuild/\n\\#odd\nspace\\ \n",
            "train.py": "", "a.log": "", "#odd": "", "space ": "", "space": "",
            "data/big.csv": "", "data/small.csv": "", "build/x/y.so": "",
            "pkg/.gitignore": "!keep.log\r\n*.tmp\r\n", "pkg/keep.log": "", "pkg/b.log": "", "pkg/c.tmp": "",
            "pkg/build": "a file, no directory", "pkg/deep/er/m.py": "",
            "pkg/__pycache__/m.pyc": "", "env/pyvenv.cfg": "", "env/bin/python": "", "environment": "",
        },
    )  # fmt: skip
    (root / "link").symlink_to("pkg")
    os.mkfifo(root / "pipe")
    git(tmp_path, "init", "-q", "project")
    git(root, "add", ".gitignore", "train.py", "pkg")
    return root


PLAIN = [
    ".gitignore", "data/small.csv", "environment", "link", "pkg/.gitignore", "pkg/build", "pkg/deep/er/m.py",
    "pkg/keep.log", "space", "train.py",
]  # fmt: skip


def files(names: list[str]) -> list[str]:
    return [name for name in names if name != "pipe"]  # whether it is one is looked at when it is packed


def test_what_is_ignored_is_left_out(listed: Listed, project: Path) -> None:
    assert files(listed(project)) == PLAIN


def test_a_directory_below_the_top_obeys_the_rules_above(listed: Listed, project: Path) -> None:
    assert listed(project / "pkg") == [".gitignore", "build", "deep/er/m.py", "keep.log"]
    assert listed(project / "pkg/deep") == ["er/m.py"]


def test_pmrunignore_has_the_last_word(listed: Listed, project: Path) -> None:
    (project / ".pmrunignore").write_text("# not for nodes\npkg/\n!pkg/b.log\n!build/\n/link\n!env/\n!__pycache__/\n")
    wanted = {".pmrunignore", "build/x/y.so", "pkg/b.log", *PLAIN} - {"link", *(n for n in PLAIN if n[:4] == "pkg/")}
    assert files(listed(project)) == sorted(wanted)


def test_repositories_inside_bring_their_own_rules(listed: Listed, project: Path) -> None:
    write(project, {"inner/.gitignore": "secret\n", "inner/secret": "", "inner/f.py": "", "gone/f.py": ""})
    git(project, "init", "-q", "inner")
    git(project, "init", "-q", "gone")
    git(project / "gone", "add", "f.py")
    git(project / "gone", "-c", "user.name=n", "-c", "user.email=e", "commit", "-qm", "x")
    git(project, "add", "gone")  # a submodule, as far as the index goes
    assert files(listed(project)) == sorted([*PLAIN, "gone/f.py", "inner/.gitignore", "inner/f.py"])


def test_tracked_files_stay_though_ignored(project: Path) -> None:
    git(project, "add", "-f", "a.log")
    assert files(list_files(str(project))) == sorted([*PLAIN, "a.log"])


def test_a_hook_s_variables_do_not_lead_astray(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_DIR", "/nonexistent")
    assert files(list_files(str(project))) == PLAIN


def test_names_that_are_no_text(listed: Listed, tmp_path: Path) -> None:
    names = sorted([b"\xff\xfe", "ü".encode(), b"new\nline", b" ", b'"', b"-rf", b"*", b"back\\slash", b"a" * 255])
    for name in names:
        with open(os.path.join(os.fsencode(tmp_path), name), "wb"):
            pass
    (tmp_path / ".gitignore").write_bytes(b"\xff*\n.gitignore\n")
    git(tmp_path, "init", "-q")
    assert [os.fsencode(name) for name in listed(tmp_path)] == [name for name in names if name != b"\xff\xfe"]


def test_what_cannot_be_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="there is no such directory"):
        list_files(str(tmp_path / "none"))
    (tmp_path / ".pmrunignore").write_text("x\n!\n")
    with pytest.raises(UsageError, match=r"\.pmrunignore: .*'!'"):
        list_files(str(tmp_path))
    monkeypatch.setitem(sys.modules, "pathspec", None)
    with pytest.raises(UsageError, match=r"run: pip install 'pmrun\[code\]'"):
        list_files(str(tmp_path))
