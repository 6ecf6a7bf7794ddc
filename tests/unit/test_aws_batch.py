# SPDX-License-Identifier: Apache-2.0
"""AWS Batch as an engine, without nodes: requests against files, boto3's models and moto; logs; errors; reasons.

`python tests/unit/test_aws_batch.py` writes the requests anew, for whoever meant to change them.
"""

from __future__ import annotations

import importlib
import json
import shlex
import time
from pathlib import Path
from typing import Any

import botocore.exceptions
import botocore.session
import pytest
from botocore.validate import ParamValidator
from hypothesis import given, strategies as st
from moto import mock_aws

from pmrun.errors import EngineError, UsageError
from pmrun.launcher import cli
from pmrun.launcher.aws_batch import logs, reasons, trouble
from pmrun.launcher.aws_batch.client import BatchClient
from pmrun.launcher.aws_batch.request import make_request
from pmrun.launcher.command_line import split
from pmrun.launcher.job import Job
from pmrun.launcher.submission.contract import Cursor, NotSignedIn, Transient
from pmrun.testing.fake_batch import definitions
from pmrun.testing.fake_batch.logs import LogsApi

GOLDEN = Path(__file__).parent / "aws_batch_requests.json"
ROLE = "arn:aws:iam::123456789012:role/tasks"
BASE = f"--on batch --image img --queue q --with execution-role={ROLE}"
COMBINATIONS = [
    "-n 1 train.py",
    "-n 8 --nodes 2 train.py",
    "-n 7 --nodes 3 train.py --lr 0.1",
    "-n 1000 --nodes 1000 train.py",
    "-n 2 --nodes 2 -m pkg.train",
    "-n 2 --nodes 2 -- ./program 'a b'",
    "-n 2 --nodes 2 --cpu 4 train.py",
    "-n 2 --nodes 2 --cpu 4 --memory 30G train.py",
    "-n 2 --nodes 2 --memory 512M train.py",
    "-n 16 --nodes 2 --gpu 8 train.py",
    "-n 16 --nodes 2 --gpu 8 --cpu 96 --memory 1T --with instance-type=p4d.24xlarge --with efa=4 train.py",
    "-n 2 --nodes 2 --with efa=1 train.py",
    "-n 2 --nodes 2 --shared-memory 8G train.py",
    "-n 2 --nodes 2 --retries 3 train.py",
    "-n 2 --nodes 2 --timeout 3600 train.py",
    "-n 2 --nodes 2 --timeout 90.5 --start-timeout 600 --grace 30 train.py",
    "-n 2 --nodes 2 --job-name night-run_2 --with tag=team=vision --with tag=cost=7 train.py",
    f"-n 2 --nodes 2 --with job-role={ROLE}-job train.py",
    "-n 2 --nodes 2 --with share=blue --with priority=7 --with region=eu-west-1 train.py",
    "-n 4 --nodes 2 --env A=1 --env B=two --cwd /app --max-restarts 2 --transport tcp 'my job.v2.py'",
]


def job(arguments: str) -> Job:
    return cli.build_job(split(shlex.split(arguments)))


def request_of(arguments: str) -> dict[str, Any]:
    return make_request(job(f"{BASE} {arguments}"), "batch")


@pytest.fixture(scope="module")
def model() -> Any:
    return botocore.session.get_session().get_service_model("batch")


@pytest.mark.parametrize("arguments", COMBINATIONS)
def test_requests_are_as_kept_and_as_batch_wants_them(arguments: str, model: Any) -> None:
    request = request_of(arguments)
    assert request == json.loads(GOLDEN.read_text())[arguments]
    for operation, part in (("RegisterJobDefinition", "definition"), ("SubmitJob", "job")):
        found = ParamValidator().validate(request[part], model.operation_model(operation).input_shape)
        assert not found.has_errors(), found.generate_report()
    definitions.check(request["definition"])
    definitions.overridden(request["definition"]["nodeProperties"], request["job"]["nodeOverrides"])


def test_equal_jobs_share_a_definition() -> None:
    names = [request_of(text)["definition"]["jobDefinitionName"] for text in COMBINATIONS]
    assert len(set(names)) == 5  # the others have devices, shared memory or a role of their own


def test_a_thousand_nodes_are_asked_for_at_once() -> None:
    wanted = job(f"{BASE} {COMBINATIONS[3]}")
    begin = time.process_time()
    request = make_request(wanted, "batch")
    assert time.process_time() - begin < 0.2
    assert len(json.dumps(request)) < 4096


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ("-n 2 --on batch --queue q x.py", "say --image IMAGE"),
        ("-n 2 --on batch --image i x.py", "say --queue QUEUE"),
        ("-n 2 --on batch --image i --queue q x.py", "say --with execution-role=ARN"),
        (f"{BASE} -n 2 --namespace a x.py", "--namespace has no meaning with --on batch"),
        (f"{BASE} -n 2 --gang native x.py", "--gang has no meaning"),
        (f"{BASE} -n 1001 --nodes 1001 x.py", "at most 1000"),
        (f"{BASE} -n 1 --retries 10 x.py", "at most 9 times"),
        (f"{BASE} -n 1 --cpu 0.5 x.py", "whole vCPUs"),
        (f"{BASE} -n 1 --job-name a.b x.py", "letters, digits"),
        (f"{BASE} -n 1 --job-name {'a' * 129} x.py", "up to 128"),
        (f"{BASE} -n 1 --env AWS_BATCH_X=1 x.py", "AWS_BATCH for itself"),
        (f"{BASE} -n 1 --with efa=0 x.py", "1 to 32"),
        (f"{BASE} -n 1 --with tag=x x.py", "tag=NAME=VALUE"),
        (f"{BASE} -n 1 --code . x.py", "--code-store s3://bucket/prefix"),
        (f"{BASE} -n 1 --with job-role=me x.py", "the role's ARN"),
        (f"{BASE} -n 1 --with instancetype=m5.large x.py", "instance-type"),
    ],
)
def test_what_batch_would_not_take(arguments: str, told: str) -> None:
    with pytest.raises(UsageError, match=told) as caught:
        make_request(job(arguments), "batch")
    assert "\n" not in str(caught.value)


class Roles:
    """IAM, of which moto has no simulation of policies."""

    def __init__(self, decision: str) -> None:
        self._decision = decision

    def simulate_principal_policy(self, **request: Any) -> dict[str, Any]:
        assert request["PolicySourceArn"] == ROLE and request["ResourceArns"][0].startswith(
            "arn:aws:ssm:us-east-1:1234"
        )
        return {"EvaluationResults": [{"EvalActionName": "ssm:GetParameters", "EvalDecision": self._decision}]}


def furnish(session: Any) -> None:
    """A queue with an on-demand environment."""
    iam, ec2, batch = session.client("iam"), session.client("ec2"), session.client("batch")
    role = iam.create_role(RoleName="r", AssumeRolePolicyDocument="{}")["Role"]["Arn"]
    profile = iam.create_instance_profile(InstanceProfileName="p")["InstanceProfile"]["Arn"]
    resources = {
        "type": "EC2", "minvCpus": 0, "maxvCpus": 5000, "instanceTypes": ["optimal"], "instanceRole": profile,
        "subnets": [ec2.describe_subnets()["Subnets"][0]["SubnetId"]],
        "securityGroupIds": [ec2.create_security_group(GroupName="g", Description="g")["GroupId"]],
    }  # fmt: skip
    batch.create_compute_environment(
        computeEnvironmentName="compute", type="MANAGED", computeResources=resources, serviceRole=role
    )
    order = [{"order": 1, "computeEnvironment": "compute"}]
    batch.create_job_queue(jobQueueName="q", priority=1, state="ENABLED", computeEnvironmentOrder=order)


def test_moto_takes_the_requests_and_shows_what_lint_reads() -> None:
    """What moto has no more of is the fake's to show."""
    with mock_aws(config={"batch": {"use_docker": False}}):
        session = importlib.import_module("boto3").session.Session("a", "b", region_name="us-east-1")
        furnish(session)

        def client(decision: str) -> BatchClient:
            return BatchClient(
                lambda service, region: Roles(decision) if service == "iam" else session.client(service, region)
            )

        for arguments, decision, told in (
            (COMBINATIONS[11], "allowed", r"security group sg-\w+ does not let all traffic of its own members in;"),
            ("-n 1 --cpu 4 --with instance-type=m5.large x.py", "allowed", r"m5\.large has 2 of VCPU, .* asks for 4"),
            ("-n 1 --with instance-type=p4d.24xlarge x.py", "allowed", r"the queue has no p4d.*: its instances are"),
            (
                COMBINATIONS[1],
                "implicitDeny",
                "may not read the job's secret; allow it ssm:GetParameters on parameter/pmrun",
            ),
            ("-n 2 --queue none x.py", "allowed", "no queue none in us-east-1"),
        ):
            with pytest.raises(UsageError, match=told):
                client(decision).submit(request_of(arguments))
        name = client("allowed").submit(request_of(COMBINATIONS[1]))
        again = client("allowed").submit(request_of(COMBINATIONS[6]))
        assert name.startswith("batch/us-east-1/") and name != again
        assert len(session.client("batch").describe_job_definitions()["jobDefinitions"]) == 1
        (kept,) = session.client("ssm").describe_parameters()["Parameters"]
        assert kept["Name"].startswith("/pmrun/batch/pmrun-") and kept["Type"] == "SecureString"


# ---- errors -----------------------------------------------------------------------------------------------


def answered(status: int, code: str) -> botocore.exceptions.ClientError:
    answer: Any = {"Error": {"Code": code, "Message": "why\nnot"}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return botocore.exceptions.ClientError(answer, "DescribeJobs")


@pytest.mark.parametrize(
    ("error", "kind", "text"),
    [
        (botocore.exceptions.NoCredentialsError(), NotSignedIn, "aws configure"),
        (answered(403, "ExpiredTokenException"), NotSignedIn, "renew the credentials"),
        (answered(403, "AccessDeniedException"), trouble.Denied, "why not"),
        (answered(429, "TooManyRequestsException"), Transient, "why not"),
        (answered(400, "ThrottlingException"), Transient, "why not"),
        (answered(500, "ServerException"), Transient, "why not"),
        (answered(400, "ClientException"), trouble.Refused, "why not"),
        (botocore.exceptions.EndpointConnectionError(endpoint_url="http://x"), Transient, "Could not connect"),
        (botocore.exceptions.ReadTimeoutError(endpoint_url="http://x"), Transient, "timeout"),
        (botocore.exceptions.NoRegionError(), EngineError, "--with region"),
        (botocore.exceptions.UnknownServiceError(service_name="x", known_service_names="y"), EngineError, "x"),
    ],
)
def test_errors_are_told_by_what_helps(error: Exception, kind: type[Exception], text: str) -> None:
    with pytest.raises(kind, match=text) as caught, trouble.told("ask AWS Batch"):
        raise error
    assert type(caught.value) is kind and str(caught.value).startswith("cannot ask AWS Batch: ")
    assert "\n" not in str(caught.value)


# ---- logs -------------------------------------------------------------------------------------------------


class Asked:
    """The fake's log service as boto3's client has it, in pages of a few lines."""

    def __init__(self, api: LogsApi) -> None:
        self._api = api
        self.calls = 0

    def get_log_events(self, **request: Any) -> dict[str, Any]:
        self.calls += 1
        return self._api.get_log_events({**request, "limit": 3})

    def filter_log_events(self, **request: Any) -> dict[str, Any]:
        self.calls += 1
        return self._api.filter_log_events({**request, "limit": 3})


@given(st.data())
def test_every_line_comes_once_and_in_order(data: st.DataObject) -> None:
    """However nodes write, and answers are lost: streams 0 and 1 are the main node's attempts."""
    api = LogsApi()
    names = [f"s{number}" for number in range(4)]
    streams = [api.stream(logs.GROUP, name) for name in names]
    asked = Asked(api)
    written: list[list[bytes]] = [[], [], [], []]
    seen: list[list[bytes]] = [[], [], [], []]
    cursor, second = Cursor(), False

    def look(lossy: bool) -> None:
        nonlocal cursor
        main = [(names[0], second), *([(names[1], False)] if second else [])]
        lines, after = logs.read(asked, logs.Streams(main, [(2, names[2]), (3, names[3])]), cursor)
        if lossy and data.draw(st.booleans()):
            return  # the answer was lost
        cursor = after
        for line in lines:
            seen[int(line.text.split(b":")[0])].append(line.text)

    for step in range(data.draw(st.integers(0, 12))):
        number = data.draw(st.sampled_from((1 if second else 0, 2, 3)))
        for count in range(data.draw(st.integers(0, 5))):
            line = b"%d:%d.%d" % (number, step, count)
            streams[number].write(line + b"\n")
            written[number].append(line)
        second = second or data.draw(st.booleans())
        look(lossy=True)
    for _ in range(30):
        look(lossy=False)
    assert seen == written


def test_silence_costs_two_calls_and_a_page_one() -> None:
    api = LogsApi()
    api.stream(logs.GROUP, "main").write(b"a\nb\n")
    api.stream(logs.GROUP, "child").write(b"c\n")
    asked = Asked(api)
    streams = logs.Streams([("main", False)], [(1, "child")])
    lines, cursor = logs.read(asked, streams, Cursor())
    assert ([line.text for line in lines], asked.calls) == ([b"a", b"b"], 1)
    lines, cursor = logs.read(asked, streams, cursor)
    assert ([(line.node_rank, line.text) for line in lines], asked.calls) == ([(1, b"c")], 3)
    assert logs.read(asked, streams, cursor)[0] == [] and asked.calls == 5


# ---- reasons ----------------------------------------------------------------------------------------------


def node(index: int, code: int | None, reason: str = "", status_reason: str = "") -> dict[str, Any]:
    container: dict[str, Any] = {"reason": reason} if reason else {}
    if code is not None:
        container["exitCode"] = code
    return {"nodeDetails": {"nodeIndex": index}, "container": container, "statusReason": status_reason}


@pytest.mark.parametrize(
    ("found", "nodes", "told"),
    [
        ({"status": "RUNNABLE"}, [], ("says no reason", "minutes are usual")),
        ({"status": "RUNNABLE", "statusReason": "CAPACITY:INSUFFICIENT_INSTANCE_CAPACITY - x"}, [], ("CAPACITY", "wait")),
        ({"status": "FAILED", "statusReason": "Task failed to start"},
         [node(0, None, "CannotPullContainerError: x")], ("CannotPullContainerError", "--image")),
        ({"status": "FAILED", "statusReason": "Essential container in task exited"},
         [node(0, 137), node(1, 137, "OutOfMemoryError: Container killed")], ("node 1: OutOfMemoryError", "--memory")),
        ({"status": "FAILED", "statusReason": "Essential container in task exited"},
         [node(0, 127)], ("was not found", "pmrun in its PATH")),
        ({"status": "FAILED", "statusReason": "Host EC2 (instance i-1) terminated."}, [node(0, 137)],
         ("Host EC2", "--retries")),
    ],
)  # fmt: skip
def test_reasons_come_with_what_to_do(
    found: dict[str, Any], nodes: list[dict[str, Any]], told: tuple[str, str]
) -> None:
    finding = reasons.findings(found, nodes)[-1]
    assert told[0] in finding.what and told[1] in finding.remedy


def test_names_of_jobs() -> None:
    client = BatchClient(lambda service, region: None)
    for name in ("batch/us-east-1", "slurm/us-east-1/x", "batch//x"):
        with pytest.raises(UsageError, match="batch/REGION/JOBID"):
            client.status(name)


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps({text: request_of(text) for text in COMBINATIONS}, indent=1) + "\n")
