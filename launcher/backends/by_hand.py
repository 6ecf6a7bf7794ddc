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

from pmrun.launcher import hosts, interfaces, keys
from pmrun.launcher.job import Job
from pmrun.launcher.meeting_place import addresses_here, split_main
from pmrun.launcher.one_node import Standing, address_of_main, be_node
from pmrun.secret import read_secret


class Backend:
    """This node, among others."""

    def dry_run(self, job: Job) -> dict[str, object]:
        """What this node would do."""
        standing = _agreed(job)
        rank = standing.node_rank
        return {
            "backend": "by_hand",
            "world_size": job.world_size,
            "nodes": job.nodes.count,
            "node_rank": rank if rank >= 0 else "(by natural order of the machines' names)",
            "max_restarts": job.max_restarts,
            "least_nodes": job.nodes.least or job.nodes.count,
            "ranks_by_node": hosts.share(job.world_size, job.nodes.count),
            "main": interfaces.endpoint(standing.host, standing.port),
            "listens": address_of_main(job, standing) if rank == 0 else None,
            "command": list(job.command),
            "cwd": job.cwd or os.getcwd(),
            "env": dict(job.env),
        }

    def run(self, job: Job) -> int:
        """Be this node to the end."""
        return be_node(job, _agreed(job))


def _agreed(job: Job) -> Standing:
    """What all nodes know alike, and this one's number."""
    assert job.nodes.secret_file is not None and job.nodes.main is not None
    secret = read_secret(job.nodes.secret_file, "--secret-file")
    host, port = split_main(job.nodes.main)
    rank = job.nodes.rank
    if rank is None:  # the same command on every node: the one that has the address is the main node
        rank = 0 if addresses_here(host) else -1
    return Standing(rank, host, port or keys.main_port(secret), secret)
