# SPDX-License-Identifier: Apache-2.0
"""Packages in a directory that this machine and the nodes both see: a shared disk, a volume.

Invariant: a package appears under its name by a rename, when it is whole and on the disk.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from typing import IO

from pmrun.errors import LaunchError, UsageError
from pmrun.launcher.code_package.archive import SUFFIX, Package
from pmrun.launcher.code_package.places import Sink

_MODE = 0o644  # nodes may run as somebody else


def open_place(path: str) -> Directory:
    if not os.path.isabs(path):
        raise UsageError(
            f"{path}: nodes look elsewhere for a relative path; give an absolute one, or s3://bucket/prefix"
        )
    return Directory(path.rstrip("/"))


class Directory:
    """One directory; it must be there, as one that is made here may not be the one that nodes see."""

    def __init__(self, path: str) -> None:
        self._path = path

    def address(self, digest: str) -> str:
        return f"{self._path}/{digest}{SUFFIX}"

    def keep(self, package: Package) -> bool:
        address = self.address(package.digest)
        if os.path.exists(address):
            return False
        try:
            fd, temporary = tempfile.mkstemp(prefix=".pmrun-", dir=self._path or "/")
            try:
                with open(fd, "wb") as file:
                    shutil.copyfileobj(package.file, file)
                    file.flush()
                    os.fchmod(fd, _MODE)
                    os.fsync(fd)
                os.rename(temporary, address)
            except BaseException:
                with contextlib.suppress(OSError):
                    os.unlink(temporary)
                raise
        except OSError as error:
            raise LaunchError(f"cannot write the code package to {address}: {error.strerror}") from None
        return True

    def fetch(self, digest: str, sink: Sink) -> None:
        with _open(self.address(digest)) as file:
            shutil.copyfileobj(file, sink)


def _open(address: str) -> IO[bytes]:
    try:
        return open(address, "rb")
    except OSError as error:
        raise LaunchError(f"cannot read the code package {address}: {error.strerror}: is its volume mounted?") from None
