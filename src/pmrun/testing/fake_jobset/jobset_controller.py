# SPDX-License-Identifier: Apache-2.0
"""The JobSet controller: what is to be done for one JobSet, given its Jobs.

A pure function, in the steps of the real one: count, clean up after the end, end the Jobs of earlier attempts, apply the
failure policy, then the success policy, then make what is missing and pass `suspend` on. Invariant: Jobs of two attempts
are told apart by their label alone, as in the real one; under BlockingRecreate none of a new attempt is made while one
of an earlier is there.
"""

from __future__ import annotations

import copy
import hashlib
from typing import Any, Final

from pmrun.testing.fake_jobset import jobset_rules
from pmrun.testing.fake_jobset.plan import Plan, condition, has_condition, owned_by, set_condition
from pmrun.testing.fake_jobset.resources import JOBS, JOBSETS, SERVICES, Object
from pmrun.testing.fake_jobset.times import seconds

PREFIX: Final = "jobset.sigs.k8s.io/"
MANAGER: Final = "jobset.sigs.k8s.io/jobset-controller"
_ATTEMPT: Final = f"{PREFIX}restart-attempt"


def reconcile(jobset: Object, jobs: list[Object], services: set[str], now: str) -> Plan:
    """`jobs`: those that it owns; `services`: the names of all services in its namespace."""
    plan = Plan(refused="JobCreationFailed")
    if jobset["spec"].get("managedBy", MANAGER) != MANAGER or "deletionTimestamp" in jobset["metadata"]:
        return plan
    status = copy.deepcopy(jobset.get("status") or {"restarts": 0})
    restarts = status.setdefault("restarts", 0)
    old = [job for job in jobs if int(job["metadata"]["labels"][_ATTEMPT]) < restarts]
    present = [job for job in jobs if job not in old]
    status["replicatedJobsStatus"] = _counts(jobset, present)
    plan.status = status
    active = [job for job in present if not _finished(job)]
    if status.get("terminalState"):
        plan.deletions = [(JOBS, job, "Foreground") for job in (*active, *old)]
        _expire(jobset, plan, now)
        return plan
    plan.deletions = [(JOBS, job, "Foreground") for job in old if "deletionTimestamp" not in job["metadata"]]
    failed = [job for job in present if has_condition(job, "Failed")]
    if failed:
        _apply_failure_policy(jobset, failed, plan, now)
        return plan
    if _succeeded(jobset, present):
        _finish(plan, "Completed", "AllJobsCompleted", "jobset completed successfully", now, "Normal")
        return plan
    network, name = jobset["spec"]["network"], jobset_rules.subdomain(jobset)
    if network["enableDNSHostnames"] and name not in services:
        plan.creations.append((SERVICES, _service(jobset, name)))
    blocking = (jobset["spec"].get("failurePolicy") or {}).get("restartStrategy") == "BlockingRecreate"
    if not (blocking and old):
        _create_missing(jobset, jobs, present, plan)
    _suspend_or_resume(jobset, active, plan, now)
    return plan


def _finished(job: Object) -> bool:
    return has_condition(job, "Complete") or has_condition(job, "Failed")


def _counts(jobset: Object, present: list[Object]) -> list[Object]:
    rows = []
    for replicated in jobset["spec"].get("replicatedJobs", ()):
        row = {"name": replicated["name"], "ready": 0, "succeeded": 0, "failed": 0, "active": 0, "suspended": 0}
        for job in _of(replicated, present):
            status, spec = job.get("status") or {}, job["spec"]
            if has_condition(job, "Failed"):
                row["failed"] += 1
            elif has_condition(job, "Complete"):
                row["succeeded"] += 1
            else:
                wanted = min(spec["parallelism"], spec.get("completions", spec["parallelism"]))
                row["active"] += bool(status.get("active"))
                row["suspended"] += bool(spec.get("suspend"))
                row["ready"] += status.get("ready", 0) + status.get("succeeded", 0) >= wanted
        rows.append(row)
    return rows


def _of(replicated: Object, jobs: list[Object]) -> list[Object]:
    return [job for job in jobs if job["metadata"]["labels"][f"{PREFIX}replicatedjob-name"] == replicated["name"]]


def _expire(jobset: Object, plan: Plan, now: str) -> None:
    ttl_s = jobset["spec"].get("ttlSecondsAfterFinished")
    if ttl_s is not None:
        ended = max(
            seconds(entry["lastTransitionTime"])
            for entry in jobset["status"]["conditions"]
            if entry["type"] in ("Completed", "Failed")
        )
        plan.again_s = ended + ttl_s - seconds(now)
        if plan.again_s <= 0:
            plan.deletions.append((JOBSETS, jobset, "Foreground"))
            plan.again_s = None


def _apply_failure_policy(jobset: Object, failed: list[Object], plan: Plan, now: str) -> None:
    failed = sorted(failed, key=lambda job: seconds(condition(job, "Failed")["lastTransitionTime"]))
    policy = jobset["spec"].get("failurePolicy")
    if policy is None:
        text = "jobset failed due to one or more job failures"
        _finish(plan, "Failed", "FailedJobs", _with_job(text, failed[0]), now)
        return
    action, job, why = _matching(policy, failed)
    status = plan.status
    assert status is not None
    most = policy.get("maxRestarts", 0)
    if action == "FailJobSet":
        text = "applying FailJobSet failure policy action"
        _finish(plan, "Failed", "FailJobSetFailurePolicyAction", _with_job(text, job), now)
        return
    counted = status.get("restartsCountTowardsMax", 0)
    if action == "RestartJobSet" and counted >= most:
        text = "jobset failed due to reaching max number of restarts"
        _finish(plan, "Failed", "ReachedMaxRestarts", _with_job(text, job), now)
        return
    status["restarts"] += 1
    status["restartsCountTowardsMax"] = counted + (action == "RestartJobSet")
    text = _with_job(f"applying {action} failure policy action", job)
    set_condition(status, "RestartingJobSet", True, why, text, now)
    plan.events.append(("Warning", f"{action}FailurePolicyAction", text))


def _matching(policy: Any, failed: list[Object]) -> tuple[str, Object, str]:
    """What to do, because of which Job, by which rule."""
    for rule in policy.get("rules", ()):
        for job in failed:
            told = condition(job, "Failed")
            reasons, targets = rule.get("onJobFailureReasons", ()), rule.get("targetReplicatedJobs", ())
            if (not reasons or told.get("reason") in reasons) and (
                not targets or job["metadata"]["labels"][f"{PREFIX}replicatedjob-name"] in targets
            ):
                return rule["action"], job, f"FailurePolicy_{rule['name']}"
    return "RestartJobSet", failed[0], "DefaultFailurePolicy"


def _with_job(text: str, job: Object) -> str:
    return f"{text} (first failed job: {job['metadata']['name']})"


def _finish(plan: Plan, state: str, reason: str, text: str, now: str, kind: str = "Warning") -> None:
    assert plan.status is not None
    set_condition(plan.status, state, True, reason, text, now)
    plan.status["terminalState"] = state
    if condition({"status": plan.status}, "RestartingJobSet"):
        set_condition(plan.status, "RestartingJobSet", False, f"JobSet{state}", text, now)
    plan.events.append((kind, reason, text))


def _succeeded(jobset: Object, present: list[Object]) -> bool:
    policy = jobset["spec"]["successPolicy"]
    targets = policy.get("targetReplicatedJobs") or [
        entry["name"] for entry in jobset["spec"].get("replicatedJobs", ())
    ]
    ends = []
    for replicated in jobset["spec"].get("replicatedJobs", ()):
        if replicated["name"] in targets:
            done = sum(has_condition(job, "Complete") for job in _of(replicated, present))
            ends += [True] * done + [False] * (replicated.get("replicas", 1) - done)
    return bool(ends) and (any(ends) if policy.get("operator") == "Any" else all(ends))


def _service(jobset: Object, name: str) -> Object:
    return {
        "apiVersion": "v1", "kind": "Service",
        "metadata": {
            "name": name, "namespace": jobset["metadata"]["namespace"],
            "ownerReferences": owned_by(jobset, "JobSet", JOBSETS.api_version),
        },
        "spec": {
            "clusterIP": "None", "clusterIPs": ["None"],
            "selector": {f"{PREFIX}jobset-name": jobset["metadata"]["name"]},
            "publishNotReadyAddresses": jobset["spec"]["network"]["publishNotReadyAddresses"],
        },
    }  # fmt: skip


def _create_missing(jobset: Object, jobs: list[Object], present: list[Object], plan: Plan) -> None:
    names = {job["metadata"]["name"] for job in jobs}  # one of an earlier attempt keeps its name until it is gone
    in_order = jobset["spec"]["startupPolicy"]["startupPolicyOrder"] == "InOrder"
    rows = {row["name"]: row for row in _counts(jobset, present)}
    before: Object | None = None
    for replicated in jobset["spec"].get("replicatedJobs", ()):
        waits_for = [(entry["name"], entry["status"]) for entry in replicated.get("dependsOn", ())]
        if in_order and before is not None:
            waits_for.append((before["name"], "Ready"))
        replicas = {entry["name"]: entry.get("replicas", 1) for entry in jobset["spec"]["replicatedJobs"]}
        if not jobset["spec"].get("suspend") and any(
            rows[name]["succeeded"] + (rows[name]["ready"] if wanted == "Ready" else 0) < replicas[name]
            for name, wanted in waits_for
        ):
            return
        for index in range(replicated.get("replicas", 1)):
            job = _job(jobset, replicated, index)
            if job["metadata"]["name"] not in names:
                plan.creations.append((JOBS, job))
        before = replicated


def _job(jobset: Object, replicated: Object, index: int) -> Object:
    metadata = jobset["metadata"]
    template = copy.deepcopy(replicated["template"])
    name = f"{metadata['name']}-{replicated['name']}-{index}"
    marks = _marks(jobset, replicated, index, name)
    own = template.get("metadata") or {}
    spec = template["spec"]
    spec["suspend"] = bool(jobset["spec"].get("suspend"))
    pod = spec["template"].setdefault("metadata", {})
    for part in ("labels", "annotations"):
        pod[part] = {**(pod.get(part) or {}), **marks}
    if jobset["spec"]["network"]["enableDNSHostnames"]:
        spec["template"]["spec"]["subdomain"] = jobset_rules.subdomain(jobset)
    return {
        "apiVersion": JOBS.api_version, "kind": "Job",
        "metadata": {
            "name": name, "namespace": metadata["namespace"],
            "labels": {**(own.get("labels") or {}), **marks},
            "annotations": {**(own.get("annotations") or {}), **marks},
            "ownerReferences": owned_by(jobset, "JobSet", JOBSETS.api_version),
        },
        "spec": spec,
    }  # fmt: skip


def _marks(jobset: Object, replicated: Object, index: int, name: str) -> dict[str, str]:
    """The labels and annotations of its Jobs and Pods."""
    metadata, everyone = jobset["metadata"], jobset["spec"]["replicatedJobs"]
    group = replicated.get("groupName", "default")
    place = everyone.index(replicated)
    earlier = sum(entry.get("replicas", 1) for entry in everyone[:place])
    in_group = [entry for entry in everyone if entry.get("groupName", "default") == group]
    earlier_in_group = sum(entry.get("replicas", 1) for entry in in_group[: in_group.index(replicated)])
    marks = {
        "jobset-name": metadata["name"],
        "jobset-uid": metadata["uid"],
        "replicatedjob-name": replicated["name"],
        "replicatedjob-replicas": replicated.get("replicas", 1),
        "global-replicas": sum(entry.get("replicas", 1) for entry in everyone),
        "restart-attempt": (jobset.get("status") or {}).get("restarts", 0),
        "job-index": index,
        "job-global-index": earlier + index,
        "job-key": hashlib.sha1(f"{metadata['namespace']}/{name}".encode(), usedforsecurity=False).hexdigest(),
        "group-name": group,
        "group-replicas": sum(entry.get("replicas", 1) for entry in in_group),
        "job-group-index": earlier_in_group + index,
    }
    if coordinator := jobset_rules.coordinator_address(jobset):
        marks["coordinator"] = coordinator
    return {f"{PREFIX}{key}": str(value) for key, value in marks.items()}


def _suspend_or_resume(jobset: Object, active: list[Object], plan: Plan, now: str) -> None:
    wanted = bool(jobset["spec"].get("suspend"))
    status = plan.status
    assert status is not None
    templates = {entry["name"]: entry["template"] for entry in jobset["spec"].get("replicatedJobs", ())}
    for job in active:
        if bool(job["spec"].get("suspend")) == wanted or "deletionTimestamp" in job["metadata"]:
            continue
        changed = copy.deepcopy(job)
        changed["spec"]["suspend"] = wanted
        if not wanted:  # what a queue wrote into the template while it was suspended
            name = job["metadata"]["labels"][f"{PREFIX}replicatedjob-name"]
            pod, given = changed["spec"]["template"], templates[name]["spec"]["template"]
            for part in ("nodeSelector", "tolerations", "schedulingGates"):
                if part in given["spec"]:
                    pod["spec"][part] = copy.deepcopy(given["spec"][part])
            for part in ("labels", "annotations"):
                pod["metadata"][part].update((given.get("metadata") or {}).get(part) or {})
        plan.changes.append((JOBS, changed))
    if wanted and set_condition(status, "Suspended", True, "SuspendedJobs", "jobset is suspended", now):
        plan.events.append(("Normal", "SuspendedJobs", "jobset is suspended"))
    elif (
        not wanted
        and has_condition(jobset, "Suspended")
        and set_condition(status, "Suspended", False, "ResumeJobs", "jobset is resumed", now)
    ):
        plan.events.append(("Normal", "ResumeJobs", "jobset is resumed"))
    if condition({"status": status}, "RestartingJobSet").get("status") == "True" and all(
        row["ready"] + row["succeeded"] >= entry.get("replicas", 1)
        for row, entry in zip(status["replicatedJobsStatus"], jobset["spec"]["replicatedJobs"], strict=True)
    ):
        set_condition(status, "RestartingJobSet", False, "JobsReady", "all jobs are ready", now)
