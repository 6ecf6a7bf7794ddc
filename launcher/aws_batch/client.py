# SPDX-License-Identifier: Apache-2.0
"""AWS Batch as pmrun's engine: submits jobs, and answers what became of them by their names.

A name is `batch/REGION/JOBID`. The definition of a job, and the secret that its nodes get by it, are made when they are
missing and stay for the next equal job: Batch takes a secret's place from a definition only. A job's own keys follow
from that secret and its id and attempt (launcher/standing.py). Invariant: each method makes a few calls and tries none
again; after an error of `submit` what it made is gone.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, Final

from pmrun.errors import EngineError, UsageError
from pmrun.launcher import keys
from pmrun.launcher.aws_batch import lint, logs, reasons
from pmrun.launcher.aws_batch.request import make_request
from pmrun.launcher.aws_batch.trouble import Refused, told
from pmrun.launcher.code_package.places import open_place
from pmrun.launcher.job import Job
from pmrun.launcher.submission.code import send_code
from pmrun.launcher.submission.contract import (
    Cursor,
    Finding,
    JobStatus,
    LogLine,
    NodeStatus,
    NoSuchJob,
    Request,
    State,
)

Connect = Callable[[str, str | None], Any]  # service and region (None: the usual one): boto3's client

_STATES: Final = {
    "SUBMITTED": State.QUEUED, "PENDING": State.QUEUED, "RUNNABLE": State.QUEUED, "STARTING": State.STARTING,
    "RUNNING": State.RUNNING, "SUCCEEDED": State.SUCCEEDED, "FAILED": State.FAILED,
}  # fmt: skip
_DESCRIBED_MAX: Final = 100  # jobs and nodes that one call takes
_LISTED_MAX: Final = 100


class BatchClient:
    """One account; regions as names say. `engine` is the first part of its jobs' names."""

    calls_per_minute: ClassVar[int] = 8  # of which every second asks twice: see logs.py
    settle_s: ClassVar[float] = 10.0  # CloudWatch shows lines some seconds after they were written

    def __init__(self, connect: Connect, engine: str = "batch") -> None:
        self._connect = connect
        self._engine = engine
        self._clients: dict[tuple[str, str | None], Any] = {}
        self._streams: dict[str, logs.Streams] = {}  # by job id, as the next is
        self._far_nodes: dict[str, tuple[object, list[dict[str, Any]]]] = {}

    # ---- submitting ---------------------------------------------------------------------------------------

    def request(self, job: Job) -> Request:
        return make_request(job, self._engine)

    def submit(self, request: Request) -> str:
        region = request["region"]
        batch = self._client("batch", region)
        region = str(batch.meta.region_name)
        findings = lint.findings(request, lambda service: self._client(service, region))
        if findings:
            raise UsageError(f"{findings[0].what}; {findings[0].remedy}")
        if "code" in request:
            send_code(request["code"], open_place(request["code"]["store"]))
        with contextlib.ExitStack() as undo:
            self._make_secret(request["secret"], region, undo)
            self._make_definition(batch, request["definition"], undo)
            with told("submit the job"):
                answer = batch.submit_job(**request["job"])
            undo.pop_all()
        return f"{self._engine}/{region}/{answer['jobId']}"

    def _make_secret(self, parameter: dict[str, str], region: str, undo: contextlib.ExitStack) -> None:
        ssm = self._client("ssm", region)
        name = parameter["Name"]
        try:
            with told(f"keep the job's secret in the SSM parameter {name}"):
                ssm.put_parameter(**{**parameter, "Value": keys.new_secret().hex()})
        except Refused as error:
            if error.code != "ParameterAlreadyExists":
                raise
            return
        undo.callback(_quietly, lambda: ssm.delete_parameter(Name=name))

    def _make_definition(self, batch: Any, definition: Request, undo: contextlib.ExitStack) -> None:
        name = definition["jobDefinitionName"]
        with told(f"look for the job definition {name}"):
            found = batch.describe_job_definitions(jobDefinitionName=name, status="ACTIVE", maxResults=1)
        if not found["jobDefinitions"]:
            with told(f"register the job definition {name}"):
                arn = batch.register_job_definition(**definition)["jobDefinitionArn"]
            undo.callback(_quietly, lambda: batch.deregister_job_definition(jobDefinition=arn))

    # ---- asking -------------------------------------------------------------------------------------------

    def status(self, name: str) -> JobStatus:
        job, nodes = self._described(name)
        return _status(name, job, nodes)

    def read_logs(self, name: str, cursor: Cursor) -> tuple[list[LogLine], Cursor]:
        region, job_id = self._parts(name)
        if job_id not in self._streams:
            self._described(name)
        return logs.read(self._client("logs", region), self._streams[job_id], cursor)

    def cancel(self, name: str) -> None:
        region, job_id = self._parts(name)
        with self._known(name):
            self._client("batch", region).terminate_job(jobId=job_id, reason=reasons.CANCELLED)

    def jobs(self) -> list[JobStatus]:
        batch = self._client("batch", None)
        found: list[JobStatus] = []
        for queue in _pages(batch.describe_job_queues, "jobQueues", {}, "list the job queues"):
            request = {
                "jobQueue": queue["jobQueueArn"], "maxResults": _LISTED_MAX,
                "filters": [{"name": "AFTER_CREATED_AT", "values": ["0"]}],
            }  # fmt: skip
            for job in _pages(batch.list_jobs, "jobSummaryList", request, "list the jobs"):
                if "job-definition/pmrun-" in job.get("jobDefinition", ""):
                    name = f"{self._engine}/{batch.meta.region_name}/{job['jobId']}"
                    found.append(_status(name, {"attempts": [job], **job}, []))
        return sorted(found, key=lambda status: -(status.created_s or 0.0))

    def why(self, name: str) -> list[Finding]:
        job, nodes = self._described(name)
        found = reasons.findings(job, nodes)
        if job["status"] in reasons.WAITING:
            region, _ = self._parts(name)
            found += lint.of_queue(job["jobQueue"], job["nodeProperties"]["numNodes"], self._client("batch", region))
        return found

    # ---- details ------------------------------------------------------------------------------------------

    def _parts(self, name: str) -> tuple[str, str]:
        parts = name.split("/")
        if len(parts) != 3 or parts[0] != self._engine or not all(parts):
            raise UsageError(f"{name!r} is no job of AWS Batch: its name is {self._engine}/REGION/JOBID")
        return parts[1], parts[2]

    def _client(self, service: str, region: str | None) -> Any:
        found = self._clients.get((service, region))
        if found is None:
            with told("talk to AWS"):
                found = self._clients[service, region] = self._connect(service, region)
        return found

    @contextlib.contextmanager
    def _known(self, name: str) -> Iterator[None]:
        try:
            with told(f"ask AWS Batch for {name}"):
                yield
        except Refused as error:
            if "does not exist" in str(error) or "not found" in str(error).lower():
                raise NoSuchJob(f"AWS Batch knows no job {name} (any more): it forgets them after a week") from None
            raise

    def _described(self, name: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """The job and its nodes, in one call: Batch passes over nodes that are not."""
        region, job_id = self._parts(name)
        batch = self._client("batch", region)
        asked = [job_id, *(f"{job_id}#{node}" for node in range(_DESCRIBED_MAX - 1))]
        with self._known(name):
            answer = batch.describe_jobs(jobs=asked)["jobs"]
        found = {item["jobId"]: item for item in answer}
        job = found.pop(job_id, None)
        if job is None:
            raise NoSuchJob(f"AWS Batch knows no job {name} (yet, or any more): it forgets them after a week")
        if "nodeProperties" not in job:
            raise EngineError(f"{name} is no multi-node job, so pmrun did not submit it")
        nodes = [*found.values(), *self._others(name, job)]
        nodes.sort(key=lambda item: int(item["nodeDetails"]["nodeIndex"]))
        self._streams[job_id] = _streams(job, nodes)
        return job, nodes

    def _others(self, name: str, job: dict[str, Any]) -> list[dict[str, Any]]:
        """The nodes that one call has no room for. They are asked for again when the job's own state has changed, so that
        who follows a job of a thousand nodes does not spend ten calls on each look."""
        region, job_id = self._parts(name)
        count, state = job["nodeProperties"]["numNodes"], (job["status"], len(job.get("attempts", ())))
        known = self._far_nodes.get(job_id)
        if known is not None and known[0] == state:
            return known[1]
        nodes: list[dict[str, Any]] = []
        for first in range(_DESCRIBED_MAX - 1, count, _DESCRIBED_MAX):
            asked = [f"{job_id}#{node}" for node in range(first, min(count, first + _DESCRIBED_MAX))]
            with self._known(name):
                nodes += self._client("batch", region).describe_jobs(jobs=asked)["jobs"]
        self._far_nodes[job_id] = (state, nodes)
        return nodes


def _quietly(call: Callable[[], object]) -> None:
    """Take back what was made; the error that made us is the one to tell."""
    with contextlib.suppress(EngineError), told("take it back"):
        call()


def _pages(call: Callable[..., Any], member: str, request: dict[str, Any], what: str) -> Iterator[Any]:
    while True:
        with told(what):
            page = call(**request)
        yield from page[member]
        if not page.get("nextToken"):
            return
        request = {**request, "nextToken": page["nextToken"]}


def _status(name: str, job: dict[str, Any], nodes: list[dict[str, Any]]) -> JobStatus:
    state = _state(job)
    attempts = job.get("attempts", [])
    code = attempts[-1].get("container", {}).get("exitCode") if attempts else None
    return JobStatus(
        name,
        state,
        reasons.of_job(job),
        len(attempts) + (0 if state.over else 1),
        code if state.over else None,
        _seconds(job, "createdAt"),
        _seconds(job, "startedAt"),
        _seconds(job, "stoppedAt") if state.over else None,
        tuple(
            NodeStatus(
                node["nodeDetails"]["nodeIndex"],
                _state(node),
                next((item["privateIpv4Address"] for item in node["container"].get("networkInterfaces", ())), ""),
                reasons.of_node(node),
            )
            for node in nodes
        ),
        job["jobName"],
    )


def _state(item: dict[str, Any]) -> State:
    if item["status"] == "FAILED" and (item.get("isCancelled") or item.get("isTerminated")):
        return State.CANCELLED
    return _STATES.get(item["status"], State.QUEUED)


def _seconds(item: dict[str, Any], member: str) -> float | None:
    return item[member] / 1000 if item.get(member) else None


def _streams(job: dict[str, Any], nodes: list[dict[str, Any]]) -> logs.Streams:
    main: list[tuple[str, bool]] = []
    others: list[tuple[int, str]] = []
    for node in nodes:
        past = [item["container"].get("logStreamName") for item in node.get("attempts", ())]
        now = node["container"].get("logStreamName")
        names = [name for name in [*past, *([now] if now not in past else [])] if name]
        if node["nodeDetails"]["isMainNode"]:
            main = [(name, name in past) for name in names]
        else:
            others += [(node["nodeDetails"]["nodeIndex"], name) for name in names]
    return logs.Streams(main, others)
