# SPDX-License-Identifier: Apache-2.0
"""The contract of the places that checkpoints lie in, and how one is found.

A storage holds *versions*, each a set of named files. It knows nothing of what is in them. `s3://bucket/runs` is opened
by storage_s3.py, as every `<scheme>://` by a module of its name; a path without one is a directory's. Invariant: a file
is there whole or not at all, and when `put` has returned, it stays, whatever dies.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
from collections.abc import Iterator
from typing import Protocol, runtime_checkable

from pmrun.errors import UsageError


class Missing(Exception):
    """No such file, or no such version."""


class Taken(Exception):
    """Somebody else claimed this version, or writes here."""


class Sink(Protocol):
    """What takes the bytes of a file."""

    def write(self, block: memoryview | bytes) -> object:
        """The next bytes."""


@runtime_checkable
class Storage(Protocol):
    """One place. Whatever fails but as told here raises OSError, with one line."""

    def lock(self, owner: str) -> bool:
        """Keep others from writing while this process lives; False where the place cannot. `Taken` names who does."""

    def versions(self) -> dict[str, set[str]]:
        """The names of all versions, and of their files."""

    def claim(self, version: str) -> None:
        """Make a version, without files; `Taken` if it is there."""

    def put(self, version: str, name: str, size: int, blocks: Iterator[memoryview]) -> None:
        """Write a file of a claimed version; `size` is that of all blocks."""

    def get(self, version: str, name: str, sink: Sink) -> None:
        """Read a file; `Missing` if it is not there."""

    def remove(self, version: str, first: str) -> None:
        """Remove a version with all its files, beginning with the one named."""

    def close(self) -> None:
        """Give back what was opened or locked."""


def open_storage(path: str | os.PathLike[str]) -> Storage:
    """The storage that a path names; nothing is read or made yet."""
    text = os.fspath(path)
    if not isinstance(text, str) or not text:
        raise UsageError(f"a checkpoint's path is text, not {path!r}: give a directory or s3://bucket/prefix")
    found = re.match(r"([A-Za-z][A-Za-z0-9]*)://", text)
    scheme = found[1].lower() if found else "directory"
    name = f"{__package__}.storage_{scheme}"
    if importlib.util.find_spec(name) is None:
        raise UsageError(f"{text}: no storage for {scheme}:// is known: give a directory or s3://bucket/prefix")
    storage: Storage = importlib.import_module(name).open_storage(text)
    return storage
