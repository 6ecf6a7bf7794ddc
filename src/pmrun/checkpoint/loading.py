# SPDX-License-Identifier: Apache-2.0
"""Loading: the newest version that is whole on all ranks.

The control rank chooses a version and tells the others. Of a replicated one it reads the only shard and broadcasts it, so
that other nodes need not see the storage, and any number of ranks may load it; of a sharded one each rank reads its
own, and all learn who could not. What is damaged or missing is told in a line, and the version before is tried.
Invariant: all ranks return the same step, or raise.
"""

from __future__ import annotations

import errno
import hashlib
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from pmrun.checkpoint.saving import explain, warn
from pmrun.checkpoint.shard import Damaged, Reader
from pmrun.checkpoint.storage import Missing, Storage
from pmrun.checkpoint.versions import MANIFEST, Manifest, Piece, Text, Version, complete, unseal
from pmrun.errors import CheckpointError

if TYPE_CHECKING:
    from pmrun.communicator import Communicator


_T = TypeVar("_T")


class Loaded(NamedTuple):
    """A step and the state of it."""

    step: int
    state: Any


class _Choice(NamedTuple):
    """What the control rank proposes to load next."""

    manifest: Manifest | None  # None: nothing
    head: bytes  # of a replicated shard, which the control rank has read
    problem: str  # why nothing can be loaded at all


class Loader:
    """One load.

    Parameters
    ----------
    storage : Storage
    shown : str
        The path, as the user wrote it.
    world : Communicator or None
        None: a world of one.
    """

    def __init__(self, storage: Storage, shown: str, world: Communicator | None) -> None:
        self._storage = storage
        self._shown = shown
        self._world = world
        self._rank, self._size = (0, 1) if world is None else (world.rank, world.size)
        self._tried: set[Version] = set()
        self._troubles: list[str] = []

    def load(self, step: int | None) -> Loaded | None:
        """The newest whole version, or the newest of a step; None where there never was one."""
        while True:
            reader: Reader | None = None
            choice = _Choice(None, b"", "")
            if self._rank == 0:
                choice, reader = self._choose(step)
            if self._world is not None:
                choice = self._world.broadcast_object(choice)
            if choice.problem:
                raise CheckpointError(f"cannot load from {self._shown}: {choice.problem}")
            manifest = choice.manifest
            if manifest is None:
                return None
            if not manifest.sharded:
                return Loaded(manifest.step, self._spread(manifest, choice.head, reader))
            self._refuse_other_size(manifest)
            reader = self._read_own(manifest)
            if reader is not None:
                return Loaded(manifest.step, reader.finish())

    # ---- what the control rank does ---------------------------------------------------------------------

    def _choose(self, step: int | None) -> tuple[_Choice, Reader | None]:
        """The next version to try, its shard read if it is for all."""
        try:
            while True:
                there = complete(self._storage)
                wanted = [v for v in there if v not in self._tried and step in (None, v.step)]
                if not wanted:
                    return _Choice(None, b"", self._nothing(step, there)), None
                version = wanted[0]
                self._tried.add(version)
                manifest = self._attempt(version, MANIFEST, partial(self._manifest, version))
                if manifest is None:
                    continue
                if manifest.sharded:
                    return _Choice(manifest, b"", ""), None
                piece = manifest.shards[0]
                reader = self._attempt(version, piece.name, partial(self._shard, version, piece))
                if reader is not None:
                    return _Choice(manifest, reader.head, ""), reader
        except (OSError, CheckpointError) as error:
            return _Choice(None, b"", explain(error)), None

    def _nothing(self, step: int | None, there: list[Version]) -> str:
        """Why nothing is left to try; "" where nothing was ever saved."""
        if self._troubles:
            return f"no version is whole ({'; '.join(self._troubles)}): restore one, or remove them to begin anew"
        if step is None:
            return ""
        steps = ", ".join(str(version.step) for version in there) or "none"
        return f"there is no complete version of step {step} (there are: {steps})"

    def _attempt(self, version: Version, name: str, read: Callable[[], _T]) -> _T | None:
        """What `read` returns; None, and a line for the user, where the file is damaged."""
        try:
            return read()
        except Missing:
            if version not in complete(self._storage):
                return None  # a job that saves there removed it, as it has newer ones
            self._tell(version, name, "it is missing")
        except Damaged as error:
            self._tell(version, name, str(error))
        return None

    def _tell(self, version: Version, name: str, why: str) -> None:
        trouble = f"{self._shown.rstrip('/')}/{version.name}/{name}: {why}"
        self._troubles.append(trouble)
        warn(f"checkpoint is damaged: {trouble}; trying the one before")

    def _manifest(self, version: Version) -> Manifest:
        text = Text()
        self._storage.get(version.name, MANIFEST, text)
        return unseal(bytes(text.data), version)

    # ---- shards -----------------------------------------------------------------------------------------

    def _shard(self, version: Version, piece: Piece) -> Reader:
        """A shard, read whole and compared with what the manifest says."""
        reader = Reader(piece.bytes)
        digest = hashlib.sha256()

        class Both:
            def write(self, block: memoryview | bytes) -> None:
                digest.update(block)
                reader.write(block)

        try:
            self._storage.get(version.name, piece.name, Both())
        except OSError as error:
            if error.errno == errno.EIO:
                raise Damaged("it cannot be read from the disk") from None
            raise
        reader.check()
        if digest.hexdigest() != piece.sha256:
            raise Damaged("its SHA-256 differs")
        return reader

    def _spread(self, manifest: Manifest, head: bytes, reader: Reader | None) -> Any:
        """Give all ranks the control rank's shard."""
        if reader is None:
            reader = Reader(manifest.shards[0].bytes)
            reader.write(head)
        if self._world is not None:
            for buffer in reader.buffers:
                self._world.broadcast(buffer, root=0)
        return reader.finish()

    def _read_own(self, manifest: Manifest) -> Reader | None:
        """This rank's shard; None on all ranks where one has none that is whole."""
        version = Version(manifest.number, manifest.step)
        piece = manifest.shards[self._rank]
        reader, damage, problem = None, "", ""
        try:
            reader = self._shard(version, piece)
        except Missing:
            damage = "it is missing"
        except Damaged as error:
            damage = str(error)
        except (OSError, CheckpointError) as error:
            problem = explain(error)
        said = [(damage, problem)]
        if self._world is not None:
            said = self._world.allgather_object((damage, problem))
        for rank, (_, text) in enumerate(said):
            if text:
                raise CheckpointError(f"cannot load from {self._shown}: rank {rank}: {text}")
        damaged = [rank for rank, (text, _) in enumerate(said) if text]
        if self._rank == 0:
            for rank in damaged[:1]:
                self._tell(version, manifest.shards[rank].name, said[rank][0])
        return None if damaged else reader

    def _refuse_other_size(self, manifest: Manifest) -> None:
        if manifest.world_size != self._size:
            raise CheckpointError(
                f"cannot load from {self._shown}: step {manifest.step} has a shard for each of {manifest.world_size} "
                f"ranks, and there are {self._size} now: start {manifest.world_size}, or save with sharded=False"
            )
