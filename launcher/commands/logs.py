# SPDX-License-Identifier: Apache-2.0
"""`pmrun logs JOB [options]`: what the ranks of a job on an engine wrote.

All of it so far, or with --follow until the job's end. Which rank wrote a line is what its tag says, which node 0 puts
there. Invariant: lines of one node come in their order, each once.
"""

from __future__ import annotations

import json
import re
import sys
import time
from datetime import datetime

from pmrun.errors import ExitCode, UsageError
from pmrun.launcher.option import RANKS_MAX, Option, parse_duration, parse_flag, whole_number
from pmrun.launcher.submission.asked import Asked
from pmrun.launcher.submission.backend import client_of, watch
from pmrun.launcher.submission.contract import Cursor, LogLine
from pmrun.launcher.submission.terminal import Terminal, shown, write

_PAGE = """\
pmrun logs JOB [options]: what the ranks of a job on an engine wrote

  --follow      until the job is over; ends with its exit code, and Ctrl-C leaves the job alone
  --rank R      lines of this rank alone (not of jobs with --no-tag)
  --since TIME  lines that are at most so old (90s, 5m, 2h), or written since then (2026-11-24T10:30:00)
  --json        an object for each line: node_rank, time_s, text
"""
_TAG = re.compile(rb"(?:\d\d:\d\d:\d\d\.\d+ )?\[ *(\d+)(?: [^\]]*)?\] ")
_RANK: Option[int | None] = Option("rank", whole_number(0, RANKS_MAX, "a rank"), None, group="", text="", metavar="R")
_FOLLOW = Option("follow", parse_flag, False, short="f", flag=True, group="", text="")
_SINCE: Option[float | None] = Option("since", lambda text: parse_since(text), None, group="", text="", metavar="TIME")


def run(argv: list[str]) -> int:
    """Print it."""
    asked = Asked(argv, _PAGE, _RANK, _FOLLOW, _SINCE)
    if asked.help:
        sys.stdout.write(asked.help)
        return ExitCode.OK
    name = asked.job()
    client = client_of(name)
    screen = _Screen(asked.values.get(_RANK), asked.values.get(_SINCE), as_json=asked.json)
    if asked.values.get(_FOLLOW):
        with screen:
            return watch(client, name, screen, "detach")
    cursor = Cursor()
    while True:
        lines, cursor = client.read_logs(name, cursor)
        if not lines:
            return ExitCode.OK
        screen.show(lines)


def parse_since(text: str) -> float:
    """Seconds since 1970."""
    try:
        return time.time() - parse_duration(text)
    except ValueError:
        pass
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        raise ValueError("give how long ago (90s, 5m, 2h), or a time (2026-11-24T10:30:00)") from None


class _Screen(Terminal):
    """Shows some of the lines."""

    def __init__(self, rank: int | None, since_s: float | None, *, as_json: bool) -> None:
        super().__init__()
        self._rank = rank
        self._since_s = since_s
        self._as_json = as_json

    def show(self, lines: list[LogLine]) -> None:
        write(b"".join(self._shown(line) for line in lines if self._wanted(line)))

    def _wanted(self, line: LogLine) -> bool:
        if self._since_s is not None:
            if line.time_s is None:
                raise UsageError("--since: this engine does not keep when a line was written; leave it out")
            if line.time_s < self._since_s:
                return False
        if self._rank is None:
            return True
        tag = _TAG.match(line.text)
        return line.node_rank == 0 and tag is not None and int(tag[1]) == self._rank

    def _shown(self, line: LogLine) -> bytes:
        if not self._as_json:
            return shown(line)
        text = line.text.decode("utf-8", "replace")
        return json.dumps({"node_rank": line.node_rank, "time_s": line.time_s, "text": text}).encode() + b"\n"
