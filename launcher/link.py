# SPDX-License-Identifier: Apache-2.0
"""Links: messages between a controller and its agents, in order, each whole.

`Link` is an agent's end, `Hub` the controller's end of all links; the two drivers know nothing else. `SocketLink`
and `SocketHub` are for one machine: frames of a 4-byte length and a message over a unix socket pair; those across
machines are in launcher/net_link.py. Nothing here waits. Invariant: after the peer is gone, `receive` first gives
every message that had arrived, then the loss; the queue's length shows in `backlog_bytes`, and who feeds it (output
under credit) bounds it.
"""

from __future__ import annotations

import collections
import socket
import struct
from typing import NamedTuple, Protocol

from pmrun import wire
from pmrun.errors import PmrunError
from pmrun.launcher.poller import READ, WRITE, Handler, Poller

_LENGTH = struct.Struct("<I")
_RECEIVE_BYTES = 256 << 10


class LinkLost(PmrunError):
    """The peer is gone, or sent what is not a message."""


class Link(Protocol):
    """An agent's end of the conversation with its controller."""

    backlog_bytes: int
    needs_lease: bool  # whether a controller that is gone may go unnoticed

    def watch(self, poller: Poller, handler: Handler) -> None:
        """Have `handler` called when `receive` may have something to do; call before each wait."""

    def forget(self, poller: Poller) -> None:
        """Stop watching."""

    def pending(self) -> bool:
        """Whether `receive` has something that no descriptor will tell of: then do not wait."""

    def send(self, message: wire.Message) -> None:
        """Queue a message and send what goes without waiting."""

    def receive(self) -> list[wire.Message]:
        """Send and receive what goes without waiting; raises LinkLost."""

    def close(self) -> None:
        """Close this end; the peer learns of it."""


class Event(NamedTuple):
    """What came out of a hub: a message, or (None) that the peer is gone, and why."""

    peer: int
    message: wire.Message | None
    why: str = ""


class Hub(Protocol):
    """The controller's ends of the links to all agents. Peers are numbered as the hub likes."""

    sends_later: bool  # whether a thread of this process sends what was queued

    def watch(self, poller: Poller, handler: Handler) -> None:
        """As a Link's."""

    def pending(self) -> bool:
        """As a Link's."""

    def receive(self) -> list[Event]:
        """Send and receive what goes without waiting."""

    def send(self, peer: int, message: wire.Message) -> None:
        """Queue a message; for a peer that is gone it is dropped."""

    def backlog_bytes(self, peer: int) -> int:
        """How much is queued for a peer."""

    def drop(self, poller: Poller, peer: int) -> None:
        """Say nothing more to a peer, and hear nothing more from it."""

    def strangers(self) -> str:
        """One line about connections that were refused since the start, "" if there were none."""

    def close(self) -> None:
        """Send what was queued, as far as peers take it soon, and close."""


class SocketLink:
    """A link over a connected stream socket."""

    needs_lease = False

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._out: collections.deque[memoryview] = collections.deque()
        self._in = bytearray()
        self._lost: str | None = None
        self.backlog_bytes = 0

    def watch(self, poller: Poller, handler: Handler) -> None:
        poller.watch(self._sock.fileno(), READ | WRITE if self.wants_write() else READ, handler)

    def forget(self, poller: Poller) -> None:
        poller.forget(self._sock.fileno())

    def pending(self) -> bool:
        return False

    def send(self, message: wire.Message) -> None:
        if self._lost is not None:
            return  # whoever reads learns it from receive()
        data = wire.encode(message)
        self._out.append(memoryview(_LENGTH.pack(len(data)) + data))
        self.backlog_bytes += _LENGTH.size + len(data)
        if len(self._out) == 1:
            self.on_writable()

    def wants_write(self) -> bool:
        """Whether something waits to be sent."""
        return bool(self._out)

    def on_writable(self) -> None:
        """Send what goes without waiting."""
        while self._out:
            piece = self._out[0]
            try:
                sent = self._sock.send(piece)
            except BlockingIOError:
                return
            except OSError as error:
                self._lost = error.strerror or "connection lost"
                self._out.clear()
                self.backlog_bytes = 0
                return
            self.backlog_bytes -= sent
            if sent == len(piece):
                self._out.popleft()
            else:
                self._out[0] = piece[sent:]

    def receive(self) -> list[wire.Message]:
        self.on_writable()
        try:
            data = self._sock.recv(_RECEIVE_BYTES)
        except BlockingIOError:
            return []
        except OSError as error:
            raise LinkLost(error.strerror or "connection lost") from error
        if not data:
            raise LinkLost("closed by the peer")
        self._in += data
        return self._take_frames()

    def _take_frames(self) -> list[wire.Message]:
        messages: list[wire.Message] = []
        at = 0
        with memoryview(self._in) as view:
            while len(view) - at >= _LENGTH.size:
                (length,) = _LENGTH.unpack_from(view, at)
                if length > wire.MAX_MESSAGE_BYTES:
                    raise LinkLost(f"a frame of {length} bytes")
                if len(view) - at - _LENGTH.size < length:
                    break
                at += _LENGTH.size
                try:
                    messages.append(wire.decode(view[at : at + length]))
                except wire.WireError as error:
                    raise LinkLost(str(error)) from error
                at += length
        del self._in[:at]
        return messages

    def close(self) -> None:
        self._sock.close()


class SocketHub:
    """The controller's end of the one link to an agent on this machine; its peer is 0."""

    sends_later = False

    def __init__(self, sock: socket.socket) -> None:
        self._link = SocketLink(sock)
        self._gone = False

    def watch(self, poller: Poller, handler: Handler) -> None:
        if not self._gone:
            self._link.watch(poller, handler)

    def pending(self) -> bool:
        return False

    def receive(self) -> list[Event]:
        if self._gone:
            return []
        try:
            return [Event(0, message) for message in self._link.receive()]
        except LinkLost as error:
            return [Event(0, None, str(error))]

    def send(self, peer: int, message: wire.Message) -> None:
        if not self._gone:
            self._link.send(message)

    def backlog_bytes(self, peer: int) -> int:
        return self._link.backlog_bytes

    def drop(self, poller: Poller, peer: int) -> None:
        self._gone = True
        self._link.forget(poller)

    def strangers(self) -> str:
        return ""

    def close(self) -> None:
        self._gone = True
        self._link.close()


def socket_pair() -> tuple[socket.socket, socket.socket]:
    """The two ends of a link within one machine."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
