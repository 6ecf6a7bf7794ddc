# SPDX-License-Identifier: Apache-2.0
"""What a test may not leave behind: processes, threads, descriptors, shared memory, temporary files.

A mark in the environment finds every process that a test run started, also those that left their parent, their
session and their process group. The guard never polls on a clock: it waits for the very thing that has to go away
(a pidfd, a thread) until a deadline. Invariant: `leaks` names only what came after its snapshot.
"""

from __future__ import annotations

import dataclasses
import gc
import os
import select
import signal
import threading
from pathlib import Path

MARK = "TEST_RUN_OF_PMRUN"
PATIENCE_S = 3.0
SHARED_MEMORY = Path("/dev/shm")
TEMPORARY = Path("/tmp")


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """What there was before the test."""

    processes: frozenset[int]  # all of the machine: what is new is looked at
    threads: frozenset[threading.Thread]
    descriptors: dict[int, str]
    shared_names: frozenset[str]
    temporary_names: frozenset[str]
    own_names: frozenset[str]


def take(own_directory: Path) -> Snapshot:
    """`own_directory`: the test run's private TMPDIR, in which nothing may stay."""
    return Snapshot(
        processes=frozenset(_pids()),
        threads=frozenset(threading.enumerate()),
        descriptors=descriptors(),
        shared_names=frozenset(_names(SHARED_MEMORY)),
        temporary_names=frozenset(_names(TEMPORARY)),
        own_names=frozenset(_names(own_directory, everything=True)),
    )


def leaks(before: Snapshot, own_directory: Path) -> list[str]:
    """One line for each thing left; empty when the test was clean. Leaked processes are killed."""
    found = [_end(pid) for pid in _pids() - before.processes if _is_ours(pid) and not _gone(pid)]
    for thread in threading.enumerate():
        if thread not in before.threads:
            thread.join(PATIENCE_S)
            if thread.is_alive():
                found.append(f"thread {thread.name!r} is still running")
    if _new_descriptors(before):
        gc.collect()  # an object in a reference cycle may hold one
    found += [f"descriptor {fd} is still open: {target}" for fd, target in _new_descriptors(before).items()]
    found += [f"{SHARED_MEMORY / name} was left" for name in _names(SHARED_MEMORY) - before.shared_names]
    found += [f"{TEMPORARY / name} was left" for name in _names(TEMPORARY) - before.temporary_names]
    found += [f"{own_directory / name} was left" for name in _names(own_directory, everything=True) - before.own_names]
    return found


# ---- processes --------------------------------------------------------------------------------------------


def _pids() -> set[int]:
    return {int(name) for name in os.listdir("/proc") if name.isdigit()}


def _is_ours(pid: int) -> bool:
    """Our child, or a process that carries this run's mark."""
    return _parent(pid) == os.getpid() or _marked(pid, f"{MARK}={os.environ[MARK]}".encode())


def _marked(pid: int, mark: bytes) -> bool:
    try:
        return mark in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:  # ended meanwhile, a zombie, or not ours to read
        return False


def _parent(pid: int) -> int:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return -1
    return int(stat.rpartition(")")[2].split()[1])


def _gone(pid: int) -> bool:
    """Waits for the end of a process that may be just about to end."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        ended = bool(poll.poll(PATIENCE_S * 1000))
    finally:
        os.close(fd)
    return ended and _parent(pid) != os.getpid()  # a child that ended and was not waited for is a leak too


def _end(pid: int) -> str:
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
        os.kill(pid, signal.SIGKILL)
    except OSError:
        command = ""
    return f"process {pid} is still there: {command or '(a zombie: not waited for)'}"


# ---- descriptors and names --------------------------------------------------------------------------------


def descriptors() -> dict[int, str]:
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:  # the one that listed the directory
            continue
    return found


def _new_descriptors(before: Snapshot) -> dict[int, str]:
    return {fd: target for fd, target in descriptors().items() if before.descriptors.get(fd) != target}


def _names(directory: Path, *, everything: bool = False) -> frozenset[str]:
    """Names in a directory. In those that all programs share only ours count; in /dev/shm all, where CI is alone."""
    try:
        names = os.listdir(directory)
    except FileNotFoundError:
        return frozenset()
    everything = everything or (bool(os.environ.get("CI")) and directory == SHARED_MEMORY)
    return frozenset(name for name in names if everything or "pmrun" in name or name.startswith("pmr"))
