# SPDX-License-Identifier: Apache-2.0
"""Each launcher's environment, as it really looks, and what is made of broken ones."""

from __future__ import annotations

import pytest

from pmrun import env
from pmrun.errors import UsageError
from pmrun.foreign import Placement, recognise


def variables(text: str) -> dict[str, str]:
    return dict(line.strip().split("=", 1) for line in text.strip().splitlines())


TORCHRUN = variables("""
    GROUP_RANK=1
    GROUP_WORLD_SIZE=2
    LOCAL_RANK=1
    LOCAL_WORLD_SIZE=2
    MASTER_ADDR=10.0.0.1
    MASTER_PORT=29500
    OMP_NUM_THREADS=1
    RANK=3
    ROLE_NAME=default
    ROLE_RANK=3
    ROLE_WORLD_SIZE=4
    TORCHELASTIC_MAX_RESTARTS=3
    TORCHELASTIC_RESTART_COUNT=1
    TORCHELASTIC_RUN_ID=none
    TORCHELASTIC_USE_AGENT_STORE=True
    TORCH_NCCL_ASYNC_ERROR_HANDLING=1
    WORLD_SIZE=4
""")
OPEN_MPI = variables("""
    OMPI_ARGV=train.py
    OMPI_COMM_WORLD_LOCAL_RANK=1
    OMPI_COMM_WORLD_LOCAL_SIZE=2
    OMPI_COMM_WORLD_NODE_RANK=1
    OMPI_COMM_WORLD_RANK=1
    OMPI_COMM_WORLD_SIZE=2
    OMPI_COMMAND=python3
    OMPI_FILE_LOCATION=/tmp/ompi.5888/1/1
    OMPI_NUM_APP_CTX=1
    OMPI_UNIVERSE_SIZE=2
    OMPI_WORLD_LOCAL_SIZE=2
    OMPI_WORLD_SIZE=2
    PMIX_HOSTNAME=vm
    PMIX_NAMESPACE=prterun-vm-5888@1
    PMIX_RANK=1
    PMIX_SECURITY_MODE=native
    PMIX_SERVER_URI41=prterun-vm-5888@0.0;tcp4://127.0.0.1:40015
    PRTE_LAUNCHED=1
""")
MPICH = variables("""
    HYDI_CONTROL_FD=7
    MPI_LOCALNRANKS=2
    MPI_LOCALRANKID=0
    PMI_FD=9
    PMI_HOSTNAME=vm
    PMI_RANK=0
    PMI_SIZE=2
""")
SRUN = variables("""
    SLURM_CPUS_ON_NODE=4
    SLURM_GTIDS=8,9,10
    SLURM_JOB_ID=4711
    SLURM_JOB_NODELIST=node[03-05]
    SLURM_LAUNCH_NODE_IPADDR=10.0.0.9
    SLURM_LOCALID=2
    SLURM_NODEID=2
    SLURM_NTASKS=11
    SLURM_PROCID=10
    SLURM_STEP_ID=0
    SLURM_STEP_NODELIST=node[03-05]
    SLURM_STEP_NUM_NODES=3
    SLURM_STEP_NUM_TASKS=11
    SLURM_STEP_TASKS_PER_NODE=4(x2),3
    SLURM_TASKS_PER_NODE=4(x2),3
    SLURMD_NODENAME=node05
""")
METAFLOW = variables("""
    MF_PARALLEL_CONTROL_TASK_ID=2
    MF_PARALLEL_MAIN_IP=127.0.0.1
    MF_PARALLEL_NODE_INDEX=1
    MF_PARALLEL_NUM_NODES=3
""")
BATCH = variables("""
    AWS_BATCH_CE_NAME=ce
    AWS_BATCH_JOB_ATTEMPT=1
    AWS_BATCH_JOB_ID=5a1b2c3d-0000-4000-8000-123456789abc#2
    AWS_BATCH_JOB_MAIN_NODE_INDEX=0
    AWS_BATCH_JOB_MAIN_NODE_PRIVATE_IPV4_ADDRESS=10.0.0.1
    AWS_BATCH_JOB_NODE_INDEX=2
    AWS_BATCH_JOB_NUM_NODES=4
    AWS_BATCH_JQ_NAME=q
""")
JOBSET = variables("""
    JOB_COMPLETION_INDEX=3
    JOBSET_NAME=train
    JOBSET_RESTART_ATTEMPT=2
    PMRUN_NUM_NODES=4
    PMRUN_MAIN_IP=train-ranks-0-0.train
""")
BATCH_ID = "5a1b2c3d-0000-4000-8000-123456789abc/1"


@pytest.mark.parametrize(
    ("environ", "placement"),
    [
        (TORCHRUN, Placement("torchrun", 3, 4, 1, 2, 1, 2, "10.0.0.1", "none/10.0.0.1/29500/1")),
        (OPEN_MPI, Placement("Open MPI", 1, 2, 1, 2, 0, 1, "", "prterun-vm-5888@1")),
        (MPICH, Placement("MPICH", 0, 2, 0, 2, 0, 1, "", "", "PMI_RANK")),
        (SRUN, Placement("srun", 10, 11, 2, 3, 2, 3, "node03", "4711/0")),
        (METAFLOW, Placement("Metaflow", 1, 3, 0, 1, 1, 3, "127.0.0.1", "2", "MF_PARALLEL_NODE_INDEX")),
        (BATCH, Placement("AWS Batch", 2, 4, 0, 1, 2, 4, "10.0.0.1", BATCH_ID)),
        (JOBSET, Placement("Kubernetes", 3, 4, 0, 1, 3, 4, "train-ranks-0-0.train", "train/2")),
        # nested: the innermost counts
        ({**SRUN, **OPEN_MPI}, Placement("Open MPI", 1, 2, 1, 2, 0, 1, "", "prterun-vm-5888@1")),
        ({**BATCH, **METAFLOW}, Placement("Metaflow", 1, 3, 0, 1, 1, 3, "127.0.0.1", "2", "MF_PARALLEL_NODE_INDEX")),
        ({**MPICH, **TORCHRUN}, Placement("torchrun", 3, 4, 1, 2, 1, 2, "10.0.0.1", "none/10.0.0.1/29500/1")),
        # several nodes, and a launcher that does not number them
        (
            {**OPEN_MPI, "OMPI_COMM_WORLD_SIZE": "8", "OMPI_COMM_WORLD_RANK": "5"},
            Placement("Open MPI", 5, 8, 1, 2, -1, -1, "vm", "prterun-vm-5888@1"),
        ),
        # the main node of a Batch job: no address of its own there; another node than 0 may be the main one
        (
            {**{k: v for k, v in BATCH.items() if "ADDRESS" not in k}, "AWS_BATCH_JOB_MAIN_NODE_INDEX": "2"},
            Placement("AWS Batch", 0, 4, 0, 1, 0, 4, "", BATCH_ID),
        ),
        # srun with Slurm's own PMI, which sets some of MPICH's variables
        ({**SRUN, "PMI_RANK": "10", "PMI_SIZE": "11"}, Placement("srun", 10, 11, 2, 3, 2, 3, "node03", "4711/0")),
    ],
)
def test_what_each_launcher_says(environ: dict[str, str], placement: Placement) -> None:
    assert recognise(environ) == placement


@pytest.mark.parametrize(
    "environ",
    [
        {}, {"RANK": "1", "WORLD_SIZE": "2"}, {"PMI_RANK": "0", "PMI_SIZE": "2"}, {"JOB_COMPLETION_INDEX": "3"},
        {"SLURM_JOB_ID": "1", "SLURM_PROCID": "0", "SLURM_NTASKS": "8"}, {"AWS_BATCH_JOB_ID": "x"},
        {**OPEN_MPI, env.FOREIGN: "0"}, {**OPEN_MPI, env.RANK: "0"},
    ],
)  # fmt: skip
def test_what_is_no_gang(environ: dict[str, str]) -> None:
    assert recognise(environ) is None


@pytest.mark.parametrize(
    ("environ", "changes", "words"),
    [
        (OPEN_MPI, {"OMPI_COMM_WORLD_RANK": "2"}, "OMPI_COMM_WORLD_RANK=2 is not below OMPI_COMM_WORLD_SIZE=2"),
        (OPEN_MPI, {"OMPI_COMM_WORLD_SIZE": None}, "OMPI_COMM_WORLD_SIZE is not set"),
        (OPEN_MPI, {"OMPI_COMM_WORLD_LOCAL_SIZE": "3"}, "OMPI_COMM_WORLD_LOCAL_RANK, OMPI_COMM_WORLD_LOCAL_SIZE"),
        (OPEN_MPI, {"OMPI_COMM_WORLD_LOCAL_RANK": "x"}, "OMPI_COMM_WORLD_LOCAL_RANK='x' is no number from 0 on"),
        (MPICH, {"PMI_SIZE": "0"}, "PMI_SIZE='0' is no number from 1 on"),
        (MPICH, {"MPI_LOCALRANKID": "2"}, "cannot be 2 of 2 on its node"),
        (MPICH, {"MPI_LOCALNRANKS": "-2"}, "MPI_LOCALNRANKS='-2'"),
        (TORCHRUN, {"GROUP_RANK": "2"}, "GROUP_RANK=2 is not below GROUP_WORLD_SIZE=2"),
        (TORCHRUN, {"GROUP_RANK": "0", "GROUP_WORLD_SIZE": "1"}, "GROUP_WORLD_SIZE=1, but 2 of 4 ranks"),
        (TORCHRUN, {"LOCAL_RANK": "2"}, "cannot be 2 of 2 on its node (LOCAL_RANK, LOCAL_WORLD_SIZE)"),
        (SRUN, {"SLURM_STEP_TASKS_PER_NODE": "4(x"}, "SLURM_STEP_TASKS_PER_NODE='4(x' is no list"),
        (SRUN, {"SLURM_STEP_TASKS_PER_NODE": "4,4"}, "SLURM_NODEID=2 is beyond SLURM_STEP_TASKS_PER_NODE"),
        (SRUN, {"SLURM_LOCALID": "3"}, "SLURM_STEP_TASKS_PER_NODE"),
        (METAFLOW, {"MF_PARALLEL_NODE_INDEX": "3"}, "MF_PARALLEL_NODE_INDEX=3 is not below MF_PARALLEL_NUM_NODES=3"),
        (BATCH, {"AWS_BATCH_JOB_MAIN_NODE_INDEX": "7"}, "AWS_BATCH_JOB_MAIN_NODE_INDEX=7"),
        (JOBSET, {"JOB_COMPLETION_INDEX": "12345678901"}, "JOB_COMPLETION_INDEX='12345678901'"),
    ],
)  # fmt: skip
def test_what_cannot_be(environ: dict[str, str], changes: dict[str, str | None], words: str) -> None:
    changed = {name: value for name, value in {**environ, **changes}.items() if value is not None}
    with pytest.raises(UsageError) as caught:
        recognise(changed)
    assert words in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("nodes", "first"),
    [("node[03-07,9],login1", "node03"), ("a,b", "a"), ("n[1,5]x,b", "n1x"), ("single", "single"), ("", "")],
)
def test_the_first_of_slurms_nodes(nodes: str, first: str) -> None:
    placement = recognise({**SRUN, "SLURM_STEP_NODELIST": nodes})
    assert placement is not None and placement.main_address == first


@pytest.mark.parametrize(
    ("namespace", "address"),
    [("prterun-login-2-77@1", "login-2"), ("prte-vm-77@2", ""), ("4711.0", ""), ("prterun-vm@1", "")],
)
def test_where_open_mpi_was_started(namespace: str, address: str) -> None:
    placement = recognise({**OPEN_MPI, "OMPI_COMM_WORLD_SIZE": "4", "PMIX_NAMESPACE": namespace})
    assert placement is not None and placement.main_address == address


def test_what_makes_ranks_consecutive() -> None:
    placements = [recognise(environ) for environ in (OPEN_MPI, MPICH, SRUN, TORCHRUN, BATCH)]
    ways = [placement.in_a_row.partition(" ")[0] for placement in placements if placement is not None]
    assert ways == ["mpirun", "mpiexec", "srun", "", ""]


@pytest.mark.parametrize(
    ("environ", "here"),
    [(OPEN_MPI, True), (TORCHRUN, False), (METAFLOW, True), (BATCH, False)],
)
def test_which_gangs_are_on_one_machine(environ: dict[str, str], here: bool) -> None:
    placement = recognise(environ)
    assert placement is not None and placement.on_one_machine is here
