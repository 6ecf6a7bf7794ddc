# SPDX-License-Identifier: Apache-2.0
"""A node whose image has Python but no pmrun: a virtual environment without it, and a wheel of this tree."""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path

import pytest

from pmrun.errors import ExitCode, UsageError
from pmrun.launcher.code_package import install_and_run, stock_image
from pmrun.version import RELEASE


def brought() -> set[str]:
    """What the image has, so that no index is asked: pip, and what pmrun needs."""
    needed = [line for line in importlib.metadata.requires("pmrun") or () if "extra ==" not in line]
    names = {"pip", *(re.split(r"[^\w.-]", line, maxsplit=1)[0] for line in needed)}
    return names & {found.name for found in importlib.metadata.distributions()}


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A Python of its own, which sees of ours only what pmrun needs."""
    root = tmp_path / "image"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", root], check=True)
    site = next((root / "lib").glob("python*")) / "site-packages"
    for name in brought():
        for top in {file.parts[0] for file in importlib.metadata.files(name) or () if file.parts[0] != ".."}:
            (site / top).symlink_to(Path(sysconfig.get_path("purelib")) / top)
    return root / "bin"


def start(image: Path, words: Sequence[str], **environment: str) -> subprocess.CompletedProcess[str]:
    path = f"{image}:{os.path.dirname(shutil.which('sh') or '')}"
    return subprocess.run(
        words, env={"PATH": path, "PIP_NO_COMPILE": "1", "PIP_CONFIG_FILE": os.devnull, **environment}, text=True, capture_output=True, check=False
    )  # fmt: skip


def last_line(done: subprocess.CompletedProcess[str]) -> str:
    assert done.stdout == "" and done.stderr.count("\n") == 1, done.stdout + done.stderr
    return done.stderr.rstrip("\n")


def test_the_image_gets_pmrun_and_becomes_it(image: Path, root: Path, tmp_path: Path) -> None:
    wheelhouse = tmp_path / "wheels"
    wheelhouse.mkdir()
    words = stock_image.words(str(wheelhouse), None, ["--version"])
    source = tmp_path / "source"  # without the extension, which takes a minute to build and nobody needs here
    shutil.copytree(
        root, source, ignore=shutil.ignore_patterns(".*", "build", "tests", "_native", "*.so", "*.egg-info")
    )
    subprocess.run(
        [sys.executable, "setup.py", "--quiet", "bdist_wheel", "--dist-dir", wheelhouse],
        cwd=source, env={**os.environ, "PMRUN_PREBUILT": "1"}, capture_output=True, check=True,
    )  # fmt: skip
    done = start(image, words)
    assert done.returncode == 0 and done.stdout.startswith(f"pmrun {RELEASE} (Python"), done.stderr
    (wheelhouse / next(iter(os.listdir(wheelhouse)))).unlink()
    assert start(image, words).stdout == done.stdout  # it is there by now


def test_what_an_image_may_lack(image: Path, tmp_path: Path) -> None:
    words = stock_image.words("/no/wheels", "s3://bucket/code", ["--version"])
    assert "the wheelhouse /no/wheels is not there on this node: is its volume mounted?" in last_line(
        start(image, words)
    )
    (tmp_path / "sh").symlink_to(shutil.which("sh") or "/bin/sh")
    done = subprocess.run(words, env={"PATH": str(tmp_path)}, text=True, capture_output=True, check=False)
    assert (done.returncode, last_line(done)) == (
        ExitCode.NOT_FOUND, "pmrun: this image has no python3: use one with Python 3.10 or newer",
    )  # fmt: skip


def test_no_pip_and_no_index(image: Path, tmp_path: Path) -> None:
    words = stock_image.words(RELEASE, "s3://bucket/code", ["--version"])
    refused = start(image, words, PIP_INDEX_URL="http://127.0.0.1:1/simple", PIP_RETRIES="1")
    assert refused.returncode == ExitCode.START_FAILED
    assert (
        f"pip cannot install pmrun[s3]=={RELEASE} from the index: it cannot be reached from this node; "
        in last_line(refused)
    )
    bare = tmp_path / "bare"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", bare], check=True)
    assert "has no pip to install pmrun with; use an image" in last_line(start(bare / "bin", words))


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (
            "ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device\n",
            "no space is left on ",
        ),
        ("ERROR: No matching distribution found for pmrun==0.1\n", "it has no pmrun==0.1 for Python 3."),
        ("odd\nERROR: other\n\nhint: try again\n", "ERROR: other"),
        ("first\nlast\n", "last"),
        ("", "no reason given"),
    ],
)
def test_what_pip_says(said: str, told: str) -> None:
    assert install_and_run.reason(said).startswith(told)


def test_the_command_is_short_and_survives_engines() -> None:
    words = stock_image.words(RELEASE, None, [])
    assert sum(map(len, words)) < 3500
    assert not any("$(" in word or "Ref::" in word for word in words)
    assert install_and_run.START_FAILED == ExitCode.START_FAILED


def test_where_pmrun_is_to_come_from() -> None:
    for source in (RELEASE, "/wheels", "https://example.org/wheels"):
        assert stock_image.parse_source(source) == source
    for source, why in (("9.9", "nodes need the release that submits"), ("s3://b/wheels", "the path of a wheelhouse")):
        with pytest.raises(ValueError, match=why):
            stock_image.parse_source(source)


def test_the_releases_of_both_ends() -> None:
    stock_image.check_release(RELEASE)
    with pytest.raises(UsageError, match=rf"here is pmrun {RELEASE}, and pmrun 9.9 submitted the job: use an image"):
        stock_image.check_release("9.9")
