# SPDX-License-Identifier: Apache-2.0
"""Contenders over several machines, which are network namespaces of this one: who runs there and how each is started.

The machines are those of the cluster tests (tests/machines.py): addresses, hosts file, /dev/shm and sshd of their own,
joined by veth and a bridge. Peers start there as `pmrun bench --peers --hosts` starts them (launcher/bench/across.py).
Invariant: when `run` returns or raises, nothing of the gang is left on any machine.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import peers
from peers import PMRUN, TRANSPORTS, Contender

from pmrun.launcher.bench import across
from pmrun.launcher.bench.across import Place
from pmrun.launcher.bench.peers import Environments
from pmrun.launcher.bench.record import cores

sys.path.append(str(peers.HERE.parent / "tests"))
import machines

NAMES = "abcdefgh"
MACHINES = 4  # that a cluster has where nobody asks for more
INTERFACE = "eth0"
Cluster = machines.Cluster
Machine = machines.Machine
PROGRESS_THREADS = {
    "MPICH": {"MPIR_CVAR_ASYNC_PROGRESS": "1"},
    "Intel MPI": {"I_MPI_ASYNC_PROGRESS": "1"},
    "Open MPI": {"OMPI_MCA_btl_tcp_progress_thread": "1"},
}
BURST_BYTES = 128 << 10  # two of the largest packets that TCP hands to a veth, so that the rate is the limit


@dataclass(frozen=True)
class Layout:
    """So many nodes with so many ranks each; "2x4" in text."""

    nodes: int
    per_node: int

    @classmethod
    def parse(cls, text: str) -> Layout:
        nodes, cross, per_node = text.partition("x")
        if not (cross and nodes.isdigit() and per_node.isdigit() and 2 <= int(nodes) <= len(NAMES) and int(per_node)):
            raise ValueError(f"{text!r}: a layout is NODESxRANKS, with 2 to {len(NAMES)} nodes, such as 2x4")
        return cls(int(nodes), int(per_node))

    def __str__(self) -> str:
        return f"{self.nodes}x{self.per_node}"

    @property
    def ranks(self) -> int:
        return self.nodes * self.per_node

    @property
    def place(self) -> Place:
        """Where that is; all machines share this one's cores."""
        hosts = tuple((name, self.per_node) for name in NAMES[: self.nodes])
        listed = ",".join(f"{name}:{count}" for name, count in hosts)
        command = (str(PMRUN), "--no-tag", "--hosts", listed)
        return Place(hosts, INTERFACE, self.ranks > cores(), command)


# ---- who runs there ---------------------------------------------------------------------------------------


def contenders(layout: Layout, installed: Environments = peers.ENVIRONMENTS) -> list[Contender]:
    """Return every contender in every variant that is worth a measurement."""
    place = layout.place
    own = [
        Contender(
            "pmrun", name, (*place.pmrun, "--transport", name), (), ("pmrun", peers.MEMORIES[0]), nodes=layout.nodes
        )
        for name in TRANSPORTS
    ]
    return own + across.contenders(installed, installed.available(), place)


def overlap_contenders(layout: Layout) -> list[Contender]:
    """All of them, and each MPI once more with a thread of its own for progress, where it offers one."""
    found = [contender for contender in contenders(layout) if contender.variant != "single"]
    first = peers.first_variants(found)
    return found + [
        replace(first[name], variant="thread", env={**first[name].env, **added})
        for name, added in PROGRESS_THREADS.items()
        if name in first
    ]


# ---- the machines -----------------------------------------------------------------------------------------


@contextlib.contextmanager
def opened_cluster(folder: Path, count: int = MACHINES) -> Iterator[Cluster]:
    """Hold the machines, or end the benchmark with the reason why they cannot be made."""
    reason = machines.why_not()
    if reason:
        raise SystemExit(f"bench_nodes: {reason}")
    cluster = Cluster(folder, NAMES[:count])
    try:
        yield cluster
    finally:
        cluster.close()


def end_all(cluster: Cluster) -> None:
    """End what still runs on the machines."""
    for machine in cluster.machines.values():
        for pid in machine.processes():
            with contextlib.suppress(ProcessLookupError):  # ended by itself meanwhile
                os.kill(pid, signal.SIGKILL)


def shape(cluster: Cluster, mbit: int) -> None:
    """Limit what every machine can send and receive to so many Mbit/s; 0 takes the limits away."""
    switch = cluster.switch
    for name, itself in cluster.machines.items():
        for machine, device in ((itself, INTERFACE), (switch, f"to-{name}")):
            machine.run("tc", "qdisc", "del", "dev", device, "root")  # fails where there was no limit
            if mbit:
                limits = f"rate {mbit}mbit burst {BURST_BYTES} latency 50ms"
                machine.run("tc", "qdisc", "add", "dev", device, "root", "tbf", *limits.split(), check=True)


def run(cluster: Cluster, contender: Contender, command: list[str], timeout_s: float) -> str:
    """Run a gang from the first machine to its end and return its output; GangFailed where it fails or takes longer."""
    try:
        return peers.run_gang(contender, cluster[NAMES[0]].inside(command), timeout_s)
    finally:
        end_all(cluster)
