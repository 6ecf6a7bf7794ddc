# SPDX-License-Identifier: Apache-2.0
"""The life of one multi-node parallel job, as AWS documents it; time and ends of nodes in, actions out.

SUBMITTED → PENDING → RUNNABLE → STARTING → RUNNING → SUCCEEDED or FAILED. The main node starts first; the others when
its container runs, in random order and after unequal times. The main node's end is the job's: its status is the job's,
and the others are stopped. The end of another node means nothing. Only a failure of the main node is retried, with all
nodes anew, once the last old one has ended; a timeout or a termination is not. Invariant: `Start` is given once per
node and attempt, and after the job's end or a new attempt no node of an earlier one runs.
"""

from __future__ import annotations

import random
from typing import Final, NamedTuple

from pmrun.testing.fake_batch.rules import EvaluateOnExit, Outcome, retries

FINAL: Final = ("SUCCEEDED", "FAILED")
WAITING: Final = ("SUBMITTED", "PENDING", "RUNNABLE")
EXITED: Final = "Essential container in task exited"  # what Batch says of any container's end
TIMED_OUT: Final = "Job attempt duration exceeded timeout"


class Start(NamedTuple):
    """Run the container of a node."""

    node: int


class Stop(NamedTuple):
    """SIGTERM to a node's container, and after the grace of a container SIGKILL."""

    node: int


Action = Start | Stop


class Delays(NamedTuple):
    """Seconds, each drawn anew between two bounds. They are minutes at AWS."""

    waiting: tuple[float, float] = (0.0, 0.1)  # before RUNNABLE, and before STARTING
    main: tuple[float, float] = (0.0, 0.1)  # from STARTING to RUNNING
    children: tuple[float, float] = (0.0, 0.3)  # after the main node is RUNNING, each


USUAL_DELAYS: Final = Delays()


class Node:
    """One node in one attempt."""

    def __init__(self) -> None:
        self.status = "PENDING"
        self.status_reason = ""
        self.reason = ""  # of the container
        self.exit_code: int | None = None
        self.started_s: float | None = None
        self.stopped_s: float | None = None
        self.address = ""
        self.stream = ""

    @property
    def runs(self) -> bool:
        return self.status == "RUNNING"


class Lifecycle:
    """One job's state machine.

    Attributes
    ----------
    blocked : str
        Why the job stays RUNNABLE, or "".
    """

    def __init__(
        self, num_nodes: int, main: int, attempts: int, rules: tuple[EvaluateOnExit, ...], timeout_s: float | None,
        delays: Delays, rng: random.Random, now: float,
    ) -> None:  # fmt: skip
        self.num_nodes = num_nodes
        self.main = main
        self.attempts_max = attempts
        self.rules = rules
        self.timeout_s = timeout_s
        self.status = "SUBMITTED"
        self.status_reason = ""
        self.blocked = ""
        self.cancelled = self.terminated = False
        self.created_s = now
        self.nodes = [Node() for _ in range(num_nodes)]
        self.past: list[list[Node]] = []  # earlier attempts
        self._delays = delays
        self._rng = rng
        self._next_s: float | None = now + rng.uniform(*delays.waiting)
        self._starts: list[tuple[float, int]] = []  # of children
        self._deadline_s: float | None = None

    @property
    def attempt(self) -> int:
        """From 1."""
        return len(self.past) + 1

    @property
    def over(self) -> bool:
        """Whether nothing happens any more: the job has ended, and so has every node."""
        return self.status in FINAL and not any(node.runs for node in self.nodes)

    def due_s(self) -> float | None:
        """When `tick` has something to do; None: not before something else happens."""
        times = [self._next_s, self._deadline_s, self._starts[0][0] if self._starts else None]
        return min((time for time in times if time is not None), default=None)

    def tick(self, now: float) -> list[Action]:
        """Time has passed."""
        actions: list[Action] = []
        if self._next_s is not None and now >= self._next_s:
            actions += self._advance(now)
        while self._starts and now >= self._starts[0][0]:
            actions.append(Start(self._starts.pop(0)[1]))
        if self._deadline_s is not None and now >= self._deadline_s:
            actions += self._finish("FAILED", TIMED_OUT)
        return actions

    def block(self, reason: str) -> None:
        """From now on the job gets no instances, unless it has them."""
        if self.status in WAITING:
            self.blocked = reason
            if self.status == "RUNNABLE":
                self.status_reason, self._next_s = reason, None

    def unblock(self, now: float) -> None:
        """What kept the job RUNNABLE is gone."""
        if not self.blocked:
            return
        self.blocked = ""
        if self.status == "RUNNABLE" and self.nodes[self.main].stopped_s is None:  # else its old nodes go first
            self.status_reason = ""
            self._next_s = now + self._rng.uniform(*self._delays.waiting)

    def node_started(self, index: int, address: str, stream: str, now: float) -> None:
        """The container of a node runs."""
        node = self.nodes[index]
        node.status, node.started_s, node.address, node.stream = "RUNNING", now, address, stream
        if index == self.main:
            self.status = "RUNNING"
            if self.timeout_s is not None:
                self._deadline_s = now + self.timeout_s
            children = [child for child in range(self.num_nodes) if child != self.main]
            self._starts = sorted((now + self._rng.uniform(*self._delays.children), child) for child in children)
            for child in children:
                self.nodes[child].status = "STARTING"

    def node_ended(
        self, index: int, exit_code: int | None, status_reason: str, reason: str, now: float
    ) -> list[Action]:
        """The container of a node ended, or could not be started: then it has no exit code."""
        node = self.nodes[index]
        node.status = "SUCCEEDED" if exit_code == 0 else "FAILED"
        node.exit_code, node.status_reason, node.reason = exit_code, status_reason, reason
        node.stopped_s = now
        if self.status in FINAL:
            return []
        if index == self.main:
            return self._main_ended(node, now)
        return self._again(now) if self.status == "RUNNABLE" else []

    def terminate(self, reason: str) -> list[Action]:
        """End the job, wherever it is; nothing where it has ended."""
        if self.status in FINAL:
            return []
        self.terminated = True
        return self._finish("FAILED", reason)

    def cancel(self, reason: str) -> None:
        """Take the job out of its queue; nothing where it has left it."""
        if self.status in WAITING and not any(node.runs for node in self.nodes):
            self.cancelled = True
            self._finish("FAILED", reason)

    # ---- details ----------------------------------------------------------------------------------------

    def _advance(self, now: float) -> list[Action]:
        self._next_s = None
        if self.status == "SUBMITTED":
            self.status = "PENDING"  # where it waits for those that it depends on: the fake has none
            self._next_s = now
        elif self.status == "PENDING":
            self.status = "RUNNABLE"
            self.status_reason = self.blocked
            self._next_s = None if self.blocked else now + self._rng.uniform(*self._delays.waiting)
        elif self.status == "RUNNABLE":
            self.status = self.nodes[self.main].status = "STARTING"
            self._next_s = now + self._rng.uniform(*self._delays.main)
        elif self.status == "STARTING":
            return [Start(self.main)]
        return []

    def _main_ended(self, node: Node, now: float) -> list[Action]:
        outcome = Outcome(node.exit_code, node.status_reason, node.reason)
        if node.exit_code == 0:
            return self._finish("SUCCEEDED", node.status_reason)
        if not retries(outcome, self.attempt, self.attempts_max, self.rules):
            return self._finish("FAILED", node.status_reason)
        self._deadline_s = None
        self.status, self.status_reason = "RUNNABLE", node.status_reason
        return [*self._stop_all(), *self._again(now)]

    def _again(self, now: float) -> list[Action]:
        """The next attempt, once no node of the last one runs."""
        if self.nodes[self.main].stopped_s is not None and not any(node.runs for node in self.nodes):
            self.past.append(self.nodes)
            self.nodes = [Node() for _ in range(self.num_nodes)]
            self._next_s = None if self.blocked else now + self._rng.uniform(*self._delays.waiting)
        return []

    def _finish(self, status: str, reason: str) -> list[Action]:
        self.status, self.status_reason = status, reason
        self._next_s = self._deadline_s = None
        return self._stop_all()

    def _stop_all(self) -> list[Action]:
        self._starts = []
        for node in self.nodes:
            if node.status in ("PENDING", "STARTING"):
                node.status, node.status_reason = "FAILED", "the job ended before this node was started"
        return [Stop(index) for index, node in enumerate(self.nodes) if node.runs]
