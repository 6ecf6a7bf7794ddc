# SPDX-License-Identifier: Apache-2.0
"""The report at the end of a gang that failed: first cause, its traceback or last lines, the others in a line.

Where the gang was stopped from outside, it tells who waited in which call instead; of a hang, all was told when it was
found (launcher/hang_report.py). Pure text from an `Outcome`. The
traceback is found in the tail of the rank's standard error, so the user's code needs no decorator and no hook.
Invariant: a gang that ended well has no report.
"""

from __future__ import annotations

import re
from typing import Final

from pmrun import wire
from pmrun.errors import ExitCode
from pmrun.launcher import stragglers
from pmrun.launcher.describe import ended, rank_list
from pmrun.launcher.gang import Cause, Kind, Outcome

LAST_LINES: Final = 20
TRACEBACK_LINES: Final = 40
LINE_CHARACTERS: Final = 400
STANDING_LINES: Final = 8

_TRACEBACK = re.compile(r"^[ |+]*(Exception Group )?Traceback \(most recent call last\):")
# Of a rank that failed because another one did, or because the gang was being stopped.
_FOLLOWS = re.compile(r"^[ |+]*(\w+\.)*(RankFailed|GangStopped|CollectiveMismatch|CollectiveTimeout)(:|$)")
_CHAINED = (
    "During handling of the above exception, another exception occurred:",
    "The above exception was the direct cause of the following exception:",
)


def compose(outcome: Outcome) -> str:
    """The report, with a newline at its end, or "" when there is nothing to say."""
    cause = outcome.cause
    lines: list[str] = []
    if cause is not None and not _reader_left(cause) and not outcome.told:
        if outcome.code == ExitCode.RESUMABLE and cause.kind in (Kind.SIGNAL, Kind.TIMEOUT, Kind.RESUMABLE):
            lines.append(f"{cause.text}; the job can be resumed: start it again to go on (exit code {outcome.code})")
        elif cause.kind is Kind.RANK:
            lines += _failed_rank(outcome, cause.rank, cause.witness, cause.text)
        elif cause.kind is Kind.MISMATCH:
            lines.append(cause.text)
            lines += _evidence(outcome, cause.witness)
        else:
            lines.append(cause.text)
            if cause.kind in (Kind.SIGNAL, Kind.TIMEOUT, Kind.RESUMABLE):
                lines += _standings(outcome, cause.kind)
            straggler = stragglers.find({rank: exited.pace for rank, exited in outcome.exits.items()})
            if cause.kind is Kind.TIMEOUT and straggler is not None:
                lines.append(f"  {straggler}")
        if cause.kind in (Kind.RANK, Kind.MISMATCH):
            culprit = outcome.exits.get(cause.rank)
            own = cause.kind is Kind.RANK and culprit is not None and culprit.status != 0
            shown = cause.rank if own else cause.witness
            lines += _others(outcome, shown)
    for node, pid in outcome.survivors:
        lines.append(f"process {pid} on {node} hangs in the kernel and did not end; look at it with ps")
    return spoken(lines)


def spoken(lines: list[str]) -> str:
    """What pmrun says: each line with its name, but for those that are indented under another one."""
    return "".join(f"pmrun: {line}\n" if not line.startswith("  ") else f"{line}\n" for line in lines)


def is_failure(outcome: Outcome) -> bool:
    """Whether somebody may want to read the report again: not where the user ended the job."""
    return outcome.cause is not None and outcome.cause.kind is not Kind.SIGNAL and not _reader_left(outcome.cause)


def headline(outcome: Outcome) -> str:
    """The same in one line, without a newline: "rank 3 (node b) was killed by SIGKILL"."""
    cause = outcome.cause
    if cause is None:
        return "all ranks ended well"
    if cause.kind is not Kind.RANK:
        return _cut(cause.text)
    exited = outcome.exits.get(cause.rank)
    who = f"rank {cause.rank} (node {outcome.node_of(cause.rank)})"
    if exited is None or exited.sent_signal:
        return _cut(f"{who} failed: {cause.text}")
    if exited.status == 0:
        return f"{who} left with exit code 0 while {rank_list([cause.witness])} still needed it"
    if exited.status < 0:
        return f"{who} was {ended(exited.status, exited.oom)}"
    shown = traceback_of(exited.err_tail.decode("utf-8", "replace"))
    return _cut(
        f"{who} ended with {ended(exited.status, exited.oom)}" + (f" ({shown[-1].strip(' |+')})" if shown else "")
    )


def _reader_left(cause: Cause) -> bool:
    """Whether pmrun's own reader went away, where other tools end silently too. A rank's code may be the same."""
    return cause.kind is Kind.OUTPUT and cause.code == ExitCode.OUTPUT_CLOSED


def traceback_of(tail: str) -> list[str]:
    """The last Python traceback in a text, with the exceptions it was chained to; [] if there is none.
    Where it is long, its middle is left out."""
    return _shortened(_last_traceback(tail))


def _last_traceback(tail: str) -> list[str]:
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
    return lines[begin:]


def _failed_rank(outcome: Outcome, rank: int, witness: int, text: str) -> list[str]:
    exited = outcome.exits.get(rank)
    node = outcome.node_of(rank)
    if exited is None:
        return [f"rank {rank} failed first: {text} (node {node})", *_evidence(outcome, witness)]
    where = f"(node {node}, pid {exited.pid})"
    if exited.status == 0:
        head = f"rank {rank} left with exit code 0 while {rank_list([witness])} still needed it {where}"
        return [head, *_evidence(outcome, witness)]
    how = ended(exited.status, exited.oom)
    if exited.sent_signal:
        how = f"{text}; it was then stopped"  # it told of its failure, and did not get to its own end
    return [f"rank {rank} failed first: {how} {where}", *_evidence(outcome, rank)]


def _evidence(outcome: Outcome, rank: int) -> list[str]:
    """Traceback or last lines of a rank, and its last call."""
    exited = outcome.exits[rank]
    whose = f"rank {rank} (node {outcome.node_of(rank)})"
    error = exited.err_tail.decode("utf-8", "replace")
    shown = traceback_of(error)
    lines: list[str] = []
    if shown:
        lines.append(f"  traceback of {whose}:")
    else:
        text = error if error.strip() else exited.out_tail.decode("utf-8", "replace")
        shown = [line for line in text.splitlines() if line.strip()][-LAST_LINES:]
        if shown:
            lines.append(f"  last lines of {whose}:")
    lines += [f"    {_cut(line)}" for line in shown]
    if exited.last_call:
        lines.append(f"  last call of {whose}: {exited.last_call}")
    return lines


def _standings(outcome: Outcome, kind: Kind) -> list[str]:
    """Who waited in which call when the ranks were stopped, and who did not.

    Ctrl-C ends programs that are well, too: there it is told only where somebody waited.
    """
    ranks: dict[wire.Standing, list[int]] = {}
    for rank, exited in sorted(outcome.exits.items()):
        if exited.standing is not None:
            ranks.setdefault(exited.standing, []).append(rank)
    waiting = any(standing.inside for standing in ranks)
    if not waiting and (kind is Kind.SIGNAL or not any(standing.call for standing in ranks)):
        return []
    ordered = sorted(ranks.items(), key=lambda item: (not item[0].inside, item[1]))
    lines = [f"  {_cut(_standing(standing, members))}" for standing, members in ordered[:STANDING_LINES]]
    rest = [rank for _, members in ordered[STANDING_LINES:] for rank in members]
    return [*lines, f"  {rank_list(rest)} elsewhere"] if rest else lines


def _standing(standing: wire.Standing, ranks: list[int]) -> str:
    one = len(ranks) == 1
    if standing.inside:
        return f"{rank_list(ranks)} {'waits' if one else 'wait'} in {standing.call}"
    if not standing.call:
        return f"{rank_list(ranks)} {'has' if one else 'have'} made no call"
    return (
        f"{rank_list(ranks)} {'is' if one else 'are'} in no call; {'its' if one else 'their'} last was {standing.call}"
    )


def _others(outcome: Outcome, shown: int) -> list[str]:
    """All that failed but the one that was shown, folded."""
    others = {rank: item for rank, item in outcome.exits.items() if rank != shown and item.status}
    followers = [rank for rank, item in others.items() if not item.sent_signal and _follows(item)]
    alike = [rank for rank, item in others.items() if not item.sent_signal and not _follows(item)]
    stopped = [rank for rank, item in others.items() if item.sent_signal]
    parts = []
    if followers:
        parts.append(f"{rank_list(followers)} failed because of it")
    if alike:
        parts.append(f"{rank_list(alike)} failed too")
    if stopped:
        parts.append(f"{rank_list(stopped)} stopped by pmrun")
    return ["  " + "; ".join(parts)] if parts else []


def _follows(exited: wire.RankExited) -> bool:
    """Whether a rank says itself that it failed because of others; else it may have failed on its own."""
    lines = _last_traceback(exited.err_tail.decode("utf-8", "replace"))
    return any(_FOLLOWS.match(line) for line in lines)


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
