# SPDX-License-Identifier: Apache-2.0
"""Runs a job on hosts that ssh reaches: `pmrun -n 16 --hosts a:8,b:8 train.py`.

One OpenSSH client per host, with the user's own configuration, runs `pmrun agent` there under the same interpreter
path; the secret, the controller's addresses and the environment go through its standard input. A host that is this
machine gets its agent without ssh. The controller is in this process and listens only on the addresses that route to
the hosts. Every attempt has clients, agents and a secret of its own; a host that fell silent, or that cannot be reached,
gives its place to a spare one, if there is one. Invariant: when `run` returns, no ssh client is left, and what was started elsewhere has lost its lifeline.
"""

from __future__ import annotations

import functools
import math
import os
import shlex
import sys
from typing import Final

import msgspec

from pmrun import wire
from pmrun.errors import ExitCode, LaunchError
from pmrun.launcher import bootstrap, keys, rank_process
from pmrun.launcher.agents import ProcessFleet, agent_command
from pmrun.launcher.carried import carried_environment
from pmrun.launcher.describe import signal_name
from pmrun.launcher.events import EventLog
from pmrun.launcher.job import Job
from pmrun.launcher.meeting_place import is_here, plan_meeting
from pmrun.launcher.net_link import NetHub
from pmrun.launcher.rendezvous import Seat
from pmrun.launcher.sink import open_standard_fds
from pmrun.version import RELEASE

_SSH_FAILED: Final = 255
_PATIENCE_S: Final = 10.0  # with a host that does not answer, where there are others
_REMEDIES: Final = (
    ("could not resolve", "check the host's name"),
    ("permission denied", "ssh must get in without a password: see ssh-copy-id, or give a key with --ssh 'ssh -i KEY'"),
    ("host key verification failed", "its key is not known here: connect once by hand with ssh, and compare the key"),
    ("connection refused", "no sshd answers there: start it, or give its port with --ssh 'ssh -p PORT'"),
    ("no route to host", "check the network, or the host's address"),
    ("timed out", "check the host, and the firewall between"),
)


class Backend:
    """Hosts that ssh reaches."""

    def dry_run(self, job: Job) -> dict[str, object]:
        """What would be started, by node."""
        nodes = []
        first = 0
        for number, (name, count) in enumerate(job.nodes.hosts):
            command = agent_command() if is_here(name) else _ssh_command(job, name)
            nodes.append({"node": number, "host": name, "ranks": list(range(first, first + count)), "agent": command})
            first += count
        return {
            "backend": "ssh",
            "world_size": job.world_size,
            "command": list(job.command),
            "cwd": job.cwd or os.getcwd(),
            "env": dict(job.env),
            "nodes": nodes,
            "least_nodes": job.nodes.least or len(nodes),
            "max_restarts": job.max_restarts,
            "spares": [name for name, _ in job.nodes.spares],
        }

    def run(self, job: Job) -> int:
        """Run the job there."""
        open_standard_fds()
        events = EventLog(job.json_events)
        job = msgspec.structs.replace(job, cwd=job.cwd or os.getcwd())
        rank_process.become_subreaper()
        roster = Roster(job)
        return roster.muster(frozenset()).run(job, events, roster.muster)


class Roster:
    """Which host sits where, from attempt to attempt.

    Invariant: a host is in one place or a spare, never both; those who keep their place keep their ranks.
    """

    def __init__(self, job: Job) -> None:
        self._job = job
        self.places = list(job.nodes.hosts)  # name and ranks, by seat
        self.spares = list(job.nodes.spares)  # name and the most ranks; the likeliest first
        names = [name for name, _ in (*self.places, *self.spares)]
        self._number = {name: number for number, name in enumerate(names)}
        self._meeting = plan_meeting(job.nodes, names)
        self._carried = carried_environment(os.environb)

    @property
    def least(self) -> int:
        """So many nodes are enough."""
        return self._job.nodes.least or len(self.places)

    def muster(self, silent: frozenset[int]) -> HostFleet:
        """Listen, and start an agent on each host; those in `silent` seats give them up where there is a spare."""
        for seat in sorted(silent):
            self.substitute(seat, frozenset())
        meeting = self._meeting
        secret = keys.new_secret()
        try:
            hub = NetHub(secret, len(self.places), [(ip, meeting.port) for ip in meeting.binds])
        except OSError as error:
            raise LaunchError(f"cannot listen on {', '.join(meeting.binds)}: {error.strerror}; see --main") from None
        fleet = HostFleet(self, secret, hub)
        try:
            for seat in range(len(self.places)):
                fleet.call(seat)
        except OSError as error:
            fleet.close()
            ssh = error.filename or self._job.nodes.ssh[0]
            raise LaunchError(f"cannot start {ssh}: {error.strerror}; see --ssh") from None
        except KeyboardInterrupt:
            fleet.close()
            raise
        return fleet

    def substitute(self, seat: int, failed: frozenset[str]) -> bool:
        """Give a place to the first spare that fits and has not failed; who had it becomes the last spare."""
        name, ranks = self.places[seat]
        elastic = self._job.nodes.least is not None
        for at, (spare, room) in enumerate(self.spares):
            if spare not in failed and (elastic or room >= ranks):
                self.places[seat] = (spare, room if elastic else ranks)
                del self.spares[at]
                self.spares.append((name, ranks))
                return True
        return False

    def summons(self, seat: int, secret: bytes, endpoints: list[tuple[str, int]]) -> bootstrap.Bootstrap:
        """What the agent of a seat is told."""
        here, number = self.is_here(seat), self._number[self.places[seat][0]]
        return bootstrap.Bootstrap(
            wire.VERSION, RELEASE, secret, seat, self._meeting.addresses(number, endpoints),
            self._job.start_timeout_s, self._job.nodes.interface, () if here else self._carried,
        )  # fmt: skip

    def is_here(self, seat: int) -> bool:
        """Whether a seat's host is this machine."""
        return self._meeting.here[self._number[self.places[seat][0]]]

    def way(self, seat: int) -> list[str] | None:
        """The command that leads to a seat's host; None: it is this machine."""
        return None if self.is_here(seat) else _ssh_command(self._job, self.places[seat][0])


class HostFleet(ProcessFleet):
    """The agents of one attempt."""

    def __init__(self, roster: Roster, secret: bytes, hub: NetHub) -> None:
        seats = tuple(_seat(name) for name, _ in roster.places)
        super().__init__(hub, seats, tuple(count for _, count in roster.places), RELEASE, roster.least)
        self._roster = roster
        self._secret = secret
        self._endpoints = hub.endpoints
        self._failed: set[str] = set()  # hosts, in this attempt

    def call(self, seat: int) -> None:
        """Start the agent of a seat's host."""
        told = self._roster.summons(seat, self._secret, self._endpoints)
        explain = functools.partial(_explain, self._roster.places[seat][0], self._roster.is_here(seat))
        self.start(seat, told, explain, self._roster.way(seat))

    def replace(self, node: int) -> str:
        """By a spare host."""
        self._failed.add(self._roster.places[node][0])
        if not self._roster.substitute(node, frozenset(self._failed)):
            return ""
        name = self._roster.places[node][0]
        fresh = _seat(name)
        self.seats[node].name, self.seats[node].note = fresh.name, fresh.note
        self.counts = tuple(count for _, count in self._roster.places)
        try:
            self.call(node)
        except OSError:  # no process can be made here
            return ""
        return name


def _seat(name: str) -> Seat:
    return Seat(_short(name), f"{name} dialled, no answer")


def _ssh_command(job: Job, name: str) -> list[str]:
    patience_s = job.start_timeout_s + 1  # --start-timeout runs out first: its line names every missing host
    if job.nodes.spares or job.nodes.least is not None:  # it can go without this one
        patience_s = min(_PATIENCE_S, job.start_timeout_s / 3)
    patience = max(1, math.ceil(patience_s))
    words = agent_command()
    paths = [os.path.abspath(path) for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    if paths:  # perhaps pmrun itself is found there
        words = ["env", f"PYTHONPATH={os.pathsep.join(paths)}", *words]
    remote = "cd / && exec " + " ".join(shlex.quote(word) for word in words)  # read by whatever shell there is
    options = ["-T", "-o", "BatchMode=yes", "-o", f"ConnectTimeout={patience}"]
    return [*job.nodes.ssh, *options, "--", name.replace("[", "").replace("]", ""), remote]


def _short(name: str) -> str:
    """A host's name as a tag shows it."""
    return name.rpartition("@")[2].strip("[]")


def _explain(name: str, here: bool, status: int, last: list[str]) -> str:
    """One line: why the agent of a host ended before anybody told it to."""
    words = last[-1].removeprefix("pmrun: ") if last else ""
    if status == _SSH_FAILED and not here:
        low = words.lower()
        remedy = next((remedy for text, remedy in _REMEDIES if text in low), "try the same by hand: ssh " + name)
        return f"cannot reach {name}: {words or 'ssh said nothing'}; {remedy}"
    if status < 0:
        return f"{'the agent' if here else 'ssh'} on the way to {name} was killed by {signal_name(-status)}"
    if status == ExitCode.NOT_FOUND and "pmrun" not in words.partition(":")[0]:
        return f"{name} has no {sys.executable} ({words}); install the same environment there, at the same path"
    if "No module named" in words:
        return f"{name}: {words} (by {sys.executable}); install the same environment there"
    return f"{name}: {words or f'its agent ended with exit code {status}'}"
