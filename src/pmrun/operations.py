# SPDX-License-Identifier: Apache-2.0
"""The communicator's operations as functions on the world: `pm.allreduce(x)` is `pm.world.allreduce(x)`.

Type checkers take the operations from here; `pmrun.__init__` has their names, because it must not import this to
know them, and tests compare the two. Invariant: a function here adds nothing to its method but the world, which it
looks up at each call.
"""

from __future__ import annotations

from pmrun import _native
from pmrun.communicator import Communicator

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Concatenate, ParamSpec, TypeVar

    _P = ParamSpec("_P")
    _R = TypeVar("_R")


def _on_world(method: Callable[Concatenate[Communicator, _P], _R]) -> Callable[_P, _R]:
    operation: Callable[_P, _R] = _native.world_operation(method, _parameters(method))
    return operation


def _parameters(method: Any) -> str:
    """All but `self`, as `inspect.signature` writes them; loading `inspect` takes longer than pm.init()."""
    code = method.__code__
    shown = list(code.co_varnames[1 : code.co_argcount])
    defaults = method.__defaults__ or ()
    first = len(shown) - len(defaults)
    shown[first:] = [f"{name}={value!r}" for name, value in zip(shown[first:], defaults, strict=True)]
    by_name = code.co_varnames[code.co_argcount : code.co_argcount + code.co_kwonlyargcount]
    if by_name:
        shown += ["*", *(f"{name}={method.__kwdefaults__[name]!r}" for name in by_name)]
    return f"({', '.join(shown)})"


barrier = _on_world(Communicator.barrier)
broadcast = _on_world(Communicator.broadcast)
reduce = _on_world(Communicator.reduce)
allreduce = _on_world(Communicator.allreduce)
gather = _on_world(Communicator.gather)
allgather = _on_world(Communicator.allgather)
scatter = _on_world(Communicator.scatter)
reduce_scatter = _on_world(Communicator.reduce_scatter)
alltoall = _on_world(Communicator.alltoall)
scan = _on_world(Communicator.scan)
exscan = _on_world(Communicator.exscan)
gatherv = _on_world(Communicator.gatherv)
allgatherv = _on_world(Communicator.allgatherv)
scatterv = _on_world(Communicator.scatterv)
reduce_scatterv = _on_world(Communicator.reduce_scatterv)
alltoallv = _on_world(Communicator.alltoallv)
ibarrier = _on_world(Communicator.ibarrier)
ibroadcast = _on_world(Communicator.ibroadcast)
ireduce = _on_world(Communicator.ireduce)
iallreduce = _on_world(Communicator.iallreduce)
igather = _on_world(Communicator.igather)
iallgather = _on_world(Communicator.iallgather)
iscatter = _on_world(Communicator.iscatter)
ireduce_scatter = _on_world(Communicator.ireduce_scatter)
ialltoall = _on_world(Communicator.ialltoall)
iscan = _on_world(Communicator.iscan)
iexscan = _on_world(Communicator.iexscan)
igatherv = _on_world(Communicator.igatherv)
iallgatherv = _on_world(Communicator.iallgatherv)
iscatterv = _on_world(Communicator.iscatterv)
ireduce_scatterv = _on_world(Communicator.ireduce_scatterv)
ialltoallv = _on_world(Communicator.ialltoallv)
send = _on_world(Communicator.send)
recv = _on_world(Communicator.recv)
sendrecv = _on_world(Communicator.sendrecv)
probe = _on_world(Communicator.probe)
isend = _on_world(Communicator.isend)
irecv = _on_world(Communicator.irecv)
isendrecv = _on_world(Communicator.isendrecv)
broadcast_object = _on_world(Communicator.broadcast_object)
gather_object = _on_world(Communicator.gather_object)
allgather_object = _on_world(Communicator.allgather_object)
scatter_object = _on_world(Communicator.scatter_object)
alltoall_object = _on_world(Communicator.alltoall_object)
reduce_object = _on_world(Communicator.reduce_object)
allreduce_object = _on_world(Communicator.allreduce_object)
send_object = _on_world(Communicator.send_object)
isend_object = _on_world(Communicator.isend_object)
recv_object = _on_world(Communicator.recv_object)
split = _on_world(Communicator.split)
dup = _on_world(Communicator.dup)
