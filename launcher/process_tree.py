# SPDX-License-Identifier: Apache-2.0
"""Finds and ends everything that descends from this process.

A subreaper inherits the orphans among its descendants, whatever session or group they moved to, so the
parent numbers in /proc/*/stat lead to all of them. Invariant: a process in `spare` and what it started are
never touched, and `kill_descendants` may be repeated until nothing is left (a fork may be under way).
"""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Collection


def parents(zombies: bool = False) -> dict[int, int]:
    """Parent process id of every process that /proc shows, with or without zombies."""
    result: dict[int, int] = {}
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            with open(f"/proc/{name}/stat", "rb") as file:
                stat = file.read()
        except OSError:
            continue  # ended meanwhile
        state, parent = stat[stat.rindex(b")") + 2 :].split(b" ", 2)[:2]
        if zombies or state not in (b"Z", b"X"):
            result[int(name)] = int(parent)
    return result


def descendants(root: int, parent_of: dict[int, int], spare: Collection[int] = ()) -> list[int]:
    """Descendants of `root` in a table from `parents`, nearest first."""
    children: dict[int, list[int]] = {}
    for pid, parent in parent_of.items():
        children.setdefault(parent, []).append(pid)
    found: list[int] = []
    queue = [root]
    for pid in queue:
        for child in children.get(pid, ()):
            if child not in spare:
                found.append(child)
                queue.append(child)
    return found


def kill_descendants(spare: Collection[int] = ()) -> list[int]:
    """Send SIGKILL to every descendant of this process; returns those that were there."""
    found = descendants(os.getpid(), parents(), spare)
    for pid in found:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    return found


def children() -> frozenset[int]:
    """Direct children of this process, zombies left out."""
    here = os.getpid()
    return frozenset(pid for pid, parent in parents().items() if parent == here)


def reap(spare: Collection[int]) -> None:
    """Take the zombies among the direct children of this process, but those in `spare`."""
    here = os.getpid()
    for pid in [pid for pid, parent in parents(zombies=True).items() if parent == here and pid not in spare]:
        try:
            os.waitpid(pid, os.WNOHANG)
        except ChildProcessError:
            continue  # taken meanwhile


def any_child() -> bool:
    """Whether this process has a child that was not reaped, without reaping it."""
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


def wait_end(pid: int, timeout_s: float) -> bool:
    """Wait for any process to end, child or not; False when it did not within the time."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        return bool(poll.poll(max(0, timeout_s) * 1000))
    finally:
        os.close(fd)


def sweep(spare: Collection[int], timeout_s: float) -> list[int]:
    """Kill and reap all descendants of this subreaper but `spare`; returns what did not end in time."""
    end = time.monotonic() + timeout_s
    while found := kill_descendants(spare):
        for pid in found:
            if not wait_end(pid, end - time.monotonic()):
                return found
            try:
                os.waitpid(pid, os.WNOHANG)
            except ChildProcessError:
                continue  # a grandchild: its parent's end passes it on to us, reaped already or next round
    return []
