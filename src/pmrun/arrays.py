# SPDX-License-Identifier: Apache-2.0
"""Arrays that collectives reach without a copy: `empty`, `zeros`, `shared`, `shared_arrays`.

Their memory is in the node's window, where every local rank sees it. Invariant: they are numpy arrays like any
other, freed when the last view is gone, and valid for as long as anybody holds one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pmrun import _native
from pmrun.context import world
from pmrun.errors import UsageError

if TYPE_CHECKING:
    from pmrun.communicator import Communicator

Shape = int | Sequence[int]


def empty(shape: Shape, dtype: npt.DTypeLike = np.float64) -> npt.NDArray[Any]:
    """A new array in this rank's window heap, not filled. As `numpy.empty` otherwise."""
    return _native.heap_array(shape, dtype, False)


def zeros(shape: Shape, dtype: npt.DTypeLike = np.float64) -> npt.NDArray[Any]:
    """A new array in this rank's window heap, filled with zeros. As `numpy.zeros` otherwise."""
    return _native.heap_array(shape, dtype, True)


def shared(shape: Shape, dtype: npt.DTypeLike = np.float64, comm: Communicator | None = None) -> npt.NDArray[Any]:
    """One array that all ranks of a communicator see: what one writes, the others read. Collective.

    Parameters
    ----------
    shape, dtype
        As for `numpy.zeros`; the same on every rank. If they differ, every rank raises `UsageError`.
    comm : Communicator, optional
        The world by default. Its ranks must be on one node.

    Returns
    -------
    numpy.ndarray
        Zeros. Writes are not ordered between ranks: put a barrier between writing and reading.
    """
    comm = world() if comm is None else comm
    extents = _native.shape_of(shape)
    element = _native.dtype_of(dtype)
    array: npt.NDArray[Any] | None = None
    failure: MemoryError | None = None
    offset = -1
    if comm.rank == 0:
        try:
            array, offset = _native.shared_make(extents, element)
        except MemoryError as error:
            failure = error
    wanted = comm.allgather_object((extents, element, offset))
    first_extents, first_element, offset = wanted[0]
    for rank, (other_extents, other_element, _) in enumerate(wanted):
        if (other_extents, other_element) != (first_extents, first_element):
            raise UsageError(
                f"pm.shared: rank 0 asked for shape {first_extents} of {first_element}, rank {rank} for shape "
                f"{other_extents} of {other_element}: pass the same on every rank"
            )
    if offset < 0:
        raise failure or MemoryError("rank 0's window heap has no room for the shared array: free some arrays")
    if array is None:
        array = _native.shared_open(extents, element, offset)
    comm.barrier()  # rank 0 must not drop the array before all have opened it
    return array


@contextlib.contextmanager
def shared_arrays() -> Iterator[None]:
    """Let numpy make new arrays in the window heap, so that collectives reach them without a copy.

    Acts on this thread (or asyncio task) inside the ``with`` block; arrays made there may outlive it. When the
    heap is full, numpy's own memory is used: slower for collectives, and otherwise the same.
    """
    before = _native.hook_set()
    try:
        yield
    finally:
        _native.hook_restore(before)
