# SPDX-License-Identifier: Apache-2.0
"""`pmrun attach [JOB] [--rank N]`: talk to the debugger of a rank, or lead it there.

It finds the job's `pmrun` on this machine (launcher/attach_line.py), which passes all on, also to other nodes.
Invariant: the terminal is as it was when this ends, and the job does not notice that it did.
"""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType

from pmrun import wire
from pmrun.errors import ExitCode, UsageError
from pmrun.launcher import attach_line
from pmrun.launcher.console import LEAVE_KEY, Console
from pmrun.launcher.link import LinkLost, SocketLink
from pmrun.launcher.poller import READ, Poller, SignalInbox

_HELP = """\
pmrun attach [JOB] [--rank N]: talk to the debugger of a rank

A rank waits in pdb after breakpoint(), or, with pmrun --pdb-on-error, after an exception that it did not catch.
Of any other rank you see the output, and Ctrl-C interrupts it into pdb, also inside a call of pmrun that waits.
Ctrl-] leaves the rank as it is. JOB is what pmrun says, and PMRUN_JOB_ID in the ranks; it may be left out where
you run one job here, and --rank where a rank waits in pdb. Give it on the machine of pmrun itself, as the same user.
"""


def run(argv: list[str]) -> int:
    """Look at a rank until it ends, or the user leaves it."""
    if argv in (["-h"], ["--help"]):
        sys.stdout.write(_HELP)
        return ExitCode.OK
    job_id, rank = _read(argv)
    job_id = job_id or _only_job()
    try:
        sock = attach_line.dial(job_id)
    except PermissionError as error:
        raise UsageError(f"cannot attach to {job_id}: {error}") from None
    except OSError:
        others = attach_line.jobs()
        known = f"; these do: {', '.join(others)}" if others else ""
        raise UsageError(f"no job {job_id} of yours runs on this machine{_foreign()}{known}") from None
    console = Console()
    resized = SignalInbox((signal.SIGWINCH,))
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _end)
    try:
        return _Visit(SocketLink(sock), console, resized).talk(rank)
    finally:
        console.release()
        resized.close()
        sock.close()


def _read(argv: list[str]) -> tuple[str, int]:
    """The job, "" where it is not said, and the rank, or -1."""
    job_id, rank = "", -1
    words = [part for word in argv for part in (word.split("=", 1) if word.startswith("--rank=") else [word])]
    while words:
        word = words.pop(0)
        if word == "--rank":
            number = words.pop(0) if words else ""
            if not (number.isascii() and number.isdigit() and len(number) < 8):
                raise UsageError("--rank: give the rank's number")
            rank = int(number)
        elif word.startswith("-") or job_id:
            raise UsageError("write: pmrun attach [JOB] [--rank N]")
        else:
            job_id = word
    return job_id, rank


def _only_job() -> str:
    jobs = attach_line.jobs()
    if not jobs:
        raise UsageError(f"no job of yours runs on this machine{_foreign()}")
    if len(jobs) > 1:
        raise UsageError(f"several of your jobs run on this machine: say which: {', '.join(jobs)}")
    return jobs[0]


def _foreign() -> str:
    """What there is instead, where that is a gang of another launcher."""
    if not attach_line.others():
        return ""
    return " under pmrun; ranks that mpirun, torchrun or the like started cannot be attached to: start them with pmrun"


def _end(number: int, frame: FrameType | None) -> None:
    """The terminal is given back on the way out."""
    raise SystemExit(128 + number)


class _Visit:
    """One connection."""

    def __init__(self, link: SocketLink, console: Console, resized: SignalInbox) -> None:
        self._link = link
        self._console = console
        self._resized = resized
        self._poller = Poller()
        self._poller.watch(resized.fd, READ, lambda _: self._on_resize())
        self._rank = -1
        self._reads = True  # the standard input
        self._told = False
        self._code: int | None = None

    def talk(self, rank: int) -> int:
        self._link.send(wire.Attach(rank, *self._console.size()))
        while self._code is None:
            self._link.watch(self._poller, lambda _: self._on_link())
            if self._reads and self._told:
                self._poller.watch(0, READ, lambda _: self._on_key())
            else:
                self._poller.forget(0)
            self._poller.wait(None)
        return self._code

    def _on_link(self) -> None:
        try:
            messages = self._link.receive()
        except LinkLost:
            self._say("the job is over")
            self._code = ExitCode.OK
            return
        for message in messages:
            if isinstance(message, wire.Shown):
                _write(1, message.data)
            elif isinstance(message, wire.Debugging):
                self._on_debugger(message)
            elif isinstance(message, wire.Leave):
                self._say(f"rank {self._rank} has ended")
                self._code = ExitCode.OK
            elif isinstance(message, wire.Refused):
                self._say(message.text)
                self._code = message.code

    def _on_debugger(self, news: wire.Debugging) -> None:
        self._rank = news.rank
        if not self._told:
            self._told = True
            self._console.take()
        if news.text:
            self._say(f"rank {news.rank} waits in pdb: {news.text} (q ends the gang, Ctrl-] leaves it waiting)")
        else:
            self._say(f"rank {news.rank} runs (Ctrl-C interrupts it into pdb, Ctrl-] leaves it)")

    def _on_resize(self) -> None:
        """The window has another size; before a rank is shown, the first word to it has the size anyway."""
        if signal.SIGWINCH in self._resized.read() and self._told:
            self._link.send(wire.Typed(self._rank, b"", 0, *self._console.size()))

    def _on_key(self) -> None:
        try:
            data = os.read(0, 4096)
        except OSError:
            data = b""
        keys, leave, _ = data.partition(LEAVE_KEY)
        if keys:
            self._link.send(wire.Typed(self._rank, keys))
        if leave:
            self._say(f"left rank {self._rank}")
            self._code = ExitCode.OK
        self._reads = bool(data)  # a script's last command may still be answered

    def _say(self, text: str) -> None:
        _write(2, f"pmrun: {text}\n".encode("utf-8", "surrogateescape"))


def _write(fd: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(fd, rest) :]
