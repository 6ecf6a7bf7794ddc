# SPDX-License-Identifier: Apache-2.0
"""Which versions of a checkpoint there are, which of them count, and which go.

A version is called `000042-step-1300`: saves are numbered, so the newest is the last one that was saved, whatever its
step. It is complete once its manifest is there, which is written last and names every shard with length and SHA-256.
Invariants: a version without a manifest is never loaded; one with a manifest is removed only after `keep` newer ones
are complete, its manifest first.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from typing import Final, NamedTuple

import msgspec

from pmrun.checkpoint.shard import SUFFIX, Damaged
from pmrun.checkpoint.storage import Storage, Taken
from pmrun.errors import CheckpointError

MANIFEST: Final = "manifest.json"
FORMAT: Final = 1
_MANIFEST_BYTES_MAX: Final = 64 << 20
_NAME = re.compile(r"(\d{6,})-step-(\d+)")


class Piece(msgspec.Struct, frozen=True):
    """A shard as it was written."""

    name: str
    bytes: int
    sha256: str


class Manifest(msgspec.Struct, frozen=True):
    """What a complete version is made of."""

    format: int
    number: int
    step: int
    sharded: bool  # a shard for each rank; else one, of which all ranks have the same
    world_size: int
    job: str
    saved_at: str  # UTC
    release: str  # of pmrun
    shards: tuple[Piece, ...]


class Version(NamedTuple):
    """A version by its name."""

    number: int
    step: int

    @property
    def name(self) -> str:
        return f"{self.number:06d}-step-{self.step}"


def shard_name(rank: int) -> str:
    """The file of a rank's shard."""
    return f"shard-{rank:05d}{SUFFIX}"


def parse(name: str) -> Version | None:
    """The version of this name; None for what is none of ours."""
    found = _NAME.fullmatch(name)
    version = None if found is None else Version(int(found[1]), int(found[2]))
    return version if version is not None and version.name == name else None


def complete(storage: Storage) -> list[Version]:
    """All complete versions, the newest first."""
    found = ((parse(name), files) for name, files in storage.versions().items())
    return sorted((version for version, files in found if version is not None and MANIFEST in files), reverse=True)


# ---- manifests ----------------------------------------------------------------------------------------------


class Text:
    """A small file, as it is read."""

    def __init__(self) -> None:
        self.data = bytearray()

    def write(self, block: memoryview | bytes) -> None:
        self.data += block
        if len(self.data) > _MANIFEST_BYTES_MAX:
            raise Damaged(f"it is longer than {_MANIFEST_BYTES_MAX} bytes")


def seal(manifest: Manifest) -> bytes:
    """A line of JSON, and a line with its SHA-256."""
    line = msgspec.json.encode(manifest)
    return line + b"\n" + hashlib.sha256(line).hexdigest().encode() + b"\n"


def unseal(data: bytes, version: Version) -> Manifest:
    """The manifest of a version; `Damaged` where it is not what was written."""
    line, _, rest = data.partition(b"\n")
    if rest != hashlib.sha256(line).hexdigest().encode() + b"\n":
        raise Damaged("its SHA-256 differs")
    try:
        form = msgspec.json.decode(line, type=dict).get("format")
        if form != FORMAT:
            raise CheckpointError(f"a manifest of format {form}, and this pmrun reads {FORMAT}: update pmrun")
        manifest = msgspec.json.decode(line, type=Manifest)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Damaged(f"it makes no sense ({error})") from None
    if (manifest.number, manifest.step) != version:
        raise Damaged(f"it is that of {Version(manifest.number, manifest.step).name}")
    count = manifest.world_size if manifest.sharded else 1
    named = [piece.name for piece in manifest.shards]
    if len(named) != count or named != [shard_name(rank) for rank in range(count)]:
        raise Damaged("it names other shards than its ranks have")
    return manifest


# ---- what a writer does with versions -----------------------------------------------------------------------


class Writer:
    """The one process that claims, completes and removes versions: the control rank."""

    def __init__(self, storage: Storage, where: str, keep: int, job: str) -> None:
        self._storage = storage
        self._where = where
        self._keep = keep
        self._job = job
        self._alone = False  # the storage keeps others from writing
        self._known: set[str] | None = None  # versions that were there at the first save, or are ours

    def claim(self, step: int) -> Version:
        """Make a version for this step; what died saves have left goes first."""
        try:
            self._alone = self._storage.lock(self._job)
            found = self._storage.versions()
            if self._known is None:
                self._known = set(found)
            strangers = sorted(name for name in found if parse(name) and name not in self._known)
            if strangers and not self._alone:
                raise Taken(f"it has made {strangers[-1]}")
            if self._alone:
                self._remove(name for name, files in found.items() if parse(name) and MANIFEST not in files)
            numbers = [version.number for version in map(parse, found) if version is not None]
            version = Version(max(numbers, default=0) + 1, step)
            self._storage.claim(version.name)
        except Taken as other:
            raise CheckpointError(
                f"another job saves to {self._where} ({other}): give each job a path of its own, or wait for its end"
            ) from None
        self._known.add(version.name)
        return version

    def complete(self, version: Version, manifest: Manifest) -> None:
        """Write the manifest: from then on the version counts."""
        text = seal(manifest)
        self._storage.put(version.name, MANIFEST, len(text), iter((memoryview(text),)))

    def abandon(self, version: Version) -> None:
        """Remove what a save that failed has written."""
        self._remove((version.name,))

    def tidy(self, newest: Version) -> None:
        """Remove what the newest complete version leaves behind: all but the `keep` last, and older ones that died."""
        found = self._storage.versions()
        ours = sorted((version for version in map(parse, found) if version is not None), reverse=True)
        others = [version for version in ours if version < newest and MANIFEST in found[version.name]]
        kept = {newest, *others[: self._keep - 1]}
        self._remove(version.name for version in ours if version < newest and version not in kept)

    def _remove(self, names: Iterable[str]) -> None:
        for name in sorted(names):
            self._storage.remove(name, MANIFEST)
