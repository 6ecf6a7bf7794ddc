# SPDX-License-Identifier: Apache-2.0
"""The contract of the places where a package waits for its nodes, and how one is found.

`s3://bucket/prefix` is opened by place_s3.py, as every `<scheme>://` by a module of its name; a path without one is a
directory's. A package's *address*, which is what nodes are told, is its place and `<hash>.tar.gz`. Invariant: a package
is in a place whole or not at all, and never changes there, so what is there already is not sent again.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
from typing import Protocol

from pmrun.errors import UsageError
from pmrun.launcher.code_package.archive import SUFFIX, Package


class Sink(Protocol):
    """What takes the bytes of a package."""

    def write(self, data: bytes, /) -> object:
        """The next ones."""


class Place(Protocol):
    """One place. What fails raises LaunchError, with one line."""

    def address(self, digest: str) -> str:
        """Where the package of this hash is, or would be. No call leaves this machine."""

    def keep(self, package: Package) -> bool:
        """Bring it there; False where it is already."""

    def fetch(self, digest: str, sink: Sink) -> None:
        """Read it."""


def open_place(url: str) -> Place:
    """The place that a text names; nothing is read or made yet."""
    found = re.match(r"([A-Za-z][A-Za-z0-9]*)://", url)
    scheme = found[1].lower() if found else "directory"
    name = f"{__package__}.place_{scheme}"
    if importlib.util.find_spec(name) is None:
        raise UsageError(f"{url}: no place for {scheme}:// is known: give s3://bucket/prefix or a directory")
    place: Place = importlib.import_module(name).open_place(url)
    return place


def split_address(address: str) -> tuple[str, str]:
    """The place and the hash."""
    url, slash, name = address.rpartition("/")
    digest = name.removesuffix(SUFFIX)
    if not slash or name == digest or not re.fullmatch(r"[0-9a-f]{64}", digest):
        raise UsageError(f"--code {address}: on a node this is a package's address: PLACE/<its SHA-256>{SUFFIX}")
    return url or "/", digest
