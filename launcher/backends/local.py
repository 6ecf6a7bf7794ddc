# SPDX-License-Identifier: Apache-2.0
"""Runs a job on this machine: the agent is a fork of `pmrun`, made before any thread and without an exec.

The two share a socket pair, which is also the lifeline: whoever dies closes it. Both are subreapers, so that
the descendants of either come to the other's ancestor and are ended. Invariant: after `run` no process of the
job is left; children that this process had before are never touched.
"""

from __future__ import annotations

import functools
import os
import signal
from collections.abc import Callable
from typing import Final

from pmrun import env, wire
from pmrun.errors import ExitCode, UsageError
from pmrun.launcher import keys, limits, process_tree, rank_process
from pmrun.launcher.agent_loop import Place
from pmrun.launcher.agent_process import run_agent
from pmrun.launcher.cgroup import ControlGroups, usable_cpus
from pmrun.launcher.controller import SIGNALS, Controller
from pmrun.launcher.environment import base_environment, rank_environment
from pmrun.launcher.events import EventLog
from pmrun.launcher.interfaces import free_port
from pmrun.launcher.job import Job
from pmrun.launcher.link import Hub, SocketHub, SocketLink, socket_pair
from pmrun.launcher.orders import make_starts
from pmrun.launcher.placement import place_local
from pmrun.launcher.poller import Poller
from pmrun.launcher.rendezvous import Seat
from pmrun.launcher.sink import open_standard_fds

_SWEEP_S: Final = 5.0
_LOOPBACK: Final = "127.0.0.1"


class LocalFleet:
    """The forked agent, as the controller holds it."""

    release = ""  # both are this very process's code

    def __init__(self, world_size: int) -> None:
        ours, theirs = socket_pair()
        self.seats: tuple[Seat, ...] = (Seat(node_name()),)
        self.counts: tuple[int, ...] = (world_size,)
        self.least = 1
        self._spare = process_tree.children() if process_tree.any_child() else frozenset()
        self._closed = False
        secret = keys.new_secret()
        self._pid = os.fork()
        if self._pid == 0:
            ours.close()
            hello = wire.Hello(wire.VERSION, 0, os.getpid(), node_name(), _LOOPBACK, free_port())
            run_agent(SocketLink(theirs), Place(hello, secret))
        theirs.close()
        self.hub: Hub = SocketHub(ours)

    def watch(self, poller: Poller, note: Callable[[int, str], None], ended: Callable[[int, str], None]) -> None:
        """The link's end says all that there is to know."""

    def replace(self, node: int) -> str:
        """There is no other machine."""
        return ""

    def sweep(self, node: int) -> None:
        """End the agent, if it only closed the link, and all that came to this process from it."""
        process_tree.sweep(self._spare, _SWEEP_S)

    def close(self) -> None:
        """Let the agent leave, or, if it was not told to, end its ranks and itself."""
        if self._closed:
            return
        self._closed = True
        self.hub.close()
        if not process_tree.wait_end(self._pid, _SWEEP_S):
            process_tree.sweep(self._spare, _SWEEP_S)
        try:
            os.waitpid(self._pid, os.WNOHANG)
        except ChildProcessError:
            return  # swept, and nothing else is left
        if process_tree.any_child():
            process_tree.reap(self._spare)


class Backend:
    """This machine."""

    def dry_run(self, job: Job) -> dict[str, object]:
        """What would be started, by rank; UsageError where the agent would refuse it."""
        groups = ControlGroups()
        refusal = limits.refuse(job.world_size, os.fsencode(job.command[0]), groups)
        if refusal is not None:
            raise UsageError(refusal)
        node = place_local(job, node_name())
        start = make_starts(job, [node], "", 0, 0)[0]
        inherited = dict(os.environb)
        base = base_environment(inherited, start, usable_cpus(groups))
        later = {env.JOB_ID: "(a new name)", env.TORCH_MASTER_PORT: "(a free port)"}
        later.update(dict.fromkeys((env.WINDOW_FD, env.STORE_FD, env.DEBUG_FD), "(a descriptor)"))
        for name, _ in job.env:
            later.pop(name, None)  # a meeting point for torch that the job names is known now
        ranks: list[dict[str, object]] = []
        for rank in node.ranks:
            own = {**base, **rank_environment(start, rank, -1, -1, -1)}
            added = {os.fsdecode(k): os.fsdecode(v) for k, v in own.items() if inherited.get(k) != v}
            ranks.append(
                {
                    "rank": rank,
                    "node": node.name,
                    "command": list(job.command),
                    "cwd": job.cwd or os.getcwd(),
                    "cpus": list(node.cpus[rank]) if node.cpus else None,
                    "bound": start.bind_to_core,
                    "stdin": rank in start.stdin_ranks,
                    "env": dict(sorted({**added, **later}.items())),
                }
            )
        return {
            "backend": "local",
            "world_size": job.world_size,
            "nodes": [node.name],
            "ranks": ranks,
            "max_restarts": job.max_restarts,
        }

    def run(self, job: Job) -> int:
        """Run the job here."""
        open_standard_fds()
        try:
            events = EventLog(job.json_events)
        except UsageError as error:
            os.write(2, f"pmrun: {error}\n".encode("utf-8", "surrogateescape"))
            return ExitCode.USAGE
        rank_process.become_subreaper()
        before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # until there is somebody to hear them
        try:
            controller = Controller(job, LocalFleet(job.world_size), events, functools.partial(_muster, job))
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return controller.run()


def _muster(job: Job, silent: frozenset[int]) -> LocalFleet:
    """The agent of a further attempt; signals wait until it hears none that are for this process."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        return LocalFleet(job.world_size)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def node_name() -> str:
    """This machine's own name."""
    return os.uname().nodename
