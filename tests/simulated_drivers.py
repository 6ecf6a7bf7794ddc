# SPDX-License-Identifier: Apache-2.0
"""The drivers of a simulated job: clocks, nodes with an agent and ranks, and the controller.

What launcher/agent_loop.py and launcher/controller.py do with the state machines' actions, in short; time, links and
faults are those of tests/simulated_job.py. Invariant: a machine reads its own clock only.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from pmrun import wire
from pmrun.errors import ExitCode
from pmrun.launcher import agent, gang, rendezvous
from pmrun.launcher.lease import Leases

if TYPE_CHECKING:
    from simulated_job import Job

START_TIMEOUT_S = 20.0
GRACE_S = 1.0
NOTICE_S = 0.05  # from the abort record to RankFailed in a collective


class Clock:
    """A machine's monotonic clock, which nobody else's agrees with."""

    def __init__(self, chance: random.Random) -> None:
        self._offset = chance.choice([0.0, 0.0, 1e6 * chance.random()])
        self._rate = 1.0 + chance.choice([0.0, 1e-4, -1e-4])

    def read(self, now: float) -> float:
        return self._offset + now * self._rate

    def when(self, reading: float | None) -> float:
        """The true time of a reading; never is infinity."""
        return float("inf") if reading is None else (reading - self._offset) / self._rate + 1e-9


class Node:
    """A machine with an agent: what launcher/agent_loop.py does, in short, and its ranks."""

    def __init__(self, job: Job, number: int, clock: Clock, told: int) -> None:
        self.job, self.number, self.clock = job, number, clock
        self.machine = agent.Agent(
            wire.Hello(wire.VERSION, told, number, host=f"n{number}", address=f"10.0.0.{number}")
        )
        self.lease = Leases(clock.read(0.0))
        self.here = self.gone = self.lost = False
        self.ranks: range = range(0)
        self.alive: dict[int, int] = {}  # rank: the last signal that it was sent
        self.abort: tuple[int, int, str] | None = None
        self.asleep_until = 0.0

    def join(self) -> None:
        if not self.gone:
            self.here = True
            self.lease.add(0, self.clock.read(self.job.now))
            self.do(self.machine.on_connected())

    def deadline(self) -> float:
        if self.gone or not self.here:
            return float("inf")
        times = [self.clock.when(self.machine.deadline())]
        if not self.lost:
            times.append(self.clock.when(self.lease.deadline()))
        return max(min(times), self.asleep_until)

    def tick(self) -> None:
        now = self.clock.read(self.job.now)
        self.do(self.machine.on_tick(now))
        if self.gone or self.lost:
            return
        if self.lease.look(now):
            self.lose()
        elif self.lease.beat_due(now):
            self.job.up(self.number, wire.Beat())

    def hear(self, message: wire.Message) -> None:
        if self.gone or self.lost:
            return
        now = self.clock.read(self.job.now)
        self.lease.heard(0, now)
        self.do(self.machine.on_message(message, now))

    def lose(self) -> None:
        """The controller is gone, as far as this node can tell."""
        if not self.gone and not self.lost and self.here:
            self.lost = True
            self.do(self.machine.on_link_lost(self.clock.read(self.job.now)))

    def die(self) -> None:
        """The agent is killed: its ranks have a parent-death signal."""
        self.alive.clear()
        self.leave()

    def leave(self) -> None:
        """The agent's process ends, and with it its connection, if that can still be told."""
        self.gone = True
        self.job.hang_up(self.number)

    def do(self, actions: list[agent.Action]) -> None:
        job = self.job
        for action in actions:
            if isinstance(action, agent.Send):
                job.up(self.number, action.message)
            elif isinstance(action, agent.Launch):
                self.launch(action.start)
            elif isinstance(action, agent.Tell):
                self.tell((action.state, action.rank, action.text))
            elif isinstance(action, agent.Depart):
                job.departed(self, action.rank)
            elif isinstance(action, agent.SignalRanks):
                self.signal(action.number)
            elif isinstance(action, agent.AskToStop):
                self.signal(15)  # these ranks never ask
            elif isinstance(action, agent.KillAll):
                self.signal(9)
                if not self.alive:
                    job.after(0.0, self.no_process)
            elif isinstance(action, agent.DrainOutput):
                job.after(job.dice(0.1), self.drained)
            elif isinstance(action, agent.Exit):
                self.leave()

    def launch(self, start: wire.Start) -> None:
        job = self.job
        job.launched(self)
        self.ranks = range(start.first_rank, start.first_rank + start.local_world_size)
        if job.fails_to_start(self.number):
            job.after(0.01, self.start_failed)
            return
        self.alive = dict.fromkeys(self.ranks, 0)
        for rank in job.missed:
            job.await_rank(self, rank)
        job.after(job.dice(0.02), self.started)

    def started(self) -> None:
        if not self.gone:
            self.do(self.machine.on_started(tuple(self.ranks), self.clock.read(self.job.now)))

    def start_failed(self) -> None:
        if not self.gone:
            self.do(self.machine.on_start_failed(self.ranks[0], "not found", 127, self.clock.read(self.job.now)))
            self.job.after(0.0, self.no_process)

    def signal(self, number: int) -> None:
        for rank in self.alive:
            self.alive[rank] = number
            if number == 9 or self.job.dice() < 0.7:
                self.job.after(self.job.dice(0.005 if number == 9 else 0.3), self.end, rank, -number)

    def tell(self, record: tuple[int, int, str]) -> None:
        """The abort record is written once, and read by the ranks that are in a collective."""
        self.abort = self.abort or record
        for rank in self.alive:
            if self.job.dice() < 0.8:
                self.job.after(self.job.dice(NOTICE_S), self.end, rank, 1)

    def end(self, rank: int, status: int) -> None:
        """A rank's process ends, if it is still there."""
        if self.gone or rank not in self.alive:
            return
        sent = self.alive.pop(rank)
        self.job.story(f"rank {rank} ends with {status}")
        exited = wire.RankExited(
            rank, 100 + rank, status, sent, False, *(self.abort or (0, -1, "")), b"", b"", ""
        )  # fmt: skip
        self.do(self.machine.on_rank_exited(exited, self.clock.read(self.job.now)))
        if not self.alive:
            self.no_process()

    def no_process(self) -> None:
        if not self.gone and not self.alive:
            self.do(self.machine.on_no_process(self.clock.read(self.job.now)))

    def drained(self) -> None:
        if not self.gone:
            self.do(self.machine.on_drained(()))


class Main:
    """The controller: what launcher/controller.py does, in short."""

    def __init__(self, job: Job, clock: Clock) -> None:
        self.job, self.clock = job, clock
        now = clock.read(0.0)
        seats = tuple(rendezvous.Seat(f"n{node}") for node in range(job.num_nodes))
        world_size = sum(job.layout)
        self.meeting = rendezvous.Rendezvous(seats, world_size, "", START_TIMEOUT_S, now)
        self.lease = Leases(now)
        self.gang: gang.Gang | None = None
        self.nodes: dict[int, int] = {}  # by peer
        self.peers: list[int] = []
        self.killed = False
        self.failed_start: str | None = None
        self.outcome: gang.Outcome | None = None
        self.ended_at = 0.0

    @property
    def over(self) -> bool:
        return self.killed or self.outcome is not None or self.failed_start is not None

    def deadline(self) -> float:
        if self.over:
            return float("inf")
        machine = self.meeting if self.gang is None else self.gang
        return min(self.clock.when(machine.deadline()), self.clock.when(self.lease.deadline()))

    def tick(self) -> None:
        now = self.clock.read(self.job.now)
        for peer in self.lease.look(now):
            self.lose(peer, "no sign of life")
        if self.lease.beat_due(now):
            peers = list(self.nodes) if self.gang else [guest.peer for guest in self.meeting.guests()]
            for peer in peers:
                self.job.down(peer, wire.Beat())
        if self.gang is not None:
            self.do(self.gang.on_tick(now))
        else:
            self.meet(self.meeting.on_tick(now))

    def hear(self, peer: int, message: wire.Message) -> None:
        if self.over:
            return
        now = self.clock.read(self.job.now)
        self.lease.heard(peer, now)
        if isinstance(message, wire.Hello):
            self.lease.add(peer, now)
            self.meet(self.meeting.on_hello(peer, message, now))
        elif peer in self.nodes and self.gang is not None and not isinstance(message, wire.Beat):
            self.do(self.gang.on_message(self.nodes[peer], message))

    def lose(self, peer: int, why: str) -> None:
        """A connection is gone."""
        if self.over:
            return
        self.job.story(f"the controller loses {peer}: {why}")
        self.lease.remove(peer)
        node = self.nodes.pop(peer, None)
        if node is not None and self.gang is not None:
            self.do(self.gang.on_link_lost(node, why))
        elif self.gang is None:
            self.meeting.on_gone(peer)

    def ended(self, node: int) -> None:
        """What was started for a node is no more."""
        if self.over:
            return
        if self.gang is None:
            self.meet(self.meeting.on_ended(node, f"the agent on n{node} ended"))
        elif self.peers[node] in self.nodes:
            self.lose(self.peers[node], "ended")

    def meet(self, actions: list[rendezvous.Action]) -> None:
        for action in actions:
            if isinstance(action, rendezvous.Refuse):
                self.lease.remove(action.peer)
                self.job.down(action.peer, wire.Refused(action.text, ExitCode.START_FAILED))
            elif isinstance(action, rendezvous.Fail):
                self.failed_start = action.text
                self.ended_at = self.job.now
                for guest in self.meeting.guests():
                    self.job.down(guest.peer, wire.Leave(ExitCode.START_FAILED))
            elif isinstance(action, rendezvous.Meet):
                self.begin(action.guests)

    def begin(self, guests: tuple[rendezvous.Guest, ...]) -> None:
        self.peers = [guest.peer for guest in guests]
        self.nodes = {peer: node for node, peer in enumerate(self.peers)}
        now = self.clock.read(self.job.now)
        limits = gang.Limits(GRACE_S, self.job.timeout_s, START_TIMEOUT_S, now + START_TIMEOUT_S)
        self.gang = gang.Gang(self.job.orders(), limits, now)
        self.do(self.gang.begin())

    def do(self, actions: list[gang.Action]) -> None:
        for action in actions:
            assert self.outcome is None, "nothing comes after Finish"
            if isinstance(action, gang.SendTo):
                if self.peers[action.node] in self.nodes:
                    self.job.down(self.peers[action.node], action.message)
            elif isinstance(action, gang.Sweep):
                self.nodes.pop(self.peers[action.node], None)
            elif isinstance(action, gang.Finish):
                self.outcome = action.outcome
                self.ended_at = self.job.now
                for peer in self.nodes:
                    self.job.down(peer, wire.Leave(action.outcome.code))
