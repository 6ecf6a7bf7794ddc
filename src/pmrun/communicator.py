# SPDX-License-Identifier: Apache-2.0
"""The class that users hold: the C core's communicator, and the forms for Python objects.

Every `*_object` form sends frames (objects.py) through the operations on arrays: first their lengths, then the
bytes. Invariant: an object that cannot be pickled raises TypeError on the rank that passed it, and on those that
needed it, after all have taken part, so that the communicator stays in step.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np

from pmrun import _native, objects
from pmrun.errors import UsageError

T = TypeVar("T")


class Communicator(_native.Communicator):
    __doc__ = _native.Communicator.__doc__

    def broadcast_object(self, value: Any = None, root: int = 0) -> Any:
        """Give every rank the root's object.

        Parameters
        ----------
        value : object
            On the root, anything that can be pickled. Not read elsewhere.
        root : int

        Returns
        -------
        object
            `value` itself on the root, an equal one elsewhere.
        """
        length = np.zeros(1, np.int64)
        frame = objects.pack(value, "broadcast_object") if self.rank == root else None
        if frame is not None:
            length[0] = frame.nbytes
        self.broadcast(length, root)
        if frame is None:
            frame = np.empty(int(length[0]), np.uint8)
        self.broadcast(frame, root)
        if self.rank != root:
            return objects.unpack(frame, root)
        objects.raise_failure(frame)
        return value

    def gather_object(self, value: Any, root: int = 0) -> list[Any] | None:
        """Collect the ranks' objects on the root: a list in rank order there, None elsewhere."""
        frame = objects.pack(value, "gather_object")
        lengths = self.gather(np.int64(frame.nbytes), root)
        frames = self.gatherv(frame, () if lengths is None else lengths, root)
        objects.raise_failure(frame)
        return None if frames is None else self._unpack_all(frames, lengths)

    def allgather_object(self, value: Any) -> list[Any]:
        """Collect the ranks' objects on all of them: a list in rank order."""
        frame = objects.pack(value, "allgather_object")
        lengths = self.allgather(np.int64(frame.nbytes))
        frames = self.allgatherv(frame, lengths)
        objects.raise_failure(frame)
        return self._unpack_all(frames, lengths)

    def scatter_object(self, values: Sequence[Any] | None = None, root: int = 0) -> Any:
        """Give each rank its object of the root's sequence.

        Parameters
        ----------
        values : sequence of object
            On the root, `size` of them. Not read elsewhere.
        root : int
        """
        own = np.empty((), np.int64)
        if self.rank != root:
            self.scatter(None, root, own)
            frame = self.scatterv(None, None, root, np.empty(int(own), np.uint8))
            return objects.unpack(frame, root)
        frames, wrong = self._pack_all(values, "scatter_object")
        lengths = np.array([frame.nbytes for frame in frames], np.int64)
        self.scatter(lengths, root, own)
        self.scatterv(np.concatenate(frames), lengths, root, np.empty(int(own), np.uint8))
        if wrong is not None:
            raise wrong
        for frame in frames:
            objects.raise_failure(frame)
        assert values is not None
        return values[root]

    def alltoall_object(self, values: Sequence[Any]) -> list[Any]:
        """Send object i to rank i; return those that the ranks have sent here, in rank order."""
        frames, wrong = self._pack_all(values, "alltoall_object")
        lengths = np.array([frame.nbytes for frame in frames], np.int64)
        received = self.alltoall(lengths)
        arrived = self.alltoallv(np.concatenate(frames), lengths, received)
        if wrong is not None:
            raise wrong
        for frame in frames:
            objects.raise_failure(frame)
        return self._unpack_all(arrived, received)

    def reduce_object(self, value: Any, op: Callable[[Any, Any], Any], root: int = 0) -> Any:
        """Combine the ranks' objects with ``op(a, b)``, from rank 0 on, on the root; None elsewhere."""
        values = self.gather_object(value, root)
        return None if values is None else functools.reduce(op, values)

    def allreduce_object(self, value: Any, op: Callable[[Any, Any], Any]) -> Any:
        """Combine the ranks' objects with ``op(a, b)``, from rank 0 on, on all of them."""
        return functools.reduce(op, self.allgather_object(value))

    def send_object(self, value: Any, dest: int, tag: int = 0) -> None:
        """Send anything that can be pickled to rank `dest`, for `recv_object` there."""
        frame = objects.pack(value, "send_object")
        self.send(frame, dest, tag)
        objects.raise_failure(frame)

    def isend_object(self, value: Any, dest: int, tag: int = 0) -> _native.Request:
        """`send_object` as a Request; `value` may be changed at once, for it is pickled now."""
        frame = objects.pack(value, "isend_object")
        objects.raise_failure(frame)
        return self.isend(frame, dest, tag)

    def recv_object(
        self,
        source: int = _native.ANY_SOURCE,
        tag: int = _native.ANY_TAG,
        *,
        status: _native.Status | None = None,
    ) -> Any:
        """Receive what `send_object` sent.

        Parameters
        ----------
        source, tag : int
            As for `recv`.
        status : Status, optional
            Filled with the message's source, tag and length.
        """
        told = _native.Status() if status is None else status
        frame = self.recv(None, source, tag, status=told)
        return objects.unpack(frame, told.source)

    def _pack_all(self, values: Sequence[Any] | None, what: str) -> tuple[list[objects.Frame], UsageError | None]:
        """A frame for each rank; where there is no object for each, frames that say so, and the error to raise."""
        given = -1 if values is None else len(values)
        if values is None or given != self.size:
            shown = "None" if given < 0 else f"{given} objects"
            wrong = UsageError(f"{what} got {shown} on rank {self.rank}: pass {self.size}, one per rank")
            return [objects.failure(str(wrong))] * self.size, wrong
        return [objects.pack(value, what) for value in values], None

    def _unpack_all(self, frames: objects.Frame, lengths: Any) -> list[Any]:
        return [objects.unpack(frame, rank) for rank, frame in enumerate(objects.cut(frames, lengths))]
