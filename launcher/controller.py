# SPDX-License-Identifier: Apache-2.0
"""The controller's driver: carries out what launcher/rendezvous.py and launcher/gang.py decide, and moves output,
input and signals.

One thread, one poll loop over the hub, what the backend watches, the standard descriptors and the signals. It never
waits in a write, so that deaths, signals and timeouts are handled while nobody reads the output. A backend gives it
a `Fleet`. Invariant: when `run` returns, every agent has left or was swept, and all output that anybody still reads
has been written before the report.
"""

from __future__ import annotations

import bisect
import os
import resource
import signal
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, Protocol

from pmrun import wire
from pmrun.errors import ExitCode
from pmrun.launcher import gang, rendezvous
from pmrun.launcher.describe import exit_code, signal_name
from pmrun.launcher.display import Display
from pmrun.launcher.events import EventLog
from pmrun.launcher.hang_desk import HangDesk
from pmrun.launcher.job import Job
from pmrun.launcher.lease import LEASE_S, Leases
from pmrun.launcher.link import Event, Hub
from pmrun.launcher.orders import make_starts
from pmrun.launcher.placement import lay_out
from pmrun.launcher.poller import READ, Poller, SignalInbox
from pmrun.launcher.stdin_source import StdinSource

if TYPE_CHECKING:
    from pmrun.launcher.store_route import GangStore

_SENT_S: Final = 0.2  # what was queued is surely with the kernel by then

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGTSTP, signal.SIGQUIT)


class Fleet(Protocol):
    """A backend's hold on the agents of one attempt."""

    hub: Hub
    seats: tuple[rendezvous.Seat, ...]
    counts: tuple[int, ...]  # ranks of each node
    release: str  # of pmrun, as every agent must have it; "" where it is the same file

    def watch(self, poller: Poller, note: Callable[[int, str], None], ended: Callable[[int, str], None]) -> None:
        """Watch what was started for each node: `note` takes news, `ended` the last words; call before each wait."""

    def sweep(self, node: int) -> None:
        """The node's agent is gone: end what it left, as far as this machine can."""

    def close(self) -> None:
        """The agents were told to leave: wait for them and give back what they took; may be called again."""


class Controller:
    """Runs one attempt of a gang."""

    def __init__(self, job: Job, fleet: Fleet, events: EventLog) -> None:
        self._job = job
        self._fleet = fleet
        self._hub = fleet.hub
        self._events = events
        self._poller = Poller()
        now = time.monotonic()
        self._start_by = now + job.start_timeout_s
        self._meeting = rendezvous.Rendezvous(fleet.seats, job.world_size, fleet.release, job.start_timeout_s, now)
        self._gang: gang.Gang | None = None
        self._lease = Leases(now)
        self._peers: list[int] = []  # by node, once they have met
        self._nodes: dict[int, int] = {}  # by peer; lost ones are not in it
        self._first_ranks: list[int] = []
        self._stdin = StdinSource([], self._send)
        self._store: GangStore | None = None
        self._hang: HangDesk | None = None
        self._outcome: gang.Outcome | None = None
        # What pmrun's parent chose to ignore stays ignored: SIGHUP under nohup, SIGINT in a script's background.
        # SIGQUIT is taken all the same: it ends nothing, and every shell ignores it for what it starts in the background.
        ignored = {number for number in SIGNALS if signal.getsignal(number) is signal.SIG_IGN} - {signal.SIGQUIT}
        self._inbox = SignalInbox(number for number in SIGNALS if number not in ignored)
        self._stop_at: float | None = None  # Ctrl-Z: when this process stops
        self._impatient = 0  # signals that came after the gang was over
        if job.output.directory is not None:
            _raise_open_files(2 * job.world_size + 64)
        self._display = Display(job.output, job.world_size, self._grant)

    def run(self) -> int:
        """Serve until the gang is over and its output written; returns pmrun's exit code."""
        if self._job.output.directory is not None:
            self._display.open_files(self._job.output.directory, self._job.world_size)
        reading_before = signal.signal(signal.SIGTTIN, signal.SIG_IGN)
        self._poller.watch(self._inbox.fd, READ, lambda _: self._on_signals())
        try:
            self._serve(lambda: self._outcome is None)
            assert self._outcome is not None
            self._display.end_streams(self._job.world_size, time.monotonic())
            self._serve(self._flushing)
            self._fleet.close()
            self._report(self._outcome)
            self._serve(self._flushing)
        finally:
            self._fleet.close()
            self._inbox.close()
            signal.signal(signal.SIGTTIN, reading_before)
            self._display.close()
            self._events.close()
        return self._outcome.code

    def _serve(self, more: Callable[[], bool]) -> None:
        self._display.pump()
        while more():
            now = time.monotonic()
            if self._outcome is None:
                self._hub.watch(self._poller, self._on_hub)
                self._fleet.watch(self._poller, self._on_note, self._on_ended)
            self._display.watch(self._poller)
            self._stdin.watch(self._poller, now)
            self._poller.wait(self._patience_s(now))
            now = time.monotonic()
            self._stop_when_said(now)
            if self._outcome is None:
                if self._hub.pending():
                    self._on_hub(READ)
                self._on_time(now)
            self._display.pump()
            if self._display.stdout.closed:
                self._on_output_closed(self._display.stdout.problem)

    def _patience_s(self, now: float) -> float | None:
        """How long nothing has to be done."""
        times = [self._display.deadline(), self._stdin.deadline(), self._stop_at]
        if self._outcome is None:
            if self._hub.pending():
                return 0.0
            times += [
                self._meeting.deadline(),
                None if self._gang is None else self._gang.deadline(),
                self._lease.deadline(),
                None if self._store is None else self._store.deadline(),
                None if self._hang is None else self._hang.deadline(now),
            ]
        deadline = min((at for at in times if at is not None), default=None)
        return None if deadline is None else max(0.0, deadline - now)

    def _report(self, outcome: gang.Outcome) -> None:
        if outcome.cause is not None or outcome.survivors:
            from pmrun.launcher import last_failure, report  # most jobs end well and need not pay for it

            text = report.compose(outcome)
            self._display.say(text)
            if report.is_failure(outcome):
                last_failure.keep(outcome.told + text, self._job.command, f"exit code {outcome.code}")

    def _flushing(self) -> bool:
        return not self._display.empty and self._impatient == 0

    # ---- events ---------------------------------------------------------------------------------------

    def _on_hub(self, found: int) -> None:
        now = time.monotonic()
        for event in self._hub.receive():
            self._lease.heard(event.peer, now)
            if event.message is None:
                self._lose(event.peer, event.why)
            elif isinstance(event.message, wire.Hello):
                self._on_hello(event.peer, event.message, now)
            elif event.peer in self._nodes and not isinstance(event.message, wire.Beat):
                self._on_message(self._nodes[event.peer], event, now)

    def _on_hello(self, peer: int, hello: wire.Hello, now: float) -> None:
        self._lease.add(peer, now)
        self._meet(self._meeting.on_hello(peer, hello, now))

    def _on_message(self, node: int, event: Event, now: float) -> None:
        message = event.message
        assert message is not None and self._gang is not None
        if isinstance(message, wire.Output):
            self._display.feed(message, now)
        elif isinstance(message, wire.StdinCredit):
            self._stdin.on_credit(node, message.count)
        elif isinstance(message, wire.Notice):
            self._display.say(f"pmrun: {message.text}\n")
        elif self._hang is not None and isinstance(message, wire.Waits | wire.Looked):
            self._do(self._hang.on_message(node, message, now))
        elif self._store is not None and isinstance(message, wire.StoreRequest | wire.StoreClosed):
            self._store.on_message(node, message, now)
        else:
            if self._store is not None and isinstance(message, wire.RankExited):
                self._store.on_rank_ended(message.rank)
            self._do(self._gang.on_message(node, message))

    def _lose(self, peer: int, why: str) -> None:
        """A connection is gone."""
        self._hub.drop(self._poller, peer)
        self._lease.remove(peer)
        node = self._nodes.pop(peer, None)
        if node is None or self._gang is None:
            self._meeting.on_gone(peer)
        else:
            self._do(self._gang.on_link_lost(node, why))

    def _on_note(self, node: int, text: str) -> None:
        self._meet(self._meeting.on_note(node, text))

    def _on_ended(self, node: int, text: str) -> None:
        """What was started for a node has ended, before anybody told it to."""
        self._on_hub(READ)  # its last messages come first
        if self._gang is None:
            self._meet(self._meeting.on_ended(node, text))
        elif self._outcome is None and self._peers[node] in self._nodes:
            self._lose(self._peers[node], text)

    def _on_time(self, now: float) -> None:
        for peer in self._lease.look(now):
            self._lose(peer, f"no sign of life for {LEASE_S:g} s")
        if self._lease.beat_due(now):
            for peer in [*self._nodes] if self._gang else [guest.peer for guest in self._meeting.guests()]:
                self._hub.send(peer, wire.Beat())
        if self._store is not None:
            self._store.on_tick(now)
        if self._hang is not None:
            self._do(self._hang.on_tick(now))
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
            os.kill(os.getpid(), signal.SIGSTOP)
            if self._gang is not None:
                self._do(self._gang.on_suspend(False))
            if self._hang is not None:
                self._hang.on_suspend(False, time.monotonic())

    # ---- actions --------------------------------------------------------------------------------------

    def _meet(self, actions: list[rendezvous.Action]) -> None:
        for action in actions:
            if isinstance(action, rendezvous.Refuse):
                self._lease.remove(action.peer)
                self._hub.send(action.peer, wire.Refused(action.text, ExitCode.START_FAILED))
            elif isinstance(action, rendezvous.Say):
                self._display.say(f"pmrun: {action.text}\n")
            elif isinstance(action, rendezvous.Fail):
                strangers = self._hub.strangers()
                text = action.text + (f"; {strangers}" if strangers else "")
                self._give_up(gang.Cause(gang.Kind.START, text, ExitCode.START_FAILED))
            else:
                self._begin(action.guests)

    def _give_up(self, cause: gang.Cause) -> None:
        """There will be no gang."""
        if self._outcome is None:
            for guest in self._meeting.guests():
                self._hub.send(guest.peer, wire.Leave(cause.code))
            self._outcome = gang.Outcome(cause.code, cause, {}, (), (), ())

    def _begin(self, guests: tuple[rendezvous.Guest, ...]) -> None:
        """All have met: the table is made, and everybody gets it."""
        names = [seat.name or guest.hello.host for seat, guest in zip(self._fleet.seats, guests, strict=True)]
        nodes = lay_out(names, [guest.hello.address for guest in guests], self._fleet.counts)
        job_id = f"{os.uname().nodename}-{os.getpid()}-{os.urandom(4).hex()}"
        starts = make_starts(self._job, nodes, job_id, 0, guests[0].hello.free_port)
        self._peers = [guest.peer for guest in guests]
        self._nodes = {peer: node for node, peer in enumerate(self._peers)}
        self._first_ranks = [node.first_rank for node in nodes]
        self._stdin = StdinSource([n for n, start in enumerate(starts) if start.stdin_ranks], self._send)
        if len(nodes) > 1:
            from pmrun.launcher.store_route import GangStore  # on one node its agent has the table

            self._store = GangStore(starts[0].layout, self._hub, self._peers)
            self._display.name_nodes([name for node in nodes for name in [node.name] * node.local_world_size])
        limits = gang.Limits(self._job.grace_s, self._job.timeout_s, self._job.start_timeout_s, self._start_by)
        self._gang = gang.Gang(starts, limits, time.monotonic())
        self._hang = HangDesk(self._job, starts, self._gang, self._store)
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
                self._fleet.sweep(action.node)
            else:
                self._outcome = action.outcome

    def _forget(self, node: int) -> None:
        """Nothing more is said to or heard from a node."""
        if self._store is not None:
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

    def _grant(self, rank: int, stream: int, count: int) -> None:
        self._send(bisect.bisect_right(self._first_ranks, rank) - 1, wire.Credit(rank, stream, count))


def _raise_open_files(needed: int) -> None:
    """As far as the hard limit goes; a file that then cannot be opened is told of."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < needed:
        allowed = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, allowed), hard))
