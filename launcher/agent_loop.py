# SPDX-License-Identifier: Apache-2.0
"""The agent's driver: carries out what launcher/agent.py decides, and turns the world into its events.

One thread, one poll loop over the link, the ranks' pipes, the status pipe of the start and SIGCHLD. It never
blocks in a read or write. Across machines the controller's signs of life have a lease, and a lifeline (the agent's
standard input) ends with whoever started the agent. Invariant: the agent ends only when it has no child left (or
gave up on what hangs in the kernel), whether the controller lives or not.
"""

from __future__ import annotations

import gc
import os
import signal
import time
from collections.abc import Iterable
from typing import Final

import msgspec

from pmrun import wire
from pmrun.errors import ExitCode
from pmrun.launcher import agent, keys, limits, process_tree, rank_process
from pmrun.launcher.agent_debug import AgentDebug
from pmrun.launcher.agent_input import AgentInput
from pmrun.launcher.agent_store import AgentStore
from pmrun.launcher.agent_watch import AgentWatch
from pmrun.launcher.cgroup import ControlGroups, OomWatch, usable_cpus, usable_memory
from pmrun.launcher.environment import base_environment, rank_environment
from pmrun.launcher.lease import LEASE_S, Leases
from pmrun.launcher.link import Link, LinkLost
from pmrun.launcher.placement import cores, map_by_core
from pmrun.launcher.poller import READ, Poller, SignalInbox
from pmrun.launcher.rank_streams import OutputStream
from pmrun.launcher.reaper import Reaper
from pmrun.window import HEED_AGREED, Window, heap_bytes

LEAVE: Final = signal.SIGUSR1  # from the keeper, or because it is gone
_BACKLOG_BYTES: Final = 1 << 20  # of the link: above this no output is read


class Own(msgspec.Struct, frozen=True):
    """The part of an order that a node started by hand was given itself."""

    command: tuple[bytes, ...]
    cwd: bytes | None
    env: tuple[tuple[bytes, bytes], ...]


class Place(msgspec.Struct, frozen=True):
    """What an agent knows of itself before its controller has said anything."""

    hello: wire.Hello
    secret: bytes  # of the job
    lifeline: int = -1  # a descriptor that ends with whoever started the agent
    own: Own | None = None  # what the ranks of this node run, where it was said here and not to the controller
    deaf: bool = False  # to SIGTERM: the controller is on this node, and engines send it to all processes there


class End(msgspec.Struct, frozen=True):
    """Why an agent ended, if not in peace, and the gang's exit code."""

    text: str = ""
    code: int = ExitCode.OK
    again_s: float = -1.0  # the controller wants another one after so long; negative: it does not
    lost: bool = False  # the controller is gone


class AgentLoop:
    """One node's agent."""

    def __init__(self, link: Link, place: Place) -> None:
        self._link = link
        self._place = place
        self.end = End()
        self._machine = agent.Agent(place.hello)
        now = time.monotonic()
        self._lease = Leases(now)
        if link.needs_lease:
            self._lease.add(0, now)
        self._poller = Poller()
        self._inbox = SignalInbox((signal.SIGCHLD, signal.SIGTERM, LEAVE))
        self._groups = ControlGroups()
        self._oom = OomWatch(self._groups)
        self._start: wire.Start | None = None
        self._window: Window | None = None
        self._status_fd = -1
        self._reaper = Reaper()
        self._processes: dict[int, rank_process.RankProcess] = {}  # by pid, until reaped
        self._pids: list[int] = []
        self._sent: dict[int, int] = {}  # by rank: last signal sent
        self._standing: dict[int, wire.Standing] = {}  # by rank: what it was in before that
        self._outputs: dict[tuple[int, int], OutputStream] = {}
        self._outputs_changed = False  # what is to be polled for them
        self._link_full = False
        self._input = AgentInput(link, self._poller)
        self._store = AgentStore(link, self._poller)
        self._watch = AgentWatch(link, self._poller, self._store.waits)
        self._debug = AgentDebug(link, self._poller, self._watch.on_debugger, self._pid_of)
        self._draining = False
        self._lost = False  # the controller
        self._leaving = False

    def run(self) -> None:
        """Serve the controller until it says Leave or is gone."""
        self._poller.watch(self._inbox.fd, READ, self._on_signals)
        if self._place.lifeline >= 0:
            self._poller.watch(self._place.lifeline, READ, self._on_lifeline)
        self._do(self._machine.on_connected())
        while not self._leaving:
            if not self._lost:
                self._link.watch(self._poller, self._on_link)
            self._watch_outputs()
            self._poller.wait(self._patience_s())
            now = time.monotonic()
            self._store.on_tick(now)
            self._watch.on_tick(now)
            if not self._lost and self._link.pending():
                self._on_link(READ)
            deadline = self._machine.deadline()
            if deadline is not None and now >= deadline:
                self._do(self._machine.on_tick(now))
            self._keep_lease(now)

    # ---- events ---------------------------------------------------------------------------------------

    def _patience_s(self) -> float | None:
        """How long nothing has to be done."""
        if not self._lost and self._link.pending():
            return 0.0
        lease = None if self._lost else self._lease.deadline()
        times = [self._machine.deadline(), self._store.deadline(), self._watch.deadline(), lease]
        deadline = min((at for at in times if at is not None), default=None)
        return None if deadline is None else max(0.0, deadline - time.monotonic())

    def _keep_lease(self, now: float) -> None:
        if self._lost:
            return
        if self._lease.look(now):
            self._lose(f"no sign of life from the main node for {LEASE_S:g} s")
        else:
            self._beat(now)

    def _beat(self, now: float) -> None:
        """What is queued already will be the sign of life: a controller that is stopped finds no heap of them."""
        if self._lease.beat_due(now) and not self._link.backlog_bytes:
            self._link.send(wire.Beat(now))

    def _lose(self, why: str) -> None:
        """The controller is gone."""
        if self._lost or self._leaving:  # it may go once it said Leave
            return
        self._lost = True
        self._watch.close()
        self._link.forget(self._poller)
        self.end = End(f"the main node is lost: {why}", ExitCode.AGENT_LOST, lost=True)
        self._do(self._machine.on_link_lost(time.monotonic()))

    def _on_lifeline(self, events: int) -> None:
        """Nobody writes to it any more: its end is all it can say."""
        if os.read(self._place.lifeline, 4096):
            return
        self._poller.forget(self._place.lifeline)
        self._lose("whoever started this agent is gone")

    def _watch_outputs(self) -> None:
        full = self._link.backlog_bytes > _BACKLOG_BYTES
        if full == self._link_full and not self._outputs_changed:
            return  # most rounds are about something else, and there may be a thousand streams
        self._link_full, self._outputs_changed = full, False
        self._store.pause(full)
        for stream in self._outputs.values():
            if stream.fd < 0:
                continue
            if stream.readable and not full:
                self._poller.watch(stream.fd, READ, lambda _, s=stream: self._on_output(s))  # type: ignore[misc]
            else:
                self._poller.forget(stream.fd)

    def _on_link(self, events: int) -> None:
        now = time.monotonic()
        try:
            messages = self._link.receive()
        except LinkLost as error:
            self._lose(str(error))
            return
        if messages:
            self._lease.heard(0, now)
        for message in messages:
            if isinstance(message, wire.StoreReply):
                self._store.reply(message)
                continue
            if isinstance(message, wire.Typed | wire.Interrupt):
                self._debug.on_message(message)
                continue
            if isinstance(message, wire.Stop):
                self._reap()  # who died before this news did not die of it, and its own end is what the window tells
                self._link.send(wire.Beat(time.monotonic()))  # its clock is about to be compared
            self._note_end(message, now)
            self._do(self._machine.on_message(message, now))

    def _note_end(self, message: wire.Message, now: float) -> None:
        """What the driver itself learns from a message."""
        if isinstance(message, wire.Leave):
            told = message.code and message.again_s < 0 and self._place.own is not None  # a person sits at this node
            text = f"the job ended with exit code {message.code}; the main node tells why" if told else ""
            self.end = End(text, message.code, message.again_s)
        elif isinstance(message, wire.Refused):
            text = message.text + ("; it stands by for the next attempt" if message.again_s >= 0 else "")
            self.end = End(text, message.code, message.again_s)
        elif isinstance(message, wire.Signal):
            if message.number == signal.SIGSTOP:  # Ctrl-Z: pmrun stops too, until it says SIGCONT
                self._lease.pause(now)
            elif message.number == signal.SIGCONT:
                self._lease.resume(now)

    def _on_signals(self, events: int) -> None:
        numbers = self._inbox.read()
        if LEAVE in numbers:
            self._lose("this agent was told to end")
        elif signal.SIGTERM in numbers and not self._place.deaf:
            if self._place.own is None or self._start is None:
                self._lose("this agent was stopped by SIGTERM")
            elif not self._lost:
                self._link.send(wire.AskedToEnd())  # all nodes end as one, and their ranks may save
        if signal.SIGCHLD in numbers:
            self._reap()

    def _reap(self) -> None:
        self._check_started()
        while True:
            pid, wait_status = self._reaper.next()
            if pid < 0:
                self._do(self._machine.on_no_process(time.monotonic()))
            if pid <= 0:
                return
            process = self._processes.pop(pid, None)
            if process is not None:  # else: an adopted orphan
                self._on_exit(process, os.waitstatus_to_exitcode(wait_status), time.monotonic())

    def _on_exit(self, process: rank_process.RankProcess, status: int, now: float) -> None:
        assert self._start is not None and self._window is not None
        rank = process.rank
        local_rank = rank - self._start.first_rank
        sent = self._sent.get(rank, 0)
        out, err = self._outputs[rank, wire.OUT], self._outputs[rank, wire.ERR]
        self._outputs_changed = True
        for stream in (out, err):
            fd = stream.fd
            if not stream.collect() and fd >= 0:
                self._poller.forget(fd)
        self._input.close(rank)
        self._store.close(rank)
        self._debug.on_exit(rank)
        self._watch.on_exit(rank)
        abort = self._window.read_abort()
        call = self._window.last_call(local_rank) if status else None
        exited = wire.RankExited(
            rank=rank,
            pid=process.pid,
            status=status,
            sent_signal=sent,
            oom=status == -signal.SIGKILL and not sent and self._oom.explains(),
            abort_state=abort.state if abort else 0,
            abort_rank=abort.rank if abort else -1,
            abort_text=abort.text if abort else "",
            out_tail=out.tail() if status else b"",
            err_tail=err.tail() if status else b"",
            last_call=f"{call}{' (still inside)' if call.inside else ''}" if call else "",
            standing=self._standing.get(rank),
            resumable=status == ExitCode.RESUMABLE and self._window.heed(local_rank) == HEED_AGREED,
            pace=self._window.pace(local_rank),
            at_s=now,
        )
        self._do(self._machine.on_rank_exited(exited, now))

    def _on_output(self, stream: OutputStream) -> None:
        fd = stream.fd
        self._outputs_changed = True
        if not stream.read():
            self._poller.forget(fd)
            self._check_drained()

    def _check_started(self, events: int = 0) -> None:
        """Read the status pipe: a failure, or its end when every child has exec'ed."""
        if self._status_fd < 0:
            return
        try:
            data = os.read(self._status_fd, 4096)
        except BlockingIOError:
            return
        self._poller.forget(self._status_fd)
        os.close(self._status_fd)
        self._status_fd = -1
        problem = rank_process.read_problem(data)
        if problem is None:
            self._do(self._machine.on_started(tuple(self._pids), time.monotonic()))
        else:
            self._fail_start(problem)

    def _fail_start(self, problem: rank_process.StartProblem) -> None:
        assert self._start is not None
        start = self._start
        text, code = rank_process.explain(problem, start.command[0], start.cwd, start.local_world_size)
        self._do(self._machine.on_start_failed(problem.rank, text, code, time.monotonic()))

    # ---- actions --------------------------------------------------------------------------------------

    def _do(self, actions: list[agent.Action]) -> None:
        for action in actions:
            if isinstance(action, agent.Send):
                self._link.send(action.message)
            elif isinstance(action, agent.AddCredit):
                self._add_credit(action)
            elif isinstance(action, agent.Depart):
                if self._window is not None and self._start is not None:
                    self._window.mark_departed(action.rank - self._start.first_rank, action.failed)
            elif isinstance(action, agent.Tell):
                self._tell(action)
            elif isinstance(action, agent.FeedStdin):
                self._input.feed(action.data)
            elif isinstance(action, agent.SignalRanks):
                self._signal_ranks(action.number, self._processes.values())
            elif isinstance(action, agent.AskToStop):
                self._ask_to_stop()
            elif isinstance(action, agent.LookAround):
                self._watch.look_around(action.number, time.monotonic())
            elif isinstance(action, agent.KillAll):
                self._kill_all()
            elif isinstance(action, agent.DrainOutput):
                self._drain()
            elif isinstance(action, agent.Launch):
                self._launch(action.start)
            else:
                self._leaving = True

    def _launch(self, start: wire.Start) -> None:
        if self._place.own is not None:
            own = self._place.own
            start = msgspec.structs.replace(start, command=own.command, cwd=own.cwd, env=own.env)
        self._start = start
        ranks = start.local_world_size
        refusal = limits.refuse(ranks, start.command[0], self._groups)
        if refusal is not None:
            self._refuse(refusal, ExitCode.USAGE)
            return
        open_files = limits.raise_open_files(ranks)
        cpus = usable_cpus(self._groups)
        heap = heap_bytes(usable_memory(self._groups), ranks)
        try:
            self._window = Window(start.world_size, ranks, start.first_rank, cpus, heap)
        except OSError as error:
            remedy = "check the limits on memory and file size (ulimit -v, -f)"
            self._refuse(f"cannot make the ranks' shared memory: {error.strerror}; {remedy}", ExitCode.START_FAILED)
            return
        shared = base_environment(os.environb, start, cpus)
        line = self._debug.open()
        program = rank_process.Program(
            list(start.command), start.cwd, shared, self._window.fd, line.fileno(), open_files
        )
        self._store.open(start, keys.data_key(self._place.secret, start.attempt))
        self._status_fd, status_write = os.pipe()
        os.set_blocking(self._status_fd, False)
        gc.freeze()  # so that no collection in a child copies the agent's pages
        before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        problem = self._fork_ranks(start, program, status_write)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        os.close(status_write)
        line.close()
        if problem is not None:
            self._fail_start(problem)
            self._reap()
        else:
            self._poller.watch(self._status_fd, READ, self._check_started)
            self._watch.open(start, self._window, self._pids, cpus, time.monotonic())

    def _refuse(self, text: str, code: int) -> None:
        """Nothing was started, and nothing will be."""
        self._do(self._machine.on_start_failed(-1, text, code, time.monotonic()))
        self._reap()

    def _fork_ranks(
        self, start: wire.Start, program: rank_process.Program, status_fd: int
    ) -> rank_process.StartProblem | None:
        own_cores = cores(os.sched_getaffinity(0)) if start.bind_to_core else []
        bound = map_by_core(start.local_world_size, own_cores) if own_cores else ((),) * start.local_world_size
        for local_rank in range(start.local_world_size):
            rank = start.first_rank + local_rank
            try:
                with self._store.line_of(rank) as theirs:
                    own = rank_environment(start, local_rank, program.window_fd, theirs.fileno(), program.debug_fd)
                    process = rank_process.start_rank(
                        rank, program, own, bound[local_rank], rank in start.stdin_ranks, theirs.fileno(), status_fd
                    )
            except OSError as error:
                return rank_process.StartProblem(rank, rank_process.Step.FORK, error.errno or 0)
            self._processes[process.pid] = process
            self._reaper.watch(process.pid)
            self._pids.append(process.pid)
            for number, fd in ((wire.OUT, process.stdout), (wire.ERR, process.stderr)):
                self._outputs_changed = True
                self._outputs[rank, number] = OutputStream(rank, number, fd, start.credit_bytes, self._link.send)
            if process.stdin >= 0:
                self._input.add(rank, process.stdin)
            self._beat(time.monotonic())  # a thousand ranks take longer than a lease where the machine is loaded
        return None

    def _ask_to_stop(self) -> None:
        """Ranks that ask learn of it at their next step, and their children not at all."""
        if self._window is None or self._start is None:
            return
        self._window.ask_to_stop()
        first, heed = self._start.first_rank, self._window.heed
        deaf = [process for process in self._processes.values() if not heed(process.rank - first)]
        self._signal_ranks(signal.SIGTERM, deaf)

    def _signal_ranks(self, number: int, processes: Iterable[rank_process.RankProcess]) -> None:
        for process in processes:
            if number not in (signal.SIGSTOP, signal.SIGCONT):  # which end nobody
                self._sent[process.rank] = number
                if process.rank not in self._standing:
                    self._standing[process.rank] = self._look_at(process.rank)
            try:
                os.killpg(process.pid, number)
            except ProcessLookupError:
                os.kill(process.pid, number)  # before its setsid; unreaped, so the number is still its own

    def _pid_of(self, rank: int) -> int:
        """The process that calls pmrun for a rank; 0: none does yet, -1: no such rank runs here."""
        running = any(process.rank == rank for process in self._processes.values())
        if self._start is None or self._window is None or not running:
            return -1
        return self._window.pid(rank - self._start.first_rank)

    def _look_at(self, rank: int) -> wire.Standing:
        """Where a rank stands in pmrun's calls now."""
        assert self._start is not None and self._window is not None
        local_rank = rank - self._start.first_rank
        call = self._window.open_call(local_rank)
        if call is not None:
            return wire.Standing(str(call), True)
        last = self._window.last_call(local_rank)
        return wire.Standing(str(last) if last else "", False)

    def _kill_all(self) -> None:
        self._signal_ranks(signal.SIGKILL, self._processes.values())
        if process_tree.any_child():
            process_tree.kill_descendants()
        self._reap()

    def _drain(self) -> None:
        self._draining = True
        self._input.close_all()
        for stream in self._outputs.values():
            if stream.fd >= 0:
                self._poller.forget(stream.fd)
                stream.collect()
                stream.close()
        self._check_drained()

    def _check_drained(self) -> None:
        if self._draining and all(stream.done for stream in self._outputs.values()):
            self._draining = False
            survivors = tuple(process_tree.children()) if self._processes else ()
            self._do(self._machine.on_drained(survivors))

    def _add_credit(self, action: agent.AddCredit) -> None:
        stream = self._outputs.get((action.rank, action.stream))
        if stream is not None:
            stream.add_credit(action.count)
            self._outputs_changed = True
            self._check_drained()

    def _tell(self, action: agent.Tell) -> None:
        """To those in collectives by the window, to those that wait in the store by their lines."""
        if self._window is not None:
            self._window.write_abort(action.state, action.rank, action.node, action.text)
            record = self._window.read_abort() or action  # a rank may have told a better story
            self._store.end_gang(record.state, record.rank, record.node, record.text)
