# SPDX-License-Identifier: Apache-2.0
"""Slurm's Client: asks by Slurm's commands, and reads the log where the job writes it.

A job's log is one file, on a file system that this machine shares with the nodes. Invariant: a line of it is given once
it is whole, or, without its end, once it did not grow between two looks.
"""

from __future__ import annotations

import os
from typing import ClassVar, Final

from pmrun.errors import EngineError, UsageError
from pmrun.launcher.backends.slurm import answers, request, why
from pmrun.launcher.backends.slurm.commands import Ask, checked
from pmrun.launcher.job import Job
from pmrun.launcher.submission.contract import Cursor, Finding, JobStatus, LogLine, NoSuchJob, Request

_PAGE_BYTES: Final = 1 << 20
_CUT: Final = -1  # instead of the length of an unfinished line: its beginning was given


class SlurmClient:
    """`ask` runs one of Slurm's commands."""

    calls_per_minute: ClassVar[int] = 60  # half of them read the log, which asks Slurm nothing
    settle_s: ClassVar[float] = 1.0

    def __init__(self, ask: Ask) -> None:
        self._ask = ask
        self._hosts: dict[str, tuple[str, ...]] = {}  # of a list such as "n[0-3]"

    def request(self, job: Job) -> Request:
        return request.batch(job)

    def submit(self, request: Request) -> str:
        out = checked(self._ask(request["command"], request["script"]), "sbatch")
        number = out.strip().partition(";")[0]  # of several clusters it also says which
        if not number.isdigit():
            raise EngineError(f"sbatch: it said {out.strip()!r} instead of the job's number")
        return f"slurm/{number}"

    def status(self, name: str) -> JobStatus:
        fields = self._fields(name)
        return answers.job_status(fields, self._expanded(fields.get("NodeList", "")))

    def read_logs(self, name: str, cursor: Cursor) -> tuple[list[LogLine], Cursor]:
        said = dict(cursor.positions)
        path = said.get("file") or self._fields(name).get("StdOut", "")
        offset, tail = int(said.get("offset", "0")), int(said.get("tail", "0"))
        data = _read(path, offset)
        if tail == _CUT and data.startswith(b"\n"):  # of the line that was given without it
            data, offset = data[1:], offset + 1
        whole = data.rfind(b"\n") + 1
        lines: list[bytes] = []
        if data and not whole and (len(data) == tail or len(data) == _PAGE_BYTES):
            lines, offset, tail = [data], offset + len(data), _CUT
        elif data:
            lines, offset, tail = data[:whole].split(b"\n")[:-1], offset + whole, len(data) - whole
        there = Cursor((("file", path), ("offset", str(offset)), ("tail", str(tail))))
        return [LogLine(0, None, line) for line in lines], there

    def cancel(self, name: str) -> None:
        checked(self._ask(["scancel", "--quiet", _number(name)], ""), "scancel")

    def jobs(self) -> list[JobStatus]:
        words = ["squeue", "--me", "--states=all", "--noheader", f"--format={answers.SQUEUE}"]
        return answers.read_squeue(checked(self._ask(words, ""), "squeue"), request.MARK)

    def why(self, name: str) -> list[Finding]:
        return why.explain(self._fields(name))

    # ---- details --------------------------------------------------------------------------------------

    def _fields(self, name: str) -> answers.Fields:
        number = _number(name)
        try:
            words = ["scontrol", "--oneliner", "show", "job", number]
            return answers.read_scontrol(checked(self._ask(words, ""), "scontrol"))
        except NoSuchJob:
            return self._accounted(name, number)

    def _accounted(self, name: str, number: str) -> answers.Fields:
        columns = ",".join(answers.SACCT)
        words = ["sacct", "--allocations", "--noheader", "--parsable2", f"--jobs={number}", f"--format={columns}"]
        try:
            fields = answers.read_sacct(checked(self._ask(words, ""), "sacct"))
        except NoSuchJob:
            fields = {}
        except EngineError:  # many clusters have no accounting, and many machines no sacct
            fields = {}
        if not fields:
            raise NoSuchJob(
                f"Slurm knows no job {name}: without accounting it forgets a job some minutes after its end (MinJobAge)"
            )
        return fields

    def _expanded(self, nodes: str) -> tuple[str, ...]:
        """The names of a list; this asks nobody but scontrol itself."""
        if nodes in ("", "(null)", "None assigned"):
            return ()
        if nodes not in self._hosts:
            out = checked(self._ask(["scontrol", "show", "hostnames", nodes], ""), "scontrol")
            self._hosts[nodes] = tuple(out.split())
        return self._hosts[nodes]


def _number(name: str) -> str:
    number = name.partition("/")[2]
    if not (number.isascii() and number.isdigit()):
        raise UsageError(f"{name!r} is no job of Slurm: write slurm/ and the job's number")
    return number


def _read(path: str, offset: int) -> bytes:
    try:
        with open(path, "rb") as file:
            file.seek(offset)
            return file.read(_PAGE_BYTES)
    except FileNotFoundError:
        folder = os.path.dirname(path)
        if os.path.isdir(folder):
            return b""  # the job has not begun
        raise EngineError(
            f"the job's log is {path}, and there is no {folder} on this machine: ask on one that has it"
        ) from None
    except OSError as error:
        raise EngineError(f"cannot read the job's log {path}: {error.strerror}") from None
