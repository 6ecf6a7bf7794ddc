# SPDX-License-Identifier: Apache-2.0
"""Writes to descriptors that others share (the shell's terminal, a pipe) without ever waiting.

O_NONBLOCK belongs to the open file, which pmrun's parent uses too, so it is never set on an inherited
descriptor. A pipe or terminal is opened a second time through /proc instead, with flags of its own; a socket
is written with MSG_DONTWAIT; a regular file does not wait. Where the second opening is refused, at most as
much is written as poll's answer promises room for. Invariant: `write` returns at once.
"""

from __future__ import annotations

import enum
import os
import select
import socket
import stat
from typing import Final

_PROMISED_BYTES: Final = 256  # room that a writable pipe (a page) or terminal surely has


class _Way(enum.Enum):
    PLAIN = 1  # never waits
    OWN = 2  # our own non-blocking opening
    SOCKET = 3
    CAREFUL = 4  # shared and blocking: small pieces after a look


class Sink:
    """One destination of output.

    Attributes
    ----------
    closed : bool
        Nobody reads it any more, or it cannot be written: what is written is dropped.
    problem : str
        Why it cannot be written; "" when only its reader is gone.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._way = _Way.PLAIN
        self._socket: socket.socket | None = None
        self.closed = False
        self.problem = ""
        self.is_tty = False
        self.identity: tuple[int, int, int] | None = None
        try:
            status = os.fstat(fd)
        except OSError as error:
            self.closed = True
            self.problem = error.strerror or str(error)
            return
        self.identity = (status.st_dev, status.st_ino, status.st_rdev)
        self.is_tty = os.isatty(fd)
        if stat.S_ISSOCK(status.st_mode):
            self._way = _Way.SOCKET
            self._socket = socket.socket(fileno=os.dup(fd))
        elif stat.S_ISFIFO(status.st_mode) or self.is_tty:
            self._open_own()

    def _open_own(self) -> None:
        flags = os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
        try:
            self._fd = os.open(f"/proc/self/fd/{self._fd}", flags)
            self._way = _Way.OWN
        except OSError:  # another user's terminal, no /proc, or a pipe whose reader is gone already
            self._way = _Way.CAREFUL

    def fileno(self) -> int:
        """What to poll for room."""
        return self._fd

    def write(self, data: bytes | memoryview) -> int:
        """Write what goes at once; returns how many bytes that was. After the reader is gone: all of them."""
        if self.closed:
            return len(data)
        try:
            if self._socket is not None:
                return self._socket.send(data, socket.MSG_DONTWAIT)
            if self._way is _Way.CAREFUL:
                poll = select.poll()
                poll.register(self._fd, select.POLLOUT)
                if not poll.poll(0):
                    return 0
                data = data[:_PROMISED_BYTES]
            return os.write(self._fd, data)
        except BlockingIOError:
            return 0
        except OSError as error:
            self.closed = True
            self.problem = "" if isinstance(error, BrokenPipeError) else error.strerror or str(error)
            return len(data)

    def close(self) -> None:
        """Give back what this sink opened itself."""
        if self._socket is not None:
            self._socket.close()
        elif self._way is _Way.OWN:
            os.close(self._fd)


def open_standard_fds() -> None:
    """Give descriptors 0 to 2 a meaning, so that nothing else is opened under these numbers."""
    for fd in (0, 1, 2):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number, which is `fd`
