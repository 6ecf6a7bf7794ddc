# SPDX-License-Identifier: Apache-2.0
"""Who is measured and how each is started: pmrun, Open MPI, MPICH, Intel MPI, and Gloo in torch.

Every peer lives in a virtual environment of its own under .venv-bench, since the MPI wheels install files of the
same names; `python benchmarks/peers.py` makes them. A peer is measured in several variants (thread level,
yielding, pinning), and at each point its better one counts. Invariant: nothing here touches the environment that
pmrun is installed in.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve().parent
HOME = HERE.parent / ".venv-bench"
PMRUN = Path(sys.executable).with_name("pmrun")

PACKAGES = {
    "openmpi": ("numpy", "mpi4py>=4.1", "openmpi>=5.0.5"),
    "mpich": ("numpy", "mpi4py>=4.1", "mpich>=4.3"),
    "intel": ("numpy", "mpi4py>=4.1", "impi_rt>=2021.14"),
    "gloo": ("numpy", "torch==2.13.0"),
    "plot": ("numpy", "matplotlib>=3.7"),
}
SHOWN = {"openmpi": "Open MPI", "mpich": "MPICH", "intel": "Intel MPI", "gloo": "Gloo"}
TERMINATE_S = 10.0


@dataclass(frozen=True)
class Contender:
    """One way to start a gang: a command line up to the script, and what the script's binding is told."""

    name: str  # as the report shows it
    variant: str
    command: tuple[str, ...]  # what precedes the program of a rank
    python: tuple[str, ...]  # what precedes a script, after `command`
    binding: tuple[str, str]  # arguments of bindings.open_binding
    env: dict[str, str] = field(default_factory=dict)

    def script(self, path: Path, *arguments: str) -> list[str]:
        """Return the whole command line that runs a Python script on every rank."""
        return [*self.command, *self.python, str(path), *arguments]


class GangFailed(Exception):
    """A contender's gang ended with an error or had to be stopped; the text says which and shows its last lines."""


# ---- environments -----------------------------------------------------------------------------------------


def python_of(peer: str) -> Path:
    return HOME / peer / "bin" / "python"


def wanted() -> list[str]:
    """Return the peers that exist for this machine (Intel's wheels are for x86-64 only)."""
    return [name for name in PACKAGES if name != "intel" or platform.machine() == "x86_64"]


def prepare() -> None:
    """Make every environment that is not there yet. A marker, written last, tells a whole one from a broken one."""
    HOME.mkdir(exist_ok=True)
    (HOME / ".gitignore").write_text("*\n")
    for name in wanted():
        marker = HOME / name / "complete"
        if marker.exists():
            continue
        print(f"peers: installing {name} ({', '.join(PACKAGES[name])})", flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(HOME / name)], check=True)
        pip = [str(python_of(name)), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        if subprocess.run([*pip, *PACKAGES[name]], check=False).returncode == 0:
            marker.touch()
        else:
            print(f"peers: {name} could not be installed and will not be measured", file=sys.stderr)


def available() -> list[str]:
    return [name for name in wanted() if (HOME / name / "complete").exists()]


def versions() -> dict[str, str]:
    """Return the version of every package that takes part."""
    query = (
        "import importlib.metadata as m\n"
        "for name in ('pmrun', 'numpy', 'mpi4py', 'openmpi', 'mpich', 'impi_rt', 'torch'):\n"
        "    try: print(name, m.version(name))\n"
        "    except m.PackageNotFoundError: pass\n"
    )
    found = {"python": platform.python_version()}
    for python in (Path(sys.executable), *(python_of(name) for name in available())):
        lines = subprocess.run([str(python), "-c", query], capture_output=True, text=True, check=True).stdout
        for line in lines.splitlines():
            name, _, version = line.partition(" ")
            found[name] = version
    return found


# ---- how each is started ----------------------------------------------------------------------------------


def pmrun_contenders(ranks: int) -> list[Contender]:
    command = (str(PMRUN), "-n", str(ranks), "--no-tag")
    return [Contender("pmrun", memory, command, (), ("pmrun", memory)) for memory in ("private", "library")]


def openmpi_contenders(ranks: int, cores: int) -> list[Contender]:
    """With a core per rank: pinned, and unpinned with yielding. Oversubscribed: yielding, else a call takes ticks."""
    mpirun = [str(HOME / "openmpi" / "bin" / "mpirun"), "-n", str(ranks)]
    env = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    flags: dict[str, tuple[str, ...]] = {
        "yield": ("--oversubscribe", "--bind-to", "none", "--mca", "mpi_yield_when_idle", "1")
    }
    if ranks <= cores:
        flags["pinned"] = ("--bind-to", "core")
    python = (str(python_of("openmpi")),)
    return [
        Contender("Open MPI", variant, (*mpirun, *more), python, ("mpi", "multiple"), env)
        for variant, more in flags.items()
    ]


def mpich_contenders(ranks: int, cores: int) -> list[Contender]:
    """Its shared-memory collectives need a thread level below "multiple"; oversubscribed they spin for whole ticks."""
    command = (str(HOME / "mpich" / "bin" / "mpiexec"), "-n", str(ranks))
    levels = ("multiple", "single") if ranks <= cores else ("multiple",)
    python = (str(python_of("mpich")),)
    return [Contender("MPICH", level, command, python, ("mpi", level)) for level in levels]


def intel_contenders(ranks: int, cores: int) -> list[Contender]:
    """Its own defaults; yielding at once (I_MPI_THREAD_YIELD=3), better where ranks share cores; and unpinned."""
    command = (str(HOME / "intel" / "bin" / "mpiexec"), "-n", str(ranks))
    python = (str(python_of("intel")),)
    settings: dict[str, dict[str, str]] = {"default": {}, "yield": {"I_MPI_THREAD_YIELD": "3"}}
    if ranks <= cores:
        settings["unpinned"] = {"I_MPI_PIN": "0"}
    return [
        Contender("Intel MPI", variant, command, python, ("mpi", "multiple"), {"I_MPI_FABRICS": "shm", **env})
        for variant, env in settings.items()
    ]


def gloo_contenders(ranks: int) -> list[Contender]:
    torchrun = (str(python_of("gloo")), "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}")
    return [Contender("Gloo", "lo", torchrun, (), ("gloo", "-"), {"OMP_NUM_THREADS": "1"})]


def contenders(ranks: int, cores: int) -> list[Contender]:
    """Return every contender in every variant that is worth a measurement with this many ranks."""
    found = pmrun_contenders(ranks) if PMRUN.exists() else []
    here = available()
    if "openmpi" in here:
        found += openmpi_contenders(ranks, cores)
    if "mpich" in here:
        found += mpich_contenders(ranks, cores)
    if "intel" in here:
        found += intel_contenders(ranks, cores)
    if "gloo" in here:
        found += gloo_contenders(ranks)
    return found


def run_gang(contender: Contender, command: list[str], timeout_s: float) -> None:
    """Run a contender's gang to its end; raise GangFailed where it fails or takes longer.

    A launcher is asked to stop before it is killed: mpirun puts its ranks into process groups of their own, which
    only mpirun knows. Python may keep what it compiled, as pip did for the peers: a rank that compiles its imports
    anew would be measured for that.
    """
    env = {**os.environ, **contender.env}
    env.pop("PYTHONDONTWRITEBYTECODE", None)
    with subprocess.Popen(
        command, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, start_new_session=True,
    ) as process:  # fmt: skip
        try:
            output, _ = process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            process.terminate()
            try:
                process.communicate(timeout=TERMINATE_S)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
            raise GangFailed(f"{contender.name} ({contender.variant}) took more than {timeout_s:.0f} s") from None
    if process.returncode != 0:
        last = " | ".join(output.strip().splitlines()[-4:])
        raise GangFailed(f"{contender.name} ({contender.variant}) ended with {process.returncode}: {last}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the environments of the peers in .venv-bench.")
    parser.add_argument("--clean", action="store_true", help="remove them instead")
    if parser.parse_args().clean:
        shutil.rmtree(HOME, ignore_errors=True)
        return
    prepare()
    print(f"peers: ready: {', '.join(available())}")


if __name__ == "__main__":
    main()
