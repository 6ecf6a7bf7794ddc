# SPDX-License-Identifier: Apache-2.0
"""The fake cluster's controllers and scheduler: pure functions of what there is."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from jobset_helper import DISRUPTED, JOBSET, jobset
from pmrun.testing.fake_jobset import job_controller, jobset_controller, jobset_rules, scheduler
from pmrun.testing.fake_jobset.plan import Plan, condition, has_condition
from pmrun.testing.fake_jobset.resources import JOBS, JOBSETS, POD_GROUPS, PODS, SERVICES, Object

NOW, LATER = "2026-01-01T00:00:00Z", "2026-01-01T00:00:30Z"


def stored(body: Object, **status: Any) -> Object:
    """A JobSet or a Job as the store has it."""
    made = copy.deepcopy(body)
    made["metadata"].update(namespace="default", uid="uid-" + made["metadata"]["name"])
    return {**made, "status": status} if status else made


def gang(replicas: int = 1, **spec: Any) -> Object:
    body = jobset("gang", "pass", **spec)
    body["spec"]["replicatedJobs"][0]["replicas"] = replicas
    return stored(jobset_rules.defaulted(body))


def look(found: Object, jobs: list[Object], services: set[str] = frozenset({"gang"})) -> Plan:  # type: ignore[assignment]  # an empty default would do, too
    return jobset_controller.reconcile(found, jobs, services, NOW)


def created(plan: Plan) -> list[Object]:
    return [stored(found) for resource, found in plan.creations if resource == JOBS]


def ended(job: Object, kind: str = "Failed", reason: str = "BackoffLimitExceeded", at: str = NOW) -> Object:
    told = {"type": kind, "status": "True", "reason": reason, "message": "", "lastTransitionTime": at}
    job = copy.deepcopy(job)
    job["spec"].setdefault("parallelism", 2)
    return {**job, "status": {"conditions": [told]}}


def test_jobs_are_made_with_their_marks() -> None:
    found = gang(2, coordinator={"replicatedJob": "w", "jobIndex": 1})
    plan = jobset_controller.reconcile(found, [], set(), NOW)
    jobs = created(plan)
    assert [job["metadata"]["name"] for job in jobs] == ["gang-w-0", "gang-w-1"]
    assert plan.creations[0][0] == SERVICES
    service = plan.creations[0][1]
    assert service["metadata"]["name"] == "gang" and service["spec"]["selector"] == {f"{JOBSET}jobset-name": "gang"}
    template = jobs[1]["spec"]["template"]
    labels = template["metadata"]["labels"]
    assert labels == template["metadata"]["annotations"] == jobs[1]["metadata"]["labels"]
    shown = {name.removeprefix(JOBSET): value for name, value in labels.items() if not name.endswith("job-key")}
    assert shown == {
        "jobset-name": "gang", "jobset-uid": "uid-gang", "replicatedjob-name": "w", "replicatedjob-replicas": "2",
        "global-replicas": "2", "restart-attempt": "0", "job-index": "1", "job-global-index": "1",
        "group-name": "default", "group-replicas": "2", "job-group-index": "1", "coordinator": "gang-w-1-0.gang",
    }  # fmt: skip
    assert template["spec"]["subdomain"] == "gang"


@pytest.mark.parametrize(("strategy", "overlap"), [("Recreate", True), ("BlockingRecreate", False)])
def test_a_restart_makes_the_jobs_again(strategy: str, overlap: bool) -> None:
    found = gang(2, failurePolicy={"maxRestarts": 1, "restartStrategy": strategy})
    jobs = created(look(found, []))
    plan = look(found, [ended(jobs[0]), jobs[1]])
    assert plan.status and (plan.status["restarts"], plan.status["restartsCountTowardsMax"]) == (1, 1)
    assert not plan.creations and condition({"status": plan.status}, "RestartingJobSet")["status"] == "True"
    found["status"] = plan.status
    plan = look(found, [ended(jobs[0]), jobs[1]])
    assert [job["metadata"]["name"] for _, job, _ in plan.deletions] == ["gang-w-0", "gang-w-1"] and not plan.creations
    plan = look(found, [jobs[1]])  # one is gone, one is not
    assert bool(plan.creations) is overlap
    again = created(look(found, []))
    assert {job["metadata"]["labels"][f"{JOBSET}restart-attempt"] for job in again} == {"1"}
    plan = look(found, [ended(again[0])])
    assert plan.status and plan.status["terminalState"] == "Failed"
    assert condition({"status": plan.status}, "Failed")["reason"] == "ReachedMaxRestarts"
    found["status"] = plan.status
    assert [job["metadata"]["name"] for _, job, _ in look(found, [ended(again[0]), again[1]]).deletions] == ["gang-w-1"]


def test_the_first_rule_that_fits_decides() -> None:
    rules = [
        {"name": "bad", "action": "FailJobSet", "onJobFailureReasons": ["DeadlineExceeded"]},
        {"name": "gone", "action": "RestartJobSetAndIgnoreMaxRestarts", "onJobFailureReasons": ["PodFailurePolicy"]},
    ]
    found = gang(failurePolicy={"maxRestarts": 0, "rules": rules})
    job = created(look(found, []))[0]
    plan = look(found, [ended(job, reason="PodFailurePolicy")])
    assert plan.status and (plan.status["restarts"], plan.status["restartsCountTowardsMax"]) == (1, 0)
    plan = look(found, [ended(job, reason="DeadlineExceeded")])
    assert plan.status and condition({"status": plan.status}, "Failed")["reason"] == "FailJobSetFailurePolicyAction"


def test_suspending_completing_and_expiring() -> None:
    found = gang(suspend=True, ttlSecondsAfterFinished=10)
    plan = look(found, [])
    job = created(plan)[0]
    assert job["spec"]["suspend"] and plan.status and has_condition({"status": plan.status}, "Suspended")
    found["status"] = plan.status
    found["spec"]["suspend"] = False
    found["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]["nodeSelector"] = {"size": "s"}
    job["spec"].setdefault("parallelism", 2)
    plan = look(found, [job])
    ((_, resumed),) = plan.changes
    assert not resumed["spec"]["suspend"] and resumed["spec"]["template"]["spec"]["nodeSelector"] == {"size": "s"}
    plan = look(found, [ended(resumed, "Complete")])
    assert plan.status and plan.status["terminalState"] == "Completed"
    found["status"] = plan.status
    assert not look(found, []).deletions
    late = jobset_controller.reconcile(found, [], set(), LATER)
    assert late.deletions == [(JOBSETS, found, "Foreground")]


# ---- jobs -------------------------------------------------------------------------------------------------


def a_job(**spec: Any) -> Object:
    body = jobset("x", "pass", job=spec)["spec"]["replicatedJobs"][0]["template"]
    made = stored({"metadata": {"name": "job"}, **copy.deepcopy(body)})
    made["spec"].setdefault("podReplacementPolicy", "TerminatingOrFailed")
    return made


def run_job(job: Object, pods: list[Object], now: str = NOW) -> Plan:
    plan = job_controller.reconcile(job, pods, now, iter("abcdefgh").__next__, 10.0)
    if plan.status is not None:
        job["status"] = plan.status
    return plan


def made_pods(plan: Plan) -> list[Object]:
    return [{**pod, "status": {"phase": "Pending"}} for resource, pod in plan.creations if resource == PODS]


def with_end(pod: Object, code: int) -> Object:
    row = {"name": "main", "state": {"terminated": {"exitCode": code, "finishedAt": NOW}}, "restartCount": 0}
    return {**pod, "status": {"phase": "Failed" if code else "Succeeded", "containerStatuses": [row]}}


def test_a_jobs_pods_know_their_index() -> None:
    job = a_job()
    pods = made_pods(run_job(job, []))
    assert [pod["metadata"]["name"] for pod in pods] == ["job-0-a", "job-1-b"]
    assert [pod["spec"]["hostname"] for pod in pods] == ["job-0", "job-1"]
    assert pods[1]["metadata"]["annotations"][job_controller.INDEX] == "1"
    assert pods[1]["spec"]["containers"][0]["env"][0]["name"] == "JOB_COMPLETION_INDEX"
    assert not run_job(job, pods).creations
    done = [with_end(pod, 0) for pod in pods]
    plan = run_job(job, done)
    assert job["status"]["completedIndexes"] == "0-1" and len(plan.changes) == 2
    assert has_condition(job, "Complete") or has_condition(job, "SuccessCriteriaMet")
    run_job(job, [changed for _, changed in plan.changes])
    assert has_condition(job, "Complete")


def test_a_job_is_failed_when_its_last_pod_is_gone() -> None:
    job = a_job()
    pods = made_pods(run_job(job, []))
    plan = run_job(job, [with_end(pods[0], 3), pods[1]])
    assert has_condition(job, "FailureTarget") and not has_condition(job, "Failed")
    assert [pod["metadata"]["name"] for _, pod, _ in plan.deletions] == ["job-1-b"]
    ending = {**pods[1], "metadata": {**pods[1]["metadata"], "deletionTimestamp": NOW}}
    counted = job_controller.counted(with_end(pods[0], 3))
    run_job(job, [counted, ending])
    assert not has_condition(job, "Failed") and job["status"]["terminating"] == 1
    run_job(job, [counted])
    assert condition(job, "Failed")["reason"] == "BackoffLimitExceeded" and job["status"]["failed"] == 1


def test_pod_failure_policies() -> None:
    codes = {"action": "FailJob", "onExitCodes": {"operator": "In", "values": [75]}}
    job = a_job(podFailurePolicy={"rules": [codes, {**DISRUPTED, "action": "Ignore"}]}, backoffLimit=3)
    pods = made_pods(run_job(job, []))
    gone = {"type": "DisruptionTarget", "status": "True"}
    evicted = with_end(pods[1], 143)
    evicted["status"]["conditions"] = [gone]
    plan = run_job(job, [pods[0], evicted])
    assert not job["status"].get("failed") and len(plan.creations) == 1  # replaced at once: it does not count
    plan = run_job(job, [with_end(pods[0], 75), job_controller.counted(evicted)])
    told = condition(job, "FailureTarget")
    assert told["reason"] == "PodFailurePolicy"
    assert (
        told["message"]
        == "Container main for pod default/job-0-a failed with exit code 75 matching FailJob rule at index 0"
    )


def test_a_failed_pod_is_replaced_after_a_while() -> None:
    job = a_job(backoffLimit=3)
    pods = made_pods(run_job(job, []))
    failed = job_controller.counted(with_end(pods[1], 1))
    plan = run_job(job, [pods[0], with_end(pods[1], 1)])
    assert not plan.creations and plan.again_s == 10.0
    assert len(run_job(job, [pods[0], failed], LATER).creations) == 1


def test_indexes() -> None:
    assert job_controller.write_indexes({0, 2, 3, 4, 7}) == "0,2-4,7"
    assert job_controller.read_indexes("0,2-4,7") == {0, 2, 3, 4, 7}


# ---- the scheduler ----------------------------------------------------------------------------------------


def a_node(name: str, cpu: str = "4", **more: Any) -> Object:
    return {"metadata": {"name": name}, "spec": more, "status": {"allocatable": {"cpu": cpu, "pods": "110"}}}


def a_pod(name: str, cpu: str, **more: Any) -> Object:
    container = {"name": "main", "resources": {"requests": {"cpu": cpu}}}
    spec = {"containers": [container], **more.pop("spec", {})}
    return {
        "metadata": {"name": name, "namespace": "d", "uid": name, **more},
        "spec": spec,
        "status": {"phase": "Pending"},
    }


def test_pods_go_where_there_is_room() -> None:
    taint = {"key": "gpu", "effect": "NoSchedule"}
    nodes = [a_node("one"), a_node("two", "8", taints=[taint])]
    told = scheduler.place([a_pod("a", "3"), a_pod("b", "500m"), a_pod("c", "2")], nodes, {}, frozenset(), set())
    assert [(verdict.pod["metadata"]["name"], verdict.node) for verdict in told] == [
        ("a", "one"),
        ("b", "one"),
        ("c", ""),
    ]
    assert told[2].reason == "0/2 nodes are available: 1 Insufficient cpu, 1 node(s) had untolerated taint {gpu: }."
    tolerant = a_pod("d", "2", spec={"tolerations": [{"key": "gpu", "operator": "Exists"}]})
    assert scheduler.place([tolerant], nodes, {}, frozenset(), set())[0].node == "two"


def test_a_pod_group_is_placed_whole_or_not_at_all() -> None:
    group = {"metadata": {"name": "g", "namespace": "d"}, "spec": {"minMember": 2}}
    groups = {(POD_GROUPS[0], "d", "g"): group}
    labels = {"scheduling.x-k8s.io/pod-group": "g"}
    spec = {"schedulerName": "scheduler-plugins-scheduler"}
    pods = [a_pod(name, "3", labels=labels, spec=spec) for name in "ab"]
    extras = frozenset({"coscheduling"})
    told = scheduler.place(pods, [a_node("one")], groups, extras, set())
    assert [verdict.node for verdict in told] == ["", ""]
    told = scheduler.place(pods, [a_node("one"), a_node("two")], groups, extras, set())
    assert sorted(verdict.node for verdict in told) == ["one", "two"]
    assert not scheduler.place(pods, [a_node("one")], groups, frozenset(), set())  # nobody schedules them
    assert "not found" in scheduler.place(pods, [a_node("one")], {}, extras, set())[0].reason
