# SPDX-License-Identifier: Apache-2.0
"""The controller's driver: carries out what launcher/rendezvous.py, launcher/gang.py and launcher/attempts.py decide,
and moves output, input and signals.

One thread, one poll loop over the hub, what the backend watches, the standard descriptors and the signals. It never
waits in a write, so that deaths, signals and timeouts are handled while nobody reads the output. A backend gives it
a `Fleet` for each attempt, with agents, keys and connections of its own, so that nothing of one reaches the next.
Invariant: when an attempt is over, every agent has left or was swept, and all its output that anybody still reads has
been written, before the next begins or the report is.
"""

from __future__ import annotations

import bisect
import os
import signal
import time
from collections.abc import Callable
from typing import Final

import msgspec

from pmrun import wire
from pmrun.errors import ExitCode, PmrunError
from pmrun.launcher import gang, rendezvous
from pmrun.launcher.attach_desk import AttachDesk
from pmrun.launcher.attempts import Again, Attempts
from pmrun.launcher.describe import exit_code, signal_name
from pmrun.launcher.display import Display
from pmrun.launcher.events import EventLog
from pmrun.launcher.fleet import Fleet, Muster
from pmrun.launcher.hang_desk import HangDesk
from pmrun.launcher.job import Job
from pmrun.launcher.lease import BACKSTOP_S, LEASE_S, Leases
from pmrun.launcher.limits import raise_for_files
from pmrun.launcher.link import Event
from pmrun.launcher.orders import make_starts
from pmrun.launcher.placement import lay_out
from pmrun.launcher.poller import READ, Poller, SignalInbox
from pmrun.launcher.stdin_source import StdinSource
from pmrun.launcher.store_desk import StoreDesk

_SENT_S: Final = 0.2  # what was queued is surely with the kernel by then
_STANDBY_S: Final = 1.0  # after that a node that came too late asks again whether it is needed
_FENCE_S: Final = BACKSTOP_S + 1.0  # after it gave up on a silent node, that has given up on it, and ended its ranks

_FIRST_PATIENCE_S: Final = 30.0  # for nodes that may be missing, where fewer are enough
_PATIENCE_S: Final = 5.0  # the same between attempts

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGTSTP, signal.SIGQUIT, signal.SIGWINCH)


class Controller:
    """Runs a job: one attempt of its gang, and, where `muster` gives further fleets, those after it."""

    def __init__(self, job: Job, fleet: Fleet, events: EventLog, muster: Muster | None = None) -> None:
        self._job = job
        self._muster = muster
        self._attempts = Attempts(job.max_restarts if muster is not None else 0)
        self._again: Again | None = None  # what follows the attempt that is over
        self._job_id = f"{os.uname().nodename}-{os.getpid()}-{os.urandom(4).hex()}"
        self._since: float | None = None  # when the first gang began, and the time of --timeout
        self._wake_at: float | None = None  # between two attempts
        self._events = events
        # What pmrun's parent chose to ignore stays ignored: SIGHUP under nohup, SIGINT in a script's background.
        # SIGQUIT is taken all the same: it ends nothing, and every shell ignores it for what it starts in the background.
        ignored = {number for number in SIGNALS if signal.getsignal(number) is signal.SIG_IGN} - {signal.SIGQUIT}
        self._inbox = SignalInbox(number for number in SIGNALS if number not in ignored)
        self._stop_at: float | None = None  # Ctrl-Z: when this process stops
        self._impatient = 0  # signals that came after the job was over
        if job.output.directory is not None:
            raise_for_files(2 * job.world_size + 64)
        self._display = Display(job.output, job.world_size, self._grant)
        self._desk = AttachDesk(self._job_id, self._display, self._send_to_rank)
        self._store = StoreDesk()
        self._open(fleet)

    def _open(self, fleet: Fleet) -> None:
        """All that belongs to one attempt begins anew."""
        now = time.monotonic()
        self._fleet = fleet
        self._hub = fleet.hub
        self._fresh_poller()
        self._start_by = now + self._job.start_timeout_s
        self._meeting = rendezvous.Rendezvous(
            fleet.seats, self._job.world_size, fleet.release, self._job.start_timeout_s, now, self._enough()
        )
        self._gang: gang.Gang | None = None
        self._began: float | None = None  # its gang
        self._lease = Leases(now)
        self._seats: tuple[int, ...] = ()  # of the fleet, by node, once they have met
        self._peers: list[int] = []  # by node
        self._nodes: dict[int, int] = {}  # by peer; lost ones are not in it
        self._silent: set[int] = set()  # seats whose lease ran out
        self._silent_until = now  # their ranks may run
        self._first_ranks: list[int] = []
        self._stdin = StdinSource([], self._send)
        self._store.end()
        self._hang: HangDesk | None = None
        self._outcome: gang.Outcome | None = None
        self._again = None

    def _fresh_poller(self) -> None:
        self._poller = Poller()  # the old one's descriptors are closed
        self._poller.watch(self._inbox.fd, READ, lambda _: self._on_signals())

    def _enough(self) -> rendezvous.Enough:
        """How many nodes may begin, and how long the others are waited for: longer before the first attempt."""
        patience_s = _FIRST_PATIENCE_S if self._attempts.number == 0 else _PATIENCE_S
        return rendezvous.Enough(self._fleet.least, min(patience_s, self._job.start_timeout_s / 2))

    def run(self) -> int:
        """Serve until the job is over and its output written; returns pmrun's exit code."""
        if self._job.output.directory is not None:
            self._display.open_files(self._job.output.directory, self._job.world_size)
        reading_before = signal.signal(signal.SIGTTIN, signal.SIG_IGN)
        try:
            outcome = self._attempt()
            while self._again is not None:
                outcome = self._restart(self._again)
            self._report(outcome)
            self._serve(self._flushing)
            if self._job.results_fd is not None:
                from pmrun.launcher import results

                self._store.end()
                results.hand_over(self._job.results_fd, outcome, self._attempts.number, self._store.lasting)
        finally:
            self._desk.close()
            self._fleet.close()
            self._inbox.close()
            signal.signal(signal.SIGTTIN, reading_before)
            self._display.close()
            self._events.close()
        return outcome.code

    def _attempt(self) -> gang.Outcome:
        """Serve one attempt until it is over, its output written and its agents gone."""
        self._serve(lambda: self._outcome is None)
        self._display.end_streams(self._job.world_size, time.monotonic())
        self._serve(self._flushing)
        self._fleet.close()
        assert self._outcome is not None
        return self._outcome

    def _restart(self, again: Again) -> gang.Outcome:
        """Another attempt, unless something ends the job before."""
        assert self._muster is not None and self._outcome is not None
        text = self._attempts.announcement(again)
        self._display.say(f"pmrun: {text}\n")
        self._note(gang.Note("restarting", {"attempt": again.attempt, "delay_s": again.delay_s, "text": text}))
        self._fresh_poller()
        begin_at = time.monotonic() + again.delay_s
        self._wake_at = min(at for at in (begin_at, self._end_by()) if at is not None)
        self._serve(lambda: self._resting(begin_at))
        self._wake_at = None
        if self._again is None:
            return self._outcome
        self._display.next_attempt()
        try:
            self._open(self._muster(frozenset(self._silent)))
        except (PmrunError, OSError) as error:
            self._began = None
            self._nodes.clear()
            self._silent.clear()
            text = f"cannot start the agents: {error}"
            self._conclude(_no_gang(gang.Cause(gang.Kind.START, text, ExitCode.START_FAILED)))
            return self._outcome
        return self._attempt()

    def _resting(self, begin_at: float) -> bool:
        """Whether there is still time before the next attempt."""
        now, end_by = time.monotonic(), self._end_by()
        if end_by is not None and now >= end_by:
            self._cancel(self._timeout_cause())
        return self._again is not None and now < begin_at and not self._display.stdout.closed

    def _cancel(self, cause: gang.Cause) -> None:
        """There will be no further attempt, though there could have been."""
        if self._again is not None:
            self._again = None
            self._attempts.on_interrupted()
            self._outcome = _no_gang(cause)

    def _end_by(self) -> float | None:
        """When the whole job's time is up."""
        limit_s = self._job.timeout_s
        return None if limit_s is None or self._since is None else self._since + limit_s

    def _timeout_cause(self) -> gang.Cause:
        text = f"--timeout of {self._job.timeout_s:g} s ran out between two attempts"
        return gang.Cause(gang.Kind.TIMEOUT, text, ExitCode.TIMEOUT)

    def _serve(self, more: Callable[[], bool]) -> None:
        self._display.pump()
        while more():
            now = time.monotonic()
            if self._outcome is None:
                self._hub.watch(self._poller, self._on_hub)
                self._fleet.watch(self._poller, self._on_note, self._on_ended)
            self._display.watch(self._poller)
            if not self._desk.watch(self._poller):
                self._stdin.watch(self._poller, now)
            self._poller.wait(self._patience_s(now))
            now = time.monotonic()
            self._stop_when_said(now)
            if self._outcome is None:
                if self._hub.pending():
                    self._on_hub(READ)
                self._on_time(now)
            self._desk.pump()
            self._display.pump()
            if self._display.stdout.closed:
                self._on_output_closed(self._display.stdout.problem)

    def _patience_s(self, now: float) -> float | None:
        """How long nothing has to be done."""
        times = [self._display.deadline(), self._stdin.deadline(), self._stop_at, self._wake_at]
        if self._outcome is None:
            if self._hub.pending():
                return 0.0
            times += [
                self._meeting.deadline(),
                self._end_by() if self._gang is None else self._gang.deadline(),
                self._lease.deadline(),
                self._store.deadline(),
                None if self._hang is None else self._hang.deadline(now),
            ]
        deadline = min((at for at in times if at is not None), default=None)
        return None if deadline is None else max(0.0, deadline - now)

    def _report(self, outcome: gang.Outcome) -> None:
        lines = self._attempts.summary(outcome.cause is None)
        if lines or outcome.cause is not None or outcome.survivors:
            from pmrun.launcher import last_failure, report  # most jobs end well and need not pay for it

            text = report.compose(outcome) + report.spoken(lines)
            self._display.say(text)
            if report.is_failure(outcome):
                last_failure.keep(outcome.told + text, self._job.command, f"exit code {outcome.code}")

    def _flushing(self) -> bool:
        return not self._display.empty and self._impatient == 0

    # ---- events ---------------------------------------------------------------------------------------

    def _on_hub(self, found: int) -> None:
        events = self._hub.receive()
        now = time.monotonic()  # not before: of what came meanwhile, stamps would be later than that
        for event in events:
            self._lease.heard(event.peer, now)
            if event.message is None:
                self._lose(event.peer, event.why)
            elif isinstance(event.message, wire.Hello):
                self._on_hello(event.peer, event.message, now)
            elif event.peer in self._nodes:
                self._on_message(self._nodes[event.peer], event, now)

    def _on_hello(self, peer: int, hello: wire.Hello, now: float) -> None:
        self._lease.add(peer, now)
        self._meet(self._meeting.on_hello(peer, hello, now))

    def _on_message(self, node: int, event: Event, now: float) -> None:
        message = event.message
        assert message is not None and self._gang is not None
        if isinstance(message, wire.Output):
            self._display.feed(message, now)
            self._desk.on_output(message)
        elif isinstance(message, wire.Debugging | wire.Shown):
            self._desk.on_message(message)
        elif isinstance(message, wire.StdinCredit):
            self._stdin.on_credit(node, message.count)
        elif isinstance(message, wire.Notice):
            self._display.say(f"pmrun: {message.text}\n")
        elif self._hang is not None and isinstance(message, wire.Waits | wire.Looked):
            self._do(self._hang.on_message(node, message, now))
        elif isinstance(message, wire.StoreRequest | wire.StoreClosed):
            self._store.on_message(node, message, now)
        else:
            if isinstance(message, wire.RankExited):
                self._desk.on_exit(message.rank)
                self._store.on_rank_ended(message.rank)
            self._do(self._gang.on_message(node, message, now))

    def _lose(self, peer: int, why: str) -> None:
        """A connection is gone."""
        self._hub.drop(self._poller, peer)
        self._lease.remove(peer)
        node = self._nodes.pop(peer, None)
        if node is None or self._gang is None:
            self._meeting.on_gone(peer)
        else:
            self._do(self._gang.on_link_lost(node, why))

    def _on_note(self, seat: int, text: str) -> None:
        self._meet(self._meeting.on_note(seat, text))

    def _on_ended(self, seat: int, text: str) -> None:
        """What was started for a node has ended, before anybody told it to."""
        self._on_hub(READ)  # its last messages come first
        if self._gang is None:
            other = self._fleet.replace(seat) if self._outcome is None else ""
            if other:
                self._display.say(f"pmrun: {text}; {other} takes its place\n")
                self._meet(self._meeting.on_called(seat, time.monotonic()))
            else:
                self._meet(self._meeting.on_ended(seat, text))
        elif self._outcome is None and seat in self._seats:
            peer = self._peers[self._seats.index(seat)]
            if peer in self._nodes:
                self._lose(peer, text)

    def _on_time(self, now: float) -> None:
        for peer in self._lease.look(now):
            if peer in self._nodes and self._hub.sends_later:  # here, all of it will be ended
                self._silent.add(self._seats[self._nodes[peer]])
                self._silent_until = now + _FENCE_S
            self._lose(peer, f"no sign of life for {LEASE_S:g} s")
        if self._lease.beat_due(now):
            for peer in [*self._nodes] if self._gang else [guest.peer for guest in self._meeting.guests()]:
                self._hub.send(peer, wire.Beat())
        self._store.on_tick(now)
        if self._hang is not None:
            self._do(self._hang.on_tick(now))
        end_by = self._end_by()
        if self._gang is None and end_by is not None and now >= end_by:
            self._give_up(self._timeout_cause())
        machine = self._gang if self._gang is not None else self._meeting
        deadline = machine.deadline()
        if deadline is None or now < deadline or self._outcome is not None:
            return
        if self._gang is not None:
            self._do(self._gang.on_tick(now))
        else:
            self._meet(self._meeting.on_tick(now))

    def _on_output_closed(self, problem: str) -> None:
        text, code = problem or "its reader is gone", ExitCode.OUTPUT_FAILED if problem else ExitCode.OUTPUT_CLOSED
        if self._gang is None:
            self._give_up(gang.Cause(gang.Kind.OUTPUT, f"cannot write the standard output: {text}", code))
        elif self._gang.cause is None:
            self._do(self._gang.on_output_closed(text, code))

    def _on_signals(self) -> None:
        for number in self._inbox.read():
            if number == signal.SIGTSTP:
                self._suspend()
            elif number == signal.SIGQUIT:
                self._show_ranks()
            elif number == signal.SIGWINCH:
                self._desk.resize()
            elif self._again is not None:
                text = f"stopped by {signal_name(number)} between two attempts"
                self._cancel(gang.Cause(gang.Kind.SIGNAL, text, exit_code(-number)))
            elif self._outcome is not None:
                self._impatient += 1
            elif number in SIGNALS:
                if self._gang is not None:
                    self._do(self._gang.on_signal(number))
                else:
                    text = f"stopped by {signal_name(number)} before the gang had started"
                    self._give_up(gang.Cause(gang.Kind.SIGNAL, text, exit_code(-number)))

    def _show_ranks(self) -> None:
        """SIGQUIT (Ctrl-\\): where every rank is, now."""
        if self._hang is None:
            self._display.say("pmrun: no rank runs yet: not all nodes are there\n")
        elif self._outcome is None:
            self._do(self._hang.on_quit(time.monotonic()))

    def _suspend(self) -> None:
        """Ctrl-Z: first the ranks stop, then pmrun; whoever continues it continues them."""
        if self._gang is not None:
            self._do(self._gang.on_suspend(True))
        if self._hang is not None:
            self._hang.on_suspend(True, time.monotonic())
        # A message to another machine is sent by a thread of libzmq, which stops with this process.
        self._stop_at = time.monotonic() + (_SENT_S if self._hub.sends_later else 0.0)

    def _stop_when_said(self, now: float) -> None:
        if self._stop_at is not None and now >= self._stop_at:
            self._stop_at = None
            self._desk.suspend(True)
            os.kill(os.getpid(), signal.SIGSTOP)
            self._desk.suspend(False)
            if self._gang is not None:
                self._do(self._gang.on_suspend(False))
            if self._hang is not None:
                self._hang.on_suspend(False, time.monotonic())

    # ---- actions --------------------------------------------------------------------------------------

    def _meet(self, actions: list[rendezvous.Action]) -> None:
        for action in actions:
            if isinstance(action, rendezvous.Refuse):
                self._lease.remove(action.peer)
                again_s = _STANDBY_S if action.late and self._job.max_restarts else -1.0
                self._hub.send(action.peer, wire.Refused(action.text, ExitCode.START_FAILED, again_s))
            elif isinstance(action, rendezvous.Say):
                self._display.say(f"pmrun: {action.text}\n")
            elif isinstance(action, rendezvous.Fail):
                strangers = self._hub.strangers()
                text = action.text + (f"; {strangers}" if strangers else "")
                self._give_up(gang.Cause(gang.Kind.START, text, ExitCode.START_FAILED))
            else:
                self._begin(action)

    def _give_up(self, cause: gang.Cause) -> None:
        """There will be no gang."""
        if self._outcome is None:
            self._conclude(_no_gang(cause))

    def _conclude(self, outcome: gang.Outcome) -> None:
        """The attempt is over: what comes after it, which the agents are told with their leave."""
        now = time.monotonic()
        self._outcome = outcome
        self._desk.end()
        self._stdin = StdinSource([], self._send)  # what is typed from now on is the next attempt's
        text = ""
        if outcome.cause is not None:
            from pmrun.launcher.report import headline

            text = headline(outcome)
        lived_s = 0.0 if self._began is None else now - self._began
        follows = self._attempts.on_end(outcome, text, lived_s, max(0.0, self._silent_until - now))
        self._again = follows if isinstance(follows, Again) else None
        leave = wire.Leave(outcome.code, -1.0 if self._again is None else self._again.delay_s)
        for peer in [*self._nodes] if self._gang is not None else [guest.peer for guest in self._meeting.guests()]:
            self._hub.send(peer, leave)

    def _begin(self, met: rendezvous.Meet) -> None:
        """All have met: the table is made, and everybody gets it."""
        self._began = time.monotonic()
        if self._since is None:
            self._since = self._began
        guests, self._seats = met.guests, met.seats
        names = [
            self._fleet.seats[seat].name or guest.hello.host for seat, guest in zip(met.seats, guests, strict=True)
        ]
        counts = tuple(self._fleet.counts[seat] for seat in met.seats)
        nodes = lay_out(names, [guest.hello.address for guest in guests], counts)
        job = msgspec.structs.replace(self._job, world_size=sum(counts))
        starts = make_starts(job, nodes, self._job_id, self._attempts.number, guests[0].hello.free_port)
        self._peers = [guest.peer for guest in guests]
        self._nodes = {peer: node for node, peer in enumerate(self._peers)}
        self._first_ranks = [node.first_rank for node in nodes]
        self._stdin = StdinSource([n for n, start in enumerate(starts) if start.stdin_ranks], self._send)
        self._store.begin(starts[0].layout, self._hub, self._peers)
        if len(nodes) > 1:
            self._display.name_nodes([name for node in nodes for name in [node.name] * node.local_world_size])
        limits = gang.Limits(self._job.grace_s, self._job.timeout_s, self._job.start_timeout_s, self._start_by)
        self._gang = gang.Gang(starts, limits, self._since)
        self._hang = HangDesk(job, starts, self._gang, self._store)
        self._desk.begin(starts)
        self._do(self._gang.begin())

    def _do(self, actions: list[gang.Action]) -> None:
        for action in actions:
            if isinstance(action, gang.SendTo):
                self._send(action.node, action.message)
            elif isinstance(action, gang.Note):
                self._note(action)
            elif isinstance(action, gang.Say):
                self._display.say(f"pmrun: {action.text}\n")
            elif isinstance(action, gang.Sweep):
                self._forget(action.node)
                self._fleet.sweep(self._seats[action.node])
            else:
                self._conclude(action.outcome)

    def _forget(self, node: int) -> None:
        """Nothing more is said to or heard from a node."""
        self._store.on_node_lost(node)
        peer = self._peers[node]
        self._nodes.pop(peer, None)
        self._hub.drop(self._poller, peer)

    def _note(self, note: gang.Note) -> None:
        if note.event == "gang_started":
            self._stdin.start()
        problem = self._events.write(note.event, note.fields)
        if problem is not None:
            self._display.say(f"pmrun: {problem}\n")

    def _send(self, node: int, message: wire.Message) -> None:
        peer = self._peers[node]
        if peer in self._nodes:
            self._hub.send(peer, message)

    def _send_to_rank(self, rank: int, message: wire.Message) -> None:
        self._send(bisect.bisect_right(self._first_ranks, rank) - 1, message)

    def _grant(self, rank: int, stream: int, count: int) -> None:
        self._send_to_rank(rank, wire.Credit(rank, stream, count))


def _no_gang(cause: gang.Cause) -> gang.Outcome:
    return gang.Outcome(cause.code, cause, {}, (), (), ())
