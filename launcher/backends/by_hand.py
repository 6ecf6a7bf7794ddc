# SPDX-License-Identifier: Apache-2.0
"""One node of a job whose nodes are each started by hand (or by a script, a cloud's own means, anything):

    pmrun -n 8 --nnodes 2 --node-rank R --main ADDRESS --secret-file FILE train.py

On the main node this process is the controller, and starts an agent of its own beside it; on the others it is the
agent. Each node runs the command that it was given, in its own directory and environment; output, input and the exit
code are the main node's business, and the others end with the same code. Invariant: without a secret that only the
user can read nothing listens and nothing is dialled.
"""

from __future__ import annotations

import os
import sys

from pmrun import wire
from pmrun.errors import LaunchError
from pmrun.launcher import bootstrap, hosts, interfaces, keys, rank_process
from pmrun.launcher.agent_loop import Own
from pmrun.launcher.agents import ProcessFleet
from pmrun.launcher.dial import Meeting
from pmrun.launcher.events import EventLog
from pmrun.launcher.job import Job
from pmrun.launcher.keeper import Summons, keep_coming
from pmrun.launcher.meeting_place import addresses_here, own_address, split_main
from pmrun.launcher.net_link import NetHub
from pmrun.launcher.rendezvous import Seat
from pmrun.launcher.sink import open_standard_fds
from pmrun.secret import read_secret
from pmrun.version import RELEASE


class Backend:
    """This node, among others."""

    def dry_run(self, job: Job) -> dict[str, object]:
        """What this node would do."""
        secret, host, port, rank = _agreed(job)
        return {
            "backend": "by_hand",
            "world_size": job.world_size,
            "nodes": job.nodes.count,
            "node_rank": rank if rank >= 0 else "(by natural order of the machines' names)",
            "max_restarts": job.max_restarts,
            "least_nodes": job.nodes.least or job.nodes.count,
            "ranks_by_node": hosts.share(job.world_size, job.nodes.count),
            "main": interfaces.endpoint(host, port),
            "listens": own_address(host, job.nodes.interface, "--main", "--interface") if rank == 0 else None,
            "command": list(job.command),
            "cwd": job.cwd or os.getcwd(),
            "env": dict(job.env),
        }

    def run(self, job: Job) -> int:
        """Be this node to the end."""
        open_standard_fds()
        secret, host, port, rank = _agreed(job)
        if rank == 0:
            return _be_main(job, secret, own_address(host, job.nodes.interface, "--main", "--interface"), port)
        meeting = Meeting(((host, port),), secret, rank, job.start_timeout_s)
        hello = wire.Hello(wire.VERSION, rank, 0, release=RELEASE, num_nodes=job.nodes.count, world_size=job.world_size)
        own = Own(
            tuple(map(os.fsencode, job.command)),
            None if job.cwd is None else os.fsencode(job.cwd),
            tuple((os.fsencode(name), os.fsencode(value)) for name, value in job.env),
        )
        return keep_coming(Summons(meeting, hello, job.nodes.interface, own, job.max_restarts > 0), _tell)


def _agreed(job: Job) -> tuple[bytes, str, int, int]:
    """What all nodes know alike, and this one's number: secret, host, port, rank."""
    assert job.nodes.secret_file is not None and job.nodes.main is not None
    secret = read_secret(job.nodes.secret_file, "--secret-file")
    host, port = split_main(job.nodes.main)
    rank = job.nodes.rank
    if rank is None:  # the same command on every node: the one that has the address is the main node
        rank = 0 if addresses_here(host) else -1
    return secret, host, port or keys.main_port(secret), rank


def _be_main(job: Job, secret: bytes, ip: str, port: int) -> int:
    events = EventLog(job.json_events)
    rank_process.become_subreaper()
    seats = tuple(Seat("") for _ in range(job.nodes.count))  # they remember who sat there

    def muster(silent: frozenset[int]) -> ProcessFleet:
        """Listen again at the same place, and start this node's agent; the others come by themselves."""
        try:
            hub = NetHub(secret, job.nodes.count, [(ip, port)])
        except OSError as error:
            raise LaunchError(
                f"cannot listen on {interfaces.endpoint(ip, port)}: {error.strerror}; does another job with this "
                "secret run here? give it a secret of its own, or --main ADDRESS:PORT"
            ) from None
        for seat in seats:
            seat.note = ""
        counts = hosts.share(job.world_size, job.nodes.count)
        fleet = ProcessFleet(hub, seats, counts, RELEASE, job.nodes.least)
        told = bootstrap.Bootstrap(
            wire.VERSION, RELEASE, secret, 0, tuple(hub.endpoints), job.start_timeout_s, job.nodes.interface, ()
        )
        fleet.start(0, told, _explain)
        return fleet

    return muster(frozenset()).run(job, events, muster)


def _explain(status: int, last: list[str]) -> str:
    words = last[-1].removeprefix("pmrun: ") if last else f"exit code {status}"
    return f"the agent of the main node ended: {words}"


def _tell(text: str) -> None:
    if text:
        print(f"pmrun: waiting for the main node: {text}", file=sys.stderr, flush=True)
