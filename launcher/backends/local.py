# SPDX-License-Identifier: Apache-2.0
"""Runs a job on this machine: the agent is a fork of `pmrun`, made before any thread and without an exec.

The two share a socket pair, which is also the lifeline: whoever dies closes it. Both are subreapers, so that
the descendants of either come to the other's ancestor and are ended. Invariant: after `run` no process of the
job is left; children that this process had before are never touched.
"""

from __future__ import annotations

import os
import signal
import socket
from typing import Final

from pmrun import env
from pmrun.errors import ExitCode, UsageError
from pmrun.launcher import limits, process_tree, rank_process
from pmrun.launcher.agent_loop import run_agent
from pmrun.launcher.cgroup import ControlGroups, usable_cpus
from pmrun.launcher.controller import SIGNALS, Controller, make_starts
from pmrun.launcher.environment import base_environment, rank_environment
from pmrun.launcher.events import EventLog
from pmrun.launcher.job import Job
from pmrun.launcher.link import Link, SocketLink, socket_pair
from pmrun.launcher.placement import place_local

_SWEEP_S: Final = 5.0
_LOWEST_PORT: Final = 20000
_TRIES: Final = 64


class LocalAgent:
    """The forked agent, as the controller holds it."""

    def __init__(self) -> None:
        ours, theirs = socket_pair()
        self._spare = process_tree.children() if process_tree.any_child() else frozenset()
        self._closed = False
        self.pid = os.fork()
        if self.pid == 0:
            ours.close()
            run_agent(SocketLink(theirs), 0)
        theirs.close()
        self.link: Link = SocketLink(ours)

    def sweep(self) -> None:
        """End the agent, if it only closed the link, and all that came to this process from it."""
        process_tree.sweep(self._spare, _SWEEP_S)

    def close(self) -> None:
        """Let the agent leave, or, if it was not told to, end its ranks and itself."""
        if self._closed:
            return
        self._closed = True
        self.link.close()
        if not process_tree.wait_end(self.pid, _SWEEP_S):
            process_tree.sweep(self._spare, _SWEEP_S)
        try:
            os.waitpid(self.pid, os.WNOHANG)
        except ChildProcessError:
            return  # swept


class Backend:
    """This machine."""

    def dry_run(self, job: Job) -> dict[str, object]:
        """What would be started, by rank; UsageError where the agent would refuse it."""
        groups = ControlGroups()
        refusal = limits.refuse(job.world_size, groups)
        if refusal is not None:
            raise UsageError(refusal)
        node = place_local(job, _node_name())
        start = make_starts(job, [node], "", 0, 0)[0]
        inherited = dict(os.environb)
        base = base_environment(inherited, start, usable_cpus(groups))
        later = {env.JOB_ID: "(a new name)", env.TORCH_MASTER_PORT: "(a free port)"}
        later.update(dict.fromkeys((env.WINDOW_FD, env.STORE_FD), "(a descriptor)"))
        for name, _ in job.env:
            later.pop(name, None)  # a meeting point for torch that the job names is known now
        ranks: list[dict[str, object]] = []
        for rank in node.ranks:
            own = {**base, **rank_environment(start, rank, -1, -1)}
            added = {os.fsdecode(k): os.fsdecode(v) for k, v in own.items() if inherited.get(k) != v}
            ranks.append(
                {
                    "rank": rank,
                    "node": node.name,
                    "command": list(job.command),
                    "cwd": job.cwd or os.getcwd(),
                    "cpus": list(node.cpus[rank]) if node.cpus else None,
                    "bound": bool(start.cpus),
                    "stdin": rank in start.stdin_ranks,
                    "env": dict(sorted({**added, **later}.items())),
                }
            )
        return {"backend": "local", "world_size": job.world_size, "nodes": [node.name], "ranks": ranks}

    def run(self, job: Job) -> int:
        """Run the job here."""
        _open_standard_fds()
        try:
            events = EventLog(job.json_events)
        except UsageError as error:
            os.write(2, f"pmrun: {error}\n".encode("utf-8", "surrogateescape"))
            return ExitCode.USAGE
        node = place_local(job, _node_name())
        job_id = f"{node.name}-{os.getpid()}-{os.urandom(4).hex()}"
        starts = make_starts(job, [node], job_id, 0, free_port())
        rank_process.become_subreaper()
        before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # until there is somebody to hear them
        try:
            controller = Controller(job, starts, [LocalAgent()], events)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return controller.run()


def free_port() -> int:
    """A port that nobody has, outside the range from which the kernel serves outgoing connections."""
    try:
        with open("/proc/sys/net/ipv4/ip_local_port_range", encoding="utf-8") as file:
            highest = int(file.read().split()[0])
    except (OSError, ValueError, IndexError):
        highest = 32768
    for attempt in range(_TRIES):
        port = 0
        if highest > _LOWEST_PORT and attempt + 1 < _TRIES:
            port = _LOWEST_PORT + int.from_bytes(os.urandom(4), "little") % (highest - _LOWEST_PORT)
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
            try:
                sock.bind(("", port))
            except OSError:
                continue
            return int(sock.getsockname()[1])
    return 0


def _node_name() -> str:
    return os.uname().nodename


def _open_standard_fds() -> None:
    """Give descriptors 0 to 2 a meaning, so that nothing else is opened under these numbers."""
    for fd in (0, 1, 2):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number, which is `fd`
