# SPDX-License-Identifier: Apache-2.0
"""Runs the gangs that are measured: pmrun's own by the `pmrun` command, a peer's by the peer's launcher.

A gang is a process with a session of its own, so that Ctrl-C reaches it once, through here; the kernel ends it when this
process dies. Rank 0 writes JSON lines, which are told from whatever else a library prints. Invariant: no gang is left
when a function here returns or raises.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pmrun.bench
from pmrun.launcher.rank_process import die_with_parent

PACKAGE = Path(pmrun.bench.__file__).parent
ALIAS = "pmrun_bench"  # the ranks' part, as interpreters without pmrun import it
TERMINATE_S = 10.0

Line = dict[str, Any]


@dataclass(frozen=True)
class Contender:
    """One way to start a gang: a command line up to the script, and what the script's binding is told."""

    name: str  # as the report shows it
    variant: str
    command: tuple[str, ...]  # what precedes the program of a rank
    python: tuple[str, ...]  # what precedes a script or -m, after `command`
    binding: tuple[str, str]  # arguments of bindings.open_binding
    env: dict[str, str] = field(default_factory=dict)
    nodes: int = 1  # that it must find itself on

    def script(self, path: Path, *arguments: str) -> list[str]:
        """The whole command line that runs a Python script on every rank."""
        return [*self.command, *self.python, str(path), *arguments]

    def measuring(self, plan: Mapping[str, Any]) -> list[str]:
        """The whole command line that measures a plan."""
        module = "pmrun.bench" if self.binding[0] == "pmrun" else ALIAS
        return [*self.command, *self.python, "-m", module, *self.binding, json.dumps(plan)]


Run = Callable[[Contender, list[str], float], str]  # run_gang, or the like on other machines


class GangFailed(Exception):
    """A contender's gang ended with an error or had to be stopped; the text says which and shows its last lines."""


def pmrun_contender(options: list[str], memory: str, nodes: int) -> Contender:
    """pmrun as a contender, with the options of the command."""
    command = (sys.executable, "-m", "pmrun", *options)
    return Contender("pmrun", memory, command, (), ("pmrun", memory), nodes=nodes)


def parse(line: str) -> Line | None:
    """A line of rank 0's, or None for what something else printed."""
    if not line.startswith('{"kind"'):
        return None
    found: Line = json.loads(line)
    return found


@contextlib.contextmanager
def running(command: list[str], added: Mapping[str, str], *, errors: int | None) -> Iterator[subprocess.Popen[str]]:
    """A gang's process, ended with everything it started if the block raises.

    A launcher is asked to stop before it is killed: mpirun puts its ranks into process groups of their own, which only
    mpirun knows. Python may keep what it compiled, as pip did for the peers: a rank that compiles its imports anew would be
    measured for that.
    """
    env = {**os.environ, **added}
    env.pop("PYTHONDONTWRITEBYTECODE", None)
    with subprocess.Popen(
        command, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, text=True,
        start_new_session=True, preexec_fn=functools.partial(die_with_parent, os.getpid(), signal.SIGTERM),
    ) as process:  # fmt: skip
        try:
            yield process
        except KeyboardInterrupt:
            _stop(process, signal.SIGINT)
            raise
        except BaseException:
            _stop(process, signal.SIGTERM)
            raise


def _stop(process: subprocess.Popen[str], number: int) -> None:
    process.send_signal(number)
    try:
        process.communicate(timeout=TERMINATE_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)


def run_gang(contender: Contender, command: list[str], timeout_s: float) -> str:
    """Run a contender's gang to its end and return all its output; GangFailed where it fails or takes longer."""
    who = f"{contender.name} ({contender.variant})"
    try:
        with (
            tempfile.TemporaryDirectory(
                prefix="pmrun-bench-", ignore_cleanup_errors=True
            ) as own,  # torchrun leaves files
            running(command, {**contender.env, "TMPDIR": own}, errors=subprocess.STDOUT) as process,
        ):
            output, _ = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        raise GangFailed(f"{who} took more than {timeout_s:.0f} s") from None
    if process.returncode != 0:
        last = " | ".join(output.strip().splitlines()[-4:])
        raise GangFailed(f"{who} ended with {process.returncode}: {last}")
    return output


def measured(contender: Contender, plan: Mapping[str, Any], timeout_s: float, run: Run = run_gang) -> list[Line]:
    """What one gang says of a plan, once it has ended well; GangFailed where its launcher has put it elsewhere."""
    output = run(contender, contender.measuring(plan), timeout_s)
    lines = [line for line in map(parse, output.splitlines()) if line is not None]
    for line in lines:
        if line["kind"] == "world" and len(line["nodes"]) != contender.nodes:
            where = ", ".join(name for name, _ in line["nodes"])
            who = f"{contender.name} ({contender.variant})"
            raise GangFailed(f"{who} ran on {where} instead of {contender.nodes} nodes; its figures are not kept")
    return lines
