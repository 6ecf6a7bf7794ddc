# SPDX-License-Identifier: Apache-2.0
"""One attempt of a simulated job: its nodes, and what the ranks' program does on them.

The program is collectives one after the other, of which only the last is told in detail: it needs all ranks, there and
well. A rank that died is noticed by those that need it. A rank that is stuck makes all others wait; those waits are what
pmrun's hang watch is held against, so this file knows the truth of them. Invariant: nothing here crosses attempts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from simulated_node import NOTICE_S, Node

from pmrun import window

if TYPE_CHECKING:
    from simulated_job import Job

REMOTE_NOTICE_S = 1.5  # from the end of a connection to RankFailed on another node
BUSY_S = (NOTICE_S, NOTICE_S, NOTICE_S, NOTICE_S, 1.0)  # a rank computes for so long, at most, before its next call
LONG_S = (NOTICE_S, 30.0)  # the same in a program whose steps are long
ENTER_S = 0.5  # from a rank's getting stuck to a peer's waiting for it
FINISH_AGAIN_S = 0.5


class Attempt:
    """State of one attempt."""

    def __init__(self, job: Job, number: int, give_up_at: float) -> None:
        self.job, self.number = job, number
        self._give_up_at = give_up_at  # the program's last collective is not to come after that
        self.nodes: list[Node] = []
        self.finished = False  # the program's last collective is over
        self.missed: list[int] = []  # ranks that ended before it
        self.launches: list[tuple[float, int]] = []
        self.deaths: dict[int, float] = {}  # by rank: when it failed without having been signalled
        self.ways: list[tuple[float, int, float]] = []  # of what nodes stamp: when it arrived, whence, after how long
        self.ended_at = 0.0
        self._busy_s = BUSY_S if job.chance.random() < 0.8 else LONG_S
        self.stuck: set[int] = set()
        self.debugged: set[int] = set()
        self.stalls: list[tuple[float, float]] = []  # when all waits for a stuck rank began, and ended
        self.pauses: list[tuple[float, float]] = []  # when a rank was in a debugger
        self._stall_began: float | None = None
        self._pause_began: float | None = None

    def finish(self) -> None:
        """The program's end, if it comes to that: all ranks must be there and well for its last collective."""
        whole = all(set(node.ranks) == set(node.alive) and node.ranks for node in self.nodes if not node.gone)
        ill = any(node.gone or node.abort for node in self.nodes)
        if not whole or ill or self.stuck:
            running = any(node.alive for node in self.nodes) or not self.launches
            if running and (self.job.now < self._give_up_at or self.stuck):
                self.job.after(FINISH_AGAIN_S, self.finish)  # ranks still start, or are about to be told
            return
        self.finished = True
        for node in self.nodes:
            for rank in node.ranks:
                self.job.after(self.job.dice(0.05), node.end, rank, 0)

    def departed(self, rank: int) -> None:
        """Ranks notice it in their next collective, and say whom they waited for."""
        self.go_on(rank)
        if self.finished:
            return
        self.missed.append(rank)
        for other in self.nodes:
            self.await_rank(other, rank)

    def await_rank(self, node: Node, missed: int) -> None:
        """Ranks of a node wait for one that is gone, now or when they come to it."""
        if missed not in node.ranks and node.number in {cut.node for cut in self.job.cut if cut.attempt == self.number}:
            return  # nothing comes from there
        delay = 0.0 if missed in node.ranks else REMOTE_NOTICE_S
        for witness in node.alive:
            busy = self.job.dice(self.job.chance.choice(self._busy_s))
            self.job.after(delay + busy, self._notice, node, witness, missed)

    def _notice(self, node: Node, witness: int, missed: int) -> None:
        if witness in node.alive and not node.gone and not self.finished and witness not in self.stuck:
            node.abort = node.abort or (window.ABORT_RANK_FAILED, missed, f"rank {missed} left")
            node.end(witness, 1)

    # ---- ranks that are stuck ------------------------------------------------------------------------

    def stick(self, rank: int, seconds: float, debugged: bool) -> None:
        """A rank enters no collective for so long; `debugged`: as somebody looks at it."""
        if self.finished or rank in self.stuck or not any(rank in node.alive for node in self.nodes):
            return
        self.stuck.add(rank)
        if debugged:
            self.debugged.add(rank)
            self._pause_began = self.job.now if self._pause_began is None else self._pause_began
        for node in self.nodes:
            for other in node.alive:
                self.job.after(self.job.dice(ENTER_S), self._enter, node, other)
        self.job.after(seconds, self.go_on, rank)

    def _enter(self, node: Node, rank: int) -> None:
        if self.stuck and rank not in self.stuck and rank in node.alive and not node.gone:
            node.waiting.setdefault(rank, node.clock.read(self.job.now))
            self._stall_began = self.job.now if self._stall_began is None else self._stall_began

    def go_on(self, rank: int) -> None:
        """A rank is stuck no more: it enters, or it has ended. The last one ends all waits."""
        if rank not in self.stuck:
            return
        self.stuck.discard(rank)
        self.debugged.discard(rank)
        if self._pause_began is not None and not self.debugged:
            self.pauses.append((self._pause_began, self.job.now))
            self._pause_began = None
        if self.stuck:
            return
        if self._stall_began is not None:
            self.stalls.append((self._stall_began, self.job.now))
            self._stall_began = None
        for node in self.nodes:
            node.waiting.clear()
            for missed in self.missed:
                self.await_rank(node, missed)

    def end(self) -> None:
        """The attempt is over: what lasts, lasted until now."""
        for rank in list(self.stuck):
            self.go_on(rank)

    def waited_s(self, at: float, lately_s: float = 0.0) -> float:
        """How long ranks had waited for a stuck one at a moment, or lately, debuggers' time left out; 0: none did.

        Only for an attempt that is over.
        """
        for began, ended in self.stalls:
            if began <= at <= ended + lately_s:
                to = min(at, ended)
                idle = sum(max(0.0, min(until, to) - max(since, began)) for since, until in self.pauses)
                return to - began - idle
        return 0.0
