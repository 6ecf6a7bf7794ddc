# SPDX-License-Identifier: Apache-2.0
"""One attempt of a job in a simulated world: the real state machines, and everything around them by the dice.

The meeting, the gang, the agents and the leases are pmrun's own. Simulated are the clocks (each machine has one, with
an offset and a rate), the links (late, cut in one direction or both, closed), the ranks (they finish, fail, leave
early, obey signals or do not, notice a peer's death in a collective) and the two drivers (simulated_drivers.py).
`Job(seed)` draws the shape of the job and up to three faults; `run` plays it to its end and `check` holds what must be
true of any end. With `hostile`, links also repeat and reorder messages, which pmrun's never do: then only safety is held.

Invariant: a seed and the code decide everything that happens. `python tests/simulated_job.py SEED` tells the story.
"""

from __future__ import annotations

import dataclasses
import heapq
import random
import sys
from collections.abc import Callable

from simulated_drivers import NOTICE_S, START_TIMEOUT_S, Clock, Main, Node

from pmrun import window, wire
from pmrun.errors import ExitCode
from pmrun.launcher import gang
from pmrun.launcher.lease import BEAT_S, LEASE_S

PROGRAM_S = (4.0, 4.0, 4.0, 4.0, 4.0, 25.0)  # at most, from the start to its last collective; one is drawn
REMOTE_NOTICE_S = 1.5  # from the end of a connection to RankFailed on another node
END_S, STEPS = 120.0, 20_000  # no job takes half as much of either
LOSSES = ("cut", "deaf", "mute")  # of a node: both directions, to it, from it
FAULTS = (
    "rank", "rank", "rank", "leaves", "leaves", "signal", "signal", "agent", *LOSSES, "controller", "output", "sleep",
    "storm", "twin", "fails", "absent",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Fault:
    """Something that happens to the job from outside."""

    kind: str
    at: float
    node: int
    rank: int
    number: int  # an exit status, a signal or a duration


class Job:
    """A drawn job with drawn faults."""

    def __init__(self, seed: int, hostile: bool = False, tell: Callable[[str], None] | None = None) -> None:
        self.chance = random.Random(seed)
        self.hostile = hostile
        self.now = 0.0
        self._tell = tell
        self._queue: list[tuple[float, int, Callable[..., None], tuple[object, ...]]] = []
        self._serial = 0
        self._arrivals: dict[tuple[str, int], float] = {}
        self._cut: set[tuple[str, int]] = set()
        self._storm_until = 0.0
        self.num_nodes = self.chance.randint(1, 4)
        self.layout = tuple(self.chance.randint(1, 3) for _ in range(self.num_nodes))
        self.program_s = self.chance.choice(PROGRAM_S)
        self.timeout_s = self.chance.choice([None, None, None, 2.0])
        self.faults = [self._draw() for _ in range(self.chance.choice([0, 1, 1, 1, 2, 3]))]
        self.latency_s = self.chance.choice([0.0005, 0.02, 0.3])
        self.finished = False  # the program's last collective is over
        self.missed: list[int] = []  # ranks that ended before it
        self.launches: list[tuple[float, int]] = []
        self.main = Main(self, Clock(self.chance))
        self.numbered = self.chance.random() < 0.7  # the agents know their places
        self.nodes = [Node(self, n, Clock(self.chance), n if self.numbered else -1) for n in range(self.num_nodes)]

    # ---- the dice and the time -----------------------------------------------------------------------

    def dice(self, most: float = 1.0) -> float:
        return self.chance.random() * most

    def after(self, delay: float, call: Callable[..., None], *arguments: object) -> None:
        self.at(self.now + delay, call, *arguments)

    def at(self, moment: float, call: Callable[..., None], *arguments: object) -> None:
        self._serial += 1  # what is said of one moment happens in that order
        heapq.heappush(self._queue, (moment, self._serial, call, arguments))

    def story(self, text: str) -> None:
        if self._tell is not None:
            self._tell(f"{self.now:9.4f}  {text}")

    def _draw(self) -> Fault:
        node = self.chance.randrange(self.num_nodes)
        first = sum(self.layout[:node])
        rank = first + self.chance.randrange(self.layout[node])
        kind = self.chance.choice(FAULTS)
        number = {
            "rank": self.chance.choice([1, 3, -9, -11]),
            "signal": self.chance.choice([1, 2, 15]),
            "sleep": self.chance.choice([2, 8, 14]),
            "storm": self.chance.choice([1, 3]),
        }.get(kind, 0)
        return Fault(kind, self.dice(self.program_s), node, rank, number)

    # ---- links ---------------------------------------------------------------------------------------

    def up(self, node: int, message: wire.Message) -> None:
        self._carry(("up", node), message, self.main.hear, node)

    def down(self, peer: int, message: wire.Message) -> None:
        if peer < self.num_nodes:
            self._carry(("down", peer), message, self.nodes[peer].hear)
        elif isinstance(message, wire.Start):
            raise AssertionError("a second agent of a node got its ranks")

    def hang_up(self, node: int) -> None:
        """The end of a connection comes after all that was sent on it."""
        arrival = max(self._arrivals.get(("up", node), 0.0), self.now + self.dice(self.latency_s))
        self.at(arrival, self._hung_up, node)

    def _hung_up(self, node: int) -> None:
        if ("up", node) not in self._cut:
            self.main.lose(node, "closed")

    def _carry(self, route: tuple[str, int], message: wire.Message, deliver: Callable[..., None], *to: object) -> None:
        """Late, but in order, and cut where the route is when it arrives."""
        delay = self.dice(self.latency_s)
        if self.now < self._storm_until:
            delay += self.dice(3.0)
        arrival = max(self._arrivals.get(route, 0.0), self.now + delay)
        if self.hostile and self.dice() < 0.1:
            self.after(delay, self._deliver, route, message, deliver, to)
            if self.dice() < 0.5:
                return  # it overtook those before it; else it comes twice
        self._arrivals[route] = arrival
        self.at(arrival, self._deliver, route, message, deliver, to)

    def _deliver(
        self, route: tuple[str, int], message: wire.Message, deliver: Callable[..., None], to: tuple[object, ...]
    ) -> None:
        if route in self._cut:
            return
        if route[0] == "down" and self.nodes[route[1]].asleep_until > self.now:
            self.at(self.nodes[route[1]].asleep_until, self._deliver, route, message, deliver, to)
            return
        if not isinstance(message, wire.Beat):
            self.story(f"{route[0]} {route[1]}: {message}")
        deliver(*to, message)

    # ---- the run -------------------------------------------------------------------------------------

    def run(self) -> None:
        absent = {fault.node for fault in self.faults if fault.kind == "absent"}
        for node in self.nodes:
            if node.number not in absent:
                self.after(self.dice(self.chance.choice([0.1, 3.0])), node.join)
        for fault in self.faults:
            self.after(fault.at, self._strike, fault)
        steps = 0
        while self._queue or self._soonest()[0] < float("inf"):
            at, actor = self._soonest()
            if self._queue and self._queue[0][0] <= at:
                self.now, _, call, arguments = heapq.heappop(self._queue)
                call(*arguments)
            else:
                self.now = max(self.now, at)
                actor.tick()
            steps += 1
            assert self.now < END_S and steps < STEPS, "it ends"

    def _soonest(self) -> tuple[float, Main | Node]:
        actors: list[Main | Node] = [self.main, *self.nodes]
        return min(((actor.deadline(), actor) for actor in actors), key=lambda pair: pair[0])

    def orders(self) -> list[wire.Start]:
        self.after(self.dice(self.program_s), self._finish)
        firsts = [sum(self.layout[:node]) for node in range(self.num_nodes)]
        return [
            wire.Start(
                job_id="j", attempt=0, node_rank=node, node_name=f"n{node}", peers=("127.0.0.1",) * self.num_nodes,
                main_port=1, first_rank=firsts[node], local_world_size=self.layout[node], world_size=sum(self.layout),
                command=(b"p",), cwd=None, env=(), bind_to_core=False, stdin_ranks=(), credit_bytes=1,
                layout=self.layout, data_address="127.0.0.1",
            )
            for node in range(self.num_nodes)
        ]  # fmt: skip

    def _finish(self) -> None:
        """The program's end, if it comes to that: all ranks must be there and well for its last collective."""
        whole = all(set(node.ranks) == set(node.alive) and node.ranks for node in self.nodes if not node.gone)
        if not whole or any(node.gone for node in self.nodes) or any(node.abort for node in self.nodes):
            running = any(node.alive for node in self.nodes) or not self.launches
            if running and self.now < self.program_s + START_TIMEOUT_S:
                self.after(0.5, self._finish)  # ranks still start, or are about to be told
            return
        self.finished = True
        for node in self.nodes:
            for rank in node.ranks:
                self.after(self.dice(0.05), node.end, rank, 0)

    def launched(self, node: Node) -> None:
        self.launches.append((self.now, node.number))

    def fails_to_start(self, node: int) -> bool:
        return any(fault.kind == "fails" and fault.node == node for fault in self.faults)

    def departed(self, node: Node, rank: int) -> None:
        """Ranks notice it in their next collective, and say whom they waited for."""
        if self.finished:
            return
        self.missed.append(rank)
        for other in self.nodes:
            self.await_rank(other, rank)

    def await_rank(self, node: Node, missed: int) -> None:
        """Ranks of a node wait for one that is gone, now or when they come to it."""
        delay = 0.0 if missed in node.ranks else REMOTE_NOTICE_S
        for witness in node.alive:
            busy = self.dice(NOTICE_S if self.dice() < 0.8 else 1.0)
            self.after(delay + busy, self._notice, node, witness, missed)

    def _notice(self, node: Node, witness: int, missed: int) -> None:
        if witness in node.alive and not node.gone and not self.finished:
            node.abort = node.abort or (window.ABORT_RANK_FAILED, missed, f"rank {missed} left")
            node.end(witness, 1)

    def _strike(self, fault: Fault) -> None:
        node, main = self.nodes[fault.node], self.main
        self.story(f"fault: {fault}")
        if fault.kind in ("rank", "leaves"):
            if not self.finished or fault.number:
                node.end(fault.rank, fault.number)
        elif fault.kind == "signal" and not main.over and main.gang is not None:
            main.do(main.gang.on_signal(fault.number))
        elif fault.kind == "output" and not main.over and main.gang is not None and main.gang.cause is None:
            main.do(main.gang.on_output_closed("closed", ExitCode.OUTPUT_CLOSED))
        elif fault.kind == "agent" and not node.gone:
            node.die()
            self.after(self.dice(0.1), main.ended, fault.node)
        elif fault.kind in LOSSES:
            self._cut |= {
                (way, fault.node) for way in ("up", "down") if fault.kind != {"up": "deaf", "down": "mute"}[way]
            }
        elif fault.kind == "controller":
            main.killed = True
            for other in self.nodes:
                if ("down", other.number) not in self._cut and self.dice() < 0.7:  # else its machine is gone as well
                    self.after(self.dice(0.1), other.lose)
        elif fault.kind == "sleep":
            node.asleep_until = self.now + fault.number
        elif fault.kind == "storm":
            self._storm_until = self.now + fault.number
        elif (
            fault.kind == "twin" and self.numbered and any(guest.peer == node.number for guest in main.meeting.guests())
        ):
            hello = wire.Hello(wire.VERSION, fault.node, 999, host="twin", address="10.9.9.9")
            self._carry(("up", 1000), hello, main.hear, 1000)

    # ---- what must hold ------------------------------------------------------------------------------

    def check(self) -> None:
        """After `run`: safety always; blame and time where the links are pmrun's and the world is not too bad."""
        for node in self.nodes:
            assert not node.alive, f"ranks {sorted(node.alive)} of n{node.number} are left"
            assert node.gone or not node.here, f"the agent of n{node.number} is left: {node.machine.phase}"
        main = self.main
        assert main.over, "the controller is left"
        if main.killed and main.outcome is None and main.failed_start is None:
            return
        if main.outcome is None:
            assert not self.launches, "a start that failed before all were there has started nothing"
            return
        self._check_outcome(main.outcome)

    def _check_outcome(self, outcome: gang.Outcome) -> None:
        assert (outcome.cause is None) == (outcome.code == 0)
        statuses = [found.status for found in outcome.exits.values()]
        if outcome.cause is None:
            assert statuses == [0] * sum(self.layout), "success is the success of all"
        if self.hostile:
            return
        kinds = {fault.kind for fault in self.faults}
        if not kinds and self.timeout_s is None:
            assert outcome.cause is None, "no fault, no failure"
        cause = outcome.cause
        if cause is not None and cause.kind is gang.Kind.RANK:
            struck = {fault.rank for fault in self.faults if fault.kind in ("rank", "leaves")}
            for fault in self.faults:
                if fault.kind in LOSSES:  # what is known of its ranks is what the others saw
                    struck |= set(self.nodes[fault.node].ranks)
            assert cause.rank in struck, "an innocent rank is blamed"
        if cause is not None and cause.kind is gang.Kind.AGENT:
            assert kinds & {"agent", "sleep", *LOSSES}, "a node that was well is called lost"
        losses = [fault for fault in self.faults if fault.kind in LOSSES]
        if len(self.faults) == len(losses) == 1 and cause is not None and cause.kind is gang.Kind.AGENT:
            took_s = self.main.ended_at - max([losses[0].at, *(at for at, _ in self.launches)])
            assert took_s <= LEASE_S + 4 * BEAT_S, f"a loss was noticed after {took_s} s"


if __name__ == "__main__":
    job = Job(int(sys.argv[1]), "hostile" in sys.argv[2:], print)
    print(f"layout {job.layout}, --timeout {job.timeout_s}, latency {job.latency_s} s, {job.faults}")
    job.run()
    print(job.main.outcome or job.main.failed_start or "the controller was killed")
    job.check()
