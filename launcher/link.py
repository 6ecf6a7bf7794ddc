# SPDX-License-Identifier: Apache-2.0
"""A link: messages between a controller and one agent, in order, each whole.

`Link` is what the two drivers know. `SocketLink` is the link inside one machine: frames of a 4-byte length
and a message over a unix socket pair. Nothing here waits: `send` queues, `on_writable` and `on_readable` move
bytes. Invariant: after the peer is gone, `receive` first gives every message that had arrived, then raises
`LinkLost`; the queue's length shows in `backlog_bytes`, and who feeds it (output under credit) bounds it.
"""

from __future__ import annotations

import collections
import socket
import struct
from typing import Protocol

from pmrun import wire
from pmrun.errors import PmrunError

_LENGTH = struct.Struct("<I")
_RECEIVE_BYTES = 256 << 10


class LinkLost(PmrunError):
    """The peer is gone, or sent what is not a message."""


class Link(Protocol):
    """One end of the conversation between controller and agent."""

    backlog_bytes: int

    def fileno(self) -> int:
        """The descriptor to poll."""

    def send(self, message: wire.Message) -> None:
        """Queue a message and send what goes without waiting."""

    def wants_write(self) -> bool:
        """Whether `on_writable` should be called when the descriptor is writable."""

    def on_writable(self) -> None:
        """Send what goes without waiting."""

    def receive(self) -> list[wire.Message]:
        """Return the messages that have arrived; call when readable."""

    def close(self) -> None:
        """Close this end; the peer gets LinkLost."""


class SocketLink:
    """A link over a connected stream socket."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._out: collections.deque[memoryview] = collections.deque()
        self._in = bytearray()
        self._lost: str | None = None
        self.backlog_bytes = 0

    def fileno(self) -> int:
        return self._sock.fileno()

    def send(self, message: wire.Message) -> None:
        if self._lost is not None:
            return  # whoever reads learns it from receive()
        data = wire.encode(message)
        self._out.append(memoryview(_LENGTH.pack(len(data)) + data))
        self.backlog_bytes += _LENGTH.size + len(data)
        if len(self._out) == 1:
            self.on_writable()

    def wants_write(self) -> bool:
        return bool(self._out)

    def on_writable(self) -> None:
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


def socket_pair() -> tuple[socket.socket, socket.socket]:
    """The two ends of a link within one machine."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
