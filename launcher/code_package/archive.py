# SPDX-License-Identifier: Apache-2.0
"""One archive of a directory's code, the same for the same code wherever and whenever it is made.

A gzipped tar of files and links, sorted, owned by nobody, of no time, executable or not and nothing else of their mode.
Its name is the SHA-256 of the tar, which holds names, modes and bytes alone: `gunzip -c HASH.tar.gz | sha256sum`. (The
compressed bytes may differ where another zlib made them.) A file that changes while it is read is read anew, and if it
never holds still, nothing is packed. Invariant: what a link names lies in the package's directory too, so no node
follows it elsewhere.
"""

from __future__ import annotations

import contextlib
import errno
import gzip
import hashlib
import io
import os
import stat
import tarfile
import tempfile
from typing import IO, Final, NamedTuple

from pmrun.errors import LaunchError, UsageError
from pmrun.launcher.code_package.listing import OWN, list_files

LIMIT_BYTES: Final = 64 << 20  # --code-limit
SUFFIX: Final = ".tar.gz"
_READS_MAX: Final = 3
_TOLD: Final = 4  # entries in the line about a package that is too large
_DOMINATES: Final = 0.9  # of a directory's bytes in one entry: that one is told


class _Entry(NamedTuple):
    """A file, or with a target a link."""

    name: str
    path: str
    size: int
    target: str = ""


class Package:
    """An archive, in a file without a name that is gone when it is closed.

    Attributes
    ----------
    digest : str
        The SHA-256 of the tar, in hex.
    count : int
        Files and links.
    tar_bytes, packed_bytes : int
        Size before and after compression.
    largest : str
        For lines about its size.
    """

    def __init__(self, file: IO[bytes], digest: str, count: int, tar_bytes: int, largest: str) -> None:
        self._file = file
        self.digest = digest
        self.count = count
        self.tar_bytes = tar_bytes
        self.packed_bytes = file.seek(0, io.SEEK_END)
        self.largest = largest

    @property
    def file(self) -> IO[bytes]:
        """The archive, from its beginning."""
        self._file.seek(0)
        return self._file

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Package:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def pack(root: str, limit_bytes: int = LIMIT_BYTES) -> Package:
    """Make the package of a directory.

    Raises
    ------
    UsageError
        It is too large, empty, or something in it cannot be packed.
    LaunchError
        There is no room for it here.
    """
    entries = [entry for name in list_files(root) if (entry := _look_at(root, name)) is not None]
    if not entries:
        raise UsageError(f"--code {root}: no file in it is left to pack; see .gitignore and {OWN}, or give another")
    largest = _largest(entries)
    if sum(entry.size for entry in entries) > limit_bytes:
        raise _too_large(root, limit_bytes, largest)
    with contextlib.ExitStack() as unfinished:
        try:
            file = unfinished.enter_context(tempfile.TemporaryFile())
            digest, tar_bytes = _write(file, entries, limit_bytes)
            made = Package(file, digest, len(entries), tar_bytes, largest)
        except _Full:
            raise _too_large(root, limit_bytes, largest) from None
        except OSError as error:
            folder = tempfile.gettempdir()
            raise LaunchError(f"--code {root}: cannot write its package in {folder}: {error.strerror}") from None
        unfinished.pop_all()
        return made


def amount(count: int) -> str:
    """Bytes as people write them."""
    size, unit = float(count), "bytes"
    for unit_above in ("KiB", "MiB", "GiB"):
        if size < 1024:
            break
        size, unit = size / 1024, unit_above
    return f"{size:.3g} {unit}" if size < 1000 else f"{size:.0f} {unit}"


# ---- what is there ----------------------------------------------------------------------------------------


def _look_at(root: str, name: str) -> _Entry | None:
    """None: it is gone, as files are that git still knows, or is neither file nor link (sockets, pipes)."""
    path = os.path.join(root, name)
    try:
        found = os.lstat(path)
        if stat.S_ISLNK(found.st_mode):
            return _Entry(name, path, 0, _target(root, path))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise _unreadable(path, error) from None
    return _Entry(name, path, found.st_size) if stat.S_ISREG(found.st_mode) else None


def _target(root: str, path: str) -> str:
    target = os.readlink(path)
    inside = os.path.realpath(root)
    led = os.path.realpath(path)
    if os.path.isabs(target) or (led != inside and not led.startswith(inside.rstrip("/") + "/")):
        raise UsageError(
            f"--code: the link {path} -> {target} leads out of the directory, and would lead nowhere on a node: "
            f"name it in {OWN}, or give a directory that holds both"
        )
    return target


def _largest(entries: list[_Entry]) -> str:
    """The few files and directories that make the size: deep enough to say what it is, no two of them one in another."""
    sizes: dict[str, int] = {}
    inside: dict[str, set[str]] = {}
    for entry in entries:
        folder, parts = "", entry.name.split("/")
        for depth, part in enumerate(parts, 1):
            name = folder + part + ("/" if depth < len(parts) else "")
            inside.setdefault(folder, set()).add(name)
            sizes[name] = sizes.get(name, 0) + entry.size
            folder = name

    def settle(name: str) -> str:
        while True:
            heaviest = max(inside.get(name, ()), key=sizes.__getitem__, default="")
            if not heaviest or sizes[heaviest] < _DOMINATES * sizes[name]:
                return name
            name = heaviest

    told = sorted(map(settle, inside[""]), key=lambda name: (-sizes[name], name))[:_TOLD]
    return ", ".join(f"{name} ({amount(sizes[name])})" for name in told)


def _too_large(root: str, limit_bytes: int, largest: str) -> UsageError:
    return UsageError(
        f"--code {root}: the code is more than {amount(limit_bytes)} (--code-limit); largest: {largest}; "
        f"name in {OWN} what the nodes do not need, or raise the limit"
    )


def _unreadable(path: str, error: OSError) -> UsageError:
    return UsageError(f"--code: cannot read {path}: {error.strerror}: make it readable, or name it in {OWN}")


# ---- the archive ------------------------------------------------------------------------------------------


class _Full(Exception):
    """The tar is longer than it may be: by its headers, or by files that grew."""


class _Digesting:
    """What tarfile writes to: counts, hashes, passes on."""

    def __init__(self, below: gzip.GzipFile, limit_bytes: int) -> None:
        self._below = below
        self._limit_bytes = limit_bytes
        self.hash = hashlib.sha256()
        self.count = 0

    def write(self, data: bytes) -> int:
        self.count += len(data)
        if self.count > self._limit_bytes:
            raise _Full
        self.hash.update(data)
        return self._below.write(data)

    def tell(self) -> int:
        return self.count


def _write(file: IO[bytes], entries: list[_Entry], limit_bytes: int) -> tuple[str, int]:
    with gzip.GzipFile(filename="", mode="wb", fileobj=file, mtime=0) as packed:
        digesting = _Digesting(packed, limit_bytes)
        tar = tarfile.TarFile(
            mode="w", fileobj=digesting, format=tarfile.PAX_FORMAT, encoding="utf-8", errors="surrogateescape"  # type: ignore[arg-type]  # all that it calls
        )  # fmt: skip
        for entry in entries:
            _add(tar, entry, limit_bytes)
        tar.close()
    return digesting.hash.hexdigest(), digesting.count


def _add(tar: tarfile.TarFile, entry: _Entry, limit_bytes: int) -> None:
    member = tarfile.TarInfo(entry.name)
    if entry.target:
        member.type, member.linkname, member.mode = tarfile.SYMTYPE, entry.target, 0o777
        tar.addfile(member)
        return
    read = _read_still(entry.path, limit_bytes)
    if read is not None:
        data, executable = read
        member.size, member.mode = len(data), 0o755 if executable else 0o644
        tar.addfile(member, io.BytesIO(data))


def _read_still(path: str, limit_bytes: int) -> tuple[bytes, bool] | None:
    """A file's bytes as they were at one moment, and whether it may be executed; None where it is gone by now."""
    for _ in range(_READS_MAX):
        try:
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            with open(fd, "rb") as file:
                before = os.fstat(fd)
                if before.st_size > limit_bytes:  # it grew
                    raise _Full
                data = file.read(before.st_size + 1)
                after = os.fstat(fd)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            if error.errno == errno.ELOOP:  # a link by now
                continue
            raise _unreadable(path, error) from None
        if len(data) == before.st_size and _moment(before) == _moment(after):
            return data, bool(before.st_mode & stat.S_IXUSR)
    raise UsageError(f"--code: {path} changes while it is read: wait for what writes it, or name it in {OWN}")


def _moment(found: os.stat_result) -> tuple[int, int, int]:
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns
