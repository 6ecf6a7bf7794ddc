# SPDX-License-Identifier: Apache-2.0
"""Runs a job on hosts that ssh reaches: `pmrun -n 16 --hosts a:8,b:8 train.py`.

One OpenSSH client per host, with the user's own configuration, runs `pmrun agent` there under the same interpreter
path; the secret, the controller's addresses and the environment go through its standard input. A host that is this
machine gets its agent without ssh. The controller is in this process and listens only on the addresses that route to
the hosts. Invariant: when `run` returns, no ssh client is left, and what was started elsewhere has lost its lifeline.
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
        }

    def run(self, job: Job) -> int:
        """Run the job there."""
        open_standard_fds()
        events = EventLog(job.json_events)
        job = msgspec.structs.replace(job, cwd=job.cwd or os.getcwd())
        rank_process.become_subreaper()
        return _start(job).run(job, events)


def _start(job: Job) -> ProcessFleet:
    """Listen, and start an agent on each host."""
    secret = keys.new_secret()
    names = [name for name, _ in job.nodes.hosts]
    meeting = plan_meeting(job.nodes, names)
    try:
        hub = NetHub(secret, len(names), [(ip, meeting.port) for ip in meeting.binds])
    except OSError as error:
        raise LaunchError(f"cannot listen on {', '.join(meeting.binds)}: {error.strerror}; see --main") from None
    seats = tuple(Seat(_short(name), f"{name} dialled, no answer") for name in names)
    fleet = ProcessFleet(hub, seats, tuple(count for _, count in job.nodes.hosts), RELEASE)
    carried = carried_environment(os.environb)
    try:
        for node, name in enumerate(names):
            here = meeting.here[node]
            told = bootstrap.Bootstrap(
                wire.VERSION, RELEASE, secret, node, meeting.addresses(node, hub.endpoints), job.start_timeout_s,
                job.nodes.interface, () if here else carried,
            )  # fmt: skip
            explain = functools.partial(_explain, name, here)
            fleet.start(node, told, explain, None if here else _ssh_command(job, name))
    except OSError as error:
        fleet.close()
        raise LaunchError(f"cannot start {error.filename or job.nodes.ssh[0]}: {error.strerror}; see --ssh") from None
    except KeyboardInterrupt:
        fleet.close()
        raise
    return fleet


def _ssh_command(job: Job, name: str) -> list[str]:
    patience = max(1, math.ceil(job.start_timeout_s))
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
