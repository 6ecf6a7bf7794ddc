# SPDX-License-Identifier: Apache-2.0
"""The agent's part in debugging: it holds the terminals of ranks that are in pdb, and passes bytes on.

A rank says on a datagram socket, which all of the node share, that it waits, and hands over its terminal
(src/pmrun/debugger.py). What it shows goes to the controller under credit, which whoever reads it gives back; what
is typed comes from there. Invariant: a terminal is closed only after its rank's process is gone, as the kernel ends
a process whose terminal goes.
"""

from __future__ import annotations

import collections
import fcntl
import os
import socket
import struct
import termios
from collections.abc import Callable
from typing import Final

from pmrun import wire
from pmrun.launcher import process_state
from pmrun.launcher.environment import INTERRUPT_SIGNAL
from pmrun.launcher.link import Link
from pmrun.launcher.poller import READ, WRITE, Poller

_DATAGRAM_BYTES: Final = 4096
_TYPED_BYTES: Final = 64 << 10  # that wait for a rank to read them; what is typed beyond that is lost


class _Terminal:
    """The master's end of one rank's terminal."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.credit = wire.SHOWN_BYTES
        self.typed = bytearray()


class AgentDebug:
    """The debuggers of one node's ranks.

    Parameters
    ----------
    tell : callable
        Called with a rank and whether it is in its debugger.
    pid_of : callable
        The process of a rank that calls pmrun; 0 when there is none.
    """

    def __init__(
        self, link: Link, poller: Poller, tell: Callable[[int, bool], None], pid_of: Callable[[int], int]
    ) -> None:
        self._link = link
        self._poller = poller
        self._tell = tell
        self._pid_of = pid_of
        self._line: socket.socket | None = None
        self._terminals: dict[int, _Terminal] = {}  # by rank
        self._replaced: dict[int, list[int]] = collections.defaultdict(list)  # a forked child took the rank's place

    def open(self) -> socket.socket:
        """Make the socket, and return the end that all ranks inherit."""
        self._line, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._line.setblocking(False)
        self._poller.watch(self._line.fileno(), READ, lambda _: self._on_word())
        return theirs

    def on_message(self, message: wire.Typed | wire.Interrupt) -> None:
        """Whoever looks at a rank typed something, or read what it showed, or wants it to stop."""
        if isinstance(message, wire.Interrupt):
            self._interrupt(message.rank)
            return
        terminal = self._terminals.get(message.rank)
        if terminal is None:
            return
        terminal.credit += message.credit
        if message.rows:
            size = struct.pack("HHHH", message.rows & 0xFFFF, message.columns & 0xFFFF, 0, 0)
            fcntl.ioctl(terminal.fd, termios.TIOCSWINSZ, size)
        if len(terminal.typed) + len(message.data) <= _TYPED_BYTES:
            terminal.typed += message.data
        self._write(message.rank, terminal)

    def on_exit(self, rank: int) -> None:
        """The rank's process is gone."""
        self._on_word()  # its last ones come first
        terminal = self._terminals.pop(rank, None)
        if terminal is not None:
            self._poller.forget(terminal.fd)
            self._read(rank, terminal)
            os.close(terminal.fd)
            self._say(wire.Debugging(rank, ""))
        for fd in self._replaced.pop(rank, ()):
            os.close(fd)

    # ---- a rank's words -------------------------------------------------------------------------------

    def _on_word(self) -> None:
        assert self._line is not None
        while True:
            try:
                data, fds, _, _ = socket.recv_fds(self._line, _DATAGRAM_BYTES, 1)
            except OSError:  # nothing more, or no rank is left
                return
            try:
                message = wire.decode(data)
            except wire.WireError:
                message = wire.Beat()
            if isinstance(message, wire.Debugging) and self._pid_of(message.rank) >= 0:
                for fd in fds:
                    self._adopt(message.rank, fd)
                if message.rank in self._terminals:
                    self._say(message)
                else:  # the kernel dropped it; pdb reads the end of its input, and ends
                    self._link.send(wire.Notice(f"rank {message.rank} gets no terminal for pdb: raise ulimit -n"))
            else:  # the program wrote to a descriptor that is not its own
                for fd in fds:
                    os.close(fd)

    def _adopt(self, rank: int, fd: int) -> None:
        os.set_blocking(fd, False)
        os.set_inheritable(fd, False)
        before = self._terminals.pop(rank, None)
        if before is not None:
            self._poller.forget(before.fd)
            self._replaced[rank].append(before.fd)
        self._terminals[rank] = terminal = _Terminal(fd)
        self._watch(rank, terminal)

    def _say(self, message: wire.Debugging) -> None:
        self._tell(message.rank, bool(message.text))
        if not message.text and message.rank in self._terminals:
            self._read(message.rank, self._terminals[message.rank])  # what it showed comes before its going on
        self._link.send(message)

    def _interrupt(self, rank: int) -> None:
        pid = self._pid_of(rank)
        if pid > 0 and process_state.catches(pid, INTERRUPT_SIGNAL):
            os.kill(pid, INTERRUPT_SIGNAL)
            return
        text = f"pmrun: rank {rank} cannot be interrupted: it must have called pm.init(), in its main thread\r\n"
        self._link.send(wire.Shown(rank, text.encode()))

    # ---- bytes ----------------------------------------------------------------------------------------

    def _watch(self, rank: int, terminal: _Terminal) -> None:
        wanted = (READ if terminal.credit > 0 else 0) | (WRITE if terminal.typed else 0)
        if wanted:
            self._poller.watch(terminal.fd, wanted, lambda events: self._on_ready(rank, terminal, events))
        else:  # its other end, closed and open again, would be told without end
            self._poller.forget(terminal.fd)

    def _on_ready(self, rank: int, terminal: _Terminal, events: int) -> None:
        if not self._read(rank, terminal):
            self._poller.forget(terminal.fd)  # its process ends; SIGCHLD says so
            return
        self._write(rank, terminal)

    def _write(self, rank: int, terminal: _Terminal) -> None:
        try:
            while terminal.typed:
                del terminal.typed[: os.write(terminal.fd, terminal.typed)]
        except BlockingIOError:
            pass
        self._watch(rank, terminal)

    def _read(self, rank: int, terminal: _Terminal) -> bool:
        """Pass on what is there, as far as there is credit; False when nothing will come any more."""
        while terminal.credit > 0:
            try:
                data = os.read(terminal.fd, min(terminal.credit, wire.MAX_DATA_BYTES))
            except BlockingIOError:
                return True
            except OSError:  # EIO: nobody has the other end
                return False
            terminal.credit -= len(data)
            self._link.send(wire.Shown(rank, data))
        return True
