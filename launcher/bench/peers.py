# SPDX-License-Identifier: Apache-2.0
"""Against whom pmrun is measured, and how each is started: Open MPI, MPICH, Intel MPI, and Gloo in torch.

Every peer lives in a virtual environment of its own in one folder, since the MPI wheels install files of the same names.
A peer is measured in several variants (thread level, yielding, pinning), and at each point its better one counts.
Invariant: nothing here touches the environment that pmrun is installed in.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from pmrun import env
from pmrun.errors import UsageError
from pmrun.launcher.bench.gangs import ALIAS, PACKAGE, Contender


class Peer(NamedTuple):
    """What a peer is called, where its environment is, and what is installed there."""

    shown: str
    folder: str
    packages: tuple[str, ...]


PEERS = {
    "openmpi": Peer("Open MPI", "openmpi", ("numpy", "mpi4py>=4.1", "openmpi>=5.0.5")),
    "mpich": Peer("MPICH", "mpich", ("numpy", "mpi4py>=4.1", "mpich>=4.3")),
    "impi": Peer("Intel MPI", "intel", ("numpy", "mpi4py>=4.1", "impi_rt>=2021.14")),
    "gloo": Peer("Gloo", "gloo", ("numpy", "torch==2.13.0")),
}
_VERSIONS = """
import importlib.metadata as m
for name in ('pmrun', 'numpy', 'mpi4py', 'openmpi', 'mpich', 'impi_rt', 'torch'):
    try: print(name, m.version(name))
    except m.PackageNotFoundError: pass
"""


def default_home() -> Path:
    """Where a user's environments are."""
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(cache) / "pmrun" / "peers"


class Environments:
    """The peers' environments in one folder."""

    def __init__(self, home: Path) -> None:
        self.home = home.absolute()

    def python(self, name: str) -> Path:
        return self.home / PEERS[name].folder / "bin" / "python"

    def program(self, name: str, program: str) -> str:
        """A command of a peer's environment."""
        return str(self.python(name).with_name(program))

    def available(self) -> list[str]:
        """Peers whose environment is whole: the marker is written last."""
        return [name for name, peer in PEERS.items() if (self.home / peer.folder / "complete").exists()]

    def require(self, names: Sequence[str]) -> None:
        """UsageError where one is not installed."""
        for name in names:
            if name not in self.available():
                raise UsageError(
                    f"--peers {name}: {PEERS[name].shown} is not installed in {self.home}; write: pmrun bench --install-peers "
                    f"{name}"
                )

    def install(self, names: Sequence[str]) -> list[str]:
        """Make the environments that are not there yet; return those that could not be made."""
        self.home.mkdir(parents=True, exist_ok=True)
        (self.home / ".gitignore").write_text("*\n")
        failed = []
        for name in names:
            folder = self.home / PEERS[name].folder
            if name in self.available():
                continue
            if name == "impi" and platform.machine() != "x86_64":
                failed.append(name)  # its wheels are for x86-64 only
                continue
            print(f"installing {PEERS[name].shown} ({', '.join(PEERS[name].packages)}) in {folder}", flush=True)
            subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
            pip = [str(self.python(name)), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
            if subprocess.run([*pip, *PEERS[name].packages], check=False).returncode == 0:
                (folder / "complete").touch()
            else:
                failed.append(name)
        self._modules()  # now, as another machine may be the one that asks for it
        return failed

    def versions(self) -> dict[str, str]:
        """The version of every package that takes part."""
        found = {"python": platform.python_version()}
        for python in (sys.executable, *(str(self.python(name)) for name in self.available())):
            lines = subprocess.run([python, "-c", _VERSIONS], capture_output=True, text=True, check=True).stdout
            found.update((name, version) for name, version in map(str.split, lines.splitlines()))
        return found

    # ---- how each is started ----------------------------------------------------------------------------------

    def contenders(self, names: Sequence[str], ranks: int, cores: int) -> list[Contender]:
        """Every peer named, in every variant that is worth a measurement with this many ranks."""
        makers = {"openmpi": self._openmpi, "mpich": self._mpich, "impi": self._intel, "gloo": self._gloo}
        return [contender for name in makers if name in names for contender in makers[name](ranks, cores)]

    def contender(
        self, name: str, variant: str, command: Sequence[str], binding: tuple[str, str], added: dict[str, str]
    ) -> Contender:
        """A peer finds the ranks' part beside its environments, under another name and without pmrun."""
        python = () if name == "gloo" else (str(self.python(name)),)
        return Contender(
            PEERS[name].shown, variant, tuple(command), python, binding, {**added, "PYTHONPATH": str(self._modules())}
        )

    def _modules(self) -> Path:
        """A folder that holds the ranks' part alone: pmrun's own would bring its numpy along."""
        folder = self.home / "modules"
        link = folder / ALIAS
        if not link.exists() or os.readlink(link) != str(PACKAGE):
            folder.mkdir(parents=True, exist_ok=True)
            fresh = folder / f"{ALIAS}.{os.getpid()}"
            fresh.symlink_to(PACKAGE)
            fresh.replace(link)
        return folder

    def _openmpi(self, ranks: int, cores: int) -> list[Contender]:
        """With a core per rank: pinned, and unpinned with yielding. Oversubscribed: yielding, else a call takes ticks."""
        mpirun = [self.program("openmpi", "mpirun"), "-n", str(ranks)]
        root = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
        flags = {"yield": ("--oversubscribe", "--bind-to", "none", "--mca", "mpi_yield_when_idle", "1")}
        if ranks <= cores:
            flags["pinned"] = ("--bind-to", "core")  # type: ignore[assignment]  # of another length
        return [
            self.contender("openmpi", variant, [*mpirun, *more], ("mpi", "multiple"), root)
            for variant, more in flags.items()
        ]

    def _mpich(self, ranks: int, cores: int) -> list[Contender]:
        """Its shared-memory collectives need a thread level below "multiple"; oversubscribed they spin for whole ticks."""
        command = [self.program("mpich", "mpiexec"), "-n", str(ranks)]
        levels = ("multiple", "single") if ranks <= cores else ("multiple",)
        return [self.contender("mpich", level, command, ("mpi", level), {}) for level in levels]

    def _intel(self, ranks: int, cores: int) -> list[Contender]:
        """Its own defaults; yielding at once (I_MPI_THREAD_YIELD=3), better where ranks share cores; and unpinned."""
        command = [self.program("impi", "mpiexec"), "-n", str(ranks)]
        settings: dict[str, dict[str, str]] = {"default": {}, "yield": {"I_MPI_THREAD_YIELD": "3"}}
        if ranks <= cores:
            settings["unpinned"] = {"I_MPI_PIN": "0"}
        return [
            self.contender("impi", variant, command, ("mpi", "multiple"), {"I_MPI_FABRICS": "shm", **more})
            for variant, more in settings.items()
        ]

    def _gloo(self, ranks: int, cores: int) -> list[Contender]:
        """Over the loop-back interface, one thread, whatever the cores."""
        torchrun = [
            str(self.python("gloo")),
            "-m",
            "torch.distributed.run",
            "--standalone",
            f"--nproc-per-node={ranks}",
        ]
        return [self.contender("gloo", "lo", torchrun, ("gloo", "-"), {env.OMP_NUM_THREADS: "1"})]
