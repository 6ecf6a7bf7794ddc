# SPDX-License-Identifier: Apache-2.0
"""The roll call of ranks that another launcher started on several nodes: whose have come, and who is missing.

Sans-I/O; the driver is launcher/convener.py. Unlike pmrun's own agents (launcher/rendezvous.py) the nodes may know neither
their number nor how many there are: their ranks' numbers say when all are there, and in which order. Invariant: what was
taken in is part of one gang: no rank comes twice, and each node's are consecutive.
"""

from __future__ import annotations

from typing import Final

import msgspec

from pmrun import wire

_NAMED_MAX: Final = 8  # nodes, or spans of ranks, that a message names


class Present(msgspec.Struct, frozen=True):
    """A node whose ranks have come."""

    peer: int
    hello: wire.Hello

    @property
    def ranks(self) -> range:
        """Those that have come."""
        if self.hello.first_rank < 0:
            return range(0)
        return range(self.hello.first_rank, self.hello.first_rank + self.hello.local_world_size)


class RollCall:
    """Who is there."""

    def __init__(self, world_size: int, release: str) -> None:
        self._world_size = world_size
        self._release = release
        self._arrived: dict[int, wire.Hello] = {}  # of all nodes that said a word, by peer
        self._present: dict[int, Present] = {}  # by peer
        self._called: set[int] = set()  # ranks
        self._refused = ""

    def on_hello(self, peer: int, hello: wire.Hello) -> str:
        """A node is there, and then, in another Hello, its ranks; returns why they cannot take part, or ""."""
        node = Present(peer, hello)
        problem = self._problem(node)
        if problem:
            self._refused = problem
            return problem
        self._arrived[peer] = hello
        if node.ranks:
            self._present[peer] = node
            self._called.update(node.ranks)
        return ""

    @property
    def whole(self) -> bool:
        """Whether all ranks are there."""
        return len(self._called) == self._world_size

    @property
    def all_heard(self) -> bool:
        """Whether no node is left that has not said a word."""
        return sum(hello.local_world_size for hello in self._arrived.values()) == self._world_size

    def in_order(self) -> list[Present]:
        """The nodes, by their ranks' numbers."""
        return sorted(self._present.values(), key=lambda node: node.hello.first_rank)

    def host_of(self, peer: int) -> str:
        """The name of a node that is there, or ""."""
        hello = self._arrived.get(peer)
        return hello.host if hello is not None else ""

    def missing(self) -> str:
        """Whose ranks have not come: "ranks 2-3 of 6 (there are 0-1 on a, 4-5 on c; not all have come on b)"."""
        lacking = [rank for rank in range(self._world_size) if rank not in self._called]
        text = f"rank{'s' * (len(lacking) > 1)} {spans(lacking)} of {self._world_size}"
        there = _listed([f"{spans(list(node.ranks))} on {node.hello.host}" for node in self.in_order()])
        partly = _listed([hello.host for peer, hello in self._arrived.items() if peer not in self._present])
        known = [f"there are {there}"] * bool(there) + [f"not all have come on {partly}"] * bool(partly)
        return text + f" ({'; '.join(filter(None, [*known, self._refused]))})" * bool(known or self._refused)

    def _problem(self, node: Present) -> str:
        hello = node.hello
        who = f"{hello.host} ({hello.address})"
        if (hello.version, hello.release) != (wire.VERSION, self._release):
            theirs, ours = hello.release or "another version", self._release
            return f"{who} runs pmrun {theirs}, rank 0's node {ours}: install one version on all nodes"
        if hello.world_size != self._world_size:
            return f"{who} was told of {hello.world_size} ranks, rank 0's node of {self._world_size}"
        if hello.local_world_size <= 0 or node.ranks.stop > self._world_size:
            return f"{who} says it has {hello.local_world_size} ranks from {hello.first_rank} of {self._world_size}"
        twice = self._called.intersection(node.ranks)
        if twice:
            there = next(one for one in self._present.values() if twice.intersection(one.ranks))
            ranks = spans(sorted(twice))
            return f"{who} has ranks {ranks}, which are there already, on {there.hello.host} ({there.hello.address})"
        return ""


def spans(ranks: list[int]) -> str:
    """Ascending numbers as people write them: "0-3, 7"."""
    parts: list[list[int]] = []
    for rank in ranks:
        if parts and rank == parts[-1][-1] + 1:
            parts[-1] = [parts[-1][0], rank]
        else:
            parts.append([rank])
    return _listed(["-".join(map(str, part)) for part in parts])


def _listed(names: list[str]) -> str:
    return ", ".join(names[:_NAMED_MAX]) + ", ..." * (len(names) > _NAMED_MAX)
