# SPDX-License-Identifier: Apache-2.0
"""Jobs on AWS Batch, which is played here by its fake: what nodes compute, what deaths do, what commands tell."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from botocore.config import Config

import gang_helper
import machines
from pmrun.errors import UsageError
from pmrun.launcher import cli
from pmrun.launcher.aws_batch.client import BatchClient
from pmrun.launcher.command_line import split
from pmrun.launcher.submission.contract import Cursor, State, Transient
from pmrun.testing import simulated_nodes
from pmrun.testing.fake_batch import Delays, FakeBatch

pytestmark = pytest.mark.skipif(bool(simulated_nodes.why_not_isolated()), reason=simulated_nodes.why_not_isolated())

ROLE = "arn:aws:iam::123456789012:role/tasks"
OPTIONS = ["--on", "batch", "--queue", "fake-queue", "--image", "i", "--with", f"execution-role={ROLE}"]
TRAIN = """
import hashlib, numpy as np, pmrun as pm
world = pm.init()
data = np.random.default_rng(world.rank).standard_normal((64, 8), dtype=np.float32)
weights = np.zeros(8, np.float32)
for step in range(20):
    gradient = data.T @ (data @ weights - 1) / len(data)
    weights -= 0.1 * world.allreduce(gradient) / world.size
if world.rank == 0:
    print("weights", hashlib.sha256(weights.tobytes()).hexdigest())
"""
WAIT = """
import os, signal, pmrun as pm
world = pm.init()
world.barrier()
if os.environ["AWS_BATCH_JOB_ATTEMPT"] == "1":
    print("waiting", flush=True)
    signal.pause()
"""


@pytest.fixture(scope="module")
def aws() -> Iterator[FakeBatch]:
    with FakeBatch(seed=3, delays=Delays((0.0, 0.0), (0.0, 0.0), (0.0, 0.1)), missing_images={"missing"}) as aws:
        yield aws


@pytest.fixture
def client(aws: FakeBatch) -> BatchClient:
    once = Config(retries={"total_max_attempts": 1})
    return BatchClient(lambda service, region: aws.client(service, config=once))


def pmrun(*words: str, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    environ = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    return subprocess.run(
        [gang_helper.COMMAND, *words], cwd=cwd, env={**environ, **variables}, stdin=subprocess.DEVNULL,
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def submit(client: BatchClient, tmp_path: Path, program: str, *options: str) -> str:
    (tmp_path / "program.py").write_text(program)
    words = [*OPTIONS, "-n", "4", "--nodes", "2", "--cwd", str(tmp_path), "--no-tag", *options, "program.py"]
    return client.submit(client.request(cli.build_job(split(words))))


def log(client: BatchClient, name: str) -> list[tuple[int, str]]:
    found, cursor = [], Cursor()
    while True:
        lines, cursor = client.read_logs(name, cursor)
        if not lines:
            return found
        found += [(line.node_rank, line.text.decode()) for line in lines]


def job_id(name: str) -> str:
    return name.rpartition("/")[2]


def test_weights_are_those_of_one_machine(tmp_path: Path) -> None:
    code, store = tmp_path / "code", tmp_path / "store"
    code.mkdir()
    store.mkdir()
    (code / "train.py").write_text(TRAIN)
    here = pmrun("-n", "4", "train.py", cwd=code)
    sent = ("--code", ".", "--code-store", str(store))
    there = pmrun("-n", "4", "--on", "fake-batch", "--nodes", "2", *sent, "train.py", cwd=code)
    assert there.returncode == here.returncode == 0, there.stderr
    weights = [
        line.partition("weights ")[2] for run in (here, there) for line in run.stdout.splitlines() if "weights " in line
    ]
    assert len(weights) == 2 and weights[0] == weights[1]
    assert there.stderr.startswith("pmrun: submitted fake-batch/us-east-1/")
    assert "[node 1] pmrun: " in there.stdout + there.stderr


def test_a_ranks_death_on_another_node_is_told_and_is_the_exit_code(tmp_path: Path) -> None:
    (tmp_path / "die.py").write_text(
        "import pmrun as pm, sys\nworld = pm.init()\nworld.rank == 3 and sys.exit(7)\nworld.barrier()\n"
    )
    run = pmrun("-n", "4", "--on", "fake-batch", "--nodes", "2", "die.py", cwd=tmp_path)
    assert run.returncode == 7
    assert "rank 3" in run.stdout and "has failed" in run.stderr and "Essential container" not in run.stderr


@pytest.mark.parametrize("killed", [0, 1])
def test_a_killed_node_ends_the_job_and_makes_batch_retry(
    aws: FakeBatch, client: BatchClient, tmp_path: Path, killed: int
) -> None:
    name = submit(client, tmp_path, WAIT, "--retries", "1")
    batch = aws.client("batch")
    machines.until(lambda: batch.describe_jobs(jobs=[job_id(name)])["jobs"], "Batch to know the job")
    machines.until(lambda: (0, "waiting") in log(client, name), "the ranks to wait")
    assert [node.state for node in client.status(name).nodes] == [State.RUNNING] * 2
    aws.kill_node(job_id(name), killed)
    assert aws.wait(job_id(name)) == "SUCCEEDED"
    status = client.status(name)
    assert (status.state, status.exit_code, status.attempt) == (State.SUCCEEDED, 0, 2)
    ends = [batch.describe_jobs(jobs=[f"{job_id(name)}#{node}"])["jobs"][0]["attempts"][0] for node in (0, 1)]
    assert abs(ends[0]["stoppedAt"] - ends[1]["stoppedAt"]) < 6000  # as a rule 1 s; machines of tests are shared
    lines = log(client, name)
    if killed == 1:
        culprit = aws.client("batch").describe_jobs(jobs=[job_id(name)])["jobs"][0]["attempts"][0]["container"]
        assert culprit["exitCode"] not in (0, 137)
        assert any(node == 0 and "the agent on ip-" in line and "is lost" in line for node, line in lines), lines
    assert sum(line.startswith("pmrun: ") and "is node 0 of 2" in line for _, line in lines) == 2


def test_an_api_that_fails_loses_nothing(aws: FakeBatch, client: BatchClient, tmp_path: Path) -> None:
    aws.fail("SubmitJob", status=500, code="ServerException", message="Internal")
    before = aws.client("ssm").describe_parameters()["Parameters"]
    with pytest.raises(Transient, match="cannot submit the job: Internal"):
        submit(client, tmp_path, "print('once')", "--shared-memory", "1G")
    assert aws.client("ssm").describe_parameters()["Parameters"] == before  # what was made for it is gone
    name = submit(client, tmp_path, "print('once')", "--shared-memory", "1G")
    assert aws.wait(job_id(name)) == "SUCCEEDED"
    machines.until(lambda: aws.client("batch").describe_jobs(jobs=[job_id(name)])["jobs"], "Batch to know the job")
    for operation in ("DescribeJobs", "GetLogEvents", "FilterLogEvents"):
        aws.fail(operation)
    with pytest.raises(Transient, match="Too Many Requests"):
        client.status(name)
    lines, cursor = [], Cursor()
    for _ in range(8):
        try:
            page, cursor = client.read_logs(name, cursor)
        except Transient:
            continue
        lines += page
    assert sum(line.text == b"once" for line in lines) == 4
    own = [line.text for line in lines if line.text != b"once"]
    assert len(own) == len(set(own)) == 4  # two of each node


def test_commands_know_a_job_by_its_name(aws: FakeBatch, tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text("print('hello')")
    environ = aws.environment()
    aws.withhold_capacity("CAPACITY:INSUFFICIENT_INSTANCE_CAPACITY - Service cannot fulfill the capacity requested")
    started = pmrun("-n", "2", "--nodes", "2", *OPTIONS, "--cwd", str(tmp_path), "--detach", "program.py",
                    cwd=tmp_path, **environ)  # fmt: skip
    assert started.returncode == 0, started.stderr
    name = started.stdout.strip()
    batch = aws.client("batch")
    machines.until(lambda: any("CAPACITY" in job.get("statusReason", "") for job in batch.describe_jobs(
        jobs=[job_id(name)])["jobs"]), "the job to wait")  # fmt: skip
    status = json.loads(pmrun("status", name, "--json", cwd=tmp_path, **environ).stdout)
    assert status["state"] == "queued" and status["title"] == "program"
    why = pmrun("why", name, cwd=tmp_path, **environ)
    assert "CAPACITY:INSUFFICIENT_INSTANCE_CAPACITY" in why.stdout and "wait, or allow other types" in why.stdout
    aws.grant_capacity()
    assert aws.wait(job_id(name)) == "SUCCEEDED"
    shown = pmrun("logs", name, cwd=tmp_path, **environ)
    assert shown.stdout.count("hello") == 2, shown.stderr
    listed = json.loads(pmrun("list", "--on", "batch", "--json", cwd=tmp_path, **environ).stdout)
    assert listed[0]["name"] == name and listed[0]["state"] == "succeeded"
    assert pmrun("cancel", name, cwd=tmp_path, **environ).returncode == 0  # over already


def test_bad_input_is_told_in_one_line(aws: FakeBatch, client: BatchClient, tmp_path: Path) -> None:
    environ = {**aws.environment(), "AWS_EC2_METADATA_DISABLED": "true", "HOME": str(tmp_path)}
    anonymous = {name: value for name, value in environ.items() if "KEY" not in name}
    words = ["-n", "2", "--nodes", "2", *OPTIONS]
    for options, variables, told in (
        (["--queue", "none"], environ, "no queue none in us-east-1"),
        ([], anonymous, "there are no AWS credentials"),
        (["--nodes", "2000", "-n", "2000"], environ, "at most 1000"),
        (["--nodes", "2", "--cpu", "4000"], environ, "more than the 4096"),
    ):
        run = pmrun(*words, *options, "x.py", cwd=tmp_path, **variables)
        assert run.returncode != 0 and told in run.stderr and run.stderr.count("\n") == 1, run.stderr
    name = submit(client, tmp_path, "", "--image", "missing")
    assert aws.wait(job_id(name)) == "FAILED"
    machines.until(lambda: aws.client("batch").describe_jobs(jobs=[job_id(name)])["jobs"], "Batch to know the job")
    assert any(
        "CannotPullContainerError" in finding.what and "--image" in finding.remedy for finding in client.why(name)
    )


def test_queues_on_which_a_job_would_wait_for_ever_are_refused(
    aws: FakeBatch, client: BatchClient, tmp_path: Path
) -> None:
    batch = aws.client("batch")
    usual = batch.describe_compute_environments()["computeEnvironments"][0]["computeResources"]
    for kind, told in (
        ("SPOT", "is SPOT"),
        ("FARGATE", "is FARGATE"),
        ("UNMANAGED", "is UNMANAGED"),
        ("EC2", "DISABLED"),
    ):
        more = {} if kind == "UNMANAGED" else {"computeResources": {**usual, "type": kind}}
        batch.create_compute_environment(
            computeEnvironmentName=kind, type="UNMANAGED" if kind == "UNMANAGED" else "MANAGED", **more
        )
        batch.create_job_queue(
            jobQueueName=kind, priority=1, state="DISABLED" if kind == "EC2" else "ENABLED",
            computeEnvironmentOrder=[{"order": 1, "computeEnvironment": kind}],
        )  # fmt: skip
        with pytest.raises(UsageError, match=told):
            submit(client, tmp_path, "", "--queue", kind)
    assert aws.calls()[-1] == "DescribeComputeEnvironments"  # nothing was made
