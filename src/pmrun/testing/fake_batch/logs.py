# SPDX-License-Identifier: Apache-2.0
"""CloudWatch Logs, as far as the logs of a job's nodes need it: streams of lines, read in pages by tokens.

Each container has a stream of its own. A line is an event; one that is longer than an event may be is cut. The last
page of a stream is told as AWS does: the token that leads on is the one that was given. Invariant: events of a stream
are in the order in which their lines ended.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from typing import Any, Final

from pmrun.testing.fake_batch.errors import Refused

GROUP: Final = "/aws/batch/job"
_EVENT_BYTES_MAX: Final = 256 * 1024 - 26
_PAGE_MAX: Final = 10_000
_STREAMS_MAX: Final = 50
_FILTERED_MAX: Final = 100
_NAME: Final = re.compile(r"[^:*]{1,512}")


class Stream:
    """What one container wrote."""

    def __init__(self) -> None:
        self.created_ms = _now_ms()
        self.events: list[dict[str, Any]] = []
        self._rest = b""

    def write(self, data: bytes) -> None:
        """Whole lines become events."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            self._add(line)
        while len(self._rest) >= _EVENT_BYTES_MAX:
            self._add(self._rest[:_EVENT_BYTES_MAX])
            self._rest = self._rest[_EVENT_BYTES_MAX:]

    def close(self) -> None:
        """What was no whole line is one now."""
        if self._rest:
            self._add(self._rest)
            self._rest = b""

    def _add(self, line: bytes) -> None:
        now = _now_ms()
        for start in range(0, max(1, len(line)), _EVENT_BYTES_MAX):
            text = line[start : start + _EVENT_BYTES_MAX].decode(errors="replace")
            self.events.append({"timestamp": now, "message": text, "ingestionTime": now})


class LogsApi:
    """The service's operations, by their names in Python."""

    def __init__(self) -> None:
        self._groups: dict[str, dict[str, Stream]] = {GROUP: {}}

    def stream(self, group: str, name: str) -> Stream:
        """A new stream."""
        made = self._groups.setdefault(group, {})[name] = Stream()
        return made

    def describe_log_streams(self, request: Mapping[str, Any]) -> dict[str, Any]:
        streams = self._group(request)
        prefix = request.get("logStreamNamePrefix", "")
        if prefix and request.get("orderBy") == "LastEventTime":
            raise Refused("InvalidParameterException", "Cannot order by LastEventTime with a logStreamNamePrefix.")
        found = sorted(
            (_described(name, stream) for name, stream in streams.items() if name.startswith(prefix)),
            key=lambda item: (
                item.get("lastEventTimestamp", 0) if request.get("orderBy") == "LastEventTime" else 0,
                item["logStreamName"],
            ),
            reverse=bool(request.get("descending")),
        )
        limit = request.get("limit", _STREAMS_MAX)
        first = int(request.get("nextToken", "0"))
        answer: dict[str, Any] = {"logStreams": found[first : first + limit]}
        if first + limit < len(found):
            answer["nextToken"] = str(first + limit)
        return answer

    def get_log_events(self, request: Mapping[str, Any]) -> dict[str, Any]:
        name = request.get("logStreamName", "")
        if not _NAME.fullmatch(name):
            raise Refused("InvalidParameterException", f"'{name}' is no name of a log stream")
        stream = self._group(request).get(name)
        if stream is None:
            raise Refused("ResourceNotFoundException", "The specified log stream does not exist.")
        events, limit = stream.events, request.get("limit", _PAGE_MAX)
        token = re.fullmatch(r"([fb])/(\d+)", request.get("nextToken", ""))
        if request.get("nextToken") and token is None:
            raise Refused("InvalidParameterException", "The specified nextToken is invalid.")
        if token is not None and token[1] == "f":
            first = int(token[2])
        elif token is not None:
            first = max(0, int(token[2]) - limit)
        else:
            first = 0 if request.get("startFromHead") else max(0, len(events) - limit)
        last = int(token[2]) if token is not None and token[1] == "b" else min(len(events), first + limit)
        since, until = request.get("startTime", 0), request.get("endTime", float("inf"))
        page = [event for event in events[first:last] if since <= event["timestamp"] < until]
        return {"events": page, "nextForwardToken": f"f/{last}", "nextBackwardToken": f"b/{first}"}

    def filter_log_events(self, request: Mapping[str, Any]) -> dict[str, Any]:
        streams = self._group(request)
        names = request.get("logStreamNames") or sorted(streams)
        if len(names) > _FILTERED_MAX or request.get("filterPattern"):
            raise Refused(
                "InvalidParameterException", f"this fake filters up to {_FILTERED_MAX} streams by name and time"
            )
        if not set(names) <= set(streams):
            raise Refused("ResourceNotFoundException", "The specified log stream does not exist.")
        since, until = request.get("startTime", 0), request.get("endTime", float("inf"))
        found = [
            {**event, "logStreamName": name, "eventId": f"{name}/{number}"}
            for name in names
            for number, event in enumerate(streams[name].events)
            if since <= event["timestamp"] < until
        ]
        found.sort(key=lambda event: int(event["timestamp"]))
        first, limit = int(request.get("nextToken", "0")), request.get("limit", _PAGE_MAX)
        answer: dict[str, Any] = {"events": found[first : first + limit], "searchedLogStreams": []}
        if first + limit < len(found):
            answer["nextToken"] = str(first + limit)
        return answer

    def _group(self, request: Mapping[str, Any]) -> dict[str, Stream]:
        streams = self._groups.get(request.get("logGroupName", ""))
        if streams is None:
            raise Refused("ResourceNotFoundException", "The specified log group does not exist.")
        return streams


def _described(name: str, stream: Stream) -> dict[str, Any]:
    described = {"logStreamName": name, "creationTime": stream.created_ms, "storedBytes": 0}
    if stream.events:
        described["firstEventTimestamp"] = stream.events[0]["timestamp"]
        described["lastEventTimestamp"] = described["lastIngestionTime"] = stream.events[-1]["timestamp"]
    return described


def _now_ms() -> int:
    return int(time.time() * 1000)
