# SPDX-License-Identifier: Apache-2.0
"""pmrun: run Python on many processes, with fast collectives between them.

>>> import numpy as np, pmrun as pm
>>> world = pm.init()
>>> world.allreduce(np.ones(3))

Names are resolved when they are first used (PEP 562). Invariant: importing pmrun loads neither the C core nor
numpy, so that the `pmrun` command, which lives in this package, starts in a blink; and what `init` and a first
barrier load on every rank is as little as can be. `typing`, slower to load than all of it, is for type checkers.
"""

from __future__ import annotations

import importlib

from pmrun.version import RELEASE

__version__ = RELEASE

_COLLECTIVES = (  # each has a nonblocking form, whose name begins with an "i"
    *("barrier", "broadcast", "reduce", "allreduce", "gather", "allgather", "scatter", "reduce_scatter", "alltoall"),
    *("scan", "exscan", "gatherv", "allgatherv", "scatterv", "reduce_scatterv", "alltoallv"),
)
_OPERATIONS = (
    *_COLLECTIVES,
    *(f"i{name}" for name in _COLLECTIVES),
    *("send", "recv", "sendrecv", "probe", "isend", "irecv", "isendrecv"),
    *("broadcast_object", "gather_object", "allgather_object", "scatter_object", "alltoall_object"),
    *("reduce_object", "allreduce_object", "send_object", "isend_object", "recv_object", "split", "dup"),
)
_HOME = {  # name -> the module that defines it
    **dict.fromkeys(("init", "shutdown", "is_initialized"), "pmrun.context"),
    **dict.fromkeys(
        ("rank", "world_size", "local_rank", "local_world_size", "node_rank", "num_nodes"), "pmrun.current"
    ),
    **dict.fromkeys(("empty", "zeros", "shared", "shared_arrays"), "pmrun.arrays"),
    **dict.fromkeys(("Request", "Status", "wait_all", "wait_any", "ANY_SOURCE", "ANY_TAG"), "pmrun._native"),
    "Communicator": "pmrun.communicator",
    "Checkpoint": "pmrun.checkpoint.checkpoint",
    **dict.fromkeys(("Counter", "Semaphore", "Lock", "RateLimit", "Barrier"), "pmrun.locks"),
    **dict.fromkeys(("listen", "connect", "address_of"), "pmrun.ports"),
    "WorkQueue": "pmrun.work_queue",
    "shard": "pmrun.sharding",
    "parallel": "pmrun.functions",
    **dict.fromkeys(("should_stop", "exit_resumable", "RESUMABLE"), "pmrun.preemption"),
    **dict.fromkeys(_OPERATIONS, "pmrun.operations"),
    **dict.fromkeys(
        (
            *("AlreadyInitializedError", "CheckpointError", "CollectiveError", "CollectiveMismatch"),
            *(
                "CollectiveTimeout",
                "ForkedError",
                "GangStopped",
                "LaunchError",
                "MessageTruncated",
                "NotInitializedError",
                "PmrunError",
                "RankFailed",
            ),
            *("RequestTimeout", "StoreError", "StoreTimeout", "UsageError"),
        ),
        "pmrun.errors",
    ),
}
_PUBLIC = sorted([*_HOME, "current", "peers", "store", "world"])

TYPE_CHECKING = False
if TYPE_CHECKING:  # "as" and "*" make a name this package's own
    from typing import Any

    from pmrun import current as current, store as store
    from pmrun._native import (
        ANY_SOURCE as ANY_SOURCE,
        ANY_TAG as ANY_TAG,
        Request as Request,
        Status as Status,
        wait_all as wait_all,
        wait_any as wait_any,
    )
    from pmrun.arrays import empty as empty, shared as shared, shared_arrays as shared_arrays, zeros as zeros
    from pmrun.checkpoint.checkpoint import Checkpoint as Checkpoint
    from pmrun.communicator import Communicator as Communicator
    from pmrun.context import init as init, is_initialized as is_initialized, shutdown as shutdown
    from pmrun.current import (
        local_rank as local_rank,
        local_world_size as local_world_size,
        node_rank as node_rank,
        num_nodes as num_nodes,
        rank as rank,
        world_size as world_size,
    )
    from pmrun.errors import (
        AlreadyInitializedError as AlreadyInitializedError,
        CheckpointError as CheckpointError,
        CollectiveError as CollectiveError,
        CollectiveMismatch as CollectiveMismatch,
        CollectiveTimeout as CollectiveTimeout,
        ForkedError as ForkedError,
        GangStopped as GangStopped,
        LaunchError as LaunchError,
        MessageTruncated as MessageTruncated,
        NotInitializedError as NotInitializedError,
        PmrunError as PmrunError,
        RankFailed as RankFailed,
        RequestTimeout as RequestTimeout,
        StoreError as StoreError,
        StoreTimeout as StoreTimeout,
        UsageError as UsageError,
    )
    from pmrun.functions import parallel as parallel
    from pmrun.locks import (
        Barrier as Barrier,
        Counter as Counter,
        Lock as Lock,
        RateLimit as RateLimit,
        Semaphore as Semaphore,
    )
    from pmrun.operations import *  # noqa: F403 - the types of _OPERATIONS
    from pmrun.ports import address_of as address_of, connect as connect, listen as listen
    from pmrun.preemption import RESUMABLE as RESUMABLE, exit_resumable as exit_resumable, should_stop as should_stop
    from pmrun.sharding import shard as shard
    from pmrun.work_queue import WorkQueue as WorkQueue

    world: Communicator
    peers: tuple[str, ...]
else:  # type checkers understand no __all__ that is computed, and have the names from above
    __all__ = _PUBLIC


def __getattr__(name: str) -> Any:
    if name == "world":  # neither is kept here: they change with init and shutdown
        return importlib.import_module("pmrun.context").world()
    if name == "peers":
        return importlib.import_module("pmrun.current").peers()
    if name in ("current", "store"):
        return importlib.import_module(f"pmrun.{name}")
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module 'pmrun' has no attribute '{name}'")
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})
