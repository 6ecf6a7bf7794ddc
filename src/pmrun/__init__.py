# SPDX-License-Identifier: Apache-2.0
"""pmrun: run Python on many processes, with fast collectives between them.

>>> import numpy as np, pmrun as pm
>>> world = pm.init()
>>> world.allreduce(np.ones(3))

Names are resolved when they are first used (PEP 562). Invariant: importing pmrun loads neither the C core nor
numpy, so that the `pmrun` command, which lives in this package, starts in a blink.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from pmrun.errors import (
    AlreadyInitializedError,
    CollectiveError,
    CollectiveMismatch,
    CollectiveTimeout,
    ForkedError,
    GangStopped,
    MessageTruncated,
    NotInitializedError,
    PmrunError,
    RankFailed,
    RequestTimeout,
    UsageError,
)
from pmrun.version import RELEASE

__version__ = RELEASE

_HOME = {  # name -> the module that defines it
    **dict.fromkeys(("init", "shutdown", "is_initialized"), "pmrun.context"),
    **dict.fromkeys(
        ("rank", "world_size", "local_rank", "local_world_size", "node_rank", "num_nodes"), "pmrun.current"
    ),
    **dict.fromkeys(("empty", "zeros", "shared", "shared_arrays"), "pmrun.arrays"),
    **dict.fromkeys(("Request", "Status", "wait_all", "wait_any", "ANY_SOURCE", "ANY_TAG"), "pmrun._native"),
    "Communicator": "pmrun.communicator",
}
_OPERATIONS = (
    *("barrier", "broadcast", "reduce", "allreduce", "gather", "allgather", "scatter", "reduce_scatter", "alltoall"),
    *("scan", "exscan", "gatherv", "allgatherv", "scatterv", "reduce_scatterv", "alltoallv"),
    *("ibarrier", "ibroadcast", "ireduce", "iallreduce", "igather", "iallgather", "iscatter", "ireduce_scatter"),
    *("ialltoall", "iscan", "iexscan", "igatherv", "iallgatherv", "iscatterv", "ireduce_scatterv", "ialltoallv"),
    *("send", "recv", "sendrecv", "probe", "isend", "irecv", "isendrecv"),
    *("broadcast_object", "gather_object", "allgather_object", "scatter_object", "alltoall_object"),
    *("reduce_object", "allreduce_object", "send_object", "isend_object", "recv_object", "split", "dup"),
)
_HOME.update(dict.fromkeys(_OPERATIONS, "pmrun.operations"))

__all__ = [
    "ANY_SOURCE",
    "ANY_TAG",
    "AlreadyInitializedError",
    "CollectiveError",
    "CollectiveMismatch",
    "CollectiveTimeout",
    "Communicator",
    "ForkedError",
    "GangStopped",
    "MessageTruncated",
    "NotInitializedError",
    "PmrunError",
    "RankFailed",
    "Request",
    "RequestTimeout",
    "Status",
    "UsageError",
    "allgather",
    "allgather_object",
    "allgatherv",
    "allreduce",
    "allreduce_object",
    "alltoall",
    "alltoall_object",
    "alltoallv",
    "barrier",
    "broadcast",
    "broadcast_object",
    "current",
    "dup",
    "empty",
    "exscan",
    "gather",
    "gather_object",
    "gatherv",
    "iallgather",
    "iallgatherv",
    "iallreduce",
    "ialltoall",
    "ialltoallv",
    "ibarrier",
    "ibroadcast",
    "iexscan",
    "igather",
    "igatherv",
    "init",
    "irecv",
    "ireduce",
    "ireduce_scatter",
    "ireduce_scatterv",
    "is_initialized",
    "iscan",
    "iscatter",
    "iscatterv",
    "isend",
    "isend_object",
    "isendrecv",
    "local_rank",
    "local_world_size",
    "node_rank",
    "num_nodes",
    "peers",
    "probe",
    "rank",
    "recv",
    "recv_object",
    "reduce",
    "reduce_object",
    "reduce_scatter",
    "reduce_scatterv",
    "scan",
    "scatter",
    "scatter_object",
    "scatterv",
    "send",
    "send_object",
    "sendrecv",
    "shared",
    "shared_arrays",
    "shutdown",
    "split",
    "wait_all",
    "wait_any",
    "world",
    "world_size",
    "zeros",
]

if TYPE_CHECKING:
    from pmrun import current
    from pmrun._native import ANY_SOURCE, ANY_TAG, Request, Status, wait_all, wait_any
    from pmrun.arrays import empty, shared, shared_arrays, zeros
    from pmrun.communicator import Communicator
    from pmrun.context import init, is_initialized, shutdown
    from pmrun.current import local_rank, local_world_size, node_rank, num_nodes, rank, world_size
    from pmrun.operations import (
        allgather,
        allgather_object,
        allgatherv,
        allreduce,
        allreduce_object,
        alltoall,
        alltoall_object,
        alltoallv,
        barrier,
        broadcast,
        broadcast_object,
        dup,
        exscan,
        gather,
        gather_object,
        gatherv,
        iallgather,
        iallgatherv,
        iallreduce,
        ialltoall,
        ialltoallv,
        ibarrier,
        ibroadcast,
        iexscan,
        igather,
        igatherv,
        irecv,
        ireduce,
        ireduce_scatter,
        ireduce_scatterv,
        iscan,
        iscatter,
        iscatterv,
        isend,
        isend_object,
        isendrecv,
        probe,
        recv,
        recv_object,
        reduce,
        reduce_object,
        reduce_scatter,
        reduce_scatterv,
        scan,
        scatter,
        scatter_object,
        scatterv,
        send,
        send_object,
        sendrecv,
        split,
    )

    world: Communicator
    peers: tuple[str, ...]


def __getattr__(name: str) -> Any:
    if name == "world":  # neither is kept here: they change with init and shutdown
        return importlib.import_module("pmrun.context").world()
    if name == "peers":
        return importlib.import_module("pmrun.current").peers()
    if name == "current":
        return importlib.import_module("pmrun.current")
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module 'pmrun' has no attribute '{name}'")
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
