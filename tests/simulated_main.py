# SPDX-License-Identifier: Apache-2.0
"""The controller of a simulated job: what launcher/controller.py and launcher/hang_desk.py do, in short.

The meeting, the gang, the hang watch, the leases and the loop over attempts are pmrun's own. Each attempt begins anew
but for that loop and the moment from which --timeout counts. Invariant: the controller reads its own clock only, and hears
nobody of an attempt that is over.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from simulated_world import Clock

from pmrun import wire
from pmrun.errors import ExitCode
from pmrun.launcher import gang, hang, rendezvous
from pmrun.launcher.attempts import Again, Attempts
from pmrun.launcher.lease import BACKSTOP_S, Leases

if TYPE_CHECKING:
    from simulated_job import Job

START_TIMEOUT_S = 20.0
GRACE_S = 1.0
FENCE_S = BACKSTOP_S + 1.0  # the controller's


class Told(NamedTuple):
    """A report of where the ranks are."""

    attempt: int
    at: float  # true time
    found: hang.Found


class Main:
    """The controller."""

    def __init__(self, job: Job, clock: Clock) -> None:
        self.job, self.clock = job, clock
        self.attempts = Attempts(job.max_restarts)
        self.killed = False
        self.outcomes: list[gang.Outcome] = []  # one of each attempt
        self.ended_at = 0.0  # the last of them
        self.told: list[Told] = []
        self.caused_at: dict[int, float] = {}  # by attempt, when its gang got a cause to end: true time
        self.again: Again | None = None
        self._since: float | None = None  # --timeout
        self.open()

    def open(self) -> None:
        """All that belongs to one attempt begins anew."""
        now = self.clock.read(self.job.now)
        seats = tuple(rendezvous.Seat(f"n{node}") for node in range(self.job.num_nodes))
        self.meeting = rendezvous.Rendezvous(seats, sum(self.job.layout), "", START_TIMEOUT_S, now)
        self.lease = Leases(now)
        self.gang: gang.Gang | None = None
        self.watch = hang.HangWatch(self.job.num_nodes, self.job.hang_timeout_s)
        self.nodes: dict[int, int] = {}  # by peer
        self.peers: list[int] = []
        self._start_by = now + START_TIMEOUT_S
        self._began: float | None = None
        self._gone: frozenset[int] = frozenset()
        self._silent_until = now
        self._wake_at = float("inf")
        self.outcome: gang.Outcome | None = None
        self.again = None

    @property
    def over(self) -> bool:
        """The job is."""
        return self.killed or (self.outcome is not None and self.again is None)

    def deadline(self) -> float:
        if self.over:
            return float("inf")
        if self.outcome is not None:
            return self.clock.when(self._wake_at)
        now = self.clock.read(self.job.now)
        times = [self.lease.deadline(), (self.meeting if self.gang is None else self.gang).deadline()]
        times.append(self.watch.deadline(now) if self.gang is not None else self._end_by())
        return min(self.clock.when(at) for at in times)

    def tick(self) -> None:
        now = self.clock.read(self.job.now)
        if self.outcome is not None:
            self._rest(now)
            return
        for peer in self.lease.look(now):
            if peer in self.nodes and self.job.num_nodes > 1:
                self._silent_until = now + FENCE_S
            self.lose(self.attempts.number, peer, "no sign of life")
        if self.outcome is None and self.lease.beat_due(now):
            for peer in list(self.nodes) if self.gang else [guest.peer for guest in self.meeting.guests()]:
                self.job.down(peer, wire.Beat())
        end_by = self._end_by()
        if self.outcome is not None:
            return
        if self.gang is None:
            self.meet(self.meeting.on_tick(now))
            if self.gang is None and end_by is not None and now >= end_by:
                self.give_up(gang.Kind.TIMEOUT, "--timeout", ExitCode.TIMEOUT)
            return
        self._watch_hangs(now)
        if self.outcome is None:
            self.do(self.gang.on_tick(now))

    def hear(self, attempt: int, peer: int, message: wire.Message) -> None:
        if self.over or attempt != self.attempts.number or self.outcome is not None:
            return
        now = self.clock.read(self.job.now)
        self.lease.heard(peer, now)
        if isinstance(message, wire.Hello):
            self.lease.add(peer, now)
            self.meet(self.meeting.on_hello(peer, message, now))
        elif peer in self.nodes and self.gang is not None:
            node = self.nodes[peer]
            if isinstance(message, wire.Beat | wire.Started | wire.RankExited):
                sent = self.job.nodes[peer].clock.when(message.at_s)
                self.job.attempts[attempt].ways.append((self.job.now, peer, self.job.now - sent))
            if isinstance(message, wire.Waits):
                self.watch.on_waits(node, message, now)
            elif isinstance(message, wire.Looked):
                self._carry_out([] if self._ending() else self.watch.on_looked(node, message, now))
            else:
                self.do(self.gang.on_message(node, message, now))

    def lose(self, attempt: int, peer: int, why: str) -> None:
        """A connection is gone."""
        if self.over or attempt != self.attempts.number or self.outcome is not None:
            return
        self.job.story(f"the controller loses {peer}: {why}")
        self.lease.remove(peer)
        node = self.nodes.pop(peer, None)
        if node is not None and self.gang is not None:
            self.do(self.gang.on_link_lost(node, why))
        elif self.gang is None:
            self.meeting.on_gone(peer)

    def ended(self, attempt: int, node: int) -> None:
        """What was started for a node is no more."""
        if self.over or attempt != self.attempts.number or self.outcome is not None:
            return
        if self.gang is None:
            self.meet(self.meeting.on_ended(node, f"the agent on n{node} ended"))
        elif self.peers[node] in self.nodes:
            self.lose(attempt, self.peers[node], "ended")

    # ---- what the user does --------------------------------------------------------------------------

    def signal(self, number: int) -> None:
        """SIGINT, SIGTERM, SIGHUP; SIGQUIT."""
        if self.over:
            return
        if number == 3:
            if self.outcome is None and self.gang is not None:
                self._carry_out([] if self._ending() else self.watch.on_quit(self.clock.read(self.job.now)))
        elif self.again is not None:
            self._cancel(gang.Kind.SIGNAL, f"stopped by signal {number}", 128 + number)
        elif self.gang is not None:
            self.do(self.gang.on_signal(number))
        else:
            self.give_up(gang.Kind.SIGNAL, f"stopped by signal {number}", 128 + number)

    def lose_output(self) -> None:
        """Nobody reads any more; between two attempts that is noticed in the next one."""
        if self.over or self.outcome is not None:
            return
        if self.gang is None:
            self.give_up(gang.Kind.OUTPUT, "closed", ExitCode.OUTPUT_CLOSED)
        elif self.gang.cause is None:
            self.do(self.gang.on_output_closed("closed", ExitCode.OUTPUT_CLOSED))

    # ---- actions -------------------------------------------------------------------------------------

    def meet(self, actions: list[rendezvous.Action]) -> None:
        for action in actions:
            if isinstance(action, rendezvous.Refuse):
                self.lease.remove(action.peer)
                self.job.down(action.peer, wire.Refused(action.text, ExitCode.START_FAILED))
            elif isinstance(action, rendezvous.Fail):
                self.give_up(gang.Kind.START, action.text, ExitCode.START_FAILED)
            elif isinstance(action, rendezvous.Meet):
                self.begin(action.guests)

    def begin(self, guests: tuple[rendezvous.Guest, ...]) -> None:
        self.peers = [guest.peer for guest in guests]
        self.nodes = {peer: node for node, peer in enumerate(self.peers)}
        self._began = now = self.clock.read(self.job.now)
        self._since = now if self._since is None else self._since
        limits = gang.Limits(GRACE_S, self.job.timeout_s, START_TIMEOUT_S, self._start_by)
        self.gang = gang.Gang(self.job.orders(), limits, self._since)
        self.do(self.gang.begin())

    def do(self, actions: list[gang.Action]) -> None:
        if self.gang is not None and self.gang.cause is not None:
            self.caused_at.setdefault(self.attempts.number, self.job.now)
        for action in actions:
            assert self.outcome is None, "nothing comes after Finish"
            if isinstance(action, gang.SendTo):
                if self.peers[action.node] in self.nodes:
                    self.job.down(self.peers[action.node], action.message)
            elif isinstance(action, gang.Sweep):
                self.nodes.pop(self.peers[action.node], None)
                self.job.sweep(self.peers[action.node])
            elif isinstance(action, gang.Finish):
                self.job.attempts[-1].ended_at = self.job.now
                self._conclude(action.outcome)

    def give_up(self, kind: gang.Kind, text: str, code: int) -> None:
        """There will be no gang in this attempt."""
        if self.outcome is None:
            self._conclude(gang.Outcome(code, gang.Cause(kind, text, code), {}, (), (), ()))

    def rest(self) -> None:
        """The last attempt's fleet is closed: wait for the next one's time."""
        assert self.again is not None
        times = [self.clock.read(self.job.now) + self.again.delay_s, self._end_by()]
        self._begin_at = times[0]
        self._wake_at = min(at for at in times if at is not None)

    # ---- details -------------------------------------------------------------------------------------

    def _conclude(self, outcome: gang.Outcome) -> None:
        now = self.clock.read(self.job.now)
        self.outcome = outcome
        self.outcomes.append(outcome)
        self.ended_at = self.job.now
        lived_s = 0.0 if self._began is None else now - self._began
        text = outcome.cause.text if outcome.cause is not None else ""
        follows = self.attempts.on_end(outcome, text, lived_s, max(0.0, self._silent_until - now))
        self.again = follows if isinstance(follows, Again) else None
        for peer in list(self.nodes) if self.gang is not None else [guest.peer for guest in self.meeting.guests()]:
            self.job.down(peer, wire.Leave(outcome.code))
        self.job.close_fleet(self.rest if self.again is not None else None)

    def _rest(self, now: float) -> None:
        """Between two attempts."""
        end_by = self._end_by()
        if end_by is not None and now >= end_by:
            self._cancel(gang.Kind.TIMEOUT, "--timeout", ExitCode.TIMEOUT)
        elif now >= self._begin_at:
            self.open()
            self.job.muster()

    def _cancel(self, kind: gang.Kind, text: str, code: int) -> None:
        """There will be no further attempt, though there could have been."""
        self.again = None
        self.attempts.on_interrupted()
        self.outcome = gang.Outcome(code, gang.Cause(kind, text, code), {}, (), (), ())
        self.outcomes.append(self.outcome)

    def _end_by(self) -> float | None:
        limit_s = self.job.timeout_s
        return None if limit_s is None or self._since is None else self._since + limit_s

    def _watch_hangs(self, now: float) -> None:
        assert self.gang is not None
        if self._ending():
            return
        gone = self.gang.over
        actions = [action for node in gone - self._gone for action in self.watch.on_node_over(node, now)]
        self._gone = gone
        self._carry_out([*actions, *self.watch.on_tick(now)])

    def _ending(self) -> bool:
        """A gang that is being ended is looked at no more."""
        if self.gang is None or self.gang.cause is None:
            return False
        self.watch.stop()
        return True

    def _carry_out(self, actions: list[hang.Action]) -> None:
        assert self.gang is not None
        for action in actions:
            if isinstance(action, hang.Ask):
                self.do([gang.SendTo(node, action.look) for node in action.nodes])
            else:
                self.job.story(f"told: {action}")
                self.told.append(Told(self.attempts.number, self.job.now, action))
                if not action.asked and self.job.hang_ends:
                    self.do(self.gang.on_hang(-1, "hang", "report"))
