# SPDX-License-Identifier: Apache-2.0
"""The agent of one node, as a backend starts it there: `pmrun agent` is not for people.

Reads where to go and the secret from its standard input (launcher/bootstrap.py), which stays open as its lifeline:
when it ends, so do the agent and its ranks. What happens on the way to the meeting is told in lines on standard
output that begin with `MARK`. Invariant: when this process has ended, nothing that it started is left.
"""

from __future__ import annotations

import os

from pmrun import wire
from pmrun.errors import UsageError
from pmrun.launcher import bootstrap
from pmrun.launcher.dial import Meeting
from pmrun.launcher.keeper import Summons, keep_agent
from pmrun.version import RELEASE


def run(argv: list[str]) -> int:
    """Be the agent until the gang is over."""
    if argv or os.isatty(0):
        raise UsageError("pmrun starts its agents itself; for a node by hand use --nnodes (see pmrun --help)")
    told = bootstrap.read(0)
    for name, value in told.environment:
        os.environb[name] = value
    meeting = Meeting(told.addresses, told.secret, told.node_rank, told.start_timeout_s)
    hello = wire.Hello(wire.VERSION, told.node_rank, 0, release=RELEASE)
    lifeline = os.dup(0)
    _tell("its agent runs")
    return keep_agent(Summons(meeting, hello, told.interface), lifeline, _tell).code


def _tell(text: str) -> None:
    try:
        os.write(1, bootstrap.MARK + text.encode() + b"\n")
    except OSError:
        return  # whoever would read it is gone, as the lifeline will say
