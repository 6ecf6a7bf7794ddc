# SPDX-License-Identifier: Apache-2.0
"""Checkpoints in a directory, which all nodes see where several write or read it.

A version is a directory, a file is written beside its place, brought to the disk, and renamed. Who writes holds a lock
on a file there (fcntl's: it is the process's own, also over NFS, and children made by fork do not keep it), in which
stands who that is. Invariant: only the holder of the lock, or where there are no locks who claimed a version, writes it.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from typing import Final

from pmrun.checkpoint.shard import BLOCK_BYTES
from pmrun.checkpoint.storage import Missing, Sink, Taken

_LOCK: Final = ".lock"
_PART: Final = ".part"
_NO_LOCKS: Final = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)


def open_storage(path: str) -> Directory:
    """The directory; relative to where the program stands now."""
    return Directory(os.path.abspath(os.path.expanduser(path)))


class Directory:
    """Versions as directories, in one."""

    def __init__(self, root: str) -> None:
        self._root = root
        self._lock = -1

    def lock(self, owner: str) -> bool:
        if self._lock >= 0:
            return True
        self._make_root()
        fd = os.open(os.path.join(self._root, _LOCK), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.read(fd, 256).decode(errors="replace").strip()
            os.close(fd)
            if error.errno in (errno.EACCES, errno.EAGAIN):
                raise Taken(holder) from None
            if error.errno in _NO_LOCKS:
                return False
            raise
        self._lock = fd
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{owner}\n".encode(), 0)
        return True

    def versions(self) -> dict[str, set[str]]:
        found: dict[str, set[str]] = {}
        try:
            with os.scandir(self._root) as entries:
                for entry in entries:
                    if not entry.name.startswith(".") and entry.is_dir():
                        found[entry.name] = self._files(entry.path)
        except FileNotFoundError:
            return {}
        return found

    def claim(self, version: str) -> None:
        self._make_root()
        try:
            os.mkdir(os.path.join(self._root, version))
        except FileExistsError:
            raise Taken(version) from None
        _sync_directory(self._root)

    def put(self, version: str, name: str, size: int, blocks: Iterator[memoryview]) -> None:
        folder = os.path.join(self._root, version)
        part = os.path.join(folder, name + _PART)
        with open(part, "wb", buffering=0) as file:
            for block in blocks:
                left = block
                while left:
                    left = left[file.write(left) :]
            os.fsync(file.fileno())
        os.rename(part, os.path.join(folder, name))
        _sync_directory(folder)

    def get(self, version: str, name: str, sink: Sink) -> None:
        memory = memoryview(bytearray(BLOCK_BYTES))
        try:
            with open(os.path.join(self._root, version, name), "rb", buffering=0) as file:
                while count := file.readinto(memory):
                    sink.write(memory[:count])
        except (FileNotFoundError, NotADirectoryError):
            raise Missing(name) from None

    def remove(self, version: str, first: str) -> None:
        folder = os.path.join(self._root, version)
        try:
            os.unlink(os.path.join(folder, first))
            _sync_directory(folder)
        except FileNotFoundError:
            pass  # it never was complete
        shutil.rmtree(folder)

    def close(self) -> None:
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def _make_root(self) -> None:
        """The directory, with those above it, so that they stay too."""
        missing = []
        folder = self._root
        while not os.path.isdir(folder):
            if os.path.lexists(folder):
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), folder)
            missing.append(folder)
            folder = os.path.dirname(folder)
        for name in reversed(missing):
            os.makedirs(name, exist_ok=True)
            _sync_directory(os.path.dirname(name))

    def _files(self, folder: str) -> set[str]:
        try:
            return set(os.listdir(folder))
        except FileNotFoundError:  # removed meanwhile
            return set()


def _sync_directory(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
