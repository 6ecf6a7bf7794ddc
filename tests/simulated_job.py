# SPDX-License-Identifier: Apache-2.0
"""A job in a simulated world: the real state machines, and everything around them by the dice.

The meeting, the gang, the hang watch, the agents, the leases and the loop over attempts are pmrun's own. Simulated are
the clocks and links (simulated_world.py), the nodes with their agents' drivers (simulated_node.py), the controller's
driver (simulated_main.py) and the program (simulated_attempt.py), whose ranks finish, fail, leave early, are stuck, obey
signals or do not. `Job(seed)` draws the shape of the job and a few faults; `run` plays it to its end, and
simulated_verdict.py holds what must be true of any end. With `hostile`, links also repeat and reorder messages, which
pmrun's never do: then only safety is held.

Invariant: a seed and the code decide everything that happens. `python tests/simulated_job.py SEED` tells the story.
"""

from __future__ import annotations

import dataclasses
import random
import sys
from collections.abc import Callable

import simulated_verdict
from simulated_attempt import Attempt
from simulated_main import START_TIMEOUT_S, Main
from simulated_node import Node
from simulated_world import Clock, Route, World

from pmrun import wire
from pmrun.errors import ExitCode

PROGRAM_S = (4.0, 4.0, 8.0, 8.0, 25.0)  # at most, from the start to its last collective; one is drawn
CLOSE_S = 5.0  # for agents that were told to leave, before the next attempt goes on without waiting
END_S, STEPS = 120.0, 20_000  # no attempt takes half as much of either
LOSSES = ("cut", "deaf", "mute")  # of a node: both directions, to it, from it
FAULTS = (
    "rank", "rank", "rank", "leaves", "leaves", "signal", "signal", "agent", *LOSSES, "controller", "output", "sleep",
    "storm", "twin", "fails", "absent", "stuck", "stuck", "stuck", "debugged",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Fault:
    """Something that happens to an attempt from outside."""

    kind: str
    attempt: int
    at: float  # after the attempt began
    node: int
    rank: int
    number: float  # an exit status, a signal or a duration


class Job(World):
    """A drawn job with drawn faults."""

    def __init__(self, seed: int, hostile: bool = False, tell: Callable[[str], None] | None = None) -> None:
        super().__init__(seed, hostile, tell)
        self.num_nodes = self.chance.randint(1, 4)
        self.layout = tuple(self.chance.randint(1, 3) for _ in range(self.num_nodes))
        self.program_s = self.chance.choice(PROGRAM_S)
        self.timeout_s = self.chance.choice([None, None, None, None, None, 2.0, 30.0])
        self.max_restarts = self.chance.choice([0, 0, 1, 1, 3])
        self.hang_timeout_s = self.chance.choice([0.0, 1.0, 2.0, 5.0])
        self.hang_ends = self.chance.random() < 0.7
        self.faults = [
            self._draw(attempt)
            for attempt in range(self.max_restarts + 1)
            for _ in range(self.chance.choice([0, 1, 1, 1, 2, 3]))
        ]
        self.latency_s = self.chance.choice([0.0005, 0.02, 0.3])
        self.faults += self._cascade(random.Random(f"cascade {seed}"))
        self.numbered = self.chance.random() < 0.7  # the agents know their places
        self.main = Main(self, Clock(self.chance))
        self._clocks = [Clock(self.chance) for _ in range(self.num_nodes)]
        self.attempts: list[Attempt] = []
        self.muster()

    @property
    def nodes(self) -> list[Node]:
        """Of the attempt that runs, or ran last."""
        return self.attempts[-1].nodes

    def _draw(self, attempt: int) -> Fault:
        node = self.chance.randrange(self.num_nodes)
        first = sum(self.layout[:node])
        rank = first + self.chance.randrange(self.layout[node])
        kind = self.chance.choice(FAULTS)
        number = {
            "rank": self.chance.choice([1, 3, -9, -11, ExitCode.RESUMABLE]),
            "signal": self.chance.choice([1, 2, 3, 15]),
            "sleep": self.chance.choice([2, 8, 14, 40]),
            "storm": self.chance.choice([1, 3]),
            "stuck": self.chance.choice([1, 6, 30, self.hang_timeout_s + self.dice(0.6)]),
            "debugged": self.chance.choice([3, 20]),
        }.get(kind, 0)
        at = self.dice(self.program_s) * self.chance.choice([1.0, 1.0, 1.5])  # 1.5: also between two attempts
        return Fault(kind, attempt, at, node, rank, number)

    def _cascade(self, chance: random.Random) -> list[Fault]:
        """Others that fail while the first failure's news is on its way."""
        first = next((fault for fault in self.faults if fault.kind == "rank"), None)
        if first is None or chance.random() < 0.3:
            return []
        moments = [first.at + chance.uniform(0.0, self.latency_s) for _ in range(2)]
        nodes = [chance.randrange(self.num_nodes) for _ in moments]
        ranks = [sum(self.layout[:node]) + chance.randrange(self.layout[node]) for node in nodes]
        return [Fault("rank", first.attempt, *where, -9) for where in zip(moments, nodes, ranks, strict=True)]

    # ---- links ---------------------------------------------------------------------------------------

    def up(self, node: Node, message: wire.Message) -> None:
        route = Route("up", node.attempt.number, node.number)
        self.carry(route, message, self.main.hear, route.attempt, route.node)

    def down(self, peer: int, message: wire.Message) -> None:
        if peer < self.num_nodes:
            self.carry(Route("down", self.attempts[-1].number, peer), message, self.nodes[peer].hear)
        elif isinstance(message, wire.Start):
            raise AssertionError("a second agent of a node got its ranks")

    def closed(self, node: Node) -> None:
        """The agent's end of its connection is."""
        route = Route("up", node.attempt.number, node.number)
        self.hang_up(route, self.main.lose, route.attempt, route.node, "closed")

    def asleep_until(self, route: Route) -> float:
        return self.attempts[route.attempt].nodes[route.node].asleep_until if route.way == "down" else 0.0

    # ---- the run -------------------------------------------------------------------------------------

    def run(self) -> None:
        steps = 0
        while True:
            at, actor = self._soonest()
            soon = self.next_at()
            if min(at, soon) == float("inf"):
                return
            if soon <= at:
                self.happen()
            else:
                self.now = max(self.now, at)
                actor.tick()
            steps += 1
            attempts = len(self.attempts)
            assert self.now < END_S * attempts and steps < STEPS * attempts, "it ends"

    def check(self) -> None:
        """After `run`."""
        simulated_verdict.check(self)

    def _soonest(self) -> tuple[float, Main | Node]:
        actors: list[Main | Node] = [self.main]
        actors += [node for attempt in self.attempts for node in attempt.nodes if node.here and not node.gone]
        return min(((actor.deadline(), actor) for actor in actors), key=lambda pair: pair[0])

    def muster(self) -> None:
        """Another attempt begins: a fresh agent comes from each machine, if it can be reached."""
        number = len(self.attempts)
        attempt = Attempt(self, number, self.now + self.program_s + START_TIMEOUT_S)
        lasting = [route for route in sorted(self.cut) if route.attempt == number - 1 and self.dice() < 0.3]
        self.cut |= {route._replace(attempt=number) for route in lasting}
        self.attempts.append(attempt)
        faults = [fault for fault in self.faults if fault.attempt == number]
        absent = {fault.node for fault in faults if fault.kind == "absent"}
        for place, clock in enumerate(self._clocks):
            node = Node(self, attempt, place, clock, place if self.numbered else -1)
            attempt.nodes.append(node)
            if place not in absent:
                self.after(self.dice(self.chance.choice([0.1, 3.0])), node.join)
        for fault in faults:
            self.after(fault.at, self._strike, fault)

    def sweep(self, node: int) -> None:
        """The controller gives up a node: here all of it is ended, elsewhere the way to it."""
        if self.num_nodes == 1:
            self.nodes[node].die()
        elif Route("down", self.attempts[-1].number, node) not in self.cut:
            self.after(self.dice(0.1), self.nodes[node].cut_lifeline)

    def close_fleet(self, closed: Callable[[], None] | None) -> None:
        """The attempt is over: agents that are not gone lose their lifelines; then `closed` is called."""
        attempt = self.attempts[-1]
        attempt.end()
        for node in attempt.nodes:
            if not node.gone and Route("down", attempt.number, node.number) not in self.cut:
                self.after(self.latency_s + self.dice(0.1), node.cut_lifeline)
        if closed is not None:
            self._wait_closed(attempt, self.now + CLOSE_S, closed)

    def _wait_closed(self, attempt: Attempt, until: float, closed: Callable[[], None]) -> None:
        if self.main.over:
            return
        if self.now >= until or all(node.gone for node in attempt.nodes):
            if self.num_nodes == 1:
                self.nodes[0].die()
            closed()
        else:
            self.after(0.1, self._wait_closed, attempt, until, closed)

    def orders(self) -> list[wire.Start]:
        self.after(self.dice(self.program_s), self.attempts[-1].finish)
        firsts = [sum(self.layout[:node]) for node in range(self.num_nodes)]
        return [
            wire.Start(
                job_id="j", attempt=len(self.attempts) - 1, node_rank=node, node_name=f"n{node}",
                peers=("127.0.0.1",) * self.num_nodes, main_port=1, first_rank=firsts[node],
                local_world_size=self.layout[node], world_size=sum(self.layout), command=(b"p",), cwd=None, env=(),
                bind_to_core=False, stdin_ranks=(), credit_bytes=1, layout=self.layout, data_address="127.0.0.1",
            )
            for node in range(self.num_nodes)
        ]  # fmt: skip

    def launched(self, node: Node) -> None:
        """A node starts its ranks."""
        node.attempt.launches.append((self.now, node.number))
        simulated_verdict.check_launch(self, node)

    def fails_to_start(self, node: Node) -> bool:
        number = node.attempt.number
        return any(
            fault.kind == "fails" and (fault.attempt, fault.node) == (number, node.number) for fault in self.faults
        )

    def _strike(self, fault: Fault) -> None:
        """What happens to an attempt that is over happens to nobody, but for what the user does."""
        attempt, main = self.attempts[fault.attempt], self.main
        node = attempt.nodes[fault.node]
        self.story(f"fault: {fault}")
        if fault.kind in ("rank", "leaves"):
            if not attempt.finished or fault.number:
                node.end(fault.rank, int(fault.number))
        elif fault.kind == "signal":
            main.signal(int(fault.number))
        elif fault.kind == "output":
            main.lose_output()
        elif fault.kind == "agent" and not node.gone:
            node.die()
            self.after(self.dice(0.1), main.ended, fault.attempt, fault.node)
        elif fault.kind in LOSSES:
            ways = [way for way in ("up", "down") if fault.kind != {"up": "deaf", "down": "mute"}[way]]
            self.cut |= {Route(way, fault.attempt, fault.node) for way in ways}
        elif fault.kind == "controller":
            main.killed = True
            for other in self.nodes:
                if Route("down", len(self.attempts) - 1, other.number) not in self.cut and self.dice() < 0.7:
                    self.after(self.dice(0.1), other.lose)  # else its machine is gone as well
        elif fault.kind == "sleep":
            node.asleep_until = self.now + fault.number
        elif fault.kind == "storm":
            self.storm_until = self.now + fault.number
        elif fault.kind in ("stuck", "debugged"):
            attempt.stick(fault.rank, fault.number, fault.kind == "debugged")
        elif fault.kind == "twin":
            self._send_twin(fault)

    def _send_twin(self, fault: Fault) -> None:
        """A second agent says that it is a node's, which is there."""
        if self.numbered and any(guest.peer == fault.node for guest in self.main.meeting.guests()):
            hello = wire.Hello(wire.VERSION, fault.node, 999, host="twin", address="10.9.9.9")
            self.carry(Route("up", fault.attempt, 1000), hello, self.main.hear, fault.attempt, 1000)


if __name__ == "__main__":
    job = Job(int(sys.argv[1]), "hostile" in sys.argv[2:], print)
    print(f"layout {job.layout}, --timeout {job.timeout_s}, latency {job.latency_s} s, {job.faults}")
    print(f"--max-restarts {job.max_restarts}, --hang-timeout {job.hang_timeout_s}, ends by it: {job.hang_ends}")
    job.run()
    for outcome in job.main.outcomes or ["the controller was killed"]:
        print(outcome)
    job.check()
