# SPDX-License-Identifier: Apache-2.0
"""One face for every contender: pmrun, any MPI under mpi4py, and Gloo under torch.

A binding hands out the operation as a function without arguments, everything bound beforehand, so that the
timed loop holds the contender's own call and nothing else. Invariant: a binding imports its library only when
it is made, so that each contender's interpreter needs only its own.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Operation = Callable[[], object]


class Binding(Protocol):
    """What the worker needs of a contender."""

    rank: int
    size: int

    def empty(self, count: int) -> Floats:
        """Return a float32 array of `count` elements, in the kind of memory under test."""

    def operation(self, op: str, send: Floats, recv: Floats) -> Operation:
        """Return `op` on these arrays; for allreduce and broadcast they are one array."""

    def start_allreduce(self, array: Floats) -> Operation:
        """Start a sum in place; return what waits for it."""

    def maximum(self, values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Return the elementwise maximum over ranks."""

    def from_root(self, number: int) -> int:
        """Return rank 0's number on every rank."""

    def close(self) -> None:
        """Leave the gang in an orderly way."""


class Pmrun:
    """pmrun, with private or with library-allocated arrays."""

    def __init__(self, memory: str) -> None:
        import pmrun

        self.module: Any = pmrun
        self.world: Any = pmrun.init()
        self.rank: int = self.world.rank
        self.size: int = self.world.size
        self.library = memory == "library"

    def empty(self, count: int) -> Floats:
        array: Floats = self.module.empty(count, np.float32) if self.library else np.empty(count, np.float32)
        return array

    def operation(self, op: str, send: Floats, recv: Floats) -> Operation:
        world = self.world
        # pmrun sees blocks as rows, one per rank
        parts = send.reshape(self.size, -1) if op in ("reduce_scatter", "alltoall") else send
        rows = recv.reshape(self.size, -1) if op in ("allgather", "alltoall") else recv
        calls: dict[str, Operation] = {
            "barrier": world.barrier,
            "allreduce": lambda: world.allreduce(send, op="sum", out=send),
            "broadcast": lambda: world.broadcast(send, root=0),
            "allgather": lambda: world.allgather(send, out=rows),
            "reduce_scatter": lambda: world.reduce_scatter(parts, out=rows),
            "alltoall": lambda: world.alltoall(parts, out=rows),
        }
        return calls[op]

    def start_allreduce(self, array: Floats) -> Operation:
        wait: Operation = self.world.iallreduce(array, op="sum", out=array).wait
        return wait

    def maximum(self, values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        result: npt.NDArray[np.float64] = self.world.allreduce(values, op="max")
        return result

    def from_root(self, number: int) -> int:
        box = np.array([number], np.int64)
        self.world.broadcast(box, root=0)
        return int(box[0])

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

    def empty(self, count: int) -> Floats:
        return np.empty(count, np.float32)

    def operation(self, op: str, send: Floats, recv: Floats) -> Operation:
        comm, in_place = self.comm, self.mpi.IN_PLACE
        source, target = [send, self.mpi.FLOAT], [recv, self.mpi.FLOAT]
        calls: dict[str, Operation] = {
            "barrier": comm.Barrier,
            "allreduce": lambda: comm.Allreduce(in_place, source),
            "broadcast": lambda: comm.Bcast(source),
            "allgather": lambda: comm.Allgather(source, target),
            "reduce_scatter": lambda: comm.Reduce_scatter_block(source, target),
            "alltoall": lambda: comm.Alltoall(source, target),
        }
        return calls[op]

    def start_allreduce(self, array: Floats) -> Operation:
        wait: Operation = self.comm.Iallreduce(self.mpi.IN_PLACE, [array, self.mpi.FLOAT]).Wait
        return wait

    def maximum(self, values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        result = np.empty_like(values)
        self.comm.Allreduce(values, result, self.mpi.MAX)
        return result

    def from_root(self, number: int) -> int:
        box = np.array([number], np.int64)
        self.comm.Bcast(box)
        return int(box[0])

    def close(self) -> None:
        self.comm.Barrier()


class Gloo:
    """torch.distributed's CPU backend, on tensors that share memory with the arrays."""

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

    def empty(self, count: int) -> Floats:
        return np.empty(count, np.float32)

    def operation(self, op: str, send: Floats, recv: Floats) -> Operation:
        dist = self.dist
        source, target = self.torch.from_numpy(send), self.torch.from_numpy(recv)
        calls: dict[str, Operation] = {
            "barrier": dist.barrier,
            "allreduce": lambda: dist.all_reduce(source),
            "broadcast": lambda: dist.broadcast(source, 0),
            "allgather": lambda: dist.all_gather_into_tensor(target, source),
            "reduce_scatter": lambda: dist.reduce_scatter_tensor(target, source),
            "alltoall": lambda: dist.all_to_all_single(target, source),
        }
        return calls[op]

    def start_allreduce(self, array: Floats) -> Operation:
        wait: Operation = self.dist.all_reduce(self.torch.from_numpy(array), async_op=True).wait
        return wait

    def maximum(self, values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        result = values.copy()
        self.dist.all_reduce(self.torch.from_numpy(result), self.dist.ReduceOp.MAX)
        return result

    def from_root(self, number: int) -> int:
        box = np.array([number], np.int64)
        self.dist.broadcast(self.torch.from_numpy(box), 0)
        return int(box[0])

    def close(self) -> None:
        self.dist.barrier()
        self.dist.destroy_process_group()


def open_binding(name: str, option: str) -> Binding:
    """Return the binding that a contender's command line names: `option` is its memory or its thread level."""
    if name == "pmrun":
        return Pmrun(option)
    if name == "mpi":
        return Mpi(option)
    return Gloo()
