# SPDX-License-Identifier: Apache-2.0
"""The agent's ends of a rank's pipes: output under credit, a tail kept for the report, input with its queue.

Output is read only as far as the controller gave credit, so a full terminal stops the rank at its write.
When a rank dies, what its pipes still hold (at most `COLLECT_BYTES` each) is taken in at once, so that the
report has its last lines even while nobody reads pmrun's output. Invariant: every byte read is sent once, in
order, and the end of a stream after its last byte.
"""

from __future__ import annotations

import collections
import os
from collections.abc import Callable
from typing import Final

from pmrun import wire

TAIL_BYTES: Final = {wire.OUT: 8 << 10, wire.ERR: 32 << 10}
COLLECT_BYTES: Final = 1 << 20  # the most that a pipe may be made to hold


class OutputStream:
    """One rank's standard output or error."""

    def __init__(self, rank: int, number: int, fd: int, credit: int, send: Callable[[wire.Message], None]) -> None:
        self.rank = rank
        self.number = number
        self.fd = fd  # -1: closed
        self.done = False  # the end of the stream has been sent
        self._credit = credit
        self._send = send
        self._pending = bytearray()
        self._tail = bytearray()

    @property
    def readable(self) -> bool:
        """Whether there is credit to read with."""
        return self.fd >= 0 and self._credit > 0 and not self._pending

    def tail(self) -> bytes:
        """The last bytes that the rank wrote."""
        return bytes(self._tail[-TAIL_BYTES[self.number] :])

    def add_credit(self, count: int) -> None:
        """The controller has room for so many more bytes."""
        self._credit += count
        self._flush()

    def read(self) -> bool:
        """Take what is there, within the credit; False when the stream ended."""
        try:
            data = os.read(self.fd, min(self._credit, wire.MAX_DATA_BYTES))
        except BlockingIOError:
            return True
        if not data:
            self.close()
            return False
        self._keep(data)
        self._credit -= len(data)
        self._send(wire.Output(self.rank, self.number, data))
        return True

    def collect(self) -> bool:
        """Take in what the pipe holds now, credit or not; False when the stream ended."""
        while self.fd >= 0 and len(self._pending) < COLLECT_BYTES:
            try:
                data = os.read(self.fd, wire.MAX_DATA_BYTES)
            except BlockingIOError:
                break
            if not data:
                self.close()
                return False
            self._keep(data)
            self._pending += data
        self._flush()
        return self.fd >= 0

    def close(self) -> None:
        """No more is read; the end is sent after what is pending."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
        self._flush()

    def _keep(self, data: bytes) -> None:
        size = TAIL_BYTES[self.number]
        self._tail += data[-size:]
        if len(self._tail) > 4 * size:
            del self._tail[:-size]

    def _flush(self) -> None:
        while self._pending and self._credit > 0:
            size = min(self._credit, wire.MAX_DATA_BYTES)
            data = bytes(self._pending[:size])
            del self._pending[:size]
            self._credit -= len(data)
            self._send(wire.Output(self.rank, self.number, data))
        if self.fd < 0 and not self._pending and not self.done:
            self.done = True
            self._send(wire.Output(self.rank, self.number, b""))


class InputStream:
    """One rank's standard input. Its queue is bounded by what the controller may send ahead."""

    def __init__(self, fd: int) -> None:
        self.fd = fd  # -1: closed, by us or by the rank
        self.taken = 0  # bytes that the rank's pipe took
        self._queue: collections.deque[memoryview] = collections.deque()
        self._ending = False

    @property
    def pending(self) -> bool:
        """Whether bytes wait for room in the pipe."""
        return bool(self._queue)

    def feed(self, data: bytes) -> None:
        """Queue input; empty data is its end."""
        if data:
            self._queue.append(memoryview(data))
        else:
            self._ending = True
        self.write()

    def write(self) -> None:
        """Write what goes without waiting."""
        while self._queue and self.fd >= 0:
            piece = self._queue[0]
            try:
                count = os.write(self.fd, piece)
            except BlockingIOError:
                return
            except BrokenPipeError:
                self.close()
                return
            self.taken += count
            if count == len(piece):
                self._queue.popleft()
            else:
                self._queue[0] = piece[count:]
        if self._ending:
            self.close()

    def close(self) -> None:
        """The rank sees the end of its input."""
        self._queue.clear()
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
