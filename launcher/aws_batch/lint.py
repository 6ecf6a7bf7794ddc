# SPDX-License-Identifier: Apache-2.0
"""What AWS Batch accepts and then never runs, found before a job is submitted.

The queue and its compute environments are always looked at; instance types, security groups and roles where the user
may ask for them, and are passed over where not. Invariant: nothing is changed, and what cannot be found out is no
finding.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, Final

from pmrun.errors import UsageError
from pmrun.launcher.aws_batch.trouble import Denied, Refused, told
from pmrun.launcher.submission.contract import Finding, Request

Services = Callable[[str], Any]

_WORDS: Final = ("optimal", "default_x86_64", "default_arm64")  # words that stand for families c, m and r
_ON_DEMAND: Final = (
    "multi-node jobs run on a MANAGED environment of on-demand EC2 instances; choose a queue that has one"
)


def findings(request: Request, services: Services) -> list[Finding]:
    """What would keep the job from running; nothing is submitted if there is any."""
    job = request["job"]
    overrides = job["nodeOverrides"]["nodePropertyOverrides"][0]["containerOverrides"]
    wanted = {item["type"]: int(item["value"]) for item in overrides["resourceRequirements"]}
    queue, environments = _look(job["jobQueue"], services("batch"))
    found = _of_queue(queue, environments, job["nodeOverrides"]["numNodes"], wanted["VCPU"])
    if found:
        return found
    container = request["definition"]["nodeProperties"]["nodeRangeProperties"][0]["container"]
    if "instanceType" in overrides:
        found += _of_type(overrides["instanceType"], wanted, environments, services)
    if container["linuxParameters"].get("devices"):
        found += _of_groups(environments, services)
    return found + _of_role(container, services)


def of_queue(name: str, nodes: int, batch: Any) -> list[Finding]:
    """Whether a queue runs multi-node jobs."""
    queue, environments = _look(name, batch)
    return _of_queue(queue, environments, nodes, 1)


def _look(name: str, batch: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A queue, and its compute environments in their order."""
    with told(f"look at the queue {name}"):
        queues = batch.describe_job_queues(jobQueues=[name])["jobQueues"]
    if not queues:
        region = batch.meta.region_name
        raise UsageError(f"AWS Batch has no queue {name} in {region}: check --queue and --with region=...")
    queue: dict[str, Any] = queues[0]
    order = sorted(queue["computeEnvironmentOrder"], key=lambda item: int(item["order"]))
    names = [item["computeEnvironment"] for item in order]
    with told(f"look at the compute environments of {name}"):
        found = batch.describe_compute_environments(computeEnvironments=names)["computeEnvironments"]
    return queue, found


def _of_queue(queue: dict[str, Any], environments: list[dict[str, Any]], nodes: int, cpus: int) -> list[Finding]:
    name, state, status = queue["jobQueueName"], queue["state"], queue.get("status", "VALID")
    if state != "ENABLED" or status not in ("VALID", "UPDATING"):
        why = f": {queue['statusReason']}" if queue.get("statusReason") else ""
        return [Finding(f"the queue {name} is {state}, {status}{why}", "enable it, or choose another")]
    found = [_of_environment(name, item, nodes, cpus) for item in environments]
    return [] if None in found else [item for item in found if item is not None]


def _of_environment(queue: str, environment: dict[str, Any], nodes: int, cpus: int) -> Finding | None:
    name, resources = environment["computeEnvironmentName"], environment.get("computeResources", {})
    kind = "UNMANAGED" if environment["type"] == "UNMANAGED" else resources.get("type", "EC2")
    where = f"the compute environment {name} of the queue {queue}"
    if kind != "EC2":
        return Finding(f"{where} is {kind}", _ON_DEMAND)
    if environment.get("state", "ENABLED") != "ENABLED" or environment.get("status", "VALID") == "INVALID":
        why = environment.get("statusReason", "")
        return Finding(
            f"{where} is disabled or invalid{': ' + why if why else ''}", "repair it, or choose another queue"
        )
    most = resources.get("maxvCpus", 0)
    if nodes * cpus > most:
        what = f"{nodes} nodes of {cpus} vCPUs are more than the {most} that {where} may have"
        return Finding(what, "raise its maxvCpus, or ask for less")
    return None


def _of_type(
    kind: str, wanted: dict[str, int], environments: list[dict[str, Any]], services: Services
) -> Iterator[Finding]:
    allowed = {item for one in environments for item in one.get("computeResources", {}).get("instanceTypes", ())}
    by_word = bool(allowed & {*_WORDS}) and kind[0] in "cmr"
    if not by_word and not allowed & {kind, kind.partition(".")[0]}:
        yield Finding(
            f"the queue has no {kind}: its instances are {', '.join(sorted(allowed))}", "correct --with instance-type"
        )
    with _where_allowed():
        with told(f"look at the instance type {kind}"):
            answer = services("ec2").describe_instance_types(InstanceTypes=[kind])["InstanceTypes"]
        for item in answer:
            gpus = sum(gpu["Count"] for gpu in item.get("GpuInfo", {}).get("Gpus", ()))
            has = {"VCPU": item["VCpuInfo"]["DefaultVCpus"], "MEMORY": item["MemoryInfo"]["SizeInMiB"], "GPU": gpus}
            for resource, most in has.items():
                if wanted.get(resource, 0) > most:
                    yield Finding(
                        f"{kind} has {most} of {resource}, and each node asks for {wanted[resource]}",
                        "ask for less, or for a larger type",
                    )


def _of_groups(environments: list[dict[str, Any]], services: Services) -> Iterator[Finding]:
    """EFA needs security groups that let their own members through."""
    groups = [item for one in environments for item in one.get("computeResources", {}).get("securityGroupIds", ())]
    if not groups:
        return
    with _where_allowed():
        with told("look at the security groups"):
            answer = services("ec2").describe_security_groups(GroupIds=groups)["SecurityGroups"]
        for group in answer:
            name = group["GroupId"]
            for direction, rules in (("in", "IpPermissions"), ("out", "IpPermissionsEgress")):
                own = [
                    rule
                    for rule in group.get(rules, ())
                    for pair in rule["UserIdGroupPairs"]
                    if pair["GroupId"] == name
                ]
                if not any(rule["IpProtocol"] == "-1" for rule in own):
                    yield Finding(
                        f"the security group {name} does not let all traffic of its own members {direction}",
                        f"add a rule for all protocols with {name} itself",
                    )


def _of_role(container: dict[str, Any], services: Services) -> list[Finding]:
    """The role by which the nodes get the secret must be allowed to."""
    role, parameter = container["executionRoleArn"], container["secrets"][0]["valueFrom"]
    partition, account = role.split(":")[1], role.split(":")[4]
    region = services("batch").meta.region_name
    with _where_allowed():
        with told(f"look at the role {role}"):
            answer = services("iam").simulate_principal_policy(
                PolicySourceArn=role,
                ActionNames=["ssm:GetParameters"],
                ResourceArns=[f"arn:{partition}:ssm:{region}:{account}:parameter{parameter}"],
            )
        if any(item["EvalDecision"] != "allowed" for item in answer["EvaluationResults"]):
            what = f"the execution role {role} may not read the job's secret"
            return [Finding(what, f"allow it ssm:GetParameters on parameter{parameter}")]
    return []


@contextlib.contextmanager
def _where_allowed() -> Iterator[None]:
    """What may not be looked at, or is not known here, is passed over."""
    with contextlib.suppress(Denied, Refused):
        yield
