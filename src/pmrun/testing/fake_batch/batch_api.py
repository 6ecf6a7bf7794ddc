# SPDX-License-Identifier: Apache-2.0
"""AWS Batch's operations: definitions, queues, compute environments, and the jobs that were submitted.

Requests have passed the service's model when they come here. Nothing runs here: what is to be started or stopped is
handed on as actions of the job's life. Invariant: one region and account; an ARN and a name mean the same thing.
"""

from __future__ import annotations

import random
import uuid
from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from typing import Any, Final

from pmrun.testing.fake_batch import definitions, detail
from pmrun.testing.fake_batch.errors import bad_request
from pmrun.testing.fake_batch.jobs import Job
from pmrun.testing.fake_batch.lifecycle import Action, Delays, Lifecycle
from pmrun.testing.fake_batch.rules import EvaluateOnExit

_DESCRIBED_MAX: Final = 100
_TOO_SMALL: Final = (
    "MISCONFIGURATION:COMPUTE_ENVIRONMENT_MAX_RESOURCE - CE(s) associated with the job queue cannot meet the job "
    "resource requirement."
)
_UNDETERMINED: Final = "UNDETERMINED - Batch job is blocked, root cause is undetermined."

Request = Mapping[str, Any]
Reply = dict[str, Any]


class BatchApi:
    """The service's operations, by their names in Python.

    Parameters
    ----------
    arn_prefix : str
        Of all that is made here.
    perform : callable
        Does what a job's life asks for.
    unseen : int
        How often DescribeJobs does not know a job that was just submitted.
    """

    def __init__(
        self, arn_prefix: str, perform: Callable[[Job, list[Action]], None], clock: Callable[[], float],
        rng: random.Random, delays: Delays, unseen: int,
    ) -> None:  # fmt: skip
        self.jobs: dict[str, Job] = {}
        self.no_capacity = ""  # the reason why no job gets instances, or ""
        self._arn_prefix = arn_prefix
        self._perform = perform
        self._clock = clock
        self._rng = rng
        self._delays = delays
        self._unseen = unseen
        self._definitions: dict[str, list[Reply]] = {}
        self._environments: dict[str, Reply] = {}
        self._queues: dict[str, Reply] = {}

    # ---- definitions ------------------------------------------------------------------------------------

    def register_job_definition(self, request: Request) -> Reply:
        definitions.check(request)
        name = request["jobDefinitionName"]
        revisions = self._definitions.setdefault(name, [])
        revision = len(revisions) + 1
        arn = f"{self._arn_prefix}:job-definition/{name}:{revision}"
        revisions.append(
            {
                "jobDefinitionArn": arn, "revision": revision, "status": "ACTIVE", "containerOrchestrationType": "ECS",
                "parameters": {}, "tags": {}, "platformCapabilities": ["EC2"], "propagateTags": False, **request,
            }
        )  # fmt: skip
        return {"jobDefinitionName": name, "jobDefinitionArn": arn, "revision": revision}

    def deregister_job_definition(self, request: Request) -> Reply:
        found = self._definition(request["jobDefinition"])
        if found is None or ":" not in request["jobDefinition"]:
            raise bad_request(f"JobDefinition {request['jobDefinition']} not found; give its name and revision.")
        found["status"] = "INACTIVE"
        return {}

    def describe_job_definitions(self, request: Request) -> Reply:
        found = [revision for revisions in self._definitions.values() for revision in reversed(revisions)]
        if "jobDefinitionName" in request:
            name = request["jobDefinitionName"].rpartition("job-definition/")[2].partition(":")[0]
            found = [item for item in found if item["jobDefinitionName"] == name]
        if request.get("jobDefinitions"):
            wanted = [self._definition(text) for text in request["jobDefinitions"]]
            found = [item for item in found if any(item is other for other in wanted)]
        if "status" in request:
            found = [item for item in found if item["status"] == request["status"]]
        return _page(request, found, "jobDefinitions")

    def _definition(self, text: str) -> Reply | None:
        """By name (the newest that is active), name:revision, or ARN."""
        name, _, revision = text.rpartition("job-definition/")[2].partition(":")
        revisions = self._definitions.get(name, [])
        if revision:
            fitting = [item for item in revisions if str(item["revision"]) == revision]
        else:
            fitting = [item for item in revisions if item["status"] == "ACTIVE"]
        return fitting[-1] if fitting else None

    # ---- queues and compute environments ------------------------------------------------------------------

    def create_compute_environment(self, request: Request) -> Reply:
        name = definitions.name(request["computeEnvironmentName"], "Compute environment name")
        if name in self._environments:
            raise bad_request("Object already exists")
        if request["type"] == "MANAGED" and "computeResources" not in request:
            raise bad_request("computeResources must be provided for a MANAGED compute environment")
        arn = f"{self._arn_prefix}:compute-environment/{name}"
        self._environments[name] = {
            "computeEnvironmentArn": arn, "state": "ENABLED", "status": "VALID", "statusReason": "ComputeEnvironment Healthy",
            "ecsClusterArn": f"{self._arn_prefix.replace(':batch:', ':ecs:')}:cluster/{name}_Batch", "tags": {},
            "containerOrchestrationType": "ECS", **request,
        }  # fmt: skip
        return {"computeEnvironmentName": name, "computeEnvironmentArn": arn}

    def describe_compute_environments(self, request: Request) -> Reply:
        return _page(request, _named(self._environments, request.get("computeEnvironments")), "computeEnvironments")

    def create_job_queue(self, request: Request) -> Reply:
        name = definitions.name(request["jobQueueName"], "Job queue name")
        if name in self._queues:
            raise bad_request("Object already exists")
        order = request.get("computeEnvironmentOrder", ())
        if not order:
            raise bad_request("computeEnvironmentOrder must have at least one compute environment")
        for item in order:
            if not _named(self._environments, [item["computeEnvironment"]]):
                raise bad_request(f"Compute environment {item['computeEnvironment']} does not exist")
        arn = f"{self._arn_prefix}:job-queue/{name}"
        self._queues[name] = {
            "jobQueueArn": arn, "state": "ENABLED", "status": "VALID", "statusReason": "JobQueue Healthy", "tags": {},
            "jobStateTimeLimitActions": [], **request,
        }  # fmt: skip
        return {"jobQueueName": name, "jobQueueArn": arn}

    def describe_job_queues(self, request: Request) -> Reply:
        return _page(request, _named(self._queues, request.get("jobQueues")), "jobQueues")

    def _queue(self, text: str) -> Reply:
        found = _named(self._queues, [text])
        if not found:
            raise bad_request(f"JobQueue {text} not found.")
        return found[0]

    def _environment(self, queue: Request) -> Reply:
        first = min(queue["computeEnvironmentOrder"], key=lambda item: int(item["order"]))
        return _named(self._environments, [first["computeEnvironment"]])[0]

    # ---- jobs -----------------------------------------------------------------------------------------------

    def submit_job(self, request: Request) -> Reply:
        name = definitions.name(request["jobName"], "Job name")
        queue = self._queue(request["jobQueue"])
        if queue["state"] != "ENABLED":
            raise bad_request(f"Cannot submit job to job queue {queue['jobQueueName']}: it is DISABLED.")
        environment = self._environment(queue)
        if environment.get("computeResources", {}).get("type", "").startswith("FARGATE"):
            raise bad_request("Multi-node parallel jobs are not supported on Fargate")
        definition = self._definition(request["jobDefinition"])
        if definition is None or definition["status"] != "ACTIVE":
            raise bad_request(f"JobDefinition {request['jobDefinition']} not found.")
        for wrong in ("containerOverrides", "arrayProperties", "dependsOn"):
            if request.get(wrong):
                raise bad_request(f"{wrong} cannot be given for a multi-node parallel job of this fake")
        strategy = request.get("retryStrategy", definition.get("retryStrategy", {}))
        timeout = request.get("timeout", definition.get("timeout", {}))
        definitions.check_retries(strategy)
        definitions.check_timeout(timeout)
        nodes = definitions.overridden(definition["nodeProperties"], request.get("nodeOverrides", {}))
        job_id = str(uuid.UUID(int=self._rng.getrandbits(128), version=4))
        life = Lifecycle(
            nodes["numNodes"], nodes["mainNode"], strategy.get("attempts", 1), _rules(strategy),
            timeout.get("attemptDurationSeconds"), self._delays, random.Random(self._rng.getrandbits(64)), self._clock(),
        )  # fmt: skip
        job = Job(
            job_id, name, f"{self._arn_prefix}:job/{job_id}", queue, environment, definition, nodes, strategy, timeout,
            {**definition["parameters"], **request.get("parameters", {})}, dict(request.get("tags", {})), life,
            self._unseen,
        )  # fmt: skip
        life.blocked = self.no_capacity or _blocker(job)
        self.jobs[job_id] = job
        return {"jobArn": job.arn, "jobName": name, "jobId": job_id}

    def describe_jobs(self, request: Request) -> Reply:
        if len(request["jobs"]) > _DESCRIBED_MAX:
            raise bad_request(f"at most {_DESCRIBED_MAX} jobs can be described at once")
        described, unseen = [], set()
        for text in request["jobs"]:
            job_id, _, node = text.rpartition("job/")[2].partition("#")
            job = self.jobs.get(job_id)
            if job is None or (node and not (node.isdigit() and int(node) < job.life.num_nodes)):
                continue
            if job.unseen > 0:
                unseen.add(job)
                continue
            described.append(detail.of_node(job, int(node)) if node else detail.of_job(job))
        for job in unseen:
            job.unseen -= 1
        return {"jobs": described}

    def list_jobs(self, request: Request) -> Reply:
        if "multiNodeJobId" in request:
            job = self.jobs.get(request["multiNodeJobId"])
            found = [] if job is None else [detail.summary_of_node(job, node) for node in range(job.life.num_nodes)]
        elif "jobQueue" in request:
            queue = self._queue(request["jobQueue"])
            found = [detail.summary_of_job(job) for job in reversed(self.jobs.values()) if job.queue is queue]
            found = _filtered(request, found)
        else:
            raise bad_request("You must specify only one of jobQueue, arrayJobId or multiNodeJobId")
        return _page(request, found, "jobSummaryList")

    def terminate_job(self, request: Request) -> Reply:
        job = self._job(request["jobId"])
        self._perform(job, job.life.terminate(request["reason"]))
        return {}

    def cancel_job(self, request: Request) -> Reply:
        self._job(request["jobId"]).life.cancel(request["reason"])
        return {}

    def _job(self, text: str) -> Job:
        job = self.jobs.get(text.partition("#")[0])
        if job is None:
            raise bad_request(f"Job {text} does not exist")
        return job

    def set_capacity(self, reason: str) -> None:
        """No job gets instances for this reason; "": they do again."""
        self.no_capacity = reason
        for job in self.jobs.values():
            if reason:
                job.life.block(reason)
            elif not _blocker(job):
                job.life.unblock(self._clock())


def _rules(strategy: Request) -> tuple[EvaluateOnExit, ...]:
    return tuple(
        EvaluateOnExit(
            rule["action"], rule.get("onExitCode", ""), rule.get("onStatusReason", ""), rule.get("onReason", "")
        )
        for rule in strategy.get("evaluateOnExit", ())
    )


def _blocker(job: Job) -> str:
    """What about its compute environment keeps a job RUNNABLE for good, or ""."""
    resources = job.environment.get("computeResources", {})
    if job.environment["type"] == "UNMANAGED" or resources.get("type") == "SPOT":
        return _UNDETERMINED  # documented is only that such jobs are not supported there
    return _TOO_SMALL if job.vcpus() > resources["maxvCpus"] else ""


def _named(kept: Mapping[str, Reply], wanted: list[str] | None) -> list[Reply]:
    """Those with these names or ARNs, all where none are given."""
    if not wanted:
        return list(kept.values())
    names = [text.rpartition("/")[2] for text in wanted]
    return [kept[name] for name in names if name in kept]


def _filtered(request: Request, found: list[Reply]) -> list[Reply]:
    filters = request.get("filters", ())
    if not filters:
        return [item for item in found if item["status"] == request.get("jobStatus", "RUNNING")]
    for rule in filters:
        name, values = rule["name"], rule["values"]
        if name == "JOB_NAME":
            found = [item for item in found if any(fnmatchcase(item["jobName"].lower(), v.lower()) for v in values)]
        elif name == "AFTER_CREATED_AT":
            found = [item for item in found if item["createdAt"] > int(values[0])]
        elif name == "BEFORE_CREATED_AT":
            found = [item for item in found if item["createdAt"] < int(values[0])]
        else:
            raise bad_request(f"this fake does not filter by {name}")
    return found


def _page(request: Request, found: list[Reply], member: str) -> Reply:
    """As many as were asked for, and the token of the next page."""
    first, limit = int(request.get("nextToken", "0")), request.get("maxResults", _DESCRIBED_MAX)
    reply: Reply = {member: found[first : first + limit]}
    if first + limit < len(found):
        reply["nextToken"] = str(first + limit)
    return reply
