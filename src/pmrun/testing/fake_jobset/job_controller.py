# SPDX-License-Identifier: Apache-2.0
"""The Job controller: what is to be done for one Job, given its pods.

A pure function. A pod that ended keeps a finalizer until it is counted, so that none is lost or counted twice. A Job
that fails first says so (FailureTarget), ends its other pods, and is Failed when the last of them is gone: a JobSet
restarts only then. Invariant: an index has at most one pod that is neither ended nor being ended.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, Final

from pmrun.testing.fake_jobset.plan import Plan, condition, has_condition, owned_by, set_condition
from pmrun.testing.fake_jobset.resources import JOBS, PODS, Object
from pmrun.testing.fake_jobset.times import seconds

INDEX: Final = "batch.kubernetes.io/job-completion-index"
TRACKING: Final = "batch.kubernetes.io/job-tracking"
_LONGEST_BACKOFF_S: Final = 360.0


def reconcile(job: Object, pods: list[Object], now: str, suffix: Callable[[], str], backoff_s: float) -> Plan:
    """`pods`: those that it owns; `suffix` makes names unique; `backoff_s`: before the first replacement of a pod."""
    plan = Plan(refused="FailedCreate")
    if "deletionTimestamp" in job["metadata"] or has_condition(job, "Complete") or has_condition(job, "Failed"):
        plan.changes = [(PODS, counted(pod)) for pod in pods if _uncounted(pod)]
        _expire(job, plan, now)
        return plan
    status = copy.deepcopy(job.get("status") or {})
    plan.status = status
    _count(job, pods, status, plan, now)
    active = [pod for pod in pods if not _ended(pod) and "deletionTimestamp" not in pod["metadata"]]
    ending = [pod for pod in pods if not _ended(pod) and "deletionTimestamp" in pod["metadata"]]
    status["active"] = len(active)
    status["terminating"] = len(ending)
    status["ready"] = sum(has_condition(pod, "Ready") for pod in active)
    status.setdefault("startTime", now)
    _judge(job, active, status, plan, now)
    told = {"status": status}
    if has_condition(told, "FailureTarget") or has_condition(told, "SuccessCriteriaMet"):
        plan.deletions = [(PODS, pod, "Background") for pod in active]
        if not active and not ending:
            _conclude(status, plan, now)
        return plan
    if job["spec"].get("suspend"):
        plan.deletions = [(PODS, pod, "Background") for pod in active]
        if set_condition(status, "Suspended", True, "JobSuspended", "Job suspended", now):
            plan.events.append(("Normal", "Suspended", "Job suspended"))
        del status["startTime"]
        return plan
    if condition(told, "Suspended").get("status") == "True":
        set_condition(status, "Suspended", False, "JobResumed", "Job resumed", now)
        plan.events.append(("Normal", "Resumed", "Job resumed"))
        status["startTime"] = now
    _create_missing(job, pods, active, ending, status, plan, now, suffix, backoff_s)
    return plan


def counted(pod: Object) -> Object:
    """The pod without the finalizer: it may go."""
    rest = [name for name in pod["metadata"].get("finalizers", ()) if name != TRACKING]
    metadata = {name: value for name, value in pod["metadata"].items() if name != "finalizers"}
    return {**pod, "metadata": {**metadata, "finalizers": rest} if rest else metadata}


def _ended(pod: Object) -> bool:
    return pod["status"].get("phase") in ("Succeeded", "Failed")


def _uncounted(pod: Object) -> bool:
    return TRACKING in pod["metadata"].get("finalizers", ())


def _index(pod: Object) -> int:
    return int(pod["metadata"].get("annotations", {}).get(INDEX, -1))


def _expire(job: Object, plan: Plan, now: str) -> None:
    ttl_s, status = job["spec"].get("ttlSecondsAfterFinished"), job.get("status") or {}
    if ttl_s is not None and "deletionTimestamp" not in job["metadata"]:
        ended = condition(job, "Complete") or condition(job, "Failed")
        plan.again_s = seconds(status.get("completionTime") or ended["lastTransitionTime"]) + ttl_s - seconds(now)
        if plan.again_s <= 0:
            plan.deletions.append((JOBS, job, "Background"))
            plan.again_s = None


def _count(job: Object, pods: list[Object], status: Any, plan: Plan, now: str) -> None:
    """Take the ended pods into the status, and let them go."""
    done = read_indexes(status.get("completedIndexes", ""))
    for pod in pods:
        if not _uncounted(pod) or not _ended(pod):
            continue
        plan.changes.append((PODS, counted(pod)))
        if pod["status"]["phase"] == "Succeeded":
            done.add(_index(pod))
            status["succeeded"] = status.get("succeeded", 0) + 1
            continue
        action, text = _policy(job, pod)
        if action == "FailJob" and not condition({"status": status}, "FailureTarget"):
            set_condition(status, "FailureTarget", True, "PodFailurePolicy", text, now)
        if action != "Ignore":
            status["failed"] = status.get("failed", 0) + 1
    if job["spec"]["completionMode"] == "Indexed":
        status["completedIndexes"] = write_indexes(done)
        status["succeeded"] = len(done)


def _policy(job: Object, pod: Object) -> tuple[str, str]:
    """What the first rule of podFailurePolicy that fits a failed pod says, and why."""
    where = f"{pod['metadata']['namespace']}/{pod['metadata']['name']}"
    for number, rule in enumerate((job["spec"].get("podFailurePolicy") or {}).get("rules", ())):
        because = f"matching {rule['action']} rule at index {number}"
        codes = rule.get("onExitCodes")
        for container in pod["status"].get("containerStatuses", ()) if codes else ():
            code = (container["state"].get("terminated") or {}).get("exitCode", 0)
            named = codes.get("containerName") in (None, container["name"])
            if code and named and (code in codes["values"]) is (codes["operator"] == "In"):
                return rule["action"], (
                    f"Container {container['name']} for pod {where} failed with exit code {code} {because}"
                )
        for wanted in rule.get("onPodConditions", ()):
            if condition(pod, wanted["type"]).get("status") == wanted.get("status", "True"):
                return rule["action"], f"Pod {where} has condition {wanted['type']} {because}"
    return "Count", ""


def _judge(job: Object, active: list[Object], status: Any, plan: Plan, now: str) -> None:
    """Whether the Job's end is decided."""
    if any(has_condition({"status": status}, kind) for kind in ("FailureTarget", "SuccessCriteriaMet")):
        return
    spec = job["spec"]
    limit = spec["backoffLimit"]
    restarts = 0
    if spec["template"]["spec"]["restartPolicy"] == "OnFailure":
        restarts = sum(row["restartCount"] for pod in active for row in pod["status"].get("containerStatuses", ()))
    if status.get("failed", 0) > limit or (restarts > 0 and restarts >= limit):
        text = "Job has reached the specified backoff limit"
        set_condition(status, "FailureTarget", True, "BackoffLimitExceeded", text, now)
        return
    deadline_s = spec.get("activeDeadlineSeconds")
    if deadline_s is not None and not spec.get("suspend"):
        plan.again_s = seconds(status["startTime"]) + deadline_s - seconds(now)
        if plan.again_s <= 0:
            plan.again_s = None
            text = "Job was active longer than specified deadline"
            set_condition(status, "FailureTarget", True, "DeadlineExceeded", text, now)
            return
    wanted = spec.get("completions")
    if status.get("succeeded", 0) >= (wanted or 1) and (wanted is not None or not active):
        text = "Reached expected number of succeeded pods"
        set_condition(status, "SuccessCriteriaMet", True, "CompletionsReached", text, now)


def _conclude(status: Any, plan: Plan, now: str) -> None:
    told = condition({"status": status}, "FailureTarget")
    if told:
        set_condition(status, "Failed", True, told["reason"], told["message"], now)
        plan.events.append(("Warning", told["reason"], told["message"]))
    else:
        set_condition(status, "Complete", True, "CompletionsReached", "Reached expected number of succeeded pods", now)
        status["completionTime"] = now
        plan.events.append(("Normal", "Completed", "Job completed"))


def _create_missing(
    job: Object, pods: list[Object], active: list[Object], ending: list[Object], status: Any, plan: Plan, now: str,
    suffix: Callable[[], str], backoff_s: float,
) -> None:  # fmt: skip
    spec = job["spec"]
    room = spec["parallelism"] - len(active) - (len(ending) if spec["podReplacementPolicy"] == "Failed" else 0)
    if room <= 0:
        return
    if status.get("failed"):
        wait_s = min(backoff_s * 2 ** (status["failed"] - 1), _LONGEST_BACKOFF_S)
        ends = [_ended_at(pod, now) for pod in pods if pod["status"].get("phase") == "Failed"]
        left_s = max(ends, default=0.0) + wait_s - seconds(now)
        if left_s > 0:
            plan.again_s = min(left_s, plan.again_s or left_s)
            return
    if spec["completionMode"] == "Indexed":
        taken = read_indexes(status.get("completedIndexes", "")) | {_index(pod) for pod in active}
        if spec["podReplacementPolicy"] == "Failed":
            taken |= {_index(pod) for pod in ending}
        missing = [index for index in range(spec["completions"]) if index not in taken]
        plan.creations = [(PODS, _pod(job, index, suffix)) for index in missing[:room]]
    else:
        left = room if spec.get("completions") is None else spec["completions"] - status.get("succeeded", 0)
        plan.creations = [(PODS, _pod(job, -1, suffix)) for _ in range(min(room, left - len(active)))]


def _ended_at(pod: Object, now: str) -> float:
    ends = [
        seconds(row["state"]["terminated"]["finishedAt"])
        for row in pod["status"].get("containerStatuses", ())
        if "terminated" in row["state"]
    ]
    return max(ends, default=seconds(now))


def _pod(job: Object, index: int, suffix: Callable[[], str]) -> Object:
    template = copy.deepcopy(job["spec"]["template"])
    metadata = template.setdefault("metadata", {})
    name = job["metadata"]["name"]
    if index >= 0:
        name = f"{name}-{index}"
        for part in ("labels", "annotations"):
            metadata[part] = {**(metadata.get(part) or {}), INDEX: str(index)}
        template["spec"]["hostname"] = name
        field = {"apiVersion": "v1", "fieldPath": f"metadata.labels['{INDEX}']"}
        told = {"name": "JOB_COMPLETION_INDEX", "valueFrom": {"fieldRef": field}}
        for container in (*template["spec"].get("initContainers", ()), *template["spec"]["containers"]):
            if all(entry["name"] != told["name"] for entry in container.get("env", ())):
                container["env"] = [*container.get("env", ()), told]
    metadata.update(
        name=f"{name}-{suffix()}", generateName=f"{name}-", namespace=job["metadata"]["namespace"],
        ownerReferences=owned_by(job, "Job", JOBS.api_version), finalizers=[TRACKING],
    )  # fmt: skip
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]}


def read_indexes(text: str) -> set[int]:
    """Of `0,2-4`."""
    found: set[int] = set()
    for part in filter(None, text.split(",")):
        first, _, last = part.partition("-")
        found.update(range(int(first), int(last or first) + 1))
    return found


def write_indexes(indexes: set[int]) -> str:
    """As `0,2-4`."""
    parts: list[list[int]] = []
    for index in sorted(indexes):
        if parts and parts[-1][1] == index - 1:
            parts[-1][1] = index
        else:
            parts.append([index, index])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in parts)
