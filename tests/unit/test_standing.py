# SPDX-License-Identifier: Apache-2.0
"""Which node a `pmrun agent` is: from options, variables, or what an engine says."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest

from pmrun import env
from pmrun.errors import UsageError
from pmrun.launcher import cli, keys
from pmrun.launcher.command_line import split
from pmrun.launcher.standing import Place, find_place

SECRET = bytes(range(32))
GIVEN = {env.SECRET: SECRET.hex()}
BATCH = {
    "AWS_BATCH_JOB_ID": "8f1#3", "AWS_BATCH_JOB_ATTEMPT": "2", "AWS_BATCH_JOB_NODE_INDEX": "3",
    "AWS_BATCH_JOB_NUM_NODES": "4", "AWS_BATCH_JOB_MAIN_NODE_INDEX": "0",
    "AWS_BATCH_JOB_MAIN_NODE_PRIVATE_IPV4_ADDRESS": "10.0.0.7",
}  # fmt: skip
SRUN = {
    "SLURM_STEP_ID": "0", "SLURM_JOB_ID": "12", "SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "3", "SLURM_LOCALID": "0",
    "SLURM_NODEID": "1", "SLURM_STEP_NUM_NODES": "3", "SLURM_STEP_NODELIST": "n[0-2]",
    "SLURM_STEP_TASKS_PER_NODE": "1(x3)",
}  # fmt: skip
POD = {"JOB_COMPLETION_INDEX": "1", env.NUM_NODES: "2", env.MAIN_IP: "train-node-0-0.train"}


def place(arguments: str, environ: dict[str, str]) -> Place:
    return find_place(cli.read_values(split(arguments.split())), dict(environ))


@pytest.mark.parametrize(
    ("environ", "said"),
    [
        ({**BATCH, **GIVEN}, (3, 4, "10.0.0.7", "AWS Batch 8f1/2")),
        ({**SRUN, **GIVEN}, (1, 3, "n0", "srun 12/0")),
        ({**POD, **GIVEN, env.RUN_TOKEN: "uid/0/nonce"}, (1, 2, "train-node-0-0.train", "Kubernetes uid/0/nonce")),
    ],
)
def test_what_engines_say(environ: dict[str, str], said: tuple[int, int, str, str]) -> None:
    found = place("x.py", environ)
    assert (found.standing.node_rank, found.num_nodes, found.standing.host, found.told_by) == said
    token = found.told_by.partition(" ")[2] if not found.told_by.startswith("AWS") else "8f1/2"
    assert found.standing.secret == keys.run_secret(SECRET, token)
    assert found.standing.port == keys.main_port(found.standing.secret)


def test_tries_of_a_job_have_keys_of_their_own() -> None:
    again = {**BATCH, **GIVEN, "AWS_BATCH_JOB_ATTEMPT": "3"}
    assert place("x.py", {**BATCH, **GIVEN}).standing.secret != place("x.py", again).standing.secret


def test_the_main_node_of_batch_is_told_no_address() -> None:
    main = {name: value for name, value in BATCH.items() if "PRIVATE" not in name} | {"AWS_BATCH_JOB_NODE_INDEX": "0"}
    found = place("x.py", {**main, **GIVEN})
    assert (found.standing.node_rank, found.standing.host) == (0, "")


def test_options_and_variables(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_bytes(SECRET)
    path.chmod(0o600)
    options = f"--nnodes 3 --node-rank 2 --main [fd00::1]:4000 --secret-file {path} x.py"
    standing = place(options, {}).standing
    assert standing == (2, "fd00::1", 4000, SECRET)
    variables = {env.NUM_NODES: "3", env.NODE_RANK: "2", env.SECRET: base64.b64encode(SECRET).decode()}
    assert place("--main [fd00::1]:4000 x.py", variables).standing == standing


def test_the_secret_is_taken_out() -> None:
    environ = {**SRUN, **GIVEN}
    find_place(cli.read_values(split(["x.py"])), environ)
    assert env.SECRET not in environ


@pytest.mark.parametrize(
    ("arguments", "environ", "line"),
    [
        ("x.py", GIVEN, "say how many nodes the job has: --nnodes N, or PMRUN_NUM_NODES"),
        ("--nnodes 2 --node-rank 1 x.py", GIVEN, "say where the main node is: --main ADDRESS, or PMRUN_MAIN"),
        ("--nnodes 2 --main a x.py", {}, "the job's secret is missing: give each node PMRUN_SECRET_FILE"),
        (
            "--nnodes 2 --main a x.py",
            {env.SECRET: "tell nobody"},
            "PMRUN_SECRET in the environment is no secret: 64 hex",
        ),
        ("--nnodes 2 --main a x.py", {env.SECRET: "aGk="}, "PMRUN_SECRET in the environment is no secret"),
        ("--nnodes 2 --node-rank 2 --main a x.py", GIVEN, "this is node 2, and there are 2"),
        ("--nnodes 4 x.py", {**SRUN, **GIVEN}, "nodes: --nnodes 4, srun 3; they must agree"),
        (
            "x.py",
            {**SRUN, **GIVEN, env.NODE_RANK: "0"},
            "this node's number: PMRUN_NODE_RANK 0, srun 1; they must agree",
        ),
        (
            "x.py",
            {**SRUN, **GIVEN, env.NODE_RANK: "one"},
            "PMRUN_NODE_RANK='one' in the environment: a node's number is",
        ),
        (
            "x.py",
            {**SRUN, **GIVEN, "SLURM_STEP_NUM_TASKS": "6", "SLURM_STEP_TASKS_PER_NODE": "2(x3)", "SLURM_PROCID": "2"},
            "srun started 2 processes on this node, and each would be an agent: start one on each node",
        ),
    ],
)
def test_what_is_refused(arguments: str, environ: dict[str, str], line: str) -> None:
    with pytest.raises(UsageError) as refused:
        place(arguments, environ)
    assert line in str(refused.value) and "\n" not in str(refused.value)
