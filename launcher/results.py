# SPDX-License-Identifier: Apache-2.0
"""What a program that started `pmrun` gets from it in the end: how the job ended, and what its ranks left to be kept.

The program names a descriptor in the environment; what is written there is one MessagePack map, once, when the job
is over. Such a `pmrun` dies with the program. Invariant: ranks inherit neither the descriptor nor its name.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from typing import TYPE_CHECKING

import msgspec

from pmrun import env
from pmrun.launcher.rank_process import die_with_parent
from pmrun.launcher.report import headline

if TYPE_CHECKING:
    from pmrun.launcher.gang import Outcome


class Results(msgspec.Struct, frozen=True):
    """How a job ended; `left` are the lasting keys that begin with the prefix for results, without it."""

    code: int
    attempt: int  # the last
    rank: int  # that failed first, -1: none did
    node: str
    reason: str
    left: dict[str, bytes]


def adopt(text: str) -> int:
    """From what the environment says of it: the descriptor."""
    fd, _, parent = text.partition(" ")
    os.set_inheritable(int(fd), False)
    die_with_parent(int(parent), signal.SIGTERM)
    return int(fd)


def hand_over(fd: int, outcome: Outcome, attempt: int, lasting: Mapping[str, bytes]) -> None:
    """Write it."""
    rank = outcome.cause.rank if outcome.cause is not None else -1
    left = {key.removeprefix(env.RESULTS): value for key, value in lasting.items() if key.startswith(env.RESULTS)}
    node = outcome.node_of(rank) if rank >= 0 else ""
    with os.fdopen(fd, "wb") as file:
        file.write(msgspec.msgpack.encode(Results(outcome.code, attempt, rank, node, headline(outcome), left)))
