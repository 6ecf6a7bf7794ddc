# SPDX-License-Identifier: Apache-2.0
"""The orders to the agents: what a job and the table of its nodes mean for each of them. Pure.

Invariant: what all ranks must know alike is the same in every order of an attempt.
"""

from __future__ import annotations

import os

from pmrun import wire
from pmrun.launcher.display import credit_bytes
from pmrun.launcher.job import BindTo, Job, Stream
from pmrun.launcher.placement import Node


def make_starts(job: Job, nodes: list[Node], job_id: str, attempt: int, main_port: int) -> list[wire.Start]:
    """The order for each node's agent."""
    credit = credit_bytes(job.world_size)
    peers = tuple(node.address for node in nodes)
    layout = tuple(node.local_world_size for node in nodes)
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
            bind_to_core=job.bind_to is BindTo.CORE,
            stdin_ranks=stdin_ranks(job, node),
            credit_bytes=credit,
            layout=layout,
            data_address=node.address,
            transport=job.transport,
            reproducible=job.reproducible,
            encrypt=job.encrypt,
            start_timeout_s=job.start_timeout_s,
            hang_timeout_s=job.hang_timeout_s,
            pdb_on_error=job.pdb_on_error,
        )
        for number, node in enumerate(nodes)
    ]


def stdin_ranks(job: Job, node: Node) -> tuple[int, ...]:
    """Ranks of a node that take the standard input."""
    if job.stdin is Stream.NONE:
        return ()
    return tuple(rank for rank in node.ranks if job.stdin is Stream.ALL or rank == job.stdin)
