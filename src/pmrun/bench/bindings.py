# SPDX-License-Identifier: Apache-2.0
"""One face for every contender: pmrun, any MPI under mpi4py, and Gloo under torch.

A binding hands out an operation as a function without arguments, everything bound beforehand, so that the timed loop
holds the contender's own call and nothing else. `started` is the nonblocking form: it returns what waits for the end.
Invariant: a binding imports its library only when it is made, so that each contender's interpreter needs only its own.
"""

from __future__ import annotations

import functools
import os
import socket
from collections.abc import Callable
from typing import Any, Protocol, cast

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Operation = Callable[[], object]
Starter = Callable[[], Operation]

MPI_TYPES = {
    **{f"{sign}int{bits}": f"{sign}int{bits}_t".upper() for sign in ("", "u") for bits in (8, 16, 32, 64)},
    "float32": "FLOAT",
    "float64": "DOUBLE",
    "complex64": "C_FLOAT_COMPLEX",
    "complex128": "C_DOUBLE_COMPLEX",
}


class NotOffered(Exception):
    """The contender has no such operation."""


class Binding(Protocol):
    """What the measurements need of a contender."""

    rank: int
    size: int
    nodes: list[tuple[str, int]]  # name and first rank of each node
    transport: str  # what carries data between nodes, and why it does; "" where nobody tells

    def empty(self, count: int, dtype: str) -> Array:
        """Return an array in the kind of memory under test."""

    def blocking(self, name: str, send: Array, recv: Array, op: str) -> Operation:
        """Return an operation on these arrays; for allreduce and broadcast they are one array."""

    def started(self, name: str, send: Array, recv: Array, op: str) -> Starter:
        """Return its nonblocking form."""

    def send(self, array: Array, peer: int) -> Operation:
        """Return a blocking send."""

    def recv(self, array: Array, peer: int) -> Operation:
        """Return a blocking receive."""

    def isend(self, array: Array, peer: int) -> Starter:
        """Return a nonblocking send."""

    def irecv(self, array: Array, peer: int) -> Starter:
        """Return a nonblocking receive."""

    def maximum(self, values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Return the elementwise maximum over ranks."""

    def close(self) -> None:
        """Leave the gang in an orderly way."""


def first_ranks(places: list[tuple[object, str]]) -> list[tuple[str, int]]:
    """Name and first rank of each node, from every rank's node and its name."""
    firsts: dict[object, tuple[str, int]] = {}
    for rank, (node, name) in enumerate(places):
        firsts.setdefault(node, (name, rank))
    return list(firsts.values())


class Pmrun:
    """pmrun, with private or with library-allocated arrays."""

    def __init__(self, memory: str) -> None:
        import pmrun

        self.module: Any = pmrun
        self.world: Any = pmrun.init()
        self.rank: int = self.world.rank
        self.size: int = self.world.size
        self.library = memory == "library"
        places = self.world.allgather_object((pmrun.current.node_rank(), socket.gethostname()))
        self.nodes = first_ranks(places)
        used, why = pmrun.current.transport(), pmrun.current.transport_reason()
        self.transport = f"{used} ({why})" if used else ""

    def empty(self, count: int, dtype: str) -> Array:
        array: Array = self.module.empty(count, dtype) if self.library else np.empty(count, _dtype(dtype))
        return array

    def _rows(self, name: str, send: Array, recv: Array) -> tuple[Array, Array]:
        """pmrun sees blocks as rows, one per rank."""
        parts = send.reshape(self.size, -1) if name in ("scatter", "reduce_scatter", "alltoall") else send
        rows = recv.reshape(self.size, -1) if name in ("gather", "allgather", "alltoall") else recv
        return parts, rows

    def blocking(self, name: str, send: Array, recv: Array, op: str) -> Operation:
        call, words = self._call(name, name, send, recv, op)
        return functools.partial(call, **words) if words else call

    def started(self, name: str, send: Array, recv: Array, op: str) -> Starter:
        call, words = self._call(f"i{name}", name, send, recv, op)

        return lambda: cast(Operation, call(**words).wait)

    def _call(self, method: str, name: str, send: Array, recv: Array, op: str) -> tuple[Any, dict[str, Any]]:
        parts, rows = self._rows(name, send, recv)
        root = self.rank == 0
        words: dict[str, dict[str, Any]] = {
            "barrier": {},
            "allreduce": {"x": send, "op": op, "out": send},
            "broadcast": {"x": send, "root": 0},
            "reduce": {"x": send, "op": op, "root": 0, "out": recv if root else None},
            "allgather": {"x": send, "out": rows},
            "gather": {"x": send, "root": 0, "out": rows if root else None},
            "scatter": {"x": parts if root else None, "root": 0, "out": recv},
            "reduce_scatter": {"x": parts, "op": op, "out": recv},
            "alltoall": {"x": parts, "out": rows},
            "scan": {"x": send, "op": op, "out": recv},
            "exscan": {"x": send, "op": op, "out": recv},
        }
        return getattr(self.world, method), words[name]

    def send(self, array: Array, peer: int) -> Operation:
        return functools.partial(self.world.send, array, peer, 1)

    def recv(self, array: Array, peer: int) -> Operation:
        return functools.partial(self.world.recv, array, peer, 1)

    def isend(self, array: Array, peer: int) -> Starter:
        return lambda: cast(Operation, self.world.isend(array, peer, 1).wait)

    def irecv(self, array: Array, peer: int) -> Starter:
        return lambda: cast(Operation, self.world.irecv(array, peer, 1).wait)

    def maximum(self, values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        result: npt.NDArray[np.float64] = self.world.allreduce(values, op="max")
        return result

    def close(self) -> None:
        self.world.barrier()


class Mpi:
    """Whatever MPI library mpi4py finds in its environment. Uses the buffer (upper-case) calls."""

    def __init__(self, thread_level: str) -> None:
        import mpi4py

        mpi4py.rc.thread_level = thread_level
        from mpi4py import MPI

        self.mpi: Any = MPI
        self.comm: Any = MPI.COMM_WORLD
        self.rank: int = self.comm.rank
        self.size: int = self.comm.size
        self.nodes = first_ranks([(name, name) for name in self.comm.allgather(socket.gethostname())])
        self.transport = ""

    def type_of(self, dtype: np.dtype[Any]) -> Any:
        """MPI's own type: one made by mpi4py.util.dtlib cannot be reduced."""
        if dtype.name not in MPI_TYPES:
            raise NotOffered(dtype.name)
        return getattr(self.mpi, MPI_TYPES[dtype.name])

    def empty(self, count: int, dtype: str) -> Array:
        return np.empty(count, _dtype(dtype))

    def blocking(self, name: str, send: Array, recv: Array, op: str) -> Operation:
        call, arguments = self._call(name, "", send, recv, op)
        return functools.partial(call, *arguments)

    def started(self, name: str, send: Array, recv: Array, op: str) -> Starter:
        call, arguments = self._call(name, "I", send, recv, op)

        return lambda: cast(Operation, call(*arguments).Wait)

    def _call(self, name: str, prefix: str, send: Array, recv: Array, op: str) -> tuple[Any, tuple[Any, ...]]:
        kind = self.type_of(send.dtype)
        source, target = [send, kind], [recv, kind]
        reduction = getattr(self.mpi, op.upper())
        root = self.rank == 0
        table: dict[str, tuple[str, tuple[Any, ...]]] = {
            "barrier": ("Barrier", ()),
            "allreduce": ("Allreduce", (self.mpi.IN_PLACE, source, reduction)),
            "broadcast": ("Bcast", (source,)),
            "reduce": ("Reduce", (source, target if root else None, reduction)),
            "allgather": ("Allgather", (source, target)),
            "gather": ("Gather", (source, target if root else None)),
            "scatter": ("Scatter", (source if root else None, target)),
            "reduce_scatter": ("Reduce_scatter_block", (source, target, reduction)),
            "alltoall": ("Alltoall", (source, target)),
            "scan": ("Scan", (source, target, reduction)),
            "exscan": ("Exscan", (source, target, reduction)),
        }
        method, arguments = table[name]
        method = method if not prefix else prefix + method[0].lower() + method[1:]
        return getattr(self.comm, method), arguments

    def send(self, array: Array, peer: int) -> Operation:
        return functools.partial(self.comm.Send, [array, self.type_of(array.dtype)], peer)

    def recv(self, array: Array, peer: int) -> Operation:
        return functools.partial(self.comm.Recv, [array, self.type_of(array.dtype)], peer)

    def isend(self, array: Array, peer: int) -> Starter:
        return self._starter(self.comm.Isend, array, peer)

    def irecv(self, array: Array, peer: int) -> Starter:
        return self._starter(self.comm.Irecv, array, peer)

    def _starter(self, call: Any, array: Array, peer: int) -> Starter:
        message = [array, self.type_of(array.dtype)]

        return lambda: cast(Operation, call(message, peer).Wait)

    def maximum(self, values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        result = np.empty_like(values)
        self.comm.Allreduce(values, result, self.mpi.MAX)
        return result

    def close(self) -> None:
        self.comm.Barrier()


class Gloo:
    """torch.distributed's CPU backend, on tensors that share memory with the arrays. It has no scan, and its reduce works in place alone."""

    def __init__(self) -> None:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        import torch
        from torch import distributed

        torch.set_num_threads(1)
        self.torch: Any = torch
        self.dist: Any = distributed
        self.dist.init_process_group("gloo")
        self.rank: int = self.dist.get_rank()
        self.size: int = self.dist.get_world_size()
        names: list[str] = [""] * self.size
        self.dist.all_gather_object(names, socket.gethostname())
        self.nodes = first_ranks([(name, name) for name in names])
        self.transport = ""

    def empty(self, count: int, dtype: str) -> Array:
        return np.empty(count, _dtype(dtype))

    def blocking(self, name: str, send: Array, recv: Array, op: str) -> Operation:
        call, arguments = self._call(name, send, recv, op)
        return functools.partial(call, *arguments)

    def started(self, name: str, send: Array, recv: Array, op: str) -> Starter:
        call, arguments = self._call(name, send, recv, op)

        return lambda: cast(Operation, call(*arguments, async_op=True).wait)

    def _call(self, name: str, send: Array, recv: Array, op: str) -> tuple[Any, tuple[Any, ...]]:
        dist = self.dist
        source, target = self.torch.from_numpy(send), self.torch.from_numpy(recv)
        reduction = getattr(dist.ReduceOp, {"prod": "PRODUCT"}.get(op, op.upper()))
        root = self.rank == 0
        blocks = list(target.chunk(self.size)) if name == "gather" and root else None
        parts = list(source.chunk(self.size)) if name == "scatter" and root else None
        table: dict[str, tuple[Any, tuple[Any, ...]]] = {
            "barrier": (dist.barrier, ()),
            "allreduce": (dist.all_reduce, (source, reduction)),
            "broadcast": (dist.broadcast, (source, 0)),
            "allgather": (dist.all_gather_into_tensor, (target, source)),
            "gather": (dist.gather, (source, blocks, 0)),
            "scatter": (dist.scatter, (target, parts, 0)),
            "reduce_scatter": (dist.reduce_scatter_tensor, (target, source, reduction)),
            "alltoall": (dist.all_to_all_single, (target, source)),
        }
        if name not in table:
            raise NotOffered(name)
        return table[name]

    def send(self, array: Array, peer: int) -> Operation:
        tensor = self.torch.from_numpy(array)
        return functools.partial(self.dist.send, tensor, peer)

    def recv(self, array: Array, peer: int) -> Operation:
        tensor = self.torch.from_numpy(array)
        return functools.partial(self.dist.recv, tensor, peer)

    def isend(self, array: Array, peer: int) -> Starter:
        return self._starter(self.dist.isend, array, peer)

    def irecv(self, array: Array, peer: int) -> Starter:
        return self._starter(self.dist.irecv, array, peer)

    def _starter(self, call: Any, array: Array, peer: int) -> Starter:
        tensor = self.torch.from_numpy(array)

        return lambda: cast(Operation, call(tensor, peer).wait)

    def maximum(self, values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        result = values.copy()
        self.dist.all_reduce(self.torch.from_numpy(result), self.dist.ReduceOp.MAX)
        return result

    def close(self) -> None:
        self.dist.barrier()
        self.dist.destroy_process_group()


def _dtype(name: str) -> npt.DTypeLike:
    if name == "bfloat16":
        import ml_dtypes

        kind: npt.DTypeLike = ml_dtypes.bfloat16
        return kind
    return name


def open_binding(name: str, option: str) -> Binding:
    """Return the binding that a contender's command line names: `option` is its memory or its thread level."""
    if name == "pmrun":
        return Pmrun(option)
    if name == "mpi":
        return Mpi(option)
    return Gloo()
