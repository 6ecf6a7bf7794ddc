# SPDX-License-Identifier: Apache-2.0
"""Which place in which gang another launcher gave to this process, read from the environment that it made.

One table: for each launcher the variables that mark it and those that hold the numbers. The innermost wins, as
launchers are nested: mpirun in a Slurm job, torchrun in a pod. Nothing but the environment is looked at. Invariant: a
`Placement` that is returned is consistent; a launcher whose variables are not is a `UsageError` that names them.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping

from pmrun import env
from pmrun.errors import UsageError

Environ = Mapping[str, str]


@dataclasses.dataclass(frozen=True, slots=True)
class Placement:
    """A process's place, as a launcher other than pmrun gave it.

    Attributes
    ----------
    launcher : str
        As messages name it.
    rank, world_size, local_rank, local_world_size : int
    node_rank, num_nodes : int
        -1 where the launcher tells neither, and there is more than one node.
    main_address : str
        Of node 0; "" where the launcher does not tell.
    job : str
        The launcher's name for this start of the gang, or "".
    mark : str
        "" where `job` differs between all gangs of a machine. Else a variable that all processes of the launch
        inherited from the launcher's, which did not: the one that it has not is what they have in common.
    """

    launcher: str
    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    node_rank: int
    num_nodes: int
    main_address: str
    job: str
    mark: str = ""

    @property
    def on_one_machine(self) -> bool:
        """Whether all ranks are here: one node, or nodes that Metaflow only plays on this machine."""
        return self.local_world_size == self.world_size or self.main_address in ("127.0.0.1", "::1", "localhost")

    @property
    def ranks_here(self) -> int:
        """How many ranks are on this machine."""
        return self.world_size if self.on_one_machine else self.local_world_size

    @property
    def in_a_row(self) -> str:
        """What makes the launcher give the ranks of each node consecutive numbers; "" where it always does."""
        return next(launcher.in_a_row for launcher in _LAUNCHERS if launcher.name == self.launcher)


@dataclasses.dataclass(frozen=True, slots=True)
class _Launcher:
    """Where one launcher says what. A name is a variable's; "" stands for what follows from the others."""

    name: str
    marks: tuple[str, ...]  # all are set: this launcher started the process
    rank: str
    world_size: str
    local_rank: str = ""  # both "": one rank on each node
    local_world_size: str = ""
    node_rank: str = ""
    num_nodes: str = ""
    main_address: Callable[[Environ], str] = lambda environ: ""
    job: tuple[str, ...] = ()
    local_world_size_of: Callable[[Environ], int] | None = None
    first_node: str = ""  # the number of the main node, where it need not be 0
    unique: bool = True  # `job` is, on a machine
    in_a_row: str = ""  # what makes the ranks of a node consecutive


def _variable(name: str) -> Callable[[Environ], str]:
    return lambda environ: environ.get(name, "")


def _slurm_local_world_size(environ: Environ) -> int:
    """SLURM_STEP_TASKS_PER_NODE counts by node: "4(x2),3" is 4, 4, 3."""
    name = "SLURM_STEP_TASKS_PER_NODE"
    counts: list[int] = []
    for part in _text(environ, "srun", name).split(","):
        found = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part)
        if found is None:
            raise UsageError(f"srun: {name}={environ[name]!r} is no list of numbers")
        counts += [int(found[1])] * int(found[2] or 1)
    node = _number(environ, "srun", "SLURM_NODEID")
    if node >= len(counts):
        raise UsageError(f"srun: SLURM_NODEID={node} is beyond {name}={environ[name]!r}")
    return counts[node]


def _slurm_main_address(environ: Environ) -> str:
    """The first name of a list such as "node[03-07,9],login1"."""
    found = re.match(r"([^\[,]*)(?:\[(\d+)[^\]]*\]([^,\[]*))?", environ.get("SLURM_STEP_NODELIST", ""))
    return "".join(part or "" for part in found.groups()) if found is not None else ""


def _open_mpi_main_address(environ: Environ) -> str:
    """Where mpirun runs, which is rank 0's node as a rule: the middle of "prterun-HOST-PID@1"."""
    if environ.get("OMPI_COMM_WORLD_LOCAL_SIZE") == environ.get("OMPI_COMM_WORLD_SIZE"):
        return ""  # here
    found = re.fullmatch(r"prterun-(.+)-\d+@\d+", environ.get("PMIX_NAMESPACE", ""))
    return found[1] if found is not None else ""


# Innermost first: whoever started this very process, rather than the machine or the shell around it.
_LAUNCHERS = (
    _Launcher(
        "torchrun", ("TORCHELASTIC_RUN_ID",), env.TORCH_RANK, env.TORCH_WORLD_SIZE, env.TORCH_LOCAL_RANK,
        env.TORCH_LOCAL_WORLD_SIZE, "GROUP_RANK", "GROUP_WORLD_SIZE", _variable(env.TORCH_MASTER_ADDR),
        ("TORCHELASTIC_RUN_ID", env.TORCH_MASTER_ADDR, env.TORCH_MASTER_PORT, "TORCHELASTIC_RESTART_COUNT"),
    ),
    _Launcher(
        "Open MPI", ("OMPI_COMM_WORLD_RANK",), "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE",
        "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE", main_address=_open_mpi_main_address,
        job=("PMIX_NAMESPACE",), in_a_row="mpirun --map-by slot",
    ),
    _Launcher(
        "MPICH", ("PMI_RANK", "MPI_LOCALRANKID"), "PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS",
        unique=False, in_a_row="mpiexec -ppn RANKS_PER_NODE",
    ),
    _Launcher(
        "srun", ("SLURM_STEP_ID", "SLURM_PROCID"), "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID",
        node_rank="SLURM_NODEID", num_nodes="SLURM_STEP_NUM_NODES", main_address=_slurm_main_address,
        job=("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT"), local_world_size_of=_slurm_local_world_size,
        in_a_row="srun --distribution=block",
    ),
    _Launcher(
        "Metaflow", ("MF_PARALLEL_NODE_INDEX", "MF_PARALLEL_NUM_NODES"), "MF_PARALLEL_NODE_INDEX",
        "MF_PARALLEL_NUM_NODES", main_address=_variable("MF_PARALLEL_MAIN_IP"), job=("MF_PARALLEL_CONTROL_TASK_ID",),
        unique=False,
    ),
    _Launcher(
        "AWS Batch", ("AWS_BATCH_JOB_NODE_INDEX", "AWS_BATCH_JOB_NUM_NODES"), "AWS_BATCH_JOB_NODE_INDEX",
        "AWS_BATCH_JOB_NUM_NODES", main_address=_variable("AWS_BATCH_JOB_MAIN_NODE_PRIVATE_IPV4_ADDRESS"),
        job=("AWS_BATCH_JOB_ID", "AWS_BATCH_JOB_ATTEMPT"), first_node="AWS_BATCH_JOB_MAIN_NODE_INDEX",
    ),
    _Launcher(
        # An Indexed Job says how many pods it has nowhere: its manifest sets PMRUN_NUM_NODES, and PMRUN_MAIN_IP. Without
        # them its pods are no gang, but a list of tasks.
        "Kubernetes", ("JOB_COMPLETION_INDEX", env.NUM_NODES), "JOB_COMPLETION_INDEX", env.NUM_NODES,
        main_address=_variable(env.MAIN_IP), job=("JOBSET_NAME", "JOBSET_RESTART_ATTEMPT"),
    ),
)  # fmt: skip


def recognise(environ: Environ) -> Placement | None:
    """The place that a launcher other than pmrun gave to the process with this environment.

    Parameters
    ----------
    environ : mapping of str to str
        ``os.environ``, as a rule.

    Returns
    -------
    Placement or None
        None where no launcher's marks are there, pmrun's own are, or PMRUN_FOREIGN is 0.

    Raises
    ------
    UsageError
        The variables of the launcher that was found contradict each other, or some are missing.
    """
    if env.RANK in environ or environ.get(env.FOREIGN) == "0":
        return None
    for launcher in _LAUNCHERS:
        if all(mark in environ for mark in launcher.marks):
            return _read(launcher, environ)
    return None


def _read(launcher: _Launcher, environ: Environ) -> Placement:
    name = launcher.name
    world_size = _number(environ, name, launcher.world_size, 1)
    rank = _below(environ, name, launcher.rank, launcher.world_size)
    if launcher.first_node:
        rank = (rank - _below(environ, name, launcher.first_node, launcher.world_size)) % world_size
    local_rank, local_world_size = 0, 1
    if launcher.local_rank:
        local_rank = _number(environ, name, launcher.local_rank)
        if launcher.local_world_size_of is not None:
            local_world_size = launcher.local_world_size_of(environ)
        else:
            local_world_size = _number(environ, name, launcher.local_world_size, 1)
        if not local_rank < local_world_size <= world_size:  # their order need not be the ranks'
            raise UsageError(
                f"{name}: rank {rank} of {world_size} ({launcher.rank}, {launcher.world_size}) cannot be {local_rank} of "
                f"{local_world_size} on its node ({launcher.local_rank}, "
                f"{launcher.local_world_size or 'SLURM_STEP_TASKS_PER_NODE'}){_hint()}"
            )
    node_rank, num_nodes = _nodes(launcher, environ, rank, world_size, local_world_size)
    # A child of an AWS Batch job has the job's id with its own number behind it.
    job = "/".join(environ.get(part, "").partition("#")[0] for part in launcher.job)
    address = launcher.main_address(environ)
    mark = "" if launcher.unique else launcher.marks[0]
    return Placement(
        name, rank, world_size, local_rank, local_world_size, node_rank, num_nodes, address, job.strip("/"), mark
    )


def _nodes(launcher: _Launcher, environ: Environ, rank: int, world_size: int, local_world_size: int) -> tuple[int, int]:
    if not launcher.local_rank:
        return rank, world_size
    if launcher.num_nodes:
        num_nodes = _number(environ, launcher.name, launcher.num_nodes, 1)
        node_rank = _below(environ, launcher.name, launcher.node_rank, launcher.num_nodes)
        if (num_nodes == 1) != (local_world_size == world_size):
            raise UsageError(
                f"{launcher.name}: {launcher.num_nodes}={num_nodes}, but {local_world_size} of {world_size} ranks are on "
                f"this node ({launcher.world_size}){_hint()}"
            )
        return node_rank, num_nodes
    return (0, 1) if local_world_size == world_size else (-1, -1)


def _text(environ: Environ, launcher: str, name: str) -> str:
    text = environ.get(name)
    if text is None:
        raise UsageError(f"{launcher} started this process, but {name} is not set{_hint()}")
    return text


def _number(environ: Environ, launcher: str, name: str, least: int = 0) -> int:
    text = _text(environ, launcher, name)
    if not re.fullmatch(r"[0-9]{1,9}", text) or int(text) < least:
        raise UsageError(f"{launcher}: {name}={text!r} is no number from {least} on{_hint()}")
    return int(text)


def _below(environ: Environ, launcher: str, name: str, bound: str) -> int:
    number, limit = _number(environ, launcher, name), _number(environ, launcher, bound, 1)
    if number >= limit:
        raise UsageError(f"{launcher}: {name}={number} is not below {bound}={limit}{_hint()}")
    return number


def _hint() -> str:
    return f": start the program with it again, or set {env.FOREIGN}=0 to run alone"


def join_timeout_s(environ: Environ) -> float:
    """How long ranks wait until all of them are there; UsageError where the variable is no time."""
    text = environ.get(env.JOIN_TIMEOUT, "60")
    try:
        timeout_s = float(text)
    except ValueError:
        timeout_s = -1.0
    if not 0 < timeout_s < 1e6:
        raise UsageError(f"{env.JOIN_TIMEOUT}={text!r} is no number of seconds above 0")
    return timeout_s
