# SPDX-License-Identifier: Apache-2.0
"""Says before the start whether this node's limits allow so many ranks, and raises the one that may be raised.

Each refusal is one line: what is missing, how much, what to do. Invariant: nothing has been started when
`refuse` answers, and only the soft limit on open files is ever changed.
"""

from __future__ import annotations

import os
import re
import resource
from typing import Final

from pmrun.launcher.cgroup import ControlGroups
from pmrun.window import RANKS_MAX

FILES_PER_RANK: Final = 5  # the agent's ends of stdin, stdout, stderr and the store, and the process itself
FILES_OTHER: Final = 32
# What a rank needs for itself alone, with its page tables: less would refuse gangs that run.
BYTES_PER_RANK: Final = 2 << 20  # of a tiny program
BYTES_PER_PYTHON: Final = 5 << 20  # of an interpreter that has not imported anything yet
_PYTHON = re.compile(rb"(python|pypy)[0-9.]*[a-z]?")


def refuse(ranks: int, command: bytes, groups: ControlGroups) -> str | None:
    """Why `ranks` ranks of `command` (its first word) cannot run here, or None."""
    if ranks > RANKS_MAX:
        return f"{ranks} ranks on one node: the most is {RANKS_MAX}; use more nodes"
    return _refuse_files(ranks) or _refuse_processes(ranks, groups) or _refuse_memory(ranks, command, groups)


def raise_for_files(needed: int) -> None:
    """Let this process open so many files, as far as the hard limit goes; a file that then cannot be opened is told of."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < needed:
        allowed = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, allowed), hard))


def raise_open_files(ranks: int) -> tuple[int, int] | None:
    """Raise the soft limit as far as `ranks` need; returns the former limits if it was changed."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = _files(ranks)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return None
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
    return soft, hard


def _files(ranks: int) -> int:
    return ranks * FILES_PER_RANK + FILES_OTHER


def _refuse_files(ranks: int) -> str | None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = _files(ranks)
    if hard == resource.RLIM_INFINITY or hard >= needed:
        return None
    most = max(0, (hard - FILES_OTHER) // FILES_PER_RANK)
    return (
        f"{ranks} ranks need {needed} open files, the hard limit is {hard}: "
        f"raise it (ulimit -Hn) or start at most {most} ranks"
    )


def _refuse_processes(ranks: int, groups: ControlGroups) -> str | None:
    left = groups.processes_left()
    if left is not None and left < ranks:
        return f"{ranks} ranks need {ranks} processes, the pids control group has {left} left: start fewer ranks"
    soft, _ = resource.getrlimit(resource.RLIMIT_NPROC)
    if soft == resource.RLIM_INFINITY or os.geteuid() == 0:
        return None  # not limited, or not held to it
    if soft - ranks > 16384:
        return None  # not worth the count
    left = soft - _own_threads()
    if left < ranks:
        return (
            f"{ranks} ranks need {ranks} processes, the limit of {soft} has {left} left: "
            "raise it (ulimit -u) or start fewer ranks"
        )
    return None


def _own_threads() -> int:
    """Threads of this user, which is what the limit counts."""
    user = os.geteuid()
    count = 0
    for name in os.listdir("/proc"):
        try:
            if name.isdigit() and os.stat(f"/proc/{name}").st_uid == user:
                count += len(os.listdir(f"/proc/{name}/task"))
        except OSError:
            continue
    return count


def _refuse_memory(ranks: int, command: bytes, groups: ControlGroups) -> str | None:
    python = _PYTHON.fullmatch(os.path.basename(command)) is not None
    needed = ranks * (BYTES_PER_PYTHON if python else BYTES_PER_RANK)
    available = _available()
    left = groups.memory_left()
    if left is not None:
        available = min(available, left)
    if needed <= available:
        return None
    whose = f"{ranks} ranks of Python" if python else f"{ranks} ranks"
    return f"{whose} need at least {needed >> 20} MiB of memory, {available >> 20} MiB are available: start fewer ranks"


def _available() -> int:
    try:
        with open("/proc/meminfo", encoding="utf-8") as file:
            for line in file:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) << 10
    except OSError:
        pass
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
