# SPDX-License-Identifier: Apache-2.0
"""pdb in a rank, on a terminal of its own that `pmrun`, or `pmrun attach`, shows somewhere else.

The rank makes a pseudo-terminal when it first needs one, and hands the master's end to its agent over the datagram
socket that it inherited (env.DEBUG_FD), in the message that says that it waits. While pdb asks, descriptors 0 and 1
are that terminal, so that readline, completion and Ctrl-C work; between two questions the program has its own ones.
`breakpoint()` comes here by PYTHONBREAKPOINT, an uncaught exception by --pdb-on-error, and an interrupt of `pmrun
attach` by a signal. Where no agent is (plain python), pdb uses the terminal that is there. Invariant: descriptors 0
and 1 and sys.stdin and sys.stdout are the program's whenever its own code runs by itself, and the agent knows that
the rank is in the debugger from before the first question until the program goes on.
"""

from __future__ import annotations

import bdb
import contextlib
import ctypes
import fcntl
import os
import pdb
import socket
import stat
import sys
import termios
import traceback
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import Any, Final

from pmrun import env, wire

_TEXT_MAX: Final = 400  # of what the agent is told; it is for one line

_debugger: Debugger | None = None


def at_breakpoint(*_: object, header: str | None = None, **__: object) -> None:
    """What `breakpoint()` calls in a rank."""
    debugger = _here()
    debugger.header = f"{header}\n" if header else ""
    debugger.set_trace(sys._getframe(1))


def post_mortem(error: BaseException, trace: TracebackType | None, text: str) -> None:
    """Let the user look at an exception that nobody caught; `text` tells it in a line."""
    if isinstance(error, bdb.BdbQuit):  # the user has just left a debugger
        return
    debugger = _here()
    debugger.header = "".join(traceback.format_exception(type(error), error, trace))
    debugger.why = text
    debugger.reset()
    debugger.interaction(None, trace)
    debugger.leave()


def interrupt(frame: FrameType | None) -> None:
    """Stop here and now, also within a call of pmrun that waits; called by a signal's handler."""
    debugger = _here()
    if frame is not None and not debugger.asking:
        debugger.stop_in(frame)


def _here() -> Debugger:
    """This process's debugger: a child made by fork gets its own, with a terminal of its own."""
    global _debugger
    if _debugger is None or _debugger.pid != os.getpid():
        _debugger = Debugger(_terminal())
    return _debugger


def _terminal() -> Terminal | None:
    """A terminal behind the agent; None where there is no agent."""
    descriptor, rank = os.environ.get(env.DEBUG_FD, ""), os.environ.get(env.RANK, "")
    if not (descriptor.isdecimal() and rank.isdecimal()):
        return None
    try:
        own = stat.S_ISSOCK(os.fstat(int(descriptor)).st_mode)
    except OSError:
        own = False
    if not own:  # a program that the rank started, without its descriptors
        return None
    line = socket.socket(fileno=os.dup(int(descriptor)))
    if (line.family, line.type) != (socket.AF_UNIX, socket.SOCK_DGRAM):
        line.close()
        return None
    return Terminal(line, int(rank))


class Terminal:
    """A pseudo-terminal whose other end the agent holds."""

    def __init__(self, line: socket.socket, rank: int) -> None:
        self._line = line
        self._rank = rank
        self._master, self._slave = os.openpty()
        with contextlib.suppress(OSError):  # a rank that a shell started leads no session: it goes without Ctrl-C
            fcntl.ioctl(self._slave, termios.TIOCSCTTY, 0)

    def tell(self, text: str) -> None:
        """Tell the agent that the rank waits, and where, or (nothing) that it goes on."""
        data = wire.encode(wire.Debugging(self._rank, text[:_TEXT_MAX]))
        if self._master < 0:
            self._line.send(data)
            return
        socket.send_fds(self._line, [data], [self._master])
        os.close(self._master)  # the agent's is the only one: its end is the terminal's
        self._master = -1

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """Be the standard input and output."""
        before = sys.stdin, sys.stdout
        if before[1] is not None:
            before[1].flush()
        kept = [(fd, _duplicate(fd)) for fd in (0, 1)]
        for fd, _ in kept:
            os.dup2(self._slave, fd, inheritable=True)
        try:
            with (
                open(0, encoding="utf-8", errors="surrogateescape", closefd=False) as asked,
                open(1, "w", buffering=1, encoding="utf-8", errors="surrogateescape", closefd=False) as shown,
            ):
                sys.stdin, sys.stdout = asked, shown
                yield
            ctypes.CDLL(None).fflush(None)  # what readline left in C's buffer is for this terminal
        finally:
            sys.stdin, sys.stdout = before
            for fd, copy in kept:
                if copy < 0:
                    os.close(fd)
                else:
                    os.dup2(copy, fd, inheritable=True)
                    os.close(copy)


def _duplicate(fd: int) -> int:
    try:
        return os.dup(fd)
    except OSError:  # the program closed it
        return -1


class Debugger(pdb.Pdb):
    """pdb as it is, but for where it asks.

    Ctrl-C ends what runs, as in the program itself, and never comes back to pdb: it is also how pmrun ends a gang.
    """

    def __init__(self, terminal: Terminal | None) -> None:
        super().__init__(nosigint=True)
        self.pid = os.getpid()
        self.header = ""  # shown before the next question
        self.why = ""  # an exception that led here
        self.asking = False
        self._terminal = terminal
        self._told = False

    def interaction(self, frame: FrameType | None, traceback: Any) -> None:
        """Ask what to do at this place."""
        if self._terminal is not None and not self._told:
            self._told = True
            self._terminal.tell(self.why or _place(frame))
        with contextlib.nullcontext() if self._terminal is None else self._terminal.in_place():
            self.stdin, self.stdout = sys.stdin, sys.stdout
            sys.stdout.write(self.header)
            self.header = self.why = ""
            self.asking = True
            try:
                super().interaction(frame, traceback)
            finally:
                self.asking = False

    def message(self, msg: str) -> None:
        """pdb says something, some of it before it asks."""
        if self.asking:
            super().message(msg)
        else:
            self.header += f"{msg}\n"

    def stop_in(self, frame: FrameType) -> None:
        """Ask at once, and then go on as was said; `set_trace` would ask at the next line only."""
        self.reset()
        self.quitting = False
        self.interaction(frame, None)
        if self.quitting:
            raise bdb.BdbQuit
        if not self._told and self._terminal is not None:  # it was told to go on
            return
        caller: FrameType | None = frame
        while caller is not None:
            caller.f_trace = self.trace_dispatch
            self.botframe = caller
            caller = caller.f_back
        sys.settrace(self.trace_dispatch)

    def set_continue(self) -> None:
        super().set_continue()
        self.leave()

    def set_quit(self) -> None:
        super().set_quit()
        self.leave()

    def leave(self) -> None:
        """The program goes on by itself."""
        if self._told and self._terminal is not None:
            self._told = False
            self._terminal.tell("")


def _place(frame: FrameType | None) -> str:
    if frame is None:
        return "an unknown place"
    return f"{os.path.basename(frame.f_code.co_filename)}:{frame.f_lineno} in {frame.f_code.co_name}"
