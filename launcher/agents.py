# SPDX-License-Identifier: Apache-2.0
"""The agents that a backend starts by commands (ssh, or `pmrun agent` itself), as a fleet for the controller.

Each process gets its bootstrap on standard input, which stays open as its lifeline; its standard output tells how
far it is, in marked lines, and of its standard error the last lines are kept for the case that it fails. Invariant:
no read or write here waits, and after `close` no process is left.
"""

from __future__ import annotations

import collections
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Final

from pmrun.launcher import bootstrap, process_tree
from pmrun.launcher.controller import SIGNALS, Controller
from pmrun.launcher.events import EventLog
from pmrun.launcher.fleet import Muster
from pmrun.launcher.job import Job
from pmrun.launcher.link import Hub
from pmrun.launcher.poller import READ, WRITE, Poller
from pmrun.launcher.rendezvous import Seat

_LAST_LINES: Final = 20
_LINE_BYTES: Final = 4096
_READ_BYTES: Final = 64 << 10
_LEAVE_S: Final = 5.0  # for agents that were told to leave

Note = Callable[[int, str], None]
Explain = Callable[[int, list[str]], str]


def agent_command() -> list[str]:
    """What starts an agent, here or on a machine with the same environment."""
    return [sys.executable, "-m", "pmrun", "agent"]


class AgentProcess:
    """A command that is, or leads to, one agent. `explain` words its end: exit status and last lines of error."""

    def __init__(self, command: list[str], told: bootstrap.Bootstrap, explain: Explain, here: bool) -> None:
        self.here = here  # this is the keeper itself, not the way to it
        self._explain = explain
        self._rest = memoryview(bootstrap.pack(told))
        self._line = b""
        self._error = b""
        self._last: collections.deque[str] = collections.deque(maxlen=_LAST_LINES)
        self.ended = False
        self.heard = False  # its agent runs
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(
            command, stdin=pipe, stdout=pipe, stderr=pipe, bufsize=0, start_new_session=True
        )
        self.pid = self._process.pid
        self._end_fd = os.pidfd_open(self.pid)
        assert self._process.stdin is not None and self._process.stdout is not None and self._process.stderr is not None
        self._pipes = (self._process.stdin, self._process.stdout, self._process.stderr)
        self._in, self._out, self._err = (end.fileno() for end in self._pipes)
        for fd in (self._in, self._out, self._err):
            os.set_blocking(fd, False)

    def watch(self, poller: Poller, note: Callable[[str], None], ended: Callable[[str], None]) -> None:
        """Begin to talk with it; once."""
        poller.watch(self._in, WRITE, lambda _: self._write(poller))
        poller.watch(self._out, READ, lambda _: self._read_output(poller, note))
        poller.watch(self._err, READ, lambda _: self._on_error(poller))
        poller.watch(self._end_fd, READ, lambda _: self._end(poller, ended))

    def let_go(self, poller: Poller | None) -> None:
        """Close its pipes: that ends the lifeline."""
        if self._pipes[0].closed:
            return
        for fd in (self._in, self._out, self._err, self._end_fd):
            if poller is not None:
                poller.forget(fd)
        for end in self._pipes:
            end.close()

    def wait(self, timeout_s: float) -> bool:
        """Wait for its end; False when it did not come in time."""
        if not self.ended and not process_tree.wait_end(self.pid, timeout_s):
            return False
        self._process.wait()
        return True

    def kill(self) -> None:
        """End it at once."""
        if self._process.poll() is None:
            os.kill(self.pid, signal.SIGKILL)

    def close(self) -> None:
        """It has ended and was waited for."""
        os.close(self._end_fd)

    # ---- details --------------------------------------------------------------------------------------

    def _write(self, poller: Poller) -> None:
        try:
            self._rest = self._rest[os.write(self._in, self._rest) :]
        except BlockingIOError:
            return
        except OSError:  # it reads no more; its end will say why
            self._rest = memoryview(b"")
        if not self._rest:
            poller.forget(self._in)

    def _read_output(self, poller: Poller, note: Callable[[str], None]) -> None:
        data = self._read(poller, self._out)
        *lines, self._line = (self._line + data).split(b"\n")
        self._line = self._line[-_LINE_BYTES:]
        for line in lines:
            _, marked, text = line.partition(bootstrap.MARK)  # a login shell may have begun the line
            if marked:
                self.heard = True
                note(text.decode("utf-8", "replace"))

    def _on_error(self, poller: Poller) -> None:
        self._read_error(poller)

    def _read_error(self, poller: Poller) -> bool:
        data = self._read(poller, self._err)
        *lines, self._error = (self._error + data).split(b"\n")
        self._error = self._error[-_LINE_BYTES:]
        self._last.extend(text for line in lines if (text := line.decode("utf-8", "replace").strip()))
        return bool(data)

    def _read(self, poller: Poller, fd: int) -> bytes:
        try:
            data = os.read(fd, _READ_BYTES)
        except BlockingIOError:
            return b""
        except OSError:
            data = b""
        if not data:
            poller.forget(fd)
        return data

    def _end(self, poller: Poller, ended: Callable[[str], None]) -> None:
        poller.forget(self._end_fd)
        status = self._process.wait()
        self.ended = True
        while self._read_error(poller):
            continue
        if self._error.strip():
            self._last.append(self._error.decode("utf-8", "replace").strip())
        ended(self._explain(status, list(self._last)))


class ProcessFleet:
    """Agents that are processes here, or at the other end of processes here."""

    def __init__(
        self, hub: Hub, seats: tuple[Seat, ...], counts: tuple[int, ...], release: str, least: int | None = None
    ) -> None:
        self.hub = hub
        self.seats = seats
        self.counts = counts
        self.least = len(seats) if least is None else least
        self.release = release
        self._processes: dict[int, AgentProcess] = {}
        self._former: list[AgentProcess] = []  # ended, and replaced
        self._watching: tuple[Poller, Note, Note] | None = None
        self._closed = False

    def run(self, job: Job, events: EventLog, muster: Muster) -> int:
        """Serve the job with these agents, and those that `muster` makes, to its end; returns pmrun's exit code."""
        try:
            before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # until there is somebody to hear them
            try:
                controller = Controller(job, self, events, muster)
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)
            return controller.run()
        finally:
            self.close()

    def start(self, node: int, told: bootstrap.Bootstrap, explain: Explain, way: list[str] | None = None) -> None:
        """Start the agent of one node, here or by the command that leads to it; OSError where there is no such."""
        process = AgentProcess(way or agent_command(), told, explain, way is None)
        former = self._processes.get(node)
        if former is not None:
            former.let_go(self._poller)
            self._former.append(former)
        self._processes[node] = process
        if self._watching is not None:
            self._watch(node, process, *self._watching)

    def watch(self, poller: Poller, note: Note, ended: Note) -> None:
        if self._watching is None:
            self._watching = poller, note, ended
            for node, process in self._processes.items():
                self._watch(node, process, poller, note, ended)

    def _watch(self, node: int, process: AgentProcess, poller: Poller, note: Note, ended: Note) -> None:
        process.watch(poller, lambda text: note(node, text), lambda text: ended(node, text))

    @property
    def _poller(self) -> Poller | None:
        return None if self._watching is None else self._watching[0]

    def replace(self, node: int) -> str:
        """Nobody is known who could come instead."""
        return ""

    def sweep(self, node: int) -> None:
        """End the way to a node: the keeper there, which may be out of reach, ends the rest."""
        process = self._processes.get(node)
        if process is not None:
            process.let_go(self._poller)
            if not process.here:
                process.kill()

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self.hub.close()
        end = time.monotonic() + _LEAVE_S
        processes = [*self._former, *self._processes.values()]
        for process in processes:
            process.let_go(self._poller)
            if not process.heard:
                process.kill()  # nobody is at its other end yet
        for process in processes:
            if not process.wait(max(0.0, end - time.monotonic())):
                process.kill()
                process.wait(_LEAVE_S)
            process.close()
