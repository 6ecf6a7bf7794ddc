# SPDX-License-Identifier: Apache-2.0
"""The report at the end of a gang that failed: first cause, its traceback or last lines, the others in a line.

Pure text from an `Outcome`. The traceback is found in the tail of the rank's standard error, so the user's
code needs no decorator and no hook. Invariant: a gang that ended well has no report.
"""

from __future__ import annotations

import re
from typing import Final

from pmrun import wire
from pmrun.launcher.describe import ended, rank_list
from pmrun.launcher.gang import Kind, Outcome

LAST_LINES: Final = 20
TRACEBACK_LINES: Final = 40
LINE_CHARACTERS: Final = 400

_TRACEBACK = re.compile(r"^[ |+]*(Exception Group )?Traceback \(most recent call last\):")
_CHAINED = (
    "During handling of the above exception, another exception occurred:",
    "The above exception was the direct cause of the following exception:",
)


def compose(outcome: Outcome) -> str:
    """The report, with a newline at its end, or "" when there is nothing to say."""
    cause = outcome.cause
    lines: list[str] = []
    if cause is not None and cause.kind is not Kind.OUTPUT:
        if cause.kind is Kind.RANK:
            lines += _failed_rank(outcome, cause.rank, cause.witness, cause.text)
        elif cause.kind is Kind.MISMATCH:
            lines.append(cause.text)
            lines += _evidence(outcome.exits[cause.witness])
        else:
            lines.append(cause.text)
        if cause.kind in (Kind.RANK, Kind.MISMATCH):
            lines += _others(outcome, {cause.rank, cause.witness})
    for node, pid in outcome.survivors:
        lines.append(f"process {pid} on {node} hangs in the kernel and did not end; look at it with ps")
    return "".join(f"pmrun: {line}\n" if not line.startswith("  ") else f"{line}\n" for line in lines)


def traceback_of(tail: str) -> list[str]:
    """The last Python traceback in a text, with the exceptions it was chained to; [] if there is none."""
    lines = tail.splitlines()
    starts = [at for at, line in enumerate(lines) if _TRACEBACK.match(line)]
    if not starts:
        return []
    begin = starts[-1]
    for start in reversed(starts[:-1]):
        if any(line.strip(" |+") in _CHAINED for line in lines[start:begin]):
            begin = start
        else:
            break
    return _shortened(lines[begin:])


def _failed_rank(outcome: Outcome, rank: int, witness: int, text: str) -> list[str]:
    exited = outcome.exits.get(rank)
    node = outcome.node_of(rank)
    if exited is None:
        return [f"rank {rank} failed first: {text} (node {node})", *_evidence(outcome.exits[witness])]
    where = f"(node {node}, pid {exited.pid})"
    if exited.status == 0:
        head = f"rank {rank} left with exit code 0 while {rank_list([witness])} still needed it {where}"
        return [head, *_evidence(outcome.exits[witness])]
    how = ended(exited.status, exited.oom)
    if exited.sent_signal:
        how = f"{text}; it was then stopped"  # it told of its failure, and did not get to its own end
    return [f"rank {rank} failed first: {how} {where}", *_evidence(exited)]


def _evidence(exited: wire.RankExited) -> list[str]:
    """Traceback or last lines of a rank, and its last call."""
    error = exited.err_tail.decode("utf-8", "replace")
    shown = traceback_of(error)
    lines: list[str] = []
    if shown:
        lines += [f"  {_cut(line)}" for line in shown]
    else:
        text = error if error.strip() else exited.out_tail.decode("utf-8", "replace")
        last = [line for line in text.splitlines() if line.strip()][-LAST_LINES:]
        if last:
            lines.append(f"  last lines of rank {exited.rank}:")
            lines += [f"    {_cut(line)}" for line in last]
    if exited.last_call:
        lines.append(f"  last call: {exited.last_call}")
    return lines


def _others(outcome: Outcome, named: set[int]) -> list[str]:
    """Followers, folded."""
    followers = [r for r, e in outcome.exits.items() if r not in named and e.status and not e.sent_signal]
    stopped = [r for r, e in outcome.exits.items() if r not in named and e.status and e.sent_signal]
    parts = []
    if followers:
        parts.append(f"{rank_list(followers)} failed because of it")
    if stopped:
        parts.append(f"{rank_list(stopped)} stopped by pmrun")
    return ["  " + "; ".join(parts)] if parts else []


def _shortened(lines: list[str]) -> list[str]:
    while lines and not lines[-1].strip():
        lines = lines[:-1]
    if len(lines) <= TRACEBACK_LINES:
        return lines
    head = TRACEBACK_LINES // 4
    tail = TRACEBACK_LINES - head - 1
    return [*lines[:head], f"  ... {len(lines) - head - tail} lines left out ...", *lines[-tail:]]


def _cut(line: str) -> str:
    line = "".join(c if c.isprintable() or c == "\t" else "?" for c in line)
    return line if len(line) <= LINE_CHARACTERS else line[:LINE_CHARACTERS] + " ..."
