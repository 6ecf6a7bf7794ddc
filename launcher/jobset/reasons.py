# SPDX-License-Identifier: Apache-2.0
"""What a JobSet and its pods say of a job: its state, and what keeps it from running or ended it.

Pure functions of the objects as the API has them. Invariant: a finding names its pod and has a remedy where the user
can do something.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from typing import Any, Final

from pmrun.launcher.jobset.manifest import PREFIX, TITLE
from pmrun.launcher.submission.contract import Finding, JobStatus, NodeStatus, State

Object = dict[str, Any]

INDEX: Final = "batch.kubernetes.io/job-completion-index"
_ENDS: Final = {"Completed": State.SUCCEEDED, "Failed": State.FAILED}
_PHASES: Final = {"Running": State.RUNNING, "Succeeded": State.SUCCEEDED, "Failed": State.FAILED}
_USUAL: Final = ("ContainerCreating", "PodInitializing")
_PULL: Final = "check --image, and whether nodes may pull it (--with pull-secret=NAME)"


def status_of(name: str, jobset: Object, pods: list[Object]) -> JobStatus:
    """A job's status; `pods` are those of its present attempt."""
    metadata, status = jobset["metadata"], jobset.get("status") or {}
    pods = sorted(pods, key=lambda pod: (node_rank(pod), pod["metadata"]["creationTimestamp"]))
    nodes = tuple(
        NodeStatus(node_rank(pod), _state_of_pod(pod), _where(pod), next(_of_pod(pod), Finding("")).what)
        for pod in pods
    )
    state, reason = _ENDS.get(status.get("terminalState", "")), ""
    end = next((entry for entry in status.get("conditions", ()) if entry["type"] in _ENDS), None)
    if state is State.FAILED and end is not None:
        reason = end.get("message", "")
    if state is None:
        state = _present_state(pods, int(jobset["spec"]["replicatedJobs"][0]["template"]["spec"]["completions"]))
        if state in (State.QUEUED, State.STARTING):
            reason = next((finding.what for finding in findings(jobset, pods, [])), "")
    started = [at for pod in pods if (at := _time(pod["status"].get("startTime")))]
    return JobStatus(
        name, state, reason, int(status.get("restarts", 0)), _exit_code(state, pods),
        _time(metadata.get("creationTimestamp")), min(started, default=None),
        _time(end["lastTransitionTime"]) if end is not None and state.over else None, nodes,
        (metadata.get("annotations") or {}).get(TITLE, ""),
    )  # fmt: skip


def findings(jobset: Object, pods: list[Object], events: list[Object]) -> list[Finding]:
    """Why the job does not run, or how it ended; the likeliest first, each once."""
    found = [finding for pod in sorted(pods, key=node_rank) for finding in _of_pod(pod)]
    found += _of_events(events)
    if jobset["spec"].get("suspend"):
        queue = (jobset["metadata"].get("labels") or {}).get("kueue.x-k8s.io/queue-name")
        what = f"it waits in Kueue's queue {queue}" if queue else "the JobSet is suspended"
        found.insert(0, Finding(what, f"see: kubectl describe workload -n {jobset['metadata']['namespace']}"))
    for entry in (jobset.get("status") or {}).get("conditions", ()):
        if entry["type"] == "Failed" and entry["status"] == "True":
            found.append(Finding(entry.get("message", ""), "see: pmrun logs"))
    return list(dict.fromkeys(found))


def node_rank(pod: Object) -> int:
    """Of the node that a pod is."""
    labels = {**(pod["metadata"].get("annotations") or {}), **(pod["metadata"].get("labels") or {})}
    return int(labels.get(INDEX, -1))


def attempt(pod: Object) -> str:
    """The restart of the JobSet to which a pod belongs."""
    return str((pod["metadata"].get("labels") or {}).get(f"{PREFIX}restart-attempt", ""))


def seconds(text: str) -> float:
    """Of a time of the API, which may have nanoseconds."""
    whole, _, rest = text.removesuffix("Z").partition(".")
    moment = datetime.datetime.strptime(whole[:19], "%Y-%m-%dT%H:%M:%S").replace(tzinfo=datetime.timezone.utc)
    return moment.timestamp() + (float(f"0.{rest}") if rest.isdecimal() else 0.0)


def _time(text: str | None) -> float | None:
    return seconds(text) if text else None


def _where(pod: Object) -> str:
    node = pod["spec"].get("nodeName", "")
    return f"{pod['metadata']['name']} on {node}" if node else str(pod["metadata"]["name"])


def _state_of_pod(pod: Object) -> State:
    scheduled = bool(pod["spec"].get("nodeName"))
    return _PHASES.get(pod["status"].get("phase", ""), State.STARTING if scheduled else State.QUEUED)


def _present_state(pods: list[Object], count: int) -> State:
    states = [_state_of_pod(pod) for pod in pods]
    if len(pods) >= count and all(state in (State.RUNNING, State.SUCCEEDED) for state in states):
        return State.RUNNING
    begun = any(state is not State.QUEUED for state in states)
    return State.RUNNING if any(state.over or state is State.RUNNING for state in states) else (
        State.STARTING if begun else State.QUEUED
    )  # fmt: skip


def _exit_code(state: State, pods: list[Object]) -> int | None:
    """Node 0's, which is the culprit's; where its pod went before its end, that of a pod that failed."""
    if not state.over:
        return None
    codes = [code for pod in pods if (code := _code(pod)) is not None]
    if state is State.SUCCEEDED:
        return 0
    return next((code for code in codes if code), None)


def _ended(pod: Object) -> Object:
    for row in pod["status"].get("containerStatuses") or ():
        if (row.get("state") or {}).get("terminated"):
            return dict(row["state"]["terminated"])
    return {}


def _code(pod: Object) -> int | None:
    ended = _ended(pod)
    return int(ended["exitCode"]) if ended else None


def _of_pod(pod: Object) -> Iterator[Finding]:
    status, who = pod["status"], f"node {node_rank(pod)} ({pod['metadata']['name']})"
    for entry in status.get("conditions") or ():
        if entry["type"] == "PodScheduled" and entry["status"] == "False":
            text = entry.get("message", "")
            yield Finding(f"{who} has no place: {text}", "ask for less, or wait until nodes are free")
        if entry["type"] == "DisruptionTarget" and entry["status"] == "True":
            yield Finding(
                f"{who} had to go: {entry.get('message') or entry.get('reason')}", "--retries N starts it again"
            )
    for row in status.get("containerStatuses") or ():
        waiting = (row.get("state") or {}).get("waiting") or {}
        if waiting.get("reason") and waiting["reason"] not in _USUAL:
            remedy = _PULL if "Image" in waiting["reason"] or "Pull" in waiting["reason"] else ""
            yield Finding(f"{who} cannot start: {waiting['reason']}: {waiting.get('message', '')}".rstrip(": "), remedy)
    ended = _ended(pod)
    if ended.get("reason") == "OOMKilled":
        yield Finding(f"{who} ran out of memory", "give each node more with --memory")
    elif ended.get("reason") in ("StartError", "ContainerCannotRun"):
        remedy = "the image needs pmrun on its PATH: pip install pmrun in it"
        yield Finding(f"{who} cannot start: {ended.get('message', '')}", remedy)
    elif ended.get("exitCode"):
        yield Finding(f"{who} ended with exit code {ended['exitCode']}", "see: pmrun logs")
    if status.get("reason") in ("Evicted", "NodeLost", "DeadlineExceeded"):
        yield Finding(f"{who}: {status['reason']}: {status.get('message', '')}")


def _of_events(events: list[Object]) -> Iterator[Finding]:
    for event in events:
        if event.get("type") == "Warning" and event.get("reason") in (
            "FailedMount",
            "FailedCreate",
            "JobCreationFailed",
        ):
            yield Finding(f"{event['involvedObject']['name']}: {event.get('message', '')}")
