# SPDX-License-Identifier: Apache-2.0
"""One node of a job whose nodes are each started by somebody else: a person, a script, an engine.

On the main node this process is the controller, and starts an agent of its own beside it; on the others it is the
agent's keeper. Output, input and the exit code are the main node's business, and the others end with the same code.
Invariant: nothing listens and nothing is dialled but with the secret that all nodes have.
"""

from __future__ import annotations

import os
import sys
from typing import NamedTuple

from pmrun import wire
from pmrun.errors import LaunchError
from pmrun.launcher import bootstrap, hosts, interfaces, rank_process
from pmrun.launcher.agent_loop import Own
from pmrun.launcher.agents import ProcessFleet
from pmrun.launcher.dial import Meeting
from pmrun.launcher.events import EventLog
from pmrun.launcher.job import Job
from pmrun.launcher.keeper import Summons, keep_coming
from pmrun.launcher.meeting_place import own_address
from pmrun.launcher.net_link import NetHub
from pmrun.launcher.rendezvous import Seat
from pmrun.launcher.sink import open_standard_fds
from pmrun.version import RELEASE


class Standing(NamedTuple):
    """What a node knows of itself and of the meeting."""

    node_rank: int  # -1: by natural order of the machines' names
    host: str  # of the main node; "" on the main node itself, where nobody said
    port: int
    secret: bytes


def be_node(job: Job, standing: Standing) -> int:
    """Be this node to the job's end; returns its exit code."""
    open_standard_fds()
    if standing.node_rank == 0:
        return _be_main(job, standing)
    meeting = Meeting(((standing.host, standing.port),), standing.secret, standing.node_rank, job.start_timeout_s)
    hello = wire.Hello(
        wire.VERSION, standing.node_rank, 0, release=RELEASE, num_nodes=job.nodes.count, world_size=job.world_size
    )
    own = Own(
        tuple(map(os.fsencode, job.command)),
        None if job.cwd is None else os.fsencode(job.cwd),
        tuple((os.fsencode(name), os.fsencode(value)) for name, value in job.env),
    )
    return keep_coming(Summons(meeting, hello, job.nodes.interface, own, job.max_restarts > 0), _tell)


def address_of_main(job: Job, standing: Standing) -> str:
    """Where the main node, which this is, listens."""
    return own_address(standing.host, job.nodes.interface, "--main", "--interface")


def _be_main(job: Job, standing: Standing) -> int:
    secret, port, ip = standing.secret, standing.port, address_of_main(job, standing)
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
            wire.VERSION, RELEASE, secret, 0, tuple(hub.endpoints), job.start_timeout_s, job.nodes.interface, (), True
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
