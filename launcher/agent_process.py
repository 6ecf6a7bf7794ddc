# SPDX-License-Identifier: Apache-2.0
"""The process that an agent is: cut off from the terminal, the one to whom its ranks' orphans come.

Invariant: a forked agent never returns into its copy of the process that made it.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import NoReturn

from pmrun.errors import ExitCode
from pmrun.launcher import rank_process
from pmrun.launcher.agent_loop import AgentLoop, Place
from pmrun.launcher.link import Link


def run_agent(link: Link, place: Place) -> NoReturn:
    """Be the agent in this process, made by fork, until the end."""
    code: int = ExitCode.INTERNAL
    try:
        detach()
        loop = AgentLoop(link, place)
        loop.run()
        code = loop.end.code
    finally:
        leave_process(code)


def detach() -> None:
    """Leave the terminal, and the signals that it sends; be the one to whom orphans come."""
    os.setsid()
    signal.set_wakeup_fd(-1)  # whatever inbox there is belongs to the process that was forked
    for number in (signal.SIGTERM, signal.SIGTSTP):
        signal.signal(number, signal.SIG_DFL)
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    os.close(null)
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    rank_process.become_subreaper()


def leave_process(code: int) -> NoReturn:
    """End a forked process, which must not return into its copy of pmrun; an exception under way is shown."""
    kind, value, trace = sys.exc_info()
    if kind is not None and value is not None:
        sys.excepthook(kind, value, trace)
    os._exit(code)
