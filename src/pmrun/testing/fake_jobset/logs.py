# SPDX-License-Identifier: Apache-2.0
"""What a container wrote, with the time of each line, as kubelets keep it and `pods/log` shows it.

One writer, the loop; any number of readers. A reader has a descriptor of its own, so what was written can be read to
its end after the pod is gone. Invariant: the file holds whole records, `length, nanoseconds, bytes`, a line each; a line
that has no end yet is not written, or, when it is longer than 16 KiB, in pieces that readers join.
"""

from __future__ import annotations

import os
import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, Final, NamedTuple

from pmrun.testing.fake_jobset.times import log_stamp

_HEAD: Final = struct.Struct("<IQ")
_LONGEST: Final = 16_384
_AT_ONCE: Final = 512
_LOOK_S: Final = 0.5  # for a reader that is to notice that it was broken off


class Wanted(NamedTuple):
    """What a request for a log asks for."""

    since_s: float = 0.0
    tail: int = -1  # so many last lines; -1: all
    timestamps: bool = False
    follow: bool = False
    limit_bytes: int = -1


class Log:
    """Of one run of one container."""

    def __init__(self, path: Path, clock_ns: Callable[[], int] = time.time_ns) -> None:
        self._path = path
        self._clock_ns = clock_ns
        self._file = path.open("wb", buffering=0)
        self._rest = b""
        self._grown = threading.Condition()
        self._ended = False

    def write(self, data: bytes) -> None:
        """More output."""
        lines = (self._rest + data).split(b"\n")
        self._rest = lines.pop()
        records = [_record(self._clock_ns(), line + b"\n") for line in lines]
        while len(self._rest) >= _LONGEST:
            records.append(_record(self._clock_ns(), self._rest[:_LONGEST]))
            self._rest = self._rest[_LONGEST:]
        if records:
            self._file.write(b"".join(records))
            with self._grown:
                self._grown.notify_all()

    def end(self) -> None:
        """Nothing more comes."""
        if self._ended:
            return
        if self._rest:
            self._file.write(_record(self._clock_ns(), self._rest))
        self._file.close()
        with self._grown:
            self._ended = True
            self._grown.notify_all()

    def remove(self) -> None:
        """Its pod is gone; whoever reads it reads on."""
        self.end()
        self._path.unlink(missing_ok=True)

    def read(self, wanted: Wanted, broken: Callable[[], bool]) -> Iterator[bytes]:
        """Pieces of the log; a follower waits for more until the end, or until it is to break off."""
        file = self._path.open("rb")
        return self._pieces(file, wanted, broken)

    def _pieces(self, file: BinaryIO, wanted: Wanted, broken: Callable[[], bool]) -> Iterator[bytes]:
        sent = 0
        with file:
            last = self._end_of_file()
            records = _records(file, last)
            if wanted.tail >= 0:
                records = iter(_last_lines(records, wanted.tail))
            fresh = True
            while not broken():
                ready: list[bytes] = []
                for time_ns, data in records:
                    if time_ns < wanted.since_s * 1e9:
                        continue
                    shown = (log_stamp(time_ns).encode() + b" " if wanted.timestamps and fresh else b"") + data
                    fresh = data.endswith(b"\n")
                    if 0 <= wanted.limit_bytes < sent + len(shown):
                        yield b"".join(ready) + shown[: wanted.limit_bytes - sent]
                        return
                    sent += len(shown)
                    ready.append(shown)
                    if len(ready) == _AT_ONCE:
                        yield b"".join(ready)
                        ready = []
                if ready:
                    yield b"".join(ready)
                if not wanted.follow:
                    return
                with self._grown:
                    if self._end_of_file() == last:
                        if self._ended:
                            return
                        self._grown.wait(_LOOK_S)
                last = self._end_of_file()
                records = _records(file, last)

    def _end_of_file(self) -> int:
        """Where whole records end: it is asked of the writer's own descriptor, or of the file that stays as it is."""
        with self._grown:
            if self._ended:
                return 1 << 62
            return os.lseek(self._file.fileno(), 0, os.SEEK_CUR)


def _record(time_ns: int, data: bytes) -> bytes:
    return _HEAD.pack(len(data), time_ns) + data


def _records(file: BinaryIO, end: int) -> Iterator[tuple[int, bytes]]:
    while file.tell() < end:
        head = file.read(_HEAD.size)
        if not head:
            return
        length, time_ns = _HEAD.unpack(head)
        yield time_ns, file.read(length)


def _last_lines(records: Iterator[tuple[int, bytes]], count: int) -> list[tuple[int, bytes]]:
    lines: deque[list[tuple[int, bytes]]] = deque(maxlen=count)
    piece: list[tuple[int, bytes]] = []
    for record in records:
        piece.append(record)
        if record[1].endswith(b"\n"):
            lines.append(piece)
            piece = []
    if piece:
        lines.append(piece)
    return [record for line in lines for record in line]
