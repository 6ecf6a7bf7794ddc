# SPDX-License-Identifier: Apache-2.0
"""The fake Batch driven by boto3: its API, its errors, and the nodes that it runs as real processes."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from botocore.config import Config
from botocore.exceptions import ClientError

import machines
from pmrun.testing import simulated_nodes
from pmrun.testing.fake_batch import Delays, FakeBatch

AT_ONCE = Delays((0.0, 0.0), (0.0, 0.0), (0.0, 0.05))
QUEUE = "fake-queue"
# Each node says what it finds; a node that is given an order by its file obeys.
PROGRAM = """
import json, os, signal, socket, sys, time
ip = os.environ.get("AWS_BATCH_JOB_MAIN_NODE_PRIVATE_IPV4_ADDRESS")
print(json.dumps({"env": dict(os.environ), "cwd": os.getcwd(), "files": os.listdir(), "host": socket.gethostname()}))
print("no end of a line", end="", flush=True)
node, codes = int(os.environ["AWS_BATCH_JOB_NODE_INDEX"]), json.loads(sys.argv[1])
if codes[node] is None:
    signal.pause()
if node == 0 and len(codes) > 1:
    server = socket.create_server(("", 7000))
    for _ in codes[1:]:
        server.accept()
elif ip:
    while True:
        try:
            socket.create_connection((ip, 7000))
            break
        except OSError:
            pass
sys.exit(codes[node])
"""


@pytest.fixture(scope="module")
def shared() -> Iterator[FakeBatch]:
    with FakeBatch(seed=7, delays=AT_ONCE, stop_timeout_s=5.0, missing_images={"missing"}) as aws:
        yield aws


@pytest.fixture
def aws(shared: FakeBatch) -> Iterator[FakeBatch]:
    """The module's fake, on which nothing runs when the test begins nor when it ends."""
    yield shared
    batch = shared.client("batch")
    for status in ("SUBMITTED", "PENDING", "RUNNABLE", "STARTING", "RUNNING"):
        for job in batch.list_jobs(jobQueue=QUEUE, jobStatus=status)["jobSummaryList"]:
            batch.terminate_job(jobId=job["jobId"], reason="the test is over")
            shared.wait(job["jobId"])


def node_group(command: list[str], more: dict[str, Any]) -> dict[str, Any]:
    resources = [{"type": "VCPU", "value": "1"}, {"type": "MEMORY", "value": "512"}]
    container = {"image": "i", "command": command, "resourceRequirements": resources}
    return {"targetNodes": "0:", "container": {**container, **more}}


def submit(aws: FakeBatch, codes: list[int | None], container: dict[str, Any] | None = None, **more: Any) -> str:
    """A job whose nodes end with these codes; a node whose code is None stays."""
    batch = aws.client("batch")
    groups = [node_group([sys.executable, "-c", PROGRAM, json.dumps(codes)], container or {})]
    properties = {"numNodes": 1, "mainNode": 0, "nodeRangeProperties": groups}
    arn = batch.register_job_definition(jobDefinitionName="d", type="multinode", nodeProperties=properties)
    job: str = batch.submit_job(
        jobName="j", jobQueue=QUEUE, jobDefinition=arn["jobDefinitionArn"],
        nodeOverrides={"numNodes": len(codes)}, **more,
    )["jobId"]  # fmt: skip
    assert batch.describe_jobs(jobs=[job])["jobs"] == []  # it takes a while until Batch knows it
    return job


def describe(aws: FakeBatch, job: str, node: int | None = None) -> dict[str, Any]:
    found: dict[str, Any] = aws.client("batch").describe_jobs(jobs=[job if node is None else f"{job}#{node}"])["jobs"][
        0
    ]
    return found


def lines(aws: FakeBatch, stream: str) -> list[str]:
    logs, token, found = aws.client("logs"), {}, []
    while True:
        page = logs.get_log_events(
            logGroupName="/aws/batch/job", logStreamName=stream, startFromHead=True, limit=1, **token
        )
        if page["nextForwardToken"] == token.get("nextToken"):
            return found
        token = {"nextToken": page["nextForwardToken"]}
        found += [event["message"] for event in page["events"]]


def until_running(aws: FakeBatch, job: str, nodes: int) -> None:
    def running() -> bool:
        return all(describe(aws, job, node)["status"] == "RUNNING" for node in range(nodes))

    machines.until(running, "all nodes to run")


def test_nodes_find_batchs_environment_and_each_other(aws: FakeBatch) -> None:
    aws.client("ssm").put_parameter(Name="/pmrun/key", Value="sesame", Type="SecureString")
    container = {
        "environment": [{"name": "MINE", "value": "1"}], "executionRoleArn": "arn:aws:iam::123456789012:role/x",
        "secrets": [{"name": "KEY", "valueFrom": f"arn:aws:ssm:{aws.region}:123456789012:parameter/pmrun/key"}],
    }  # fmt: skip
    job = submit(aws, [0, 0, 0], container)
    assert aws.wait(job) == "SUCCEEDED"
    addresses = []
    for node in range(3):
        told = describe(aws, job, node)
        first, rest = lines(aws, told["container"]["logStreamName"])
        seen = json.loads(first)
        assert rest == "no end of a line" and seen["files"] == [] and not os.path.exists(seen["cwd"])
        env, address = seen["env"], told["container"]["networkInterfaces"][0]["privateIpv4Address"]
        addresses.append(address)
        assert {name: value for name, value in env.items() if name.startswith("AWS_BATCH")} == {
            "AWS_BATCH_JOB_ID": f"{job}#{node}", "AWS_BATCH_JOB_ATTEMPT": "1", "AWS_BATCH_JQ_NAME": QUEUE,
            "AWS_BATCH_CE_NAME": "fake-environment", "AWS_BATCH_JOB_NODE_INDEX": str(node),
            "AWS_BATCH_JOB_NUM_NODES": "3", "AWS_BATCH_JOB_MAIN_NODE_INDEX": "0",
            **({"AWS_BATCH_JOB_MAIN_NODE_PRIVATE_IPV4_ADDRESS": addresses[0]} if node else {}),
        }  # fmt: skip
        assert (env["MINE"], env["KEY"]) == ("1", "sesame")
        assert not set(env) & {"VIRTUAL_ENV", "HOME", "TMPDIR", "PYTEST_CURRENT_TEST"}
        if not simulated_nodes.why_not_isolated():
            assert seen["host"] == f"ip-{address.replace('.', '-')}"
    aws.client("ssm").delete_parameter(Name="/pmrun/key")
    assert len(set(addresses)) == 3
    assert "exitCode" not in describe(aws, job).get("container", {}) and describe(aws, job)["attempts"]


def test_a_dead_child_is_nobodys_business_and_mains_end_is_everybodys(aws: FakeBatch) -> None:
    job = submit(aws, [None, None, None], retryStrategy={"attempts": 2})
    until_running(aws, job, 3)
    aws.kill_node(job, 2, reason="OutOfMemoryError: Container killed due to memory usage")
    machines.until(lambda: describe(aws, job, 2)["status"] == "FAILED", "the child's end")
    child = describe(aws, job, 2)["container"]
    assert (child["exitCode"], child["reason"][:16]) == (137, "OutOfMemoryError")
    assert [describe(aws, job)["status"], describe(aws, job, 1)["status"]] == ["RUNNING", "RUNNING"]
    aws.kill_node(job, 0, status_reason="Host EC2 (instance i-0) terminated.")
    machines.until(lambda: "attempts" in describe(aws, job) and describe(aws, job)["attempts"], "the end of an attempt")
    machines.until(lambda: describe(aws, job)["status"] == "RUNNING", "the next attempt")
    until_running(aws, job, 3)
    (past,) = describe(aws, job)["attempts"]
    assert past["statusReason"].startswith("Host EC2") and past["container"]["exitCode"] == 137
    now = describe(aws, job, 0)["container"]
    assert now["logStreamName"] != past["container"]["logStreamName"]
    assert now["networkInterfaces"] != past["container"]["networkInterfaces"]
    batch = aws.client("batch")
    batch.cancel_job(jobId=job, reason="too late for that")
    assert describe(aws, job)["status"] == "RUNNING"
    nodes = batch.list_jobs(multiNodeJobId=job)["jobSummaryList"]
    assert [item["nodeProperties"]["nodeIndex"] for item in nodes] == [0, 1, 2]
    batch.terminate_job(jobId=job, reason="enough")
    assert aws.wait(job) == "FAILED"
    told = describe(aws, job)
    assert (told["statusReason"], told["isTerminated"]) == ("enough", True)
    assert describe(aws, job, 1)["container"]["exitCode"] == 143  # SIGTERM was enough


def test_nodes_that_cannot_start(aws: FakeBatch) -> None:
    missing = submit(aws, [0], {"image": "missing"})
    role = {"executionRoleArn": "arn:aws:iam::123456789012:role/x"}
    keyless = submit(aws, [0], {"secrets": [{"name": "KEY", "valueFrom": "/none"}], **role})
    for job, reason in ((missing, "CannotPullContainerError"), (keyless, "ResourceInitializationError")):
        assert aws.wait(job) == "FAILED"
        (attempt,) = describe(aws, job)["attempts"]
        assert attempt["container"]["reason"].startswith(reason) and "exitCode" not in attempt["container"]
    nameless = submit(aws, [0], {"command": ["no-such-program"]})
    assert aws.wait(nameless) == "FAILED" and describe(aws, nameless, 0)["container"]["exitCode"] == 127


def refusal(function: Any, **request: Any) -> tuple[int, str, str]:
    with pytest.raises(ClientError) as caught:
        function(**request)
    error = caught.value.response
    return error["ResponseMetadata"]["HTTPStatusCode"], error["Error"]["Code"], error["Error"]["Message"]


def test_requests_that_are_refused(aws: FakeBatch) -> None:
    careless = Config(parameter_validation=False)
    batch, s3 = aws.client("batch", config=careless), aws.client("s3")
    ours = {"jobName": "j", "jobQueue": QUEUE, "jobDefinition": "none"}
    for request, told in (
        (ours, "JobDefinition none not found."),
        ({**ours, "jobQueue": "none"}, "JobQueue none not found."),
        ({**ours, "jobName": "a b"}, "valid pattern"),
        ({**ours, "jobName": "a" * 129}, "valid pattern"),
        ({"jobName": "j"}, "Missing required parameter"),
        ({**ours, "retryStrategy": {"attempts": "2"}}, "Invalid type for parameter retryStrategy.attempts"),
    ):
        status, code, message = refusal(batch.submit_job, **request)
        assert (status, code) == (400, "ClientException") and told in message
    raw = aws.client("batch", config=careless)
    raw.meta.events.register("before-call.batch.SubmitJob", lambda params, **_: params.update(body=b'{"jobNam":1}'))
    assert "Unknown parameter" in refusal(raw.submit_job, **ours)[2]
    assert refusal(batch.list_jobs, jobQueue=QUEUE, jobStatus="GONE")[2].endswith("SUCCEEDED, FAILED")
    assert refusal(batch.terminate_job, jobId="none", reason="r")[2] == "Job none does not exist"
    assert refusal(batch.list_scheduling_policies)[1] == "UnknownOperationException"
    assert refusal(aws.client("ssm").get_parameter, Name="none")[1] == "ParameterNotFound"
    logs = aws.client("logs")
    assert (
        refusal(logs.get_log_events, logGroupName="/aws/batch/job", logStreamName="x")[1] == "ResourceNotFoundException"
    )
    assert refusal(s3.put_object, Bucket="none", Key="k", Body=b"")[1] == "NoSuchBucket"


def test_queues_on_which_such_jobs_do_not_run(aws: FakeBatch) -> None:
    batch = aws.client("batch")
    usual = batch.describe_compute_environments()["computeEnvironments"][0]["computeResources"]
    for kind, more, told in (
        ("FARGATE", {}, None), ("SPOT", {}, "UNDETERMINED"), ("EC2", {"maxvCpus": 1}, "MISCONFIGURATION:COMPUTE"),
    ):  # fmt: skip
        name = f"{kind}-{len(more)}"
        resources = {**usual, "type": kind, **more}
        batch.create_compute_environment(computeEnvironmentName=name, type="MANAGED", computeResources=resources)
        order = [{"order": 1, "computeEnvironment": name}]
        batch.create_job_queue(jobQueueName=name, priority=1, computeEnvironmentOrder=order)
        definition = submit(aws, [0, 0])
        request = {"jobName": "j", "jobQueue": name, "jobDefinition": "d", "nodeOverrides": {"numNodes": 2}}
        assert aws.wait(definition) == "SUCCEEDED"
        if told is None:
            assert "not supported on Fargate" in refusal(batch.submit_job, **request)[2]
            continue
        job = batch.submit_job(**request)["jobId"]
        machines.until(lambda job=job: batch.describe_jobs(jobs=[job])["jobs"], "Batch to know the job")
        machines.until(lambda job=job, told=told: describe(aws, job)["statusReason"].startswith(told), told)
        assert describe(aws, job)["status"] == "RUNNABLE"
        batch.cancel_job(jobId=job, reason="never mind")
        assert aws.wait(job) == "FAILED" and describe(aws, job)["isCancelled"]


def test_an_api_that_fails_as_told(aws: FakeBatch) -> None:
    batch = aws.client("batch", config=Config(retries={"total_max_attempts": 1}))
    aws.fail("DescribeJobs")
    aws.fail("DescribeJobs", status=500, code="ServerException", message="Internal")
    assert refusal(batch.describe_jobs, jobs=["x"])[:2] == (429, "TooManyRequestsException")
    assert refusal(batch.describe_jobs, jobs=["x"])[:2] == (500, "ServerException")
    assert batch.describe_jobs(jobs=["x"])["jobs"] == []
    aws.fail(status=403, code="ExpiredTokenException", message="The security token included in the request is expired")
    logs = aws.client("logs")
    assert refusal(logs.describe_log_streams, logGroupName="/aws/batch/job")[1] == "ExpiredTokenException"
    assert aws.calls()[-4:] == ["DescribeJobs"] * 3 + ["DescribeLogStreams"]


def test_objects(aws: FakeBatch) -> None:
    s3 = aws.client("s3")
    s3.create_bucket(Bucket="code")
    s3.put_object(Bucket="code", Key="a b/ü.tar", Body=b"0123456789", Metadata={"v": "1"})
    assert s3.get_object(Bucket="code", Key="a b/ü.tar")["Body"].read() == b"0123456789"
    assert s3.get_object(Bucket="code", Key="a b/ü.tar", Range="bytes=2-4")["Body"].read() == b"234"
    head = s3.head_object(Bucket="code", Key="a b/ü.tar")
    assert (head["ContentLength"], head["Metadata"]) == (10, {"v": "1"})
    assert refusal(s3.put_object, Bucket="code", Key="a b/ü.tar", Body=b"", IfNoneMatch="*")[1] == "PreconditionFailed"
    s3.delete_object(Bucket="code", Key="a b/ü.tar")
    assert refusal(s3.get_object, Bucket="code", Key="a b/ü.tar")[1] == "NoSuchKey"
