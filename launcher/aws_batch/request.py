# SPDX-License-Identifier: Apache-2.0
"""The requests by which a job goes to AWS Batch. Pure: the same job gives the same requests, and nothing is asked.

A job is one definition and one submission. The definition has one range of nodes, `0:`, and what cannot be said later:
image, roles, shared memory, devices, the secret's place; its name is a hash of its content, so equal jobs share it. The
submission overrides the number of nodes, command, variables and resources. Invariant: no secret is in a request.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from typing import Any, Final

from pmrun import env
from pmrun.errors import UsageError
from pmrun.launcher.job import Job
from pmrun.launcher.submission.code import Code, code_place, describe_code
from pmrun.launcher.submission.contract import Request
from pmrun.launcher.submission.node_command import node_words
from pmrun.launcher.submission.read import Key, check_options, read_keys, title_of

_NODES_MAX: Final = 1000
_RETRIES_MAX: Final = 9
_DEVICES_MAX: Final = 32
_TIMEOUT_MIN_S: Final = 60
_MARGIN_S: Final = 60.0  # beyond all that pmrun itself waits for, before Batch ends the job
_MIB_PER_CPU: Final = 2048  # of memory, where nobody said how much
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,127}")
_UNDERSTOOD: Final = frozenset(
    {"image", "queue", "cpu", "gpu", "memory_mib", "shared_memory_mib", "retries", "code", "code_store", "pip"}
)
RANGE: Final = "0:"  # all nodes, however many


def _role(text: str) -> str:
    if not re.fullmatch(r"arn:aws[a-z-]*:iam::\d{12}:role/\S+", text):
        raise ValueError("give the role's ARN: arn:aws:iam::123456789012:role/NAME")
    return text


def _devices(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) <= _DEVICES_MAX:
        raise ValueError(f"the number of EFA devices of each node is 1 to {_DEVICES_MAX}")
    return int(text)


def _tag(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not 0 < len(name) <= 128 or len(value) > 256 or name.lower().startswith("aws:"):
        raise ValueError("write --with tag=NAME=VALUE; names have up to 128 characters and do not begin with aws:")
    return name, value


def _priority(text: str) -> int:
    if not text.isdecimal() or int(text) > 9999:
        raise ValueError("the priority is a whole number from 0 to 9999")
    return int(text)


def _word(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9.-]{1,255}", text):
        raise ValueError("this is letters, digits, points and hyphens")
    return text


KEYS: Final = (
    Key("region", _word, "where the job runs; default: boto3's own"),
    Key(
        "execution-role", _role, "the role by which nodes get the job's secret (ssm:GetParameters) and write their logs"
    ),
    Key("job-role", _role, "the role of the program itself"),
    Key("instance-type", _word, "of all nodes"),
    Key("efa", _devices, "so many EFA devices of each node are in its container"),
    Key("tag", _tag, "NAME=VALUE of the job; may be repeated", many=True),
    Key("share", _word, "the share identifier, in a fair-share queue"),
    Key("priority", _priority, "within that share"),
)


def make_request(job: Job, engine: str, secret_prefix: str = "/pmrun/batch") -> Request:
    """What is registered and submitted; UsageError for what Batch does not have or would not take."""
    submission = job.submission
    assert submission is not None
    check_options(engine, submission, _UNDERSTOOD)
    keys = read_keys(engine, submission, KEYS)
    for value, spelling in ((submission.image, "--image IMAGE"), (submission.queue, "--queue QUEUE")):
        if not value:
            raise UsageError(f"--on {engine}: say {spelling}")
    if "execution-role" not in keys:
        raise UsageError(f"--on {engine}: nodes get the job's secret by a role; say --with execution-role=ARN")
    if job.nodes.count > _NODES_MAX:
        raise UsageError(f"--nodes {job.nodes.count}: a job of AWS Batch has at most {_NODES_MAX}")
    if submission.retries > _RETRIES_MAX:
        raise UsageError(f"--retries {submission.retries}: AWS Batch retries at most {_RETRIES_MAX} times")
    place = code_place(job)
    if submission.code is not None and place is None:
        raise UsageError(f"--on {engine}: say where the code waits for the nodes: --code-store s3://bucket/prefix")
    code = None if place is None else describe_code(job, place.address)
    definition = _definition(job, keys, secret_prefix)
    request: Request = {
        "region": keys.get("region"),
        "definition": definition,
        "secret": {
            "Name": definition["nodeProperties"]["nodeRangeProperties"][0]["container"]["secrets"][0]["valueFrom"],
            "Type": "SecureString",
            "Value": "(made when it is missing)",
        },
        "job": _submission(job, keys, definition["jobDefinitionName"], code),
        **({"code": {**code, "store": submission.code_store}} if code is not None else {}),
    }
    return request


def _definition(job: Job, keys: dict[str, Any], secret_prefix: str) -> dict[str, Any]:
    assert job.submission is not None
    linux: dict[str, Any] = {"initProcessEnabled": True}
    if job.submission.shared_memory_mib is not None:
        linux["sharedMemorySize"] = job.submission.shared_memory_mib
    if "efa" in keys:
        paths = [f"/dev/infiniband/uverbs{number}" for number in range(keys["efa"])]
        linux["devices"] = [
            {"hostPath": path, "containerPath": path, "permissions": ["READ", "WRITE", "MKNOD"]} for path in paths
        ]
    container = {
        "image": job.submission.image,
        "command": ["pmrun", "agent"],
        "executionRoleArn": keys["execution-role"],
        **({"jobRoleArn": keys["job-role"]} if "job-role" in keys else {}),
        "linuxParameters": linux,
        "resourceRequirements": _resources(1, _MIB_PER_CPU, 0),
    }
    content = json.dumps([container, secret_prefix], sort_keys=True).encode()
    name = f"pmrun-{hashlib.sha256(content).hexdigest()[:20]}"
    container["secrets"] = [{"name": env.SECRET, "valueFrom": f"{secret_prefix}/{name}"}]
    nodes = {"numNodes": 1, "mainNode": 0, "nodeRangeProperties": [{"targetNodes": RANGE, "container": container}]}
    return {
        "jobDefinitionName": name, "type": "multinode", "platformCapabilities": ["EC2"], "nodeProperties": nodes,
        "tags": {"pmrun": "definition"},
    }  # fmt: skip


def _submission(job: Job, keys: dict[str, Any], definition: str, code: Code | None) -> dict[str, Any]:
    submission = job.submission
    assert submission is not None
    ranks = math.ceil(job.world_size / job.nodes.count)
    cpus = submission.cpu if submission.cpu is not None else ranks
    if cpus != int(cpus):
        raise UsageError(f"--cpu {cpus:g}: AWS Batch gives whole vCPUs to nodes on EC2")
    memory_mib = submission.memory_mib if submission.memory_mib is not None else _MIB_PER_CPU * int(cpus)
    overrides: dict[str, Any] = {
        "command": node_words(job, code),
        "environment": [{"name": name, "value": value} for name, value in job.env],
        "resourceRequirements": _resources(int(cpus), memory_mib, submission.gpu or 0),
    }
    for name, _ in job.env:
        if name.startswith("AWS_BATCH"):
            raise UsageError(f"the variable {name}: AWS Batch keeps names with AWS_BATCH for itself")
    if "instance-type" in keys:
        overrides["instanceType"] = keys["instance-type"]
    request: dict[str, Any] = {
        "jobName": _job_name(job),
        "jobQueue": submission.queue,
        "jobDefinition": definition,
        "nodeOverrides": {
            "numNodes": job.nodes.count,
            "nodePropertyOverrides": [{"targetNodes": RANGE, "containerOverrides": overrides}],
        },
        "tags": {"pmrun": "job", **dict(keys.get("tag", ()))},
    }
    if submission.retries:
        request["retryStrategy"] = {"attempts": submission.retries + 1}
    if job.timeout_s is not None:
        most_s = job.start_timeout_s + job.timeout_s + job.grace_s + _MARGIN_S
        request["timeout"] = {"attemptDurationSeconds": max(_TIMEOUT_MIN_S, math.ceil(most_s))}
    if "share" in keys:
        request["shareIdentifier"] = keys["share"]
    if "priority" in keys:
        request["schedulingPriorityOverride"] = keys["priority"]
    return request


def _resources(cpus: int, memory_mib: int, gpus: int) -> list[dict[str, str]]:
    wanted = [{"type": "VCPU", "value": str(cpus)}, {"type": "MEMORY", "value": str(memory_mib)}]
    return [*wanted, {"type": "GPU", "value": str(gpus)}] if gpus else wanted


def _job_name(job: Job) -> str:
    assert job.submission is not None
    if job.submission.name is not None:
        if not _NAME.fullmatch(job.submission.name):
            raise UsageError(
                f"--job-name {job.submission.name}: AWS Batch takes up to 128 letters, digits, hyphens and underscores"
            )
        return job.submission.name
    made = re.sub(r"[^A-Za-z0-9_-]+", "-", title_of(job)).lstrip("-_")[:128]
    return made or "pmrun"
