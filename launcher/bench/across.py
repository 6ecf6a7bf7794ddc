# SPDX-License-Identifier: Apache-2.0
"""How the peers are started over several machines: MPI by its own launchers over ssh, Gloo's ranks by pmrun's.

Gloo has no launcher but torchrun, which needs a rendezvous server and one command per machine. A peer's environment is to
be at the same path on all machines, and the interface between them to have the same name. As on one machine, a peer is
measured in several variants, of which the better one counts. Invariant: everybody runs as many ranks on each host, in the
same order of hosts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from pmrun import env
from pmrun.errors import UsageError
from pmrun.launcher import interfaces
from pmrun.launcher.bench.gangs import Contender
from pmrun.launcher.bench.peers import Environments
from pmrun.launcher.job import Nodes
from pmrun.launcher.meeting_place import plan_meeting


class Place(NamedTuple):
    """Where the gangs of one comparison run."""

    hosts: tuple[tuple[str, int], ...]  # names and numbers of ranks, in node order
    interface: str  # between the hosts
    crowded: bool  # ranks share cores: what polls without yielding is not worth a measurement
    pmrun: tuple[str, ...]  # the pmrun command, with the options that name these hosts
    ssh: tuple[str, ...] = ("ssh",)

    @property
    def ranks(self) -> int:
        return sum(count for _, count in self.hosts)

    @property
    def listed(self) -> str:
        """The hosts with their numbers, as all launchers read them."""
        return ",".join(f"{name}:{count}" for name, count in self.hosts)


def contenders(installed: Environments, names: Sequence[str], place: Place) -> list[Contender]:
    """Every peer named, in every variant that is worth a measurement there."""
    makers = {"openmpi": _openmpi, "mpich": _mpich, "impi": _intel, "gloo": _gloo}
    found = [contender for name in makers if name in names for contender in makers[name](installed, place)]
    return [replace(contender, nodes=len(place.hosts)) for contender in found]


def place_of(nodes: Nodes, pmrun: Sequence[str], cores: int, names: Sequence[str]) -> Place:
    """The place that a job's options mean; UsageError where the launcher of a peer in `names` cannot go there."""
    for host, _ in nodes.hosts:
        if set(host) & set("@[]:") and set(names) - {"gloo"}:
            raise UsageError(
                f"--peers: MPI's launchers do not take {host!r}: give it a name, and its user, in ~/.ssh/config"
            )
    if "impi" in names and len({count for _, count in nodes.hosts}) > 1:
        raise UsageError(
            "--peers impi: its launcher takes the same number of ranks on each host: give such, or leave impi out"
        )
    if len(nodes.ssh) > 1 and {"mpich", "impi"} & set(names):
        raise UsageError(
            "--peers: the launchers of MPICH and Intel MPI take an --ssh without options: put them in ~/.ssh/config"
        )
    crowded = max(count for _, count in nodes.hosts) > cores
    return Place(nodes.hosts, _interface(nodes), crowded, tuple(pmrun), nodes.ssh)


def _interface(nodes: Nodes) -> str:
    """The name of the one that leads to the other hosts, or that --interface means."""
    meeting = plan_meeting(nodes, [name for name, _ in nodes.hosts])
    elsewhere = [way for way, here in zip(meeting.ways, meeting.here, strict=True) if not here]
    ip = (elsewhere or meeting.ways)[0]
    for address in interfaces.addresses():
        if address.ip == ip:
            return address.interface
    raise UsageError(f"--peers: no interface here has {ip}, the way to the hosts; name one with --interface")


def _hydra(installed: Environments, peer: str, place: Place, *where: str) -> tuple[str, ...]:
    """MPICH's launcher, which Intel MPI's descends from."""
    how = ("-launcher", "ssh", "-launcher-exec", place.ssh[0]) if place.ssh != ("ssh",) else ()
    return (installed.program(peer, "mpiexec"), *how, *where, "-n", str(place.ranks), "-iface", place.interface)


def _mpich(installed: Environments, place: Place) -> list[Contender]:
    """Over UCX's TCP, which it takes by itself once it is told the interface; a crowd at "single" spins for whole ticks."""
    added = {"UCX_NET_DEVICES": place.interface}
    command = _hydra(installed, "mpich", place, "-hosts", place.listed)
    levels = ("multiple",) if place.crowded else ("multiple", "single")
    return [installed.contender("mpich", level, command, ("mpi", level), added) for level in levels]


def _intel(installed: Environments, place: Place) -> list[Contender]:
    """Over libfabric's TCP; yielding at once, and with its defaults, which in a crowd do not come to an end."""
    added = {"I_MPI_FABRICS": "shm:ofi", "FI_PROVIDER": "tcp", "FI_TCP_IFACE": place.interface}
    variants: dict[str, dict[str, str]] = {"yield": {"I_MPI_THREAD_YIELD": "3", "I_MPI_PIN": "0"}}
    if not place.crowded:
        variants["default"] = {}
    hosts = ",".join(name for name, _ in place.hosts)  # a number behind a name is not always obeyed
    command = _hydra(installed, "impi", place, "-hosts", hosts, "-ppn", str(place.hosts[0][1]))
    return [
        installed.contender("impi", variant, command, ("mpi", "multiple"), {**added, **more})
        for variant, more in variants.items()
    ]


def _openmpi(installed: Environments, place: Place) -> list[Contender]:
    """Yielding, and polling where there are cores for it; it must be told which variables to pass on."""
    only = ("--mca", "btl_tcp_if_include", place.interface, "--prtemca", "prte_if_include", place.interface)
    how = ("--prtemca", "plm_ssh_agent", " ".join(place.ssh)) if place.ssh != ("ssh",) else ()
    command = (
        installed.program("openmpi", "mpirun"), "--host", place.listed, "-n", str(place.ranks),
        "-x", "PYTHONPATH", "--bind-to", "none", *only, *how,
    )  # fmt: skip
    added = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    variants: dict[str, tuple[str, ...]] = {"yield": ("--mca", "mpi_yield_when_idle", "1")}
    if not place.crowded:
        variants["polling"] = ()
    return [
        installed.contender("openmpi", variant, (*command, *more), ("mpi", "multiple"), added)
        for variant, more in variants.items()
    ]


def _gloo(installed: Environments, place: Place) -> list[Contender]:
    added = {"GLOO_SOCKET_IFNAME": place.interface, env.OMP_NUM_THREADS: "1"}
    command = (*place.pmrun, "--", str(installed.python("gloo")))
    return [installed.contender("gloo", place.interface, command, ("gloo", "-"), added)]
