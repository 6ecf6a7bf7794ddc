# SPDX-License-Identifier: Apache-2.0
"""The class that users hold: the C core's communicator, and the forms for Python objects.

Every `*_object` form packs its objects into frames (objects.py), which the core moves as they are. Invariant: an
object that cannot be pickled raises TypeError on the rank that passed it, and on those that needed it, after all
have taken part, so that the communicator stays in step.
"""

from __future__ import annotations

from pmrun import _native, objects
from pmrun.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any


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
        packed = objects.pack(value, "broadcast_object") if self.rank == root else None
        frame = _native.frames_broadcast(self, packed, root)
        if self.rank != root:
            return objects.unpack(frame, root)
        objects.raise_failure(frame)
        return value

    def gather_object(self, value: Any, root: int = 0) -> list[Any] | None:
        """Collect the ranks' objects on the root: a list in rank order there, None elsewhere."""
        frame = objects.pack(value, "gather_object")
        frames = _native.frames_gather(self, frame, root)
        objects.raise_failure(frame)
        return None if frames is None else _unpack_all(frames)

    def allgather_object(self, value: Any) -> list[Any]:
        """Collect the ranks' objects on all of them: a list in rank order."""
        frame = objects.pack(value, "allgather_object")
        frames = _native.frames_gather(self, frame, None)
        objects.raise_failure(frame)
        assert frames is not None
        return _unpack_all(frames)

    def scatter_object(self, values: Sequence[Any] | None = None, root: int = 0) -> Any:
        """Give each rank its object of the root's sequence.

        Parameters
        ----------
        values : sequence of object
            On the root, `size` of them. Not read elsewhere.
        root : int
        """
        if self.rank != root:
            return objects.unpack(_native.frames_scatter(self, None, root), root)
        frames, wrong = self._pack_all(values, "scatter_object")
        _native.frames_scatter(self, frames, root)
        if wrong is not None:
            raise wrong
        for frame in frames:
            objects.raise_failure(frame)
        assert values is not None
        return values[root]

    def alltoall_object(self, values: Sequence[Any]) -> list[Any]:
        """Send object i to rank i; return those that the ranks have sent here, in rank order."""
        frames, wrong = self._pack_all(values, "alltoall_object")
        arrived = _native.frames_alltoall(self, frames)
        if wrong is not None:
            raise wrong
        for frame in frames:
            objects.raise_failure(frame)
        return _unpack_all(arrived)

    def reduce_object(self, value: Any, op: Callable[[Any, Any], Any], root: int = 0) -> Any:
        """Combine the ranks' objects with ``op(a, b)``, from rank 0 on, on the root; None elsewhere."""
        values = self.gather_object(value, root)
        return None if values is None else _combined(op, values)

    def allreduce_object(self, value: Any, op: Callable[[Any, Any], Any]) -> Any:
        """Combine the ranks' objects with ``op(a, b)``, from rank 0 on, on all of them."""
        return _combined(op, self.allgather_object(value))

    def send_object(self, value: Any, dest: int, tag: int = 0) -> None:
        """Send anything that can be pickled to rank `dest`, for `recv_object` there."""
        frame = objects.pack(value, "send_object")
        _native.frame_send(self, frame, dest, tag)
        objects.raise_failure(frame)

    def isend_object(self, value: Any, dest: int, tag: int = 0) -> _native.Request:
        """`send_object` as a Request; `value` may be changed at once, for it is pickled now."""
        frame = objects.pack(value, "isend_object")
        objects.raise_failure(frame)
        return _native.frame_isend(self, frame, dest, tag)

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
        frame = _native.frame_recv(self, source, tag, told)
        return objects.unpack(frame, told.source)

    def _pack_all(self, values: Sequence[Any] | None, what: str) -> tuple[list[bytearray], UsageError | None]:
        """A frame for each rank; where there is no object for each, frames that say so, and the error to raise."""
        given = -1 if values is None else len(values)
        if values is None or given != self.size:
            shown = "None" if given < 0 else f"{given} objects"
            wrong = UsageError(f"{what} got {shown} on rank {self.rank}: pass {self.size}, one per rank")
            return [objects.failure(str(wrong))] * self.size, wrong
        return [objects.pack(value, what) for value in values], None


def _combined(op: Callable[[Any, Any], Any], values: list[Any]) -> Any:
    import functools

    return functools.reduce(op, values)


def _unpack_all(frames: list[memoryview]) -> list[Any]:
    return [objects.unpack(frame, rank) for rank, frame in enumerate(frames)]
