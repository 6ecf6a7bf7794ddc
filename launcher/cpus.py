# SPDX-License-Identifier: Apache-2.0
"""How many CPUs this process may use: the affinity mask and the cgroup's CPU quota, not the host's count.

A container that is limited to two CPUs of a 96-core host sees 96 everywhere but here. The quota is the tightest
one on the way from the process's own cgroup to the root, read from cgroup v2 (`cpu.max`) or v1
(`cpu.cfs_quota_us`). Invariant: the answer is at least 1 and never above the affinity mask.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    _Reader = Callable[[str], float | None]

_PROC_CGROUP = "/proc/self/cgroup"
_CGROUP_MOUNT = "/sys/fs/cgroup"


def available_cpus(proc_cgroup: str = _PROC_CGROUP, mount: str = _CGROUP_MOUNT) -> int:
    """CPUs that this process and its children may keep busy together.

    A quota of 2.7 CPUs counts as two: a third rank would only make the other two wait for it.
    """
    cpus = len(os.sched_getaffinity(0))
    quota = cpu_quota(proc_cgroup, mount)
    return cpus if quota is None else max(1, min(cpus, int(quota)))


def cpu_quota(proc_cgroup: str = _PROC_CGROUP, mount: str = _CGROUP_MOUNT) -> float | None:
    """The tightest CPU quota over this process, in CPUs; None without one (or without cgroups)."""
    quotas: list[float] = []
    for line in _lines(proc_cgroup):
        fields = line.split(":", 2)
        if len(fields) != 3:
            continue
        hierarchy, controllers, path = fields
        if hierarchy == "0" and not controllers:
            quotas += _walk(mount, path, _quota_v2)
        elif "cpu" in controllers.split(","):
            for folder in (controllers, "cpu"):
                quotas += _walk(os.path.join(mount, folder), path, _quota_v1)
    return min(quotas, default=None)


def _walk(mount: str, path: str, read: _Reader) -> list[float]:
    """Quotas from `path` up to the mount. Without a cgroup namespace the path is the host's and does not exist
    below the container's mount: then the mount itself is the container's cgroup, where the walk ends anyway."""
    quotas = []
    parts = [part for part in path.split("/") if part]
    for depth in range(len(parts), -1, -1):
        quota = read(os.path.join(mount, *parts[:depth]))
        if quota is not None:
            quotas.append(quota)
    return quotas


def _quota_v2(folder: str) -> float | None:
    for line in _lines(os.path.join(folder, "cpu.max")):
        quota, _, period = line.partition(" ")
        return None if quota == "max" else int(quota) / int(period or 100_000)
    return None


def _quota_v1(folder: str) -> float | None:
    quota = _lines(os.path.join(folder, "cpu.cfs_quota_us"))
    period = _lines(os.path.join(folder, "cpu.cfs_period_us"))
    if not quota or not period or int(quota[0]) <= 0:
        return None
    return int(quota[0]) / int(period[0])


def _lines(path: str) -> list[str]:
    """A kernel file's lines; none when it is not there or may not be read."""
    try:
        with open(path, encoding="utf-8") as file:
            return file.read().splitlines()
    except OSError:
        return []
