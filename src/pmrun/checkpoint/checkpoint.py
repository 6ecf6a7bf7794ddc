# SPDX-License-Identifier: Apache-2.0
"""`pm.Checkpoint`: a program's state, saved so that it can go on after whatever ended it.

    checkpoint = pm.Checkpoint("runs/a", keep=3)
    start, state = checkpoint.load({"weights": weights})
    for step in range(start, steps):
        ...
        checkpoint.isave(step + 1, state)          # writes while the next step runs

All ranks make it, load and save alike. Invariants: what `load` returns was complete on all ranks; at most one save is
under way; only the control rank (rank 0) removes anything.
"""

from __future__ import annotations

import atexit
import hashlib
import operator
import os
import weakref
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from pmrun import context, current, env
from pmrun.checkpoint.agreement import Agreement
from pmrun.checkpoint.loading import Loaded, Loader
from pmrun.checkpoint.saving import Place, Save, Task, explain, warn
from pmrun.checkpoint.shard import Shard
from pmrun.checkpoint.storage import open_storage
from pmrun.checkpoint.versions import Writer, complete
from pmrun.errors import CheckpointError, UsageError

_made: dict[str, int] = {}  # checkpoints by path: the ranks make them in the same order


class Checkpoint:
    """Saved states of a program, the newest of which is loaded when it starts again.

    Parameters
    ----------
    path : str or PathLike
        A directory, made when the first save is; or ``s3://bucket/prefix``, which needs boto3. A job's own.
    keep : int
        So many complete versions are kept; older ones are removed once a new one is complete.
    sharded : bool
        False: all ranks have the same state; rank 0 writes it, and any number of ranks may load it. True: each rank
        writes its own, and as many ranks must load it.
    timeout : float
        Seconds that a rank waits for the others in a save.
    """

    def __init__(
        self, path: str | os.PathLike[str], *, keep: int = 3, sharded: bool = False, timeout: float = 1800.0
    ) -> None:
        if keep < 1:
            raise UsageError(f"keep={keep}: at least the newest version is kept")
        if not timeout > 0:
            raise UsageError(f"timeout={timeout} is no number of seconds: give more than 0")
        self._shown = os.fspath(path)
        self._storage = open_storage(path)
        self._timeout_s = float(timeout)
        rank, world_size = current.rank(), current.world_size()
        job = os.environ.get(env.JOB_ID, "local")
        writer = Writer(self._storage, self._shown, keep, _owner(job)) if rank == 0 else None
        self._place = Place(self._storage, self._shown, writer, rank, world_size, job, sharded)
        made = _made[self._shown] = _made.get(self._shown, 0) + 1
        self._prefix = f"pmrun/checkpoint/{hashlib.sha256(self._shown.encode()).hexdigest()[:16]}/{made}"
        self._saves = 0
        self._last: Save | None = None
        self._memory: list[npt.NDArray[np.uint8]] = []  # of the last snapshot
        _open.add(self)

    def load(self, default: Any = None, *, step: int | None = None) -> Loaded:
        """Return the newest step that is complete on all ranks, and its state.

        Called by all ranks, after `pm.init()` where there are several. A version that is damaged is told in a line, and
        the one before is taken.

        Parameters
        ----------
        default : object
            The state where nothing was saved yet.
        step : int, optional
            Load this one instead of the newest.

        Returns
        -------
        step : int
            0 where nothing was saved yet.
        state : object
            As it was saved: equal arrays, in memory of their own; tensors are on the CPU.
        """
        self.wait()
        world = None if self._place.world_size == 1 else context.world()
        found = Loader(self._storage, self._shown, world).load(step)
        return Loaded(0, default) if found is None else found

    def save(self, step: int, state: Any) -> None:
        """Save, and return when the version is complete on all ranks.

        Parameters
        ----------
        step : int
            The same on all ranks; how many steps are done, as a rule.
        state : object
            Arrays, tensors, numbers, text, bytes, and lists, tuples, sets and dicts of them. Not read on ranks that
            write none.

        Raises
        ------
        CheckpointError
            On all ranks; what was complete before is not touched.
        """
        self._task(step, state, copied=False).run()

    def isave(self, step: int, state: Any) -> Save:
        """`save` that returns once the state is copied, and writes in a thread beside what the program does next.

        The memory of the copy is kept for the next one. A save that is still under way is waited for first. What goes
        wrong is raised by the `wait` of what this returns, or else by the next call of this checkpoint.
        """
        self._last = Save(self._task(step, state, copied=True))
        return self._last

    def wait(self) -> None:
        """Wait for the save that is under way, if any, and raise what went wrong."""
        last, self._last = self._last, None
        if last is not None and (not last.done() or last.failed_untold()):
            last.wait()

    def steps(self) -> list[int]:
        """The steps of all complete versions, the newest first, as this process sees them."""
        try:
            return [version.step for version in complete(self._storage)]
        except OSError as error:
            raise CheckpointError(f"cannot read {self._shown}: {explain(error)}") from None

    def close(self) -> None:
        """Wait for the save that is under way, and let others save there. Done by itself when the program ends."""
        try:
            self.wait()
        finally:
            self._storage.close()
            _open.discard(self)

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _task(self, step: int, state: Any, *, copied: bool) -> Task:
        step = operator.index(step)
        if step < 0:
            raise UsageError(f"step {step}: steps count from 0")
        self.wait()
        place = self._place
        self._saves += 1
        agreement = Agreement(f"{self._prefix}/{self._saves}", place.rank, place.world_size, self._timeout_s)
        shard, refused = None, ""
        if place.sharded or place.rank == 0:
            try:
                shard = Shard(state)
                if copied:
                    shard.snapshot(self._memory)
            except (UsageError, MemoryError) as error:
                refused = str(error) or "there is no memory for a copy of the state: use save"  # all ranks are told
        return Task(place, agreement, step, shard, refused)


def _owner(job: str) -> str:
    return f"job {job}, process {os.getpid()} on {os.uname().nodename}"


_open: weakref.WeakSet[Checkpoint] = weakref.WeakSet()


def _tell_lost() -> None:
    """At the program's end: failures that nobody asked for."""
    for checkpoint in list(_open):
        error = checkpoint._last.failed_untold() if checkpoint._last is not None else None
        if error is not None:
            warn(str(error))


atexit.register(_tell_lost)
