# SPDX-License-Identifier: Apache-2.0
"""The host's ends of the ranks' store sockets: frames in, replies out, nothing trusted and everything bounded.

A `Line` is one rank's socket; the `StoreHost` holds those of a node, checks what comes and passes it to a route:
the table in this process (`OwnTable`), or the controller's (launcher/agent_loop.py). It never waits: its driver polls what
`watch` asks for. Invariants: a rank has at most CALLS_MAX requests under way, and none is read while a reply to it
cannot be written, so that what is kept for a rank is bounded; bytes that are no request close that rank's line
and touch nothing else.
"""

from __future__ import annotations

import collections
import socket
from collections.abc import Callable, Iterable
from typing import Final, Protocol

from pmrun import store_wire
from pmrun.store_server import StoreServer
from pmrun.store_wire import Ask, Cancel, Frames, GangEnded, Open, Opened, Refused, Reply, StoreWireError

CALLS_MAX: Final = 256
CALL_BYTES_MAX: Final = 8 << 20  # of the requests under way
_RECEIVE_BYTES: Final = 64 << 10  # less than malloc asks the kernel for


class Route(Protocol):
    """Where a rank's requests go."""

    def request(self, rank: int, request: Ask) -> None:
        """Pass on one request; its reply comes to `StoreHost.reply`, now or later."""

    def closed(self, rank: int) -> None:
        """Nobody waits any more for replies to this rank's requests."""


class Line:
    """One rank's socket."""

    def __init__(self, rank: int, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.rank = rank
        self.sock = sock
        self.fd = sock.fileno()
        self.frames = Frames()
        self.calls: dict[int, int] = {}  # under way: number to length
        self.call_bytes = 0
        self._replies: collections.deque[Reply] = collections.deque()
        self._piece = memoryview(b"")

    @property
    def pending(self) -> bool:
        """Whether replies wait for room in the socket."""
        return bool(self._replies) or bool(self._piece)

    def begin(self, number: int, length: int) -> None:
        self.calls[number] = length
        self.call_bytes += length

    def end(self, number: int) -> bool:
        """Whether the request was under way."""
        length = self.calls.pop(number, None)
        self.call_bytes -= length or 0
        return length is not None

    def forget_calls(self) -> None:
        self.calls.clear()
        self.call_bytes = 0

    def push(self, reply: Reply) -> None:
        """Queue a reply and write what goes without waiting."""
        self._replies.append(reply)
        if len(self._replies) == 1 and not self._piece:
            self.write()

    def write(self) -> None:
        """Write what goes without waiting. A rank that is gone is noticed by who reads."""
        while self._piece or self._replies:
            if not self._piece:
                self._piece = memoryview(store_wire.frame(self._replies.popleft()))
            try:
                sent = self.sock.send(self._piece)
            except BlockingIOError:
                return
            except OSError:
                self._replies.clear()
                self._piece = memoryview(b"")
                return
            self._piece = self._piece[sent:]


class StoreHost:
    """The store sockets of a node's ranks.

    Parameters
    ----------
    data_key : bytes
        Given to each rank with the reply to its first request.
    watch : callable
        ``watch(line, read, write)`` asks the driver to poll a line's descriptor for these from now on; neither:
        it is about to be closed.
    complain : callable
        Takes a line of text for the user.
    """

    def __init__(
        self, data_key: bytes, watch: Callable[[Line, bool, bool], None], complain: Callable[[str], None]
    ) -> None:
        self._data_key = data_key
        self._watch = watch
        self._complain = complain
        self._lines: dict[int, Line] = {}
        self._watched: dict[int, tuple[bool, bool]] = {}
        self._gang_ended: tuple[int, int, str, str] | None = None
        self._paused = False
        self.route: Route

    def add(self, rank: int, sock: socket.socket) -> None:
        """Take over the host's end of a rank's socket."""
        line = Line(rank, sock)
        self._lines[rank] = line
        self._update(line)

    def pause(self, paused: bool) -> None:
        """Read no requests for now, or do again: the route has no room."""
        if paused != self._paused:
            self._paused = paused
            for line in self._lines.values():
                self._update(line)

    def on_writable(self, line: Line) -> None:
        """There is room in a line's socket."""
        line.write()
        self._update(line)

    def on_readable(self, line: Line) -> None:
        """Something came on a line, or its rank is gone."""
        try:
            data = line.sock.recv(_RECEIVE_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.close(line.rank)
            return
        try:
            for request, length in line.frames.feed(data, store_wire.request_decoder):
                self._on_request(line, request, length)
        except StoreWireError as error:
            self._close_bad(line, str(error))
            return
        self._update(line)

    def reply(self, rank: int, reply: Reply) -> None:
        """A request was answered; one that nobody waits for any more is dropped."""
        line = self._lines.get(rank)
        if line is not None and line.end(reply.number):
            line.push(reply)
            self._update(line)

    def end_gang(self, state: int, rank: int, node: str, text: str) -> None:
        """Answer all that wait, and whatever they ask later, with why the gang ends. The first reason stays."""
        if self._gang_ended is not None:
            return
        self._gang_ended = (state, rank, node, text)
        for line in self._lines.values():
            numbers = list(line.calls)
            line.forget_calls()
            self.route.closed(line.rank)
            for number in numbers:
                line.push(GangEnded(number, *self._gang_ended))
            self._update(line)

    def close(self, rank: int) -> None:
        """Close a rank's line; its requests are forgotten."""
        line = self._lines.pop(rank, None)
        if line is None:
            return
        self._watched.pop(rank, None)
        self._watch(line, False, False)
        line.sock.close()
        self.route.closed(rank)

    def close_all(self) -> None:
        """Close every line."""
        for rank in list(self._lines):
            self.close(rank)

    # ---- details ------------------------------------------------------------------------------------------

    def _on_request(self, line: Line, request: store_wire.Request, length: int) -> None:
        number = request.number
        if isinstance(request, Open):
            self._open(line, request)
        elif self._gang_ended is not None:
            if not isinstance(request, Cancel):
                line.push(GangEnded(number, *self._gang_ended))
        elif isinstance(request, Cancel):
            if line.end(number):
                self.route.request(line.rank, request)
        elif number in line.calls:
            raise StoreWireError(f"two requests with number {number}")
        elif len(line.calls) >= CALLS_MAX or line.call_bytes + length > CALL_BYTES_MAX:
            text = f"too much at once: {len(line.calls)} calls of this rank wait ({line.call_bytes} bytes)"
            line.push(Refused(number, f"{text}, the limits are {CALLS_MAX} and {CALL_BYTES_MAX}", False))
        else:
            line.begin(number, length)
            self.route.request(line.rank, request)

    def _open(self, line: Line, request: Open) -> None:
        if line.calls:
            line.forget_calls()
            self.route.closed(line.rank)
        if request.version != store_wire.VERSION:
            text = (
                f"this process has pmrun with store protocol {request.version}, the one that started it has "
                f"{store_wire.VERSION}: install one version"
            )
            line.push(Refused(request.number, text, False))
            return
        line.push(Opened(request.number, store_wire.VERSION, self._data_key))

    def _close_bad(self, line: Line, problem: str) -> None:
        text = f"rank {line.rank} sent bytes to its store that are no request ({problem}); its store is closed"
        self._complain(text)
        line.push(Refused(-1, text, False))
        self.close(line.rank)

    def _update(self, line: Line) -> None:
        if self._lines.get(line.rank) is not line:
            return
        pending = line.pending
        wanted = (not pending and not self._paused, pending)
        if self._watched.get(line.rank) != wanted:
            self._watched[line.rank] = wanted
            self._watch(line, *wanted)


class OwnTable:
    """The route to a table in this process."""

    def __init__(self, server: StoreServer, host: StoreHost, clock: Callable[[], float]) -> None:
        self._server = server
        self._host = host
        self._clock = clock

    def request(self, rank: int, request: Ask) -> None:
        self.deliver(self._server.on_request(rank, request, self._clock()))

    def closed(self, rank: int) -> None:
        self._server.on_closed(rank)

    def ended(self, rank: int) -> None:
        """The rank's process is gone."""
        self._server.on_rank_ended(rank)

    def deadline(self) -> float | None:
        """When `on_tick` has something to do."""
        return self._server.deadline()

    def on_tick(self, now: float) -> None:
        """Time has passed."""
        self.deliver(self._server.on_tick(now))

    def waits(self) -> dict[int, tuple[str, float]]:
        """Which ranks wait, for which key, and how long."""
        return self._server.waits(self._clock())

    def deliver(self, replies: Iterable[tuple[int, Reply]]) -> None:
        for rank, reply in replies:
            self._host.reply(rank, reply)
