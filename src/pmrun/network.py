# SPDX-License-Identifier: Apache-2.0
"""How the ranks of several nodes find each other: each binds a port, tells the others, and connects.

A rank knows its own place and the layout of the gang from its environment; what it cannot know it *exchanges* with the
others: the secret of this attempt, and everybody's address. Invariant: what `connect` returns has been tried between all
nodes, or it raises within its time limit and names those that are missing.
"""

from __future__ import annotations

import importlib
import os
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final, Protocol

from pmrun import env, foreign, libzmq, transports
from pmrun.errors import UsageError

if TYPE_CHECKING:
    from pmrun._native import Net

_START_APART_S: Final = 60.0  # ranks import what they need before they come here, some much longer than others

chosen: transports.Choice | None = None  # by the last `connect`


class Exchange(Protocol):
    """What the ranks of a gang use to tell each other their addresses."""

    def key(self) -> bytes:
        """32 bytes that all ranks of this attempt have, and nobody else."""

    def publish(self, rank: int, address: str) -> None:
        """Let the others see this rank's address."""

    def collect(self, ranks: int, timeout_s: float) -> list[str]:
        """Wait for the addresses of all ranks; raise, naming those that did not come."""

    def tell(self, name: str, text: str) -> None:
        """Leave another text for the others."""

    def hear(self, name: str, timeout_s: float) -> str:
        """Wait for one."""


class StoreExchange:
    """Through the gang's store."""

    def __init__(self) -> None:
        self._store: Any = importlib.import_module("pmrun.store")

    def key(self) -> bytes:
        """32 bytes that all ranks of this attempt have, and nobody else."""
        key: bytes = self._store.data_key()
        return key

    def publish(self, rank: int, address: str) -> None:
        """Let the others see this rank's address."""
        self._store.set(f"pmrun/net/{rank}", address)

    def collect(self, ranks: int, timeout_s: float) -> list[str]:
        """Wait for the addresses of all ranks; raise, naming those that did not come."""
        values = self._store.get_many([f"pmrun/net/{rank}" for rank in range(ranks)], timeout=timeout_s)
        return [value.decode() for value in values]

    def tell(self, name: str, text: str) -> None:
        """Leave another text for the others."""
        self._store.set(f"pmrun/net/{name}", text)

    def hear(self, name: str, timeout_s: float) -> str:
        """Wait for one."""
        text: str = self._store.get(f"pmrun/net/{name}", timeout=timeout_s).decode()
        return text


def layout() -> list[int]:
    """Ranks of each node, in node order; empty where the gang is on one node."""
    text = os.environ.get(env.LAYOUT, "")
    sizes = text.split(",") if text else []
    if not all(size.isdecimal() and int(size) > 0 for size in sizes):
        raise UsageError(f"{env.LAYOUT}={text!r} is no list of numbers: pmrun sets it, so unset it or start with pmrun")
    return [int(size) for size in sizes] if len(sizes) > 1 else []


def own_address() -> str:
    """Where the agent says that this node's ranks listen."""
    address = os.environ.get(env.DATA_ADDRESS, "")
    if not address:
        raise UsageError(f"{env.LAYOUT} tells of several nodes, but {env.DATA_ADDRESS} is not set: start with pmrun")
    return address


def connect(native: ModuleType, exchange: Exchange, rank: int, sizes: list[int], address: str) -> Net:
    """Open this rank's end of the network between the nodes, and try it.

    Parameters
    ----------
    native : module
        `pmrun._native`.
    exchange : Exchange
        How ranks tell each other their addresses.
    rank : int
        This rank, in the world.
    sizes : list of int
        Ranks of each node.
    address : str
        Of this node: where this rank listens.
    """
    global chosen
    timeout_s = foreign.join_timeout_s(os.environ)
    patience_s = max(timeout_s, _START_APART_S)
    choice = transports.choose(native, exchange, rank, sizes, address, patience_s)
    net: Net = native.open_net(
        choice.transport,
        address,
        rank,
        sizes,
        exchange.key(),
        encrypt=os.environ.get(env.ENCRYPT) == "1",
        library=libzmq.find() if choice.transport == "zmq" else None,
    )
    try:
        exchange.publish(rank, net.address)
        net.connect(exchange.collect(sum(sizes), patience_s))
        net.probe(timeout_s)
    except BaseException:
        net.close(0)  # what is queued does not get through either
        raise
    chosen = choice
    return net
