# SPDX-License-Identifier: Apache-2.0
"""Contenders over several machines, which are network namespaces of this one: who runs there and how each is started.

The machines are those of the cluster tests (tests/machines.py): addresses, hosts file, /dev/shm and sshd of their own,
joined by veth and a bridge. Everybody starts over ssh; Gloo, which has no launcher for this, by pmrun's. Invariant:
when `run` returns or raises, nothing of the gang is left on any machine.
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

from pmrun import env
from pmrun.launcher.bench.peers import Environments

sys.path.append(str(peers.HERE.parent / "tests"))
import machines

NAMES = "abcdefgh"
MACHINES = 4  # that a cluster has where nobody asks for more
INTERFACE = "eth0"
Cluster = machines.Cluster
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
    def hosts(self) -> str:
        """The hosts with their numbers of ranks, as pmrun and Open MPI want them."""
        return ",".join(f"{name}:{self.per_node}" for name in NAMES[: self.nodes])


# ---- how each is started ----------------------------------------------------------------------------------


def pmrun_command(layout: Layout, *options: str) -> tuple[str, ...]:
    return (str(PMRUN), "--no-tag", "--hosts", layout.hosts, *options)


def hydra_command(installed: Environments, peer: str, layout: Layout) -> tuple[str, ...]:
    hosts = ",".join(NAMES[: layout.nodes])
    numbers = ("-ppn", str(layout.per_node), "-n", str(layout.ranks))
    return (installed.program(peer, "mpiexec"), "-hosts", hosts, *numbers, "-iface", INTERFACE)


def mpich_contenders(installed: Environments, layout: Layout) -> list[Contender]:
    """Over UCX's TCP between nodes, which it takes by itself once it is told the interface."""
    added = {"UCX_NET_DEVICES": INTERFACE}
    command = hydra_command(installed, "mpich", layout)
    return [installed.contender("mpich", level, command, ("mpi", level), added) for level in ("multiple", "single")]


def intel_contenders(installed: Environments, layout: Layout) -> list[Contender]:
    """Over libfabric's TCP; its defaults, and yielding at once, which is better where ranks share cores."""
    added = {"I_MPI_FABRICS": "shm:ofi", "FI_PROVIDER": "tcp", "FI_TCP_IFACE": INTERFACE}
    settings: dict[str, dict[str, str]] = {"default": {}, "yield": {"I_MPI_THREAD_YIELD": "3", "I_MPI_PIN": "0"}}
    command = hydra_command(installed, "impi", layout)
    return [
        installed.contender("impi", variant, command, ("mpi", "multiple"), {**added, **more})
        for variant, more in settings.items()
    ]


def openmpi_contenders(installed: Environments, layout: Layout) -> list[Contender]:
    """Yielding, as its polling ranks take each other's scheduler ticks otherwise; it must be told which variables to pass."""
    only = ("--mca", "btl_tcp_if_include", INTERFACE, "--prtemca", "prte_if_include", INTERFACE)
    command = (
        installed.program("openmpi", "mpirun"), "--host", layout.hosts, "-n", str(layout.ranks),
        "-x", "PYTHONPATH", "--bind-to", "none", *only, "--mca", "mpi_yield_when_idle", "1",
    )  # fmt: skip
    added = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    return [installed.contender("openmpi", "yield", command, ("mpi", "multiple"), added)]


def gloo_contenders(installed: Environments, layout: Layout) -> list[Contender]:
    added = {"GLOO_SOCKET_IFNAME": INTERFACE, env.OMP_NUM_THREADS: "1"}
    command = (*pmrun_command(layout), "--", str(installed.python("gloo")))
    return [installed.contender("gloo", INTERFACE, command, ("gloo", "-"), added)]


MAKERS = {
    "mpich": mpich_contenders,
    "impi": intel_contenders,
    "openmpi": openmpi_contenders,
    "gloo": gloo_contenders,
}


def contenders(layout: Layout, installed: Environments = peers.ENVIRONMENTS) -> list[Contender]:
    """Return every contender in every variant that is worth a measurement."""
    found = [
        Contender("pmrun", name, pmrun_command(layout, "--transport", name), (), ("pmrun", peers.MEMORIES[0]))
        for name in TRANSPORTS
    ]
    for name, make in MAKERS.items():
        found += make(installed, layout) if name in installed.available() else []
    return found


def overlap_contenders(layout: Layout) -> list[Contender]:
    """One variant of each, and MPICH with a thread of its own for progress, too."""
    found = [contender for contender in contenders(layout) if contender.variant not in ("single", "yield")]
    threaded = {"MPIR_CVAR_ASYNC_PROGRESS": "1"}
    return found + [
        replace(contender, variant="thread", env={**contender.env, **threaded})
        for contender in found
        if contender.name == "MPICH"
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
