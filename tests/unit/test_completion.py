# SPDX-License-Identifier: Apache-2.0
"""Completion: every shell's script parses, knows every option, and stops where the user's program begins."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from pmrun.launcher import cli
from pmrun.launcher.bench.choices import TABLE
from pmrun.launcher.options import OPTIONS

SHELLS = ("bash", "zsh", "fish")

# bash itself fills these in when Tab is pressed; compopt works only then
_PRESS_TAB = """
compopt() { :; }
source "$1"; shift
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1))
_pmrun
printf '%s\\n' "${COMPREPLY[@]}"
"""

COMMANDS = ["agent", "attach", "bench", "cancel", "explain-last", "list", "logs", "secret", "status", "why"]


@pytest.fixture
def script(request: pytest.FixtureRequest, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    assert cli.main(["--completion", request.param]) == 0
    path = tmp_path / f"completion.{request.param}"
    path.write_text(capsys.readouterr().out)
    return path


@pytest.mark.parametrize("script", SHELLS, indirect=True)
def test_every_option_is_known(script: Path) -> None:
    text = script.read_text()
    for option in (*OPTIONS, *TABLE):
        assert f"-{option.name}" in text or f"-l {option.name}" in text or f"-s {option.name}" in text


@pytest.mark.parametrize("script", SHELLS, indirect=True)
def test_the_shell_accepts_it(script: Path) -> None:
    shell = script.suffix[1:]
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    run = subprocess.run([shell, "-n", str(script)], capture_output=True, text=True, check=False)
    assert (run.returncode, run.stderr) == (0, "")


@pytest.mark.parametrize("script", ["bash"], indirect=True)
@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["--gr"], ["--grace"]),
        (["--no-t"], ["--no-tag", "--no-timestamp"]),
        (["--map-by", "c"], ["core"]),
        (["--map-by", "=", ""], ["core", "none"]),
        (["--map-by", "=", "no"], ["none"]),
        (["--map-by", "="], ["core", "none"]),
        (["--map-by", "=", "core", "--bind"], ["--bind-to"]),
        (["--stdin", ""], ["0", "all", "none"]),
        (["-n", "4", "--json"], ["--json-events"]),
        (["-n", "a"], ["auto"]),
        (["--grace", ""], [""]),
        (["tr"], ["train.py"]),
        (["--cwd", ""], ["folder"]),
        ([""], ["train.py", "folder", *COMMANDS]),
        (["b"], ["bench"]),
        (["-n", "2", "b"], [""]),
        (["bench", "--peers"], ["--peers", "--peers-dir"]),
        (["bench", "--peers", "m"], ["mpich"]),
        (["bench", "-n", "2", "allr"], ["allreduce"]),
        (["bench", "allreduce", "--hostf"], ["--hostfile"]),
        (["bench", "--op", "=", "pr"], ["prod"]),
        (["-n", "2", "bench", "--peers"], [""]),
        (["train.py", "--gr"], [""]),
        (["-n", "4", "train.py", "--gr"], [""]),
        (["-m", "pkg", "--gr"], [""]),
        (["--", "true", "--gr"], [""]),
    ],
)
def test_what_bash_offers(words: list[str], offered: list[str], script: Path, tmp_path: Path) -> None:
    here = tmp_path / "here"
    (here / "folder").mkdir(parents=True)
    (here / "train.py").touch()
    (here / "notes.txt").touch()
    run = subprocess.run(
        ["bash", "-c", _PRESS_TAB, "bash", str(script), "pmrun", *words],
        cwd=here, env={"PATH": os.environ["PATH"]}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert run.stdout.splitlines() == offered
    assert run.stderr == ""


@pytest.mark.parametrize("script", ["fish"], indirect=True)
@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("pmrun --gr", ["--grace"]),
        ("pmrun -n 4 --no-ta", ["--no-tag"]),
        ("pmrun --map-by c", ["core"]),
        ("pmrun be", ["bench"]),
        ("pmrun bench allreduce --peers-", ["--peers-dir"]),
        ("pmrun bench --hostf", ["--hostfile"]),
        ("pmrun bench --op pr", ["prod"]),
        ("pmrun bench -n 2 allr", ["allreduce"]),
        ("pmrun train.py --peers-", []),
        ("pmrun train.py --gr", []),
        ("pmrun -m pkg --gr", []),
    ],
)
def test_what_fish_offers(line: str, offered: list[str], script: Path, tmp_path: Path) -> None:
    if shutil.which("fish") is None:
        pytest.skip("fish is not installed")
    run = subprocess.run(
        ["fish", "--no-config", "-c", f"source {script}; complete -C '{line}'"],
        cwd=tmp_path, env={"PATH": os.environ["PATH"], "HOME": str(tmp_path)}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert [line.split("\t")[0] for line in run.stdout.splitlines()] == offered
