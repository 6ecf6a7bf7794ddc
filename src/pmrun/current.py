# SPDX-License-Identifier: Apache-2.0
"""Where this process stands in its job: `pm.current`, `pm.rank()` and their like.

Everything is read from the environment that the agent made, at the moment it is asked for, so it is there before
`pm.init()` and needs no C core. A process that a rank started, by fork or otherwise, is told whose it is: the worker
of a data loader asks for its part of the data. Invariant: under plain `python` the answers describe a world of one.
"""

from __future__ import annotations

import os

from pmrun import env
from pmrun.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from pmrun.parallel import Parallel

LOOPBACK = "127.0.0.1"

parallel: Parallel
is_parallel: bool


def _number(name: str, default: int) -> int:
    text = os.environ.get(name)
    if text is None:
        return default
    try:
        return int(text)
    except ValueError:
        raise UsageError(f"{name}={text!r} is not a number: pmrun sets it, so unset it or start with pmrun") from None


def rank() -> int:
    """This process's number in its job; 0 under plain python."""
    return _number(env.RANK, 0)


def world_size() -> int:
    """How many ranks the job has; 1 under plain python."""
    return _number(env.WORLD_SIZE, 1)


def local_rank() -> int:
    """This process's number among the ranks of its node."""
    return _number(env.LOCAL_RANK, 0)


def local_world_size() -> int:
    """How many ranks this node has."""
    return _number(env.LOCAL_WORLD_SIZE, 1)


def node_rank() -> int:
    """This node's number; 0 is the main node."""
    return _number(env.NODE_RANK, 0)


def num_nodes() -> int:
    """How many nodes the job has."""
    return _number(env.NUM_NODES, 1)


def peers() -> tuple[str, ...]:
    """Addresses of all nodes, in node order."""
    text = os.environ.get(env.PEERS, "")
    return tuple(text.split(",")) if text else (os.environ.get(env.MAIN_IP, LOOPBACK),)


def __getattr__(name: str) -> Any:
    if name == "parallel":
        from pmrun.parallel import Parallel

        job = os.environ.get(env.JOB_ID, "local")
        return Parallel(os.environ.get(env.MAIN_IP, LOOPBACK), num_nodes(), node_rank(), f"{job}-0")
    if name == "is_parallel":
        return env.RANK in os.environ
    raise AttributeError(f"module 'pmrun.current' has no attribute '{name}'")
