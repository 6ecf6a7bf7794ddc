# SPDX-License-Identifier: Apache-2.0
"""Which rank runs where: nodes get consecutive ranks, and a rank may get cores of its own.

Pure but for `cores`, which reads the topology once. Invariant: ranks are numbered 0..world_size-1 in node
order, so a rank's node follows from its number alone.
"""

from __future__ import annotations

import itertools
import os

import msgspec

from pmrun.launcher.job import BindTo, Job


class Node(msgspec.Struct, frozen=True):
    """One machine of the job and the ranks it runs."""

    name: str
    address: str
    first_rank: int
    local_world_size: int
    cpus: tuple[tuple[int, ...], ...] = ()  # by local rank: the CPUs mapped to it, () where none are

    @property
    def ranks(self) -> range:
        """World ranks of this node."""
        return range(self.first_rank, self.first_rank + self.local_world_size)


def cores(allowed: set[int], root: str = "/sys/devices/system/cpu") -> list[tuple[int, ...]]:
    """The allowed CPUs grouped by physical core, in order of their lowest number."""
    seen: set[int] = set()
    groups: list[tuple[int, ...]] = []
    for cpu in sorted(allowed):
        if cpu in seen:
            continue
        group = _siblings(cpu, root) & allowed | {cpu}
        seen |= group
        groups.append(tuple(sorted(group)))
    return groups


def map_by_core(local_world_size: int, groups: list[tuple[int, ...]]) -> tuple[tuple[int, ...], ...]:
    """Cores round robin: with fewer ranks than cores each gets its fair share of neighbouring cores."""
    if local_world_size >= len(groups):
        return tuple(groups[rank % len(groups)] for rank in range(local_world_size))
    bounds = [rank * len(groups) // local_world_size for rank in range(local_world_size + 1)]
    return tuple(
        tuple(cpu for group in groups[begin:end] for cpu in group) for begin, end in itertools.pairwise(bounds)
    )


def lay_out(names: list[str], addresses: list[str], counts: tuple[int, ...]) -> list[Node]:
    """Nodes with consecutive ranks, from what is known of each, in node order."""
    firsts = [0, *itertools.accumulate(counts)]
    return [Node(*of_node) for of_node in zip(names, addresses, firsts, counts, strict=False)]


def place_local(job: Job, node_name: str) -> Node:
    """All ranks on this machine."""
    cpus: tuple[tuple[int, ...], ...] = ()
    if BindTo.CORE in (job.map_by, job.bind_to):  # binding without a map needs one
        cpus = map_by_core(job.world_size, cores(os.sched_getaffinity(0)))
    return Node(node_name, "127.0.0.1", 0, job.world_size, cpus)


def _siblings(cpu: int, root: str) -> set[int]:
    try:
        with open(f"{root}/cpu{cpu}/topology/thread_siblings_list", encoding="utf-8") as file:
            text = file.read().strip()
    except OSError:
        return {cpu}
    found: set[int] = set()
    for part in text.split(","):
        low, _, high = part.partition("-")
        if low.isdigit():
            found |= set(range(int(low), int(high if high.isdigit() else low) + 1))
    return found
