# SPDX-License-Identifier: Apache-2.0
"""An agent on a machine of its own, and the keeper that watches it.

On the launcher's machine the controller adopts and ends what a killed agent left; elsewhere nobody would. So there
the agent is a child of a keeper, which does nothing but wait for it, pass signals on, and end every descendant that
it left. A node that was started by hand sends an agent to each attempt of its job, one after the other. Invariant:
neither agent nor keeper outlives the other by more than `BACKSTOP_S`, and nothing of an agent is left when the next
one begins.
"""

from __future__ import annotations

import os
import signal
import struct
import sys
import time
from collections.abc import Callable
from typing import Final, NoReturn

import msgspec

from pmrun import wire
from pmrun.errors import ExitCode, LaunchError, PmrunError
from pmrun.launcher import process_tree, rank_process
from pmrun.launcher.agent_loop import LEAVE, AgentLoop, Own, Place
from pmrun.launcher.agent_process import detach, leave_process
from pmrun.launcher.describe import exit_code
from pmrun.launcher.dial import LifelineCut, Meeting, dial
from pmrun.launcher.interfaces import free_port, matching
from pmrun.launcher.lease import BACKSTOP_S
from pmrun.launcher.poller import READ, Poller, SignalInbox

_PASSED: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_SWEEP_S: Final = 5.0
_NEWS: Final = struct.Struct("<d")  # from agent to keeper: when another one is wanted


class Summons(msgspec.Struct, frozen=True):
    """Whom an agent is to meet, and what it says of itself."""

    meeting: Meeting
    hello: wire.Hello  # without what only the running agent knows
    interface: str | None
    own: Own | None = None
    comes_again: bool = False  # to the next attempt, also after it was killed or lost the main node
    deaf: bool = False  # to signals: the controller is on this machine, and hears them
    stands_by: bool = False  # it came too late before, and said so


class Kept(msgspec.Struct, frozen=True):
    """How an agent ended."""

    code: int
    again_s: float  # after so long another one is wanted; negative: never


def keep_coming(summons: Summons, tell: Callable[[str], None]) -> int:
    """Send an agent to each attempt of a job, for a node that was started by hand; returns the last one's exit code."""
    while True:
        kept = keep_agent(summons, -1, tell)
        if kept.again_s < 0:
            return kept.code
        summons = msgspec.structs.replace(summons, stands_by=kept.code == ExitCode.START_FAILED)
        time.sleep(kept.again_s)  # nothing is there that a signal would have to reach


def keep_agent(summons: Summons, lifeline: int, tell: Callable[[str], None]) -> Kept:
    """Fork an agent that goes to a meeting on another machine; returns once nothing of it is left.

    Parameters
    ----------
    summons
        Whom it meets.
    lifeline
        A descriptor that ends with whoever started this process; -1: there is none.
    tell
        Takes a line when what stands in the way of meeting changes, and "" when it has met.
    """
    rank_process.become_subreaper()
    keeper = os.getpid()
    inbox = SignalInbox((*_PASSED, signal.SIGCHLD))
    news_fd, agents_fd = os.pipe()
    pid = os.fork()
    if pid == 0:
        _be_agent(summons, lifeline, tell, keeper, agents_fd)
    os.close(agents_fd)
    os.set_blocking(news_fd, False)  # somebody else might hold the other end
    poller = Poller()
    backstop: float | None = None
    signals: list[int] = []

    def on_signals(events: int) -> None:
        for number in inbox.read():
            if number in _PASSED and not summons.deaf:
                # Of SIGTERM the agent itself knows whether it is a request to all nodes.
                first = signal.SIGTERM if number == signal.SIGTERM else LEAVE
                os.kill(pid, signal.SIGKILL if signals else first)
                signals.append(number)

    def on_lifeline(events: int) -> None:
        nonlocal backstop
        poller.forget(lifeline)
        backstop = time.monotonic() + BACKSTOP_S

    poller.watch(inbox.fd, READ, on_signals)
    if lifeline >= 0:
        poller.watch(lifeline, READ, on_lifeline)
    try:
        while (status := _ended(pid)) is None:
            poller.wait(None if backstop is None else max(0.0, backstop - time.monotonic()))
            if backstop is not None and time.monotonic() >= backstop:
                os.kill(pid, signal.SIGKILL)
                backstop = time.monotonic() + _SWEEP_S  # it may hang in the kernel
        process_tree.sweep((), _SWEEP_S)
        news = _read(news_fd)
    finally:
        inbox.close()
        os.close(news_fd)
    code = exit_code(status)
    if status < 0:  # it was killed
        code = exit_code(-signals[0]) if signals else ExitCode.AGENT_LOST
    return Kept(code, -1.0 if signals else _wanted_again(summons, news))


def _read(news_fd: int) -> bytes:
    try:
        return os.read(news_fd, _NEWS.size)
    except BlockingIOError:
        return b""


def _wanted_again(summons: Summons, news: bytes) -> float:
    """What the agent said of that; one that was killed said nothing."""
    if summons.own is None:
        return -1.0  # whoever started this process will start another one
    if len(news) == _NEWS.size:
        again_s: float = _NEWS.unpack(news)[0]
        return again_s
    return 0.0 if summons.comes_again else -1.0


def _ended(pid: int) -> int | None:
    """Exit code of the agent, once it has ended; adopted orphans are reaped on the way."""
    while True:
        try:
            found, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return ExitCode.INTERNAL
        if found == pid:
            return os.waitstatus_to_exitcode(status)
        if found == 0:
            return None


def _be_agent(summons: Summons, lifeline: int, tell: Callable[[str], None], keeper: int, news_fd: int) -> NoReturn:
    code: int = ExitCode.INTERNAL
    try:
        signal.set_wakeup_fd(-1)
        for number in (*_PASSED, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        rank_process.die_with_parent(keeper, LEAVE)
        text, code, again_s = _meet_and_serve(summons, lifeline, tell)
        os.write(news_fd, _NEWS.pack(again_s))
        if text and not (summons.stands_by and again_s >= 0):
            print(f"pmrun: {text}", file=sys.stderr, flush=True)
    finally:
        leave_process(code)


def _meet_and_serve(summons: Summons, lifeline: int, tell: Callable[[str], None]) -> tuple[str, int, float]:
    """Why the agent ended, its exit code, and after how long another one is wanted."""
    try:
        link, address = dial(summons.meeting, lifeline, tell)
        if summons.interface is not None:
            address = matching(summons.interface)
    except LifelineCut as error:
        return str(error), ExitCode.AGENT_LOST, -1.0
    except LaunchError as error:
        return str(error), ExitCode.START_FAILED, -1.0
    except PmrunError as error:
        return str(error), ExitCode.USAGE, -1.0
    tell("")
    hello = msgspec.structs.replace(
        summons.hello, pid=os.getpid(), host=os.uname().nodename, address=address, free_port=free_port()
    )
    detach()
    loop = AgentLoop(link, Place(hello, summons.meeting.secret, lifeline, summons.own, summons.deaf))
    loop.run()
    link.close()
    again_s = 0.0 if loop.end.lost and summons.comes_again else loop.end.again_s
    return loop.end.text, loop.end.code, again_s
