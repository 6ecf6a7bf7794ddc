# SPDX-License-Identifier: Apache-2.0
"""The log of a job: CloudWatch streams of its nodes, one for each attempt.

The main node's streams, which hold the output of all ranks, are read page by page by their tokens. The others hold a
few lines of their agents and are read together, by time, and only while the main node says nothing new: so a page of
output costs one call, and silence two. Where a stream was read to is kept in the cursor: a token, or the time of the
last line and how many lines have it. Invariant: lines of a stream come in its order, each once.
"""

from __future__ import annotations

from typing import Any, Final

from pmrun.launcher.aws_batch.trouble import Refused, told
from pmrun.launcher.submission.contract import Cursor, LogLine

GROUP: Final = "/aws/batch/job"
_STREAMS_MAX: Final = 100  # that one call takes
_DONE: Final = "done"


class Streams:
    """The streams of one job, as far as they are known.

    Attributes
    ----------
    main : list of (str, bool)
        The main node's, by attempt; whether the container has ended.
    others : list of (int, str)
        Node and stream of all others.
    """

    def __init__(self, main: list[tuple[str, bool]], others: list[tuple[int, str]]) -> None:
        self.main = main
        self.others = others


def read(logs: Any, streams: Streams, cursor: Cursor) -> tuple[list[LogLine], Cursor]:
    """One page of what came after `cursor`."""
    positions = dict(cursor.positions)
    for name, ended in streams.main:
        if positions.get(name) == _DONE:
            continue
        lines = _page(logs, name, positions)
        if lines:
            return lines, Cursor(tuple(positions.items()))
        if ended and name != streams.main[-1][0]:
            positions[name] = _DONE  # the next attempt's follows
        else:
            break
    lines = []
    for first in range(0, len(streams.others), _STREAMS_MAX):
        lines += _others(logs, streams.others[first : first + _STREAMS_MAX], positions)
    return lines, Cursor(tuple(positions.items()))


def _page(logs: Any, name: str, positions: dict[str, str]) -> list[LogLine]:
    request = {"logGroupName": GROUP, "logStreamName": name, "startFromHead": True}
    if name in positions:
        request["nextToken"] = positions[name]
    try:
        with told("read the log"):
            page = logs.get_log_events(**request)
    except Refused as error:
        if error.code == "ResourceNotFoundException":
            return []  # nothing was written yet
        raise
    positions[name] = page["nextForwardToken"]
    return [_line(0, event) for event in page["events"]]


def _others(logs: Any, streams: list[tuple[int, str]], positions: dict[str, str]) -> list[LogLine]:
    """What several streams have that was not seen; they are asked for from the oldest of their last lines on."""
    nodes = {name: node for node, name in streams}
    seen = {name: _moment(positions.get(name)) for name in nodes}
    request = {"logGroupName": GROUP, "logStreamNames": list(nodes), "startTime": min(at for at, _ in seen.values())}
    lines: list[LogLine] = []
    counts: dict[str, tuple[int, int]] = {}  # by stream: the last time, and how many lines had it so far
    while True:
        try:
            with told("read the log"):
                page = logs.filter_log_events(**request)
        except Refused as error:
            if error.code == "ResourceNotFoundException":
                return []
            raise
        for event in page["events"]:
            name, at = event["logStreamName"], event["timestamp"]
            before = counts.get(name, (0, 0))
            counts[name] = (at, before[1] + 1 if before[0] == at else 1)
            if counts[name] > seen[name]:
                positions[name] = f"{at}/{counts[name][1]}"
                lines.append(_line(nodes[name], event))
        if "nextToken" not in page:
            return lines
        request["nextToken"] = page["nextToken"]


def _moment(position: str | None) -> tuple[int, int]:
    at, _, count = (position or "0/0").partition("/")
    return int(at), int(count)


def _line(node: int, event: dict[str, Any]) -> LogLine:
    return LogLine(node, event["timestamp"] / 1000, event["message"].encode())
