# SPDX-License-Identifier: Apache-2.0
"""Which transport carries data between nodes: the one that was asked for, or, for "auto", the faster one.

The first ranks of nodes 0 and 1 open a small network of their own on each transport that there is, time short and long
messages (some 10 ms for each transport, with its connections), and rank 0 tells all ranks what to take. The others open nothing before they know.
Invariant: all ranks of a gang take the same, since one of them decides; where nothing could be timed it is tcp.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from types import ModuleType
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from pmrun import env, libzmq
from pmrun.errors import PmrunError

if TYPE_CHECKING:
    from pmrun._native import Net

CANDIDATES: Final = ("tcp", "zmq")  # the first one is taken unless another is clearly faster
CLEARLY: Final = 1.25  # in the midst of a start figures are rough
ENCRYPTING: Final = "zmq"
BUDGET_S: Final = 0.004  # for each candidate, beside its connections
TIMEOUT_S: Final = 0.5  # a path that takes longer is not compared; whether it works at all is tried later on
CLOSE_S: Final = 0.2
FAILURES: Final = (PmrunError, OSError, TypeError)  # of a transport that cannot be had here
_DECISION: Final = "transport"

Figures = tuple[float, float]  # µs: 8 bytes there and back; 256 KiB there and a word back, or 0


class Choice(NamedTuple):
    """What carries data between nodes, and why."""

    transport: str
    why: str


class Board(Protocol):
    """Where ranks leave words for each other."""

    def key(self) -> bytes:
        """32 bytes that all ranks of this attempt have, and nobody else."""

    def tell(self, name: str, text: str) -> None:
        """Leave a text."""

    def hear(self, name: str, timeout_s: float) -> str:
        """Wait for one."""


def choose(native: ModuleType, board: Board, rank: int, sizes: list[int], address: str, timeout_s: float) -> Choice:
    """The transport that all ranks take.

    Parameters
    ----------
    native : module
        `pmrun._native`.
    board : Board
        How ranks tell each other something.
    rank : int
        This rank, in the world.
    sizes : list of int
        Ranks of each node.
    address : str
        Of this node.
    timeout_s : float
        How long to wait for other ranks.
    """
    wanted = os.environ.get(env.TRANSPORT, "auto")
    if wanted != "auto":
        return Choice(wanted, "asked for")
    if os.environ.get(env.ENCRYPT) == "1":
        return Choice(ENCRYPTING, "the one that encrypts")
    pair = (0, sizes[0])
    if rank in pair:
        figures, without = _compare(native, board, pair, pair.index(rank), address, timeout_s)
        if rank == 0:
            choice = decide(figures, without)
            board.tell(_DECISION, "\t".join(choice))
            return choice
    transport, _, why = board.hear(_DECISION, timeout_s).partition("\t")
    return Choice(transport, why)


def decide(figures: Mapping[str, Figures], without: Mapping[str, str]) -> Choice:
    """The fastest of those that were timed; `without`: why others were not."""
    best = CANDIDATES[0]
    for name in CANDIDATES:
        if name in figures and (best not in figures or _times_faster(figures[name], figures[best]) > CLEARLY):
            best = name
    timed = [f"{name} {short:.0f} µs{f' and {long:.0f} µs' if long else ''}" for name, (short, long) in figures.items()]
    told = [f"{', '.join(timed)} (8 bytes there and back, 256 KiB)"] if timed else []
    return Choice(best, "; ".join([*told, *(f"not {name}: {reason}" for name, reason in without.items())]))


def _times_faster(one: Figures, other: Figures) -> float:
    """How much faster the one is, over what both have been timed for."""
    ratios = [theirs / ours for ours, theirs in zip(one, other, strict=True) if ours > 0 and theirs > 0]
    return math.prod(ratios) ** (1 / len(ratios)) if ratios else 1.0


# ---- the pair that compares -------------------------------------------------------------------------------


def _compare(
    native: ModuleType, board: Board, pair: tuple[int, int], me: int, address: str, timeout_s: float
) -> tuple[dict[str, Figures], dict[str, str]]:
    """What each candidate takes (known to rank 0 alone), and why some were not timed."""
    nets: dict[str, Net] = {}
    figures: dict[str, Figures] = {}
    without: dict[str, str] = {}
    try:
        for name in CANDIDATES:
            try:
                library = libzmq.find() if name == "zmq" else None
                nets[name] = native.open_net(name, address, me, [1, 1], board.key(), library=library)
            except FAILURES as error:
                without[name] = str(error)
        board.tell(f"trial/{pair[me]}", "\n".join(net.address for net in nets.values()))
        theirs = {line.split(" ")[0]: line for line in board.hear(f"trial/{pair[1 - me]}", timeout_s).splitlines()}
        for name in [name for name in nets if name not in theirs]:
            without[name] = "the other node has not got it"
        for name in [name for name in nets if name in theirs]:
            try:
                nets[name].connect([nets[name].address, theirs[name]][:: -1 if me else 1])
                figures[name] = nets[name].time(BUDGET_S, TIMEOUT_S)
            except FAILURES as error:
                without[name] = str(error)
    finally:
        for net in nets.values():
            net.close(CLOSE_S)
    return figures, without
