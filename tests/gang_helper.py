# SPDX-License-Identifier: Apache-2.0
"""Runs a piece of Python on N ranks under the real `pmrun` command and brings back what each rank said.

    run = gang(4, '''
        import pmrun as pm
        from gang_report import report
        world = pm.init()
        report(world.allreduce(world.rank))
    ''')
    assert run.results == [6, 6, 6, 6]

`report(value)` gives any picklable value back to the test; printed text is in `run.outputs`, by rank.
Invariant: the command has a deadline, and nothing of it is left when `gang_run` returns or raises.
"""

from __future__ import annotations

import dataclasses
import os
import pickle
import subprocess
import sys
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

COMMAND = Path(sys.executable).parent / "pmrun"
NOTHING = object()  # the result of a rank that did not report

_REPORT = """\
import os, pathlib, pickle
from pmrun import env, init

def report(value):
    path = pathlib.Path(__file__).parent / f"result-{os.environ[env.RANK]}.pickle"
    path.write_bytes(pickle.dumps(value))
"""


@dataclasses.dataclass(frozen=True)
class GangRun:
    """What came out of one run of the command."""

    returncode: int
    stdout: str  # of the command: all ranks, tagged unless asked otherwise
    stderr: str
    outputs: list[str]  # standard output by rank
    errors: list[str]  # standard error by rank
    results: list[Any]  # what each rank gave to report(), or NOTHING

    def __str__(self) -> str:
        return f"pmrun ended with {self.returncode}\n--- stdout\n{self.stdout}\n--- stderr\n{self.stderr}"


def gang_run(
    n: int,
    body: str | Path,
    *args: str,
    directory: Path,
    options: Sequence[str] = (),
    env: Mapping[str, str] | None = None,
    stdin: str = "",
    timeout: float = 60.0,
    check: bool = True,
) -> GangRun:
    """Run `body` on `n` ranks.

    Parameters
    ----------
    body : str or Path
        Source text (indented as you like), or a script's path.
    args : str
        Arguments of the script.
    directory : Path
        Where the script, the results and the ranks' output are put; empty, and the test's own.
    options : sequence of str
        Further options of the command.
    env : mapping, optional
        Variables added to this process's own.
    check : bool
        Fail the test unless the exit code is 0.
    """
    work = directory / f"gang-{sum(1 for _ in directory.glob('gang-*'))}"
    work.mkdir()
    (work / "gang_report.py").write_text(_REPORT)
    script = work / "body.py"
    script.write_text(body.read_text() if isinstance(body, Path) else textwrap.dedent(body))
    command = [str(COMMAND), "-n", str(n), "--output-dir", str(work), *options, str(script), *args]
    run = _collect(command, {**os.environ, **(env or {})}, stdin, timeout)
    result = GangRun(
        run.returncode,
        run.stdout,
        run.stderr,
        [_text(work / f"rank-{rank}.out") for rank in range(n)],
        [_text(work / f"rank-{rank}.err") for rank in range(n)],
        [_result(work / f"result-{rank}.pickle") for rank in range(n)],
    )
    if check and run.returncode != 0:
        pytest.fail(str(result), pytrace=False)
    return result


def _collect(
    command: list[str], env: Mapping[str, str], stdin: str, timeout: float
) -> subprocess.CompletedProcess[str]:
    with subprocess.Popen(
        command, env=env, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        try:
            out, err = process.communicate(stdin, timeout=timeout)
        except subprocess.TimeoutExpired:
            process.kill()  # the ranks die with it
            out, err = process.communicate()
            pytest.fail(f"no end within {timeout} s: {command}\n--- stdout\n{out}\n--- stderr\n{err}", pytrace=False)
    return subprocess.CompletedProcess(command, process.returncode, out, err)


def _text(path: Path) -> str:
    return path.read_text(errors="replace") if path.exists() else ""


def _result(path: Path) -> object:
    return pickle.loads(path.read_bytes()) if path.exists() else NOTHING
