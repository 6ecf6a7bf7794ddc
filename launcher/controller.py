# SPDX-License-Identifier: Apache-2.0
"""The controller's driver: carries out what launcher/gang.py decides and moves output, input and signals.

One thread, one poll loop over the links, the standard descriptors and the signals. It never waits in a write,
so that deaths, signals and timeouts are handled while nobody reads the output. A backend gives it one
`NodeLink` per node. Invariant: when `run` returns, every agent has left or was swept, and all output that
anybody still reads has been written before the report.
"""

from __future__ import annotations

import os
import resource
import signal
import time
from collections.abc import Callable
from typing import Protocol

from pmrun import wire
from pmrun.errors import ExitCode
from pmrun.launcher import gang
from pmrun.launcher.display import Display, credit_bytes
from pmrun.launcher.events import EventLog
from pmrun.launcher.job import Job, Stream
from pmrun.launcher.link import Link, LinkLost
from pmrun.launcher.placement import Node
from pmrun.launcher.poller import GONE, READ, WRITE, Poller, SignalInbox
from pmrun.launcher.stdin_source import StdinSource
from pmrun.launcher.store_route import GangStore

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGTSTP)


class NodeLink(Protocol):
    """A backend's hold on one agent."""

    link: Link

    def sweep(self) -> None:
        """The agent is gone: end what it left, as far as this machine can."""

    def close(self) -> None:
        """The agent was told to leave: wait for it and give back what it took."""


def make_starts(job: Job, nodes: list[Node], job_id: str, attempt: int, main_port: int) -> list[wire.Start]:
    """The order for each node's agent."""
    credit = credit_bytes(job.world_size)
    peers = tuple(node.address for node in nodes)
    return [
        wire.Start(
            job_id=job_id,
            attempt=attempt,
            node_rank=number,
            node_name=node.name,
            peers=peers,
            main_port=main_port,
            first_rank=node.first_rank,
            local_world_size=node.local_world_size,
            world_size=job.world_size,
            command=tuple(os.fsencode(word) for word in job.command),
            cwd=None if job.cwd is None else os.fsencode(job.cwd),
            env=tuple((os.fsencode(name), os.fsencode(value)) for name, value in job.env),
            cpus=node.cpus if job.bind_to.value == "core" else (),
            stdin_ranks=stdin_ranks(job, node),
            credit_bytes=credit,
        )
        for number, node in enumerate(nodes)
    ]


def stdin_ranks(job: Job, node: Node) -> tuple[int, ...]:
    """Ranks of a node that take the standard input."""
    if job.stdin is Stream.NONE:
        return ()
    return tuple(rank for rank in node.ranks if job.stdin is Stream.ALL or rank == job.stdin)


class Controller:
    """Runs one attempt of a gang."""

    def __init__(self, job: Job, starts: list[wire.Start], nodes: list[NodeLink], events: EventLog) -> None:
        self._job = job
        self._nodes = nodes
        self._events = events
        self._lost: set[int] = set()
        self._poller = Poller()
        now = time.monotonic()
        self._gang = gang.Gang(starts, job.grace_s, job.timeout_s, job.start_timeout_s, now)
        self._first_ranks = [start.first_rank for start in starts]
        takers = [number for number, start in enumerate(starts) if start.stdin_ranks]
        self._stdin = StdinSource(takers, self._send)
        self._store = GangStore(starts, [node.link for node in nodes])
        self._waiting_nodes = len(starts)
        self._outcome: gang.Outcome | None = None
        # What pmrun's parent chose to ignore stays ignored: SIGHUP under nohup, SIGINT in a script's background.
        self._inbox = SignalInbox(number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN)
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
            self._close_nodes()
            self._report(self._outcome)
            self._serve(self._flushing)
        finally:
            self._close_nodes()
            self._inbox.close()
            signal.signal(signal.SIGTTIN, reading_before)
            self._display.close()
            self._events.close()
        return self._outcome.code

    def _serve(self, more: Callable[[], bool]) -> None:
        self._display.pump()
        while more():
            now = time.monotonic()
            for number, node in enumerate(self._nodes):
                if number not in self._lost:
                    events = READ | WRITE if node.link.wants_write() else READ
                    self._poller.watch(node.link.fileno(), events, lambda found, n=number: self._on_link(n, found))  # type: ignore[misc]
            self._display.watch(self._poller)
            self._stdin.watch(self._poller, now)
            times = (self._gang.deadline(), self._display.deadline(), self._stdin.deadline(), self._store.deadline())
            deadline = min((at for at in times if at is not None), default=None)
            self._poller.wait(None if deadline is None else max(0.0, deadline - now))
            now = time.monotonic()
            deadline = self._gang.deadline()
            if deadline is not None and now >= deadline:
                self._do(self._gang.on_tick(now))
            self._store.on_tick(now)
            self._store.pump()
            self._display.pump()
            if self._display.stdout.closed and self._gang.cause is None:
                self._on_output_closed(self._display.stdout.problem)

    def _forget(self, number: int) -> None:
        """Nothing more is said to or heard from a node."""
        if number not in self._lost:
            self._lost.add(number)
            self._store.on_node_lost(number)
            self._poller.forget(self._nodes[number].link.fileno())

    def _close_nodes(self) -> None:
        for number, node in enumerate(self._nodes):
            self._forget(number)
            node.close()

    def _report(self, outcome: gang.Outcome) -> None:
        if outcome.cause is not None or outcome.survivors:
            from pmrun.launcher import report  # most jobs end well and need not pay for it

            self._display.say(report.compose(outcome))

    def _flushing(self) -> bool:
        return not self._display.empty and self._impatient == 0

    # ---- events ---------------------------------------------------------------------------------------

    def _on_link(self, number: int, found: int) -> None:
        link = self._nodes[number].link
        if found & WRITE:
            link.on_writable()
        if not found & (READ | GONE):
            return
        try:
            messages = link.receive()
        except LinkLost as error:
            self._forget(number)
            self._do(self._gang.on_link_lost(number, str(error)))
            return
        now = time.monotonic()
        for message in messages:
            if isinstance(message, wire.Output):
                self._display.feed(message, now)
            elif isinstance(message, wire.StdinCredit):
                self._stdin.on_credit(number, message.count)
            elif isinstance(message, wire.StoreRequest | wire.StoreClosed):
                self._store.on_message(number, message, now)
            elif isinstance(message, wire.Notice):
                self._display.say(f"pmrun: {message.text}\n")
            else:
                if isinstance(message, wire.RankExited):
                    self._store.on_rank_ended(message.rank)
                self._do(self._gang.on_message(number, message, now))

    def _on_output_closed(self, problem: str) -> None:
        if problem:
            self._do(self._gang.on_output_closed(problem, ExitCode.OUTPUT_FAILED))
        else:
            self._do(self._gang.on_output_closed("its reader is gone", ExitCode.OUTPUT_CLOSED))

    def _on_signals(self) -> None:
        for number in self._inbox.read():
            if number == signal.SIGTSTP:
                self._suspend()
            elif self._outcome is not None:
                self._impatient += 1
            elif number in SIGNALS:
                self._do(self._gang.on_signal(number))

    def _suspend(self) -> None:
        """Ctrl-Z: first the ranks stop, then pmrun; whoever continues it continues them."""
        self._do(self._gang.on_suspend(True))
        os.kill(os.getpid(), signal.SIGSTOP)
        self._do(self._gang.on_suspend(False))

    # ---- actions --------------------------------------------------------------------------------------

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
                self._nodes[action.node].sweep()
            else:
                self._outcome = action.outcome

    def _note(self, note: gang.Note) -> None:
        if note.event == "gang_started":
            self._stdin.start()
        problem = self._events.write(note.event, note.fields)
        if problem is not None:
            self._display.say(f"pmrun: {problem}\n")

    def _send(self, node: int, message: wire.Message) -> None:
        if node not in self._lost:
            self._nodes[node].link.send(message)

    def _grant(self, rank: int, stream: int, count: int) -> None:
        node = max(number for number, first in enumerate(self._first_ranks) if first <= rank)
        self._send(node, wire.Credit(rank, stream, count))


def _raise_open_files(needed: int) -> None:
    """As far as the hard limit goes; a file that then cannot be opened is told of."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < needed:
        allowed = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, allowed), hard))
