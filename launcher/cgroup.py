# SPDX-License-Identifier: Apache-2.0
"""What this process may use: CPUs, memory, processes, as affinity mask and control groups (v1, v2) say.

Reads /proc/self/cgroup to find the groups, then their limits on the way up to the root. In a container the
path named there may lie outside what is mounted; then the mount's root is the container's own group.
Invariant: nothing here raises for a file that is missing or odd; such a limit does not exist.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

_NO_LIMIT_V1 = 1 << 60  # version 1 shows "no limit" as a page-rounded 2**63


class ControlGroups:
    """The groups of this process. `root` is for tests: a directory that stands for /."""

    def __init__(self, root: str = "/") -> None:
        self._root = root
        self._v2: str | None = None
        self._v1: dict[str, str] = {}
        for line in (_read(os.path.join(root, "proc/self/cgroup")) or "").splitlines():
            number, _, rest = line.partition(":")
            controllers, _, path = rest.partition(":")
            if number == "0" and not controllers:
                self._v2 = path
            for controller in controllers.split(","):
                self._v1[controller] = path

    def cpu_quota(self) -> float | None:
        """CPUs' worth of time per second of wall clock, or None."""
        quotas = []
        for text in self._values(None, "cpu.max"):
            quota, _, period = text.partition(" ")
            if quota != "max" and _number(quota) and _number(period):
                quotas.append(int(quota) / int(period))
        for quota, period in zip(
            self._values("cpu", "cpu.cfs_quota_us"), self._values("cpu", "cpu.cfs_period_us"), strict=False
        ):
            if _number(quota) and _number(period):  # "-1": none
                quotas.append(int(quota) / int(period))
        return min(quotas, default=None)

    def memory_limit(self) -> int | None:
        """Bytes, or None."""
        limits = [int(text) for text in self._values(None, "memory.max") if _number(text)]
        limits += [int(text) for text in self._values("memory", "memory.limit_in_bytes") if _number(text)]
        return min((limit for limit in limits if limit < _NO_LIMIT_V1), default=None)

    def memory_left(self) -> int | None:
        """Bytes that may still be used, or None. Each group's use counts against its own limit."""
        left = []
        for controller, most, now in (
            (None, "memory.max", "memory.current"),
            ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
        ):
            for limit, used in zip(self._values(controller, most), self._values(controller, now), strict=False):
                if _number(limit) and _number(used) and int(limit) < _NO_LIMIT_V1:
                    reclaimable = int(limit) // 2  # page cache counts as used; half a group of it is common
                    left.append(max(int(limit) - int(used), reclaimable))
        return min(left, default=None)

    def processes_left(self) -> int | None:
        """How many more processes and threads the groups allow, or None."""
        left = []
        for controller in (None, "pids"):
            for limit, used in zip(
                self._values(controller, "pids.max"), self._values(controller, "pids.current"), strict=False
            ):
                if _number(limit) and _number(used):
                    left.append(int(limit) - int(used))
        return min(left, default=None)

    def oom_kills(self) -> int:
        """How often the kernel killed a process for memory: in the nearest group, else on the machine.

        Only the difference between two readings means something.
        """
        for controller, name in ((None, "memory.events"), ("memory", "memory.oom_control")):
            for text in self._values(controller, name):
                return _field(text, "oom_kill")
        return _field(_read(os.path.join(self._root, "proc/vmstat")) or "", "oom_kill")

    def _values(self, controller: str | None, name: str) -> Iterator[str]:
        """Texts of one file from the nearest group upwards; controller None: version 2."""
        path = self._v2 if controller is None else self._v1.get(controller)
        mounts = ["sys/fs/cgroup", "sys/fs/cgroup/unified"] if controller is None else [f"sys/fs/cgroup/{controller}"]
        if path is None:
            return
        for mount in mounts:
            top = os.path.join(self._root, mount)
            here = os.path.normpath(os.path.join(top, path.strip("/")))
            while here.startswith(top):
                text = _read(os.path.join(here, name))
                if text is not None:
                    yield text.strip()
                if here == top:
                    break
                here = os.path.dirname(here)


class OomWatch:
    """Tells whose end the kernel's out-of-memory killer explains: each of its kills, from now on, explains one."""

    def __init__(self, groups: ControlGroups) -> None:
        self._groups = groups
        self._explained = groups.oom_kills()

    def explains(self) -> bool:
        """Whether there was a kill that no end was explained with yet."""
        if self._groups.oom_kills() <= self._explained:
            return False
        self._explained += 1
        return True


def usable_cpus(groups: ControlGroups) -> int:
    """CPUs that this process may keep busy: the affinity mask's, bounded by the quota, at least 1."""
    cpus = len(os.sched_getaffinity(0))
    quota = groups.cpu_quota()
    return cpus if quota is None else max(1, min(cpus, round(quota)))


def usable_memory(groups: ControlGroups) -> int:
    """Bytes of memory: the machine's, bounded by the groups."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = groups.memory_limit()
    return memory if limit is None else min(memory, limit)


def _read(path: str) -> str | None:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return None


def _number(text: str) -> bool:
    return text.isascii() and text.isdigit()


def _field(text: str, name: str) -> int:
    for line in text.splitlines():
        key, _, value = line.partition(" ")
        if key == name and _number(value.strip()):
            return int(value)
    return 0
