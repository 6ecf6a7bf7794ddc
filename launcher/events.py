# SPDX-License-Identifier: Apache-2.0
"""--json-events: what happened to the gang, one JSON object per line, flushed at once.

Every object has "time" (seconds since the epoch) and "event"; the rest depends on the event:

    gang_starting   job_id, world_size, attempt
    rank_started    rank, node, pid: its process was made; always before its rank_exited
    gang_started    world_size: all ranks run their program
    rank_exited     rank, pid, status (exit code, or minus a signal), oom, stopped (true: pmrun had signalled it)
    first_cause     kind (rank, mismatch, start, signal, timeout, agent, output, hang), rank (-1: none), text: the one that was
                    heard of first; of failures on several nodes the report may name another one, which came first
    hang            ranks (to blame), text: ranks wait for longer than --hang-timeout; first_cause follows where that ends it
    straggler       rank, waiting, others_waiting: parts of the time, the others' the least of theirs
    gang_ended      exit_code
    restarting      attempt (the next one), delay_s, text: how the last one ended

Invariant: a file that cannot be written never ends the gang; what went wrong is told once.
"""

from __future__ import annotations

import os
import time

import msgspec

from pmrun.errors import UsageError


class EventLog:
    """The file of one job, or nothing at all."""

    def __init__(self, path: str | None) -> None:
        self._fd = -1
        self._encoder = msgspec.json.Encoder()
        self._path = path
        if path is None:
            return
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NONBLOCK  # a FIFO must not hold us
            self._fd = os.open(path, flags, 0o666)
        except OSError as error:
            raise UsageError(f"--json-events: cannot write {path!r}: {error.strerror}; name another file") from error

    def write(self, event: str, fields: dict[str, object]) -> str | None:
        """Append one event; returns a line for the user when it failed, after which nothing is written."""
        if self._fd < 0:
            return None
        line = self._encoder.encode({"time": time.time(), "event": event, **fields}) + b"\n"
        try:
            os.write(self._fd, line)
        except OSError as error:
            self.close()
            return f"--json-events: cannot write {self._path!r}: {error.strerror}; no more events are kept"
        return None

    def close(self) -> None:
        """Close the file."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
