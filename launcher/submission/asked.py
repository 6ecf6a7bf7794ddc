# SPDX-License-Identifier: Apache-2.0
"""What `pmrun status`, `logs`, `cancel`, `list` and `why` were asked for, and how they answer.

Invariant: with --json the standard output is JSON and nothing else.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import msgspec

from pmrun.errors import UsageError
from pmrun.launcher.command_line import Kind, split
from pmrun.launcher.option import Option, Values, parse_flag
from pmrun.launcher.submission.contract import JobStatus

JSON = Option("json", parse_flag, False, flag=True, settable=False, group="", text="answer as JSON")
_HELP: Option[bool] = Option(
    "help", parse_flag, False, short="h", flag=True, settable=False, group="", text="print this"
)


class Asked:
    """Words and options of one command line, wherever the options stand."""

    def __init__(self, argv: list[str], page: str, *options: Option[Any]) -> None:
        self.values = Values()
        self.words: list[str] = []
        self._usage = page.partition(":")[0]
        command = " ".join(self._usage.split()[:2])
        rest = argv
        while rest:
            line = split(rest, (*options, JSON, _HELP), f"{command} --help")
            for setting in line.settings:
                try:
                    self.values.put(setting.option, setting.text)
                except ValueError as error:
                    raise UsageError(f"{setting.origin}: {error}") from None
            if line.kind in (Kind.MODULE, Kind.PROGRAM):
                raise UsageError(f"write: {self._usage}")
            self.words += line.words[:1]
            rest = list(line.words[1:])
        self.help = page if self.values.get(_HELP) else ""

    @property
    def json(self) -> bool:
        """Whether JSON is wanted."""
        return self.values.get(JSON)

    def job(self) -> str:
        """The one word that names a job."""
        if len(self.words) != 1:
            raise UsageError(f"write: {self._usage}")
        return self.words[0]

    def nothing(self) -> None:
        """There are no words."""
        if self.words:
            raise UsageError(f"write: {self._usage}")


def print_json(value: Any) -> None:
    """A struct, or a list of them."""
    json.dump(msgspec.to_builtins(value), sys.stdout, indent=2)
    print()


def described(status: JobStatus) -> list[str]:
    """A job's state, as lines."""
    head = f"{status.name}  {status.state.value}"
    head += f" (exit code {status.exit_code})" if status.exit_code is not None else ""
    lines = [head + (f"  {status.title}" if status.title else "")]
    if status.reason:
        lines.append(f"  reason   {status.reason}")
    if status.attempt:
        lines.append(f"  attempt  {status.attempt}")
    for what, at in (("created", status.created_s), ("started", status.started_s), ("ended", status.ended_s)):
        if at is not None:
            lines.append(f"  {what}  {time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(at))}")
    for node in status.nodes:
        reason = f": {node.reason}" if node.reason else ""
        lines.append(f"  node {node.node_rank}  {node.state.value}  {node.where}{reason}".rstrip())
    return lines
