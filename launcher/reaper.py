# SPDX-License-Identifier: Apache-2.0
"""Children that ended, in the order in which they did.

waitpid takes children in the order of their list, so that of two which died before anybody looked either may come first:
a follower would be blamed. A process descriptor becomes readable when its process ends, and an epoll instance hands out
what is ready in the order in which it became so. Children that were only adopted are not watched and come last.
Invariant: each end is told once, and a watched one after all watched ones before it, but for what ends during the call.
"""

from __future__ import annotations

import contextlib
import os
import select


class Reaper:
    """All children of this process."""

    def __init__(self) -> None:
        self._ends = select.epoll()
        self._descriptors: dict[int, int] = {}  # by pid
        self._pids: dict[int, int] = {}  # by descriptor

    def watch(self, pid: int) -> None:
        """A child's place among the others' ends matters."""
        with contextlib.suppress(OSError):  # no descriptor is left: it is told when waitpid comes to it
            fd = os.pidfd_open(pid)
            self._ends.register(fd, select.EPOLLIN)
            self._descriptors[pid] = fd
            self._pids[fd] = pid

    def next(self) -> tuple[int, int]:
        """Process id and wait status of a child that ended; 0 if none has, -1 if there is none."""
        pid = status = 0
        for fd, _ in self._ends.poll(0, 1):
            pid, status = os.waitpid(self._pids[fd], os.WNOHANG)
        if pid == 0:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return -1, 0
        fd = self._descriptors.pop(pid, -1)
        if fd >= 0:
            del self._pids[fd]
            self._ends.unregister(fd)
            os.close(fd)
        return pid, status
