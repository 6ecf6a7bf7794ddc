# SPDX-License-Identifier: Apache-2.0
"""The environment of a rank, made from what its agent inherited, the job's own additions and its place.

Pure functions over bytes. Invariant: what the user set for the number of threads and for buffering stays, and so do a meeting point for
torch and a time for the ranks to meet that the job itself names; the rest is about this gang and always
replaced, so that a pmrun inside a pmrun is right too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from pmrun import env, wire

INTERRUPT_SIGNAL: Final = 40  # leads a rank into its debugger: a real-time one, of which programs hardly use any


def base_environment(inherited: Mapping[bytes, bytes], start: wire.Start, cpus: int) -> dict[bytes, bytes]:
    """What all ranks of a node have in common.

    Parameters
    ----------
    inherited
        The agent's own environment.
    start
        The controller's order.
    cpus
        CPUs that the node's ranks may use together.
    """
    result = dict(inherited)
    result.update(start.env)
    for name, default in (
        (env.OMP_NUM_THREADS, str(max(1, cpus // start.local_world_size))),
        (env.PYTHON_UNBUFFERED, "1"),  # on a pipe Python would hold output back until its buffer is full
        (env.PYTHON_BREAKPOINT, "pmrun.debugger.at_breakpoint"),  # pdb on a terminal that pmrun can show
    ):
        result.setdefault(name.encode(), default.encode())
    shared = {
        env.WORLD_SIZE: start.world_size,
        env.LOCAL_WORLD_SIZE: start.local_world_size,
        env.NODE_RANK: start.node_rank,
        env.NUM_NODES: len(start.peers),
        env.MAIN_IP: start.peers[0],
        env.JOB_ID: start.job_id,
        env.ATTEMPT: start.attempt,
        env.PEERS: ",".join(start.peers),
        env.NODE_NAME: start.node_name,
        env.DEBUG_SIGNAL: INTERRUPT_SIGNAL,
        env.LAYOUT: ",".join(map(str, start.layout)),
        env.DATA_ADDRESS: start.data_address,
        env.TRANSPORT: start.transport,
        env.JOIN_TIMEOUT: f"{start.start_timeout_s:g}",
        env.TORCH_MASTER_ADDR: start.peers[0],
        env.TORCH_MASTER_PORT: start.main_port,
        env.TORCH_WORLD_SIZE: start.world_size,
        env.TORCH_LOCAL_WORLD_SIZE: start.local_world_size,
    }
    result.update((name.encode(), str(value).encode()) for name, value in shared.items())
    for name, wanted in (
        (env.REPRODUCIBLE, start.reproducible),
        (env.ENCRYPT, start.encrypt),
        (env.PDB_ON_ERROR, start.pdb_on_error),
    ):
        result.pop(name.encode(), None)
        if wanted:
            result[name.encode()] = b"1"
    meeting = {name.encode() for name in (env.TORCH_MASTER_ADDR, env.TORCH_MASTER_PORT, env.JOIN_TIMEOUT)}
    result.update((name, value) for name, value in start.env if name in meeting)
    return result


def rank_environment(
    start: wire.Start, local_rank: int, window_fd: int, store_fd: int, debug_fd: int
) -> dict[bytes, bytes]:
    """What differs between the ranks of a node."""
    rank = start.first_rank + local_rank
    own = {
        env.RANK: rank,
        env.LOCAL_RANK: local_rank,
        env.WINDOW_FD: window_fd,
        env.STORE_FD: store_fd,
        env.DEBUG_FD: debug_fd,
        env.TORCH_RANK: rank,
        env.TORCH_LOCAL_RANK: local_rank,
    }
    return {name.encode(): str(value).encode() for name, value in own.items()}
