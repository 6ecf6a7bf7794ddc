# SPDX-License-Identifier: Apache-2.0
"""A node of a simulated job: an agent and its ranks.

What launcher/agent_loop.py does with the agent's actions, and launcher/lookout.py with the ranks' waits, in short; time
and links are those of simulated_world.py, the program and the faults those of simulated_job.py. A node serves one attempt,
as an agent does. Invariant: a machine reads its own clock only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from simulated_world import Clock

from pmrun import wire
from pmrun.launcher import agent
from pmrun.launcher.lease import BACKSTOP_S, Leases

if TYPE_CHECKING:
    from simulated_attempt import Attempt
    from simulated_job import Job

NOTICE_S = 0.05  # from the abort record to RankFailed in a collective
LOOK_PARTS = 8  # looks within --hang-timeout
TOLD_FROM = 0.25  # of --hang-timeout: younger waits are not told
STACKS_S = 0.5  # for a close look, at most


class Node:
    """A machine with an agent: what launcher/agent_loop.py does, in short, and its ranks."""

    def __init__(self, job: Job, attempt: Attempt, number: int, clock: Clock, told: int) -> None:
        self.job, self.attempt, self.number, self.clock = job, attempt, number, clock
        self.machine = agent.Agent(
            wire.Hello(wire.VERSION, told, number, host=f"n{number}", address=f"10.0.0.{number}")
        )
        self.lease = Leases(clock.read(job.now))
        self.here = self.gone = self.lost = False
        self.ranks: range = range(0)
        self.alive: dict[int, int] = {}  # rank: the last signal that it was sent
        self.abort: tuple[int, int, str] | None = None
        self.asleep_until = 0.0
        self.waiting: dict[int, float] = {}  # rank: when it entered the call that it waits in
        self._look_at = 0.0
        self._told: tuple[float, tuple[int, ...]] = (-1.0, ())

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
            if self.alive and self.job.hang_timeout_s:
                times.append(self.clock.when(self._look_at))
        return max(min(times), self.asleep_until)

    def tick(self) -> None:
        now = self.clock.read(self.job.now)
        self.do(self.machine.on_tick(now))
        if self.gone or self.lost:
            return
        if self.lease.look(now):
            self.lose()
            return
        if self.lease.beat_due(now):
            self.job.up(self, wire.Beat(now))
        if self.alive and self.job.hang_timeout_s and now >= self._look_at:
            self._look(now)

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

    def cut_lifeline(self) -> None:
        """Whoever started the agent has let go of it, which it reads when it is awake; its keeper gives it some time."""
        if not self.here:
            self.gone = True  # it was on its way
        backstop = self.job.now + BACKSTOP_S
        if self.asleep_until > backstop:
            self.job.at(backstop, self.die)
        else:
            self.job.at(max(self.job.now, self.asleep_until), self.lose)

    def die(self) -> None:
        """The agent is killed: its ranks have a parent-death signal."""
        if self.gone:
            return
        for rank in list(self.alive):
            del self.alive[rank]
            self.attempt.go_on(rank)
        self.leave()

    def leave(self) -> None:
        """The agent's process ends, and with it its connection, if that can still be told."""
        self.gone = True
        self.job.closed(self)

    def do(self, actions: list[agent.Action]) -> None:
        job = self.job
        for action in actions:
            if isinstance(action, agent.Send):
                job.up(self, action.message)
            elif isinstance(action, agent.Launch):
                self.launch(action.start)
            elif isinstance(action, agent.Tell):
                self.tell((action.state, action.rank, action.text))
            elif isinstance(action, agent.Depart):
                self.attempt.departed(action.rank)
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
            elif isinstance(action, agent.LookAround):
                sights = tuple(self._sight(rank) for rank in sorted(self.alive))
                job.after(job.dice(STACKS_S), job.up, self, wire.Looked(action.number, sights))
            elif isinstance(action, agent.Exit):
                self.leave()

    def launch(self, start: wire.Start) -> None:
        job = self.job
        job.launched(self)
        self.ranks = range(start.first_rank, start.first_rank + start.local_world_size)
        if job.fails_to_start(self):
            job.after(0.01, self.start_failed)
            return
        self.alive = dict.fromkeys(self.ranks, 0)
        self._look_at = self.clock.read(job.now)
        for rank in self.attempt.missed:
            self.attempt.await_rank(self, rank)
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
        self.waiting.pop(rank, None)
        self.job.story(f"rank {rank} ends with {status}")
        if status and not sent:
            self.attempt.deaths[rank] = self.job.now
        now = self.clock.read(self.job.now)
        exited = wire.RankExited(
            rank, 100 + rank, status, sent, False, *(self.abort or (0, -1, "")), b"", b"", "", at_s=now
        )  # fmt: skip
        self.do(self.machine.on_rank_exited(exited, now))
        if not self.alive:
            self.no_process()

    def no_process(self) -> None:
        if not self.gone and not self.alive:
            self.do(self.machine.on_no_process(self.clock.read(self.job.now)))

    def drained(self) -> None:
        if not self.gone:
            self.do(self.machine.on_drained(()))

    # ---- the ranks' waits ----------------------------------------------------------------------------

    def _look(self, now: float) -> None:
        """What launcher/lookout.py sees and says."""
        timeout_s = self.job.hang_timeout_s
        interval_s = max(0.02, min(1.0, timeout_s / LOOK_PARTS))
        self._look_at = now + interval_s
        oldest = min(self.waiting.values(), default=now + 1.0)
        watched = now - oldest >= interval_s or len(self.attempt.nodes) > 1
        debugged = tuple(sorted(self.attempt.debugged & self.alive.keys())) if watched else ()
        age_s = now - oldest if now - oldest >= TOLD_FROM * timeout_s else -1.0
        news = (oldest if age_s >= 0 else -1.0, debugged)
        if news != self._told:
            self._told = news
            self.job.up(self, wire.Waits(age_s, debugged))

    def _sight(self, rank: int) -> wire.Sight:
        now, entered = self.clock.read(self.job.now), self.waiting.get(rank)
        waits = None if entered is None else wire.Pending("barrier #1", now - entered)
        return wire.Sight(rank, 100 + rank, "computing", waits=waits)
