# SPDX-License-Identifier: Apache-2.0
"""What a test chooses about its cluster. Invariant: the defaults are a cluster on which a plain JobSet just runs."""

from __future__ import annotations

from typing import Any

import msgspec

from pmrun.testing.fake_jobset.resources import EXTRAS


class NodeSpec(msgspec.Struct, frozen=True):
    """One node of the cluster: what it has, and what keeps pods away."""

    name: str
    cpu: str = "64"
    memory: str = "256Gi"
    gpu: int = 0
    labels: dict[str, str] = {}
    taints: tuple[dict[str, Any], ...] = ()


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """Of one cluster."""

    nodes: tuple[NodeSpec, ...] = tuple(NodeSpec(f"node-{number}") for number in range(8))
    namespaces: tuple[str, ...] = ("default",)
    extras: tuple[str, ...] = tuple(sorted(EXTRAS))  # which optional kinds are served: see resources.py
    token: str = ""  # what requests must bear; kubectl sends none without TLS
    port: int = 0
    isolation: str = "auto"  # namespaces, loopback, or auto
    seed: int = 0  # of names, uids and the order in which pods start
    images: tuple[str, ...] = ()  # those that can be pulled; none named: all
    environment: dict[str, str] = {}  # what every image brings
    start_spread_s: float = 0.2  # pods get their first process within this time, in random order
    dns_delay_s: float = 0.0  # so much later is a pod's name known
    pod_backoff_s: float = 10.0  # before a Job's failed pod is replaced; doubled each time
    node_grace_s: float = 40.0  # from a node's silence to its being unreachable
    toleration_s: float = 300.0  # from there to the deletion of its pods

    def __post_init__(self) -> None:
        unknown = set(self.extras) - EXTRAS
        if unknown:
            raise ValueError(f"no such extra: {', '.join(sorted(unknown))}; there are {', '.join(sorted(EXTRAS))}")
        if self.isolation not in ("auto", "namespaces", "loopback"):
            raise ValueError(f"isolation is auto, namespaces or loopback, not {self.isolation!r}")
