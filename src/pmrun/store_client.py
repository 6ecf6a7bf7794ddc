# SPDX-License-Identifier: Apache-2.0
"""A rank's end of its store: one request, one reply, for any number of threads on one socket.

Of the threads that wait for replies one reads, for all; when it has its own, another takes over. `OwnCalls` is the same
for a process that pmrun did not start, with the table inside. Invariants: a request that was given up (by an
exception, Ctrl-C) is cancelled on the other side, and its reply is dropped; a stream that was left in the middle
of a frame is never used again; a child made by fork touches nothing.
"""

from __future__ import annotations

import itertools
import math
import os
import select
import socket
import threading
import time
from typing import Any, Final, Protocol

from pmrun import store_wire
from pmrun.errors import ForkedError, StoreError
from pmrun.store_server import Replies, StoreServer
from pmrun.store_wire import Cancel, Frames, Open, Opened, Refused, Reply, Request, StoreWireError

PATIENCE_S: Final = 60.0  # for an answer, beyond the time that the request itself may wait
_RECEIVE_BYTES: Final = 64 << 10  # less than malloc asks the kernel for
_SLICE_S: Final = 3600.0
_SPIN_S: Final = 60e-6  # about what it costs to sleep and be woken on an idle CPU
_LATE_MAX: Final = 64


class Calls(Protocol):
    """What requests go through."""

    data_key: bytes

    def ask(self, kind: type[Request], *fields: Any, within_s: float = 0.0) -> Reply:
        """Send a request and return its reply, which may take `within_s` and some patience."""

    def close(self) -> None:
        """No more is asked."""


class LineCalls:
    """Requests over the socket to this node's host."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._pid = os.getpid()
        self._frames = Frames()
        self._numbers = itertools.count(int.from_bytes(os.urandom(6), "little"))  # not those of an earlier process
        self._readable = select.poll()  # for the thread that reads
        self._readable.register(sock.fileno(), select.POLLIN)
        self._asleep = 0  # so many more replies are waited for without spinning
        self._late = 1
        self._sending = threading.Lock()
        self._changed = threading.Condition(threading.Lock())
        self._replies: dict[int, Reply | None] = {}  # of the requests under way
        self._reading = False  # a thread reads, for all
        self._torn = False  # a frame is being taken or written
        self._broken = ""
        self.data_key = b""
        opened = self.ask(Open, store_wire.VERSION)
        if isinstance(opened, Refused):
            raise StoreError(opened.text)
        if isinstance(opened, Opened):
            self.data_key = opened.data_key

    def ask(self, kind: type[Request], *fields: Any, within_s: float = 0.0) -> Reply:
        if os.getpid() != self._pid:
            raise ForkedError(
                "this process is a child made by fork, and the store of its parent is not its own: start it with the "
                "'spawn' method, or use the store in the parent alone"
            )
        number = next(self._numbers)
        data = store_wire.frame(kind(number, *fields))
        by = time.monotonic() + within_s + PATIENCE_S
        with self._changed:
            self._refuse_broken()
            self._replies[number] = None
        done = False
        try:
            self._send(data, by)
            reply = self._await(number, by)
            done = True
            return reply
        finally:
            if not done:
                self._give_up(number)

    def close(self) -> None:
        with self._changed:
            self._broken = self._broken or "it was closed"
            self._changed.notify_all()
        self._sock.close()

    # ---- details ------------------------------------------------------------------------------------------

    def _refuse_broken(self) -> None:
        if self._broken:
            raise StoreError(f"the store cannot be used any more: {self._broken}")

    def _give_up(self, number: int) -> None:
        """Nobody waits for this reply: let the other side know, if that goes without waiting."""
        with self._changed:
            self._replies.pop(number, None)
            if self._broken:
                return
        if self._sending.acquire(blocking=False):
            try:
                data = store_wire.frame(Cancel(number))
                try:
                    if self._sock.send(data) != len(data):
                        self._break("a request was interrupted")
                except BlockingIOError:
                    return  # its time-out there ends it as well
                except OSError as error:
                    self._break(error.strerror or "connection lost")
            finally:
                self._sending.release()

    def _break(self, why: str) -> None:
        with self._changed:
            self._broken = self._broken or why
            self._changed.notify_all()

    def _send(self, data: bytes, by: float) -> None:
        with self._sending:
            sent = 0
            unsure = False  # how much was sent, where an exception comes between the call and its result
            try:
                while True:
                    unsure = True
                    try:
                        sent += self._sock.send(memoryview(data)[sent:] if sent else data)
                    except BlockingIOError:
                        pass
                    except OSError:
                        sent = len(data)  # what ended the line is still to be read
                    unsure = False
                    if sent == len(data):
                        return
                    self._make_room(by)
            finally:
                if unsure or 0 < sent < len(data):
                    self._break("a request was interrupted")

    def _make_room(self, by: float) -> None:
        """Wait until more can be sent. The other side reads no requests before its replies are read."""
        with self._changed:
            self._refuse_broken()
            reads = not self._reading
            self._reading = True
        if not reads:
            self._poll(select.POLLOUT, by)
            return
        try:
            if self._poll(select.POLLOUT | select.POLLIN, by) & ~select.POLLOUT:
                self._receive()
        finally:
            self._stop_reading()

    def _await(self, number: int, by: float) -> Reply:
        while True:
            with self._changed:
                reply = self._replies[number]
                if reply is not None:
                    del self._replies[number]
                    return reply
                self._refuse_broken()
                if self._reading:
                    if time.monotonic() >= by:
                        raise _silent()
                    self._changed.wait(_slice(by))
                    continue
                self._reading = True
            try:
                if not self._spin():
                    self._poll(select.POLLIN, by)
                self._receive()
            finally:
                self._stop_reading()

    def _spin(self) -> bool:
        """Whether something came within a moment, in which others that want the CPU get it.

        While the host has more to do than that, moments are not worth their CPU: they become rare.
        """
        self._asleep -= 1
        if self._asleep > 0:
            return False
        end = time.monotonic() + _SPIN_S
        while time.monotonic() < end:
            if self._readable.poll(0):
                self._late = max(1, self._late // 2)
                return True
            os.sched_yield()
        self._late = min(2 * self._late, _LATE_MAX)
        self._asleep = self._late
        return False

    def _poll(self, events: int, by: float) -> int:
        poll = select.poll()
        poll.register(self._sock.fileno(), events)
        while True:
            found = poll.poll(_slice(by) * 1000)
            if found:
                return found[0][1]
            if time.monotonic() >= by:
                raise _silent()

    def _receive(self) -> None:
        """Take what has come, and give each reply to its request."""
        self._torn = True
        try:
            data = self._take()
            words = self._frames.feed(data, store_wire.reply_decoder)
        except BlockingIOError:
            self._torn = False
            return
        except (OSError, StoreWireError) as error:
            self._break(f"the connection to its host failed ({error})")
            return
        if not data:
            self._break("its host closed the connection")
        with self._changed:
            for word, _ in words:
                if word.number in self._replies:
                    self._replies[word.number] = word
                elif isinstance(word, Refused) and word.number < 0:
                    self._broken = word.text
        self._torn = False

    def _take(self) -> bytes:
        try:
            return self._sock.recv(_RECEIVE_BYTES)
        except ConnectionError:  # it was closed with something of ours unread
            return b""

    def _stop_reading(self) -> None:
        with self._changed:
            self._reading = False
            if self._torn:
                self._broken = self._broken or "a reply was lost in an interrupt"
            if len(self._replies) > 1:
                self._changed.notify_all()


class OwnCalls:
    """Requests to a table in this process, for a world of one; other threads may set what one waits for."""

    def __init__(self) -> None:
        self._server = StoreServer(1)
        self._changed = threading.Condition(threading.Lock())
        self._numbers = itertools.count()
        self._replies: dict[int, Reply] = {}
        self._pid = os.getpid()
        self.data_key = b""

    def ask(self, kind: type[Request], *fields: Any, within_s: float = 0.0) -> Reply:
        if os.getpid() != self._pid:
            raise ForkedError("this process is a child made by fork, and the store of its parent is not its own")
        with self._changed:
            number = next(self._numbers)
            request = kind(number, *fields)
            assert not isinstance(request, Open)
            self._take(self._server.on_request(0, request, time.monotonic()))
            try:
                while number not in self._replies:
                    deadline = self._server.deadline()
                    self._changed.wait(_slice(math.inf if deadline is None else deadline))
                    self._take(self._server.on_tick(time.monotonic()))
                return self._replies.pop(number)
            except BaseException:
                self._replies.pop(number, None)
                self._server.on_request(0, Cancel(number), time.monotonic())
                raise

    def close(self) -> None:
        """Nothing is held."""

    def _take(self, replies: Replies) -> None:
        for _, reply in replies:
            self._replies[reply.number] = reply
        if replies:
            self._changed.notify_all()


def _slice(by: float) -> float:
    """How long to wait at once: what is left, but no more than any system call takes."""
    return min(max(0.0, by - time.monotonic()), _SLICE_S)


def _silent() -> StoreError:
    return StoreError(f"the store does not answer for {PATIENCE_S:g} s: is pmrun stopped, or the machine overloaded?")
