# SPDX-License-Identifier: Apache-2.0
"""A package on a node: fetched, checked, and unpacked into a directory that is there as long as the job.

The archive is read into a file without a name, and its hash compared before anything of it is looked at; then tarfile's
`data` filter unpacks it. A directory is locked by whoever works in it, so that one whose owner was killed before it could
remove it goes with the next job that comes by. Invariant: no byte is taken above the limit, and nothing is written
outside of the fresh directory.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import gzip
import hashlib
import os
import shutil
import sys
import tarfile
import tempfile
import zlib
from collections.abc import Iterator
from typing import IO, Final

from pmrun.errors import LaunchError
from pmrun.launcher.code_package.archive import LIMIT_BYTES, amount
from pmrun.launcher.code_package.places import open_place, split_address

PREFIX: Final = "pmrun-code-"
_BLOCK_BYTES: Final = 1 << 20
_NO_ROOM: Final = (errno.ENOSPC, errno.EDQUOT)


@contextlib.contextmanager
def unpacked(address: str, limit_bytes: int = LIMIT_BYTES) -> Iterator[str]:
    """A directory with the code that an address names.

    Raises
    ------
    UsageError
        It is not an address.
    LaunchError
        The package cannot be had, is not what its name says, is larger than `limit_bytes`, or finds no room.
    """
    url, digest = split_address(address)
    if not hasattr(tarfile, "data_filter"):
        raise LaunchError(
            f"Python {sys.version.split()[0]} here cannot unpack safely: use 3.10.12, 3.11.4, 3.12 or newer"
        )
    place = open_place(url)
    parent = tempfile.gettempdir()
    with _made(parent) as folder:
        try:
            with tempfile.TemporaryFile(dir=folder) as file:
                place.fetch(digest, _Bounded(file, address, limit_bytes))
                _check(file, address, digest, limit_bytes)
                _extract(file, address, folder)
        except OSError as error:
            room = f"there are {amount(shutil.disk_usage(parent).free)} left; " if error.errno in _NO_ROOM else ""
            raise LaunchError(
                f"cannot unpack the code package {address} in {parent}: {error.strerror or error}; "
                f"{room}TMPDIR chooses another directory"
            ) from None
        yield folder


class _Bounded:
    """Passes on what it is given, up to the limit."""

    def __init__(self, below: IO[bytes], address: str, limit_bytes: int) -> None:
        self._below = below
        self._address = address
        self._limit_bytes = limit_bytes
        self._left = limit_bytes + _BLOCK_BYTES  # compression adds a little to what it cannot shorten

    def write(self, data: bytes) -> int:
        self._left -= len(data)
        if self._left < 0:
            raise _too_large(self._address, self._limit_bytes)
        return self._below.write(data)


def _too_large(address: str, limit_bytes: int) -> LaunchError:
    return LaunchError(
        f"the code package {address} is larger than {amount(limit_bytes)} (--code-limit); it was not unpacked"
    )


def _check(file: IO[bytes], address: str, digest: str, limit_bytes: int) -> None:
    """Compare the tar's hash with the name."""
    file.seek(0)
    found, count = hashlib.sha256(), 0
    try:
        with gzip.GzipFile(fileobj=file, mode="rb") as tar:
            while block := tar.read(_BLOCK_BYTES):
                count += len(block)
                if count > limit_bytes:
                    raise _too_large(address, limit_bytes)
                found.update(block)
        words = f"its SHA-256 is {found.hexdigest()}"
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        words = f"it is damaged ({error})"
    if found.hexdigest() != digest:
        raise LaunchError(
            f"the code package {address} is not the one that was submitted: {words}; "
            "it was not unpacked: remove it there and submit the job again"
        )


def _extract(file: IO[bytes], address: str, folder: str) -> None:
    file.seek(0)
    try:
        with tarfile.open(fileobj=file, mode="r:gz", encoding="utf-8", errors="surrogateescape", errorlevel=2) as tar:
            tar.extractall(folder, filter=_of_now)
    except tarfile.TarError as error:
        raise LaunchError(f"the code package {address} cannot be unpacked: {error}") from None


def _of_now(member: tarfile.TarInfo, folder: str) -> tarfile.TarInfo | None:
    """Without a time, as tools that compare those of files take 1970 amiss."""
    safe = tarfile.data_filter(member, folder)
    return None if safe is None else safe.replace(mtime=None, deep=False)  # type: ignore[arg-type]  # typeshed: a number


# ---- the directory ----------------------------------------------------------------------------------------


@contextlib.contextmanager
def _made(parent: str) -> Iterator[str]:
    _sweep(parent)
    try:
        folder, lock = _make(parent)
    except OSError as error:
        raise LaunchError(
            f"cannot make a directory for the code in {parent}: {error.strerror}; TMPDIR chooses another"
        ) from None
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def _make(parent: str) -> tuple[str, int]:
    """A locked directory; one that somebody swept away before it was locked is made anew."""
    while True:
        folder = tempfile.mkdtemp(prefix=PREFIX, dir=parent)
        with contextlib.suppress(FileNotFoundError):
            lock = _open_folder(folder)
            fcntl.flock(lock, fcntl.LOCK_EX)
            if os.path.isdir(folder):
                return folder, lock
            os.close(lock)


def _sweep(parent: str) -> None:
    """Remove what jobs of this user left that were killed: directories that nobody has locked."""
    for name in os.listdir(parent):
        if name.startswith(PREFIX):
            with contextlib.suppress(OSError):  # held, or gone by now
                lock = _open_folder(os.path.join(parent, name))
                try:
                    if os.fstat(lock).st_uid == os.geteuid():
                        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                        shutil.rmtree(os.path.join(parent, name), ignore_errors=True)
                finally:
                    os.close(lock)


def _open_folder(path: str) -> int:
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
