# SPDX-License-Identifier: Apache-2.0
"""Where this process stands in its job: `pm.current`, `pm.rank()` and their like.

Everything is read from the environment that the agent made, or another launcher (foreign.py), at the moment it is
asked for, so it is there before `pm.init()` and needs no C core. A process that a rank started, by fork or otherwise,
is told whose it is: the worker of a data loader asks for its part of the data. Invariant: under plain `python` the
answers describe a world of one.
"""

from __future__ import annotations

import os
import sys

from pmrun import env
from pmrun.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from pmrun.foreign import Placement
    from pmrun.meeting import Met
    from pmrun.place import Parallel
    from pmrun.transports import Choice

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


def _foreign() -> Placement | None:
    if env.RANK in os.environ:
        return None
    from pmrun import foreign  # a rank of pmrun's own need not load it

    return foreign.recognise(os.environ)


def _met() -> Met | None:
    """What the ranks of several nodes learned from each other, once they have met."""
    meeting = sys.modules.get("pmrun.meeting")
    met: Met | None = meeting.met() if meeting is not None else None
    return met if met is not None and met.layout else None


def _told(placement: Placement, number: int) -> int:
    if number < 0:
        raise UsageError(f"before pm.init() {placement.launcher} tells neither a node's number nor how many there are")
    return number


def rank() -> int:
    """This process's number in its job; 0 under plain python."""
    placement = _foreign()
    return placement.rank if placement is not None else _number(env.RANK, 0)


def world_size() -> int:
    """How many ranks the job has; 1 under plain python."""
    placement = _foreign()
    return placement.world_size if placement is not None else _number(env.WORLD_SIZE, 1)


def local_rank() -> int:
    """This process's number among the ranks of its node."""
    placement = _foreign()
    return placement.local_rank if placement is not None else _number(env.LOCAL_RANK, 0)


def local_world_size() -> int:
    """How many ranks this node has."""
    placement = _foreign()
    return placement.local_world_size if placement is not None else _number(env.LOCAL_WORLD_SIZE, 1)


def node_rank() -> int:
    """This node's number; 0 is the main node."""
    placement, met = _foreign(), _met()
    if met is not None:
        return met.node_rank
    return _told(placement, placement.node_rank) if placement is not None else _number(env.NODE_RANK, 0)


def num_nodes() -> int:
    """How many nodes the job has."""
    placement, met = _foreign(), _met()
    if met is not None:
        return len(met.layout)
    return _told(placement, placement.num_nodes) if placement is not None else _number(env.NUM_NODES, 1)


def peers() -> tuple[str, ...]:
    """Addresses of all nodes, in node order."""
    met = _met()
    if met is not None:
        return met.peers
    text = os.environ.get(env.PEERS, "")
    if text or num_nodes() == 1:
        return tuple(text.split(",")) if text else (os.environ.get(env.MAIN_IP, LOOPBACK),)
    raise UsageError("before pm.init() no node's address is known but the main one's: pm.current.parallel.main_ip")


def transport() -> str:
    """What carries data between nodes, since `pm.init()`: "tcp" or "zmq"; "" where the ranks are on one node.

    With ``--transport auto`` it is the one that was faster between nodes 0 and 1 when the gang started.
    """
    choice = _choice()
    return choice.transport if choice is not None else ""


def transport_reason() -> str:
    """Why it is that one: "asked for", or what was measured."""
    choice = _choice()
    return choice.why if choice is not None else ""


def _choice() -> Choice | None:
    network = sys.modules.get("pmrun.network")
    choice: Choice | None = network.chosen if network is not None else None
    return choice


def __getattr__(name: str) -> Any:
    if name == "parallel":
        from pmrun.place import Parallel

        placement = _foreign()
        if placement is not None:
            met = _met()
            address = met.peers[0] if met is not None else placement.main_address or LOOPBACK
            return Parallel(address, num_nodes(), node_rank(), placement.job or f"{placement.launcher}-0")
        job = os.environ.get(env.JOB_ID, "local")
        return Parallel(os.environ.get(env.MAIN_IP, LOOPBACK), num_nodes(), node_rank(), f"{job}-0")
    if name == "is_parallel":
        return env.RANK in os.environ or _foreign() is not None
    raise AttributeError(f"module 'pmrun.current' has no attribute '{name}'")
