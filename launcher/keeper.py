# SPDX-License-Identifier: Apache-2.0
"""An agent on a machine of its own, and the keeper that watches it.

On the launcher's machine the controller adopts and ends what a killed agent left; elsewhere nobody would. So there
the agent is a child of a keeper, which does nothing but wait for it, pass signals on, and end every descendant that
it left. Invariant: neither agent nor keeper outlives the other by more than `_BACKSTOP_S`.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from typing import Final, NoReturn

import msgspec

from pmrun import wire
from pmrun.errors import ExitCode, LaunchError, PmrunError
from pmrun.launcher import process_tree, rank_process
from pmrun.launcher.agent_loop import AgentLoop, Own, Place
from pmrun.launcher.agent_process import detach, leave_process
from pmrun.launcher.dial import LifelineCut, Meeting, dial
from pmrun.launcher.interfaces import free_port, matching
from pmrun.launcher.poller import READ, Poller, SignalInbox

_PASSED: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_BACKSTOP_S: Final = 15.0  # after the lifeline's end: longer than the agent takes for its own end
_SWEEP_S: Final = 5.0


class Summons(msgspec.Struct, frozen=True):
    """Whom an agent is to meet, and what it says of itself."""

    meeting: Meeting
    hello: wire.Hello  # without what only the running agent knows
    interface: str | None
    own: Own | None = None


def keep_agent(summons: Summons, lifeline: int, tell: Callable[[str], None]) -> int:
    """Fork an agent that goes to a meeting on another machine; returns its exit code once nothing of it is left.

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
    pid = os.fork()
    if pid == 0:
        _be_agent(summons, lifeline, tell, keeper)
    poller = Poller()
    backstop: float | None = None
    signals = 0

    def on_signals(events: int) -> None:
        nonlocal signals
        for number in inbox.read():
            if number in _PASSED:
                signals += 1
                os.kill(pid, signal.SIGTERM if signals == 1 else signal.SIGKILL)

    def on_lifeline(events: int) -> None:
        nonlocal backstop
        poller.forget(lifeline)
        backstop = time.monotonic() + _BACKSTOP_S

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
    finally:
        inbox.close()
    return status if status >= 0 else 128 - status


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


def _be_agent(summons: Summons, lifeline: int, tell: Callable[[str], None], keeper: int) -> NoReturn:
    code: int = ExitCode.INTERNAL
    try:
        signal.set_wakeup_fd(-1)
        for number in (*_PASSED, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        rank_process.die_with_parent(keeper, signal.SIGTERM)
        text, code = _meet_and_serve(summons, lifeline, tell)
        if text:
            print(f"pmrun: {text}", file=sys.stderr, flush=True)
    finally:
        leave_process(code)


def _meet_and_serve(summons: Summons, lifeline: int, tell: Callable[[str], None]) -> tuple[str, int]:
    """Why the agent ended, and its exit code."""
    try:
        link, address = dial(summons.meeting, lifeline, tell)
        if summons.interface is not None:
            address = matching(summons.interface)
    except LifelineCut as error:
        return str(error), ExitCode.AGENT_LOST
    except LaunchError as error:
        return str(error), ExitCode.START_FAILED
    except PmrunError as error:
        return str(error), ExitCode.USAGE
    tell("")
    hello = msgspec.structs.replace(
        summons.hello, pid=os.getpid(), host=os.uname().nodename, address=address, free_port=free_port()
    )
    detach()
    loop = AgentLoop(link, Place(hello, summons.meeting.secret, lifeline, summons.own))
    loop.run()
    link.close()
    return loop.end
