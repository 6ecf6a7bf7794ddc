# SPDX-License-Identifier: Apache-2.0
"""The objects by which a job goes to Kubernetes. Pure: the same job gives the same objects, and nothing is asked.

A job is one JobSet: one replicated Job with an index for each node, none of which is tried again alone, and a Secret,
and perhaps a pod group and a network policy, that the JobSet owns. The secret is a file in each pod; who a node is, and
which try of the job this is, it reads from what the controllers write into its pod. Invariant: no secret is in the
objects, and all but the JobSet are owned by it, so that they go when it goes.
"""

from __future__ import annotations

import copy
import re
from typing import Any, Final

from pmrun import env
from pmrun.errors import ExitCode, UsageError
from pmrun.launcher.code_package import config_map
from pmrun.launcher.job import Job
from pmrun.launcher.jobset.settings import KEYS, UNDERSTOOD
from pmrun.launcher.submission.code import Code, code_place, describe_code
from pmrun.launcher.submission.contract import Request
from pmrun.launcher.submission.node_command import node_words
from pmrun.launcher.submission.read import check_options, read_keys, title_of

GROUP: Final = "jobset.x-k8s.io"
VERSION: Final = "v1alpha2"
PLURAL: Final = "jobsets"
PREFIX: Final = "jobset.sigs.k8s.io/"
OURS: Final = "app.kubernetes.io/managed-by"  # the label of what pmrun made
TITLE: Final = "pmrun.dev/title"
MARK: Final = "(made when the job is submitted)"
REPLICATED: Final = "n"  # short: its name is in those of all pods
NAME: Final = "{name}"  # stands for the job's name until it is submitted

_NAME_MAX: Final = 63  # of a pod: the name, the Job's part, the index, five random characters
_SUFFIX: Final = len("-xxxxx")
_NODES_MAX: Final = 10_000
_SECRET_DIRECTORY: Final = "/var/run/pmrun"
_SECRET_KEY: Final = "secret"
_MARGIN_S: Final = 25  # beyond --grace, for pmrun's own end


def make_request(job: Job, engine: str) -> Request:
    """All objects; where the user gave no name, `NAME` stands for the one that `named` puts in."""
    said = job.submission
    assert said is not None
    check_options(engine, said, UNDERSTOOD)
    settings = read_keys(engine, said, KEYS)
    if said.image is None:
        raise UsageError(f"--on {engine} needs --image: the container image that has Python, pmrun and the program")
    if job.nodes.count > _NODES_MAX:
        raise UsageError(f"--nodes {job.nodes.count}: a JobSet of pmrun has at most {_NODES_MAX:,} nodes")
    place = code_place(job)
    code = describe_code(job, config_map.address if place is None else place.address)
    name, given = _name(job), said.name is not None
    labels = {OURS: "pmrun", **dict(settings.get("label", ()))}
    jobset: Request = {
        "apiVersion": f"{GROUP}/{VERSION}",
        "kind": "JobSet",
        "metadata": {
            "name": name if given else NAME, "labels": labels,
            "annotations": {TITLE: title_of(job), **dict(settings.get("annotation", ()))},
        },
        "spec": {
            "coordinator": {"replicatedJob": REPLICATED, "jobIndex": 0, "podIndex": 0},
            "network": {"enableDNSHostnames": True, "publishNotReadyAddresses": True},
            "replicatedJobs": [{"name": REPLICATED, "replicas": 1, "template": {"spec": _job(job, settings, labels, code)}}],
        },
    }  # fmt: skip
    if said.retries:
        jobset["spec"]["failurePolicy"] = _failure_policy(said.retries)
    if "ttl" in settings:
        jobset["spec"]["ttlSecondsAfterFinished"] = settings["ttl"]
    items = [jobset, _secret(labels), *_gang(job, said.gang, jobset, labels)]
    if settings.get("network-policy"):
        items.append(_network_policy(labels))
    request: Request = {"apiVersion": "v1", "kind": "List", "items": items}
    if code is not None:
        request["code"] = {**code, "store": said.code_store}
        if said.code_store is None:
            items.append(_code(labels, code))
    if said.namespace is not None:
        for item in items:
            item["metadata"]["namespace"] = said.namespace
    return dict(_replaced(request, name)) if given else {**request, "metadata": {"generateName": f"{name}-"}}


def named(request: Request, suffix: str) -> Request:
    """The request under the name that it will have; `suffix` makes a name that was not given unique."""
    start = request.get("metadata", {}).get("generateName")
    made = {name: value for name, value in request.items() if name != "metadata"}
    return dict(_replaced(made, start + suffix)) if start else copy.deepcopy(made)


def _replaced(tree: Any, name: str) -> Any:
    if isinstance(tree, dict):
        return {key: _replaced(value, name) for key, value in tree.items()}
    if isinstance(tree, list):
        return [_replaced(value, name) for value in tree]
    return tree.replace(NAME, name) if isinstance(tree, str) else tree


def _name(job: Job) -> str:
    """As the user gave it, or made from the program's: it must fit into the names of the pods."""
    assert job.submission is not None
    room = _NAME_MAX - _SUFFIX - len(f"-{REPLICATED}-0-{job.nodes.count - 1}")
    given = job.submission.name
    if given is None:
        made = re.sub(r"[^a-z0-9]+", "-", title_of(job).lower()).strip("-")[: room - _SUFFIX].strip("-")
        return made if made[:1].isalpha() else f"pmrun-{made}".rstrip("-")
    if not re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", given):
        raise UsageError(f"--job-name {given}: Kubernetes wants small letters, digits and '-', a letter first")
    if len(given) > room:
        raise UsageError(
            f"--job-name {given}: with {job.nodes.count} nodes it may have {room} characters, not {len(given)}"
        )
    return given


def _job(job: Job, settings: dict[str, Any], labels: dict[str, str], code: Code | None) -> dict[str, Any]:
    spec: dict[str, Any] = {
        "parallelism": job.nodes.count,
        "completions": job.nodes.count,
        "completionMode": "Indexed",
        "backoffLimit": 0,
        "template": {"metadata": {"labels": dict(labels)}, "spec": _pod(job, settings, code)},
    }
    assert job.submission is not None
    if job.submission.retries:  # who had to go for others' sake has not failed, nor have those who ended with it
        gone = {"type": "DisruptionTarget", "status": "True"}
        stopped = {"containerName": "main", "operator": "In", "values": [int(ExitCode.TERMINATED)]}
        spec["podFailurePolicy"] = {
            "rules": [{"action": "FailJob", "onPodConditions": [gone]}, {"action": "FailJob", "onExitCodes": stopped}]
        }
    return spec


def _failure_policy(retries: int) -> dict[str, Any]:
    preempted = {
        "name": "preempted", "action": "RestartJobSetAndIgnoreMaxRestarts", "onJobFailureReasons": ["PodFailurePolicy"],
    }  # fmt: skip
    return {"maxRestarts": retries, "restartStrategy": "BlockingRecreate", "rules": [preempted]}


def _pod(job: Job, settings: dict[str, Any], code: Code | None) -> dict[str, Any]:
    said = job.submission
    assert said is not None
    container: dict[str, Any] = {
        "name": "main",
        "image": said.image,
        "command": node_words(job, code),
        "env": _environment(job),
        "volumeMounts": [{"name": "pmrun-secret", "mountPath": _SECRET_DIRECTORY, "readOnly": True}],
    }
    secret = {"secretName": NAME, "defaultMode": 0o400}
    volumes: list[dict[str, Any]] = [{"name": "pmrun-secret", "secret": secret}]
    if code is not None and said.code_store is None:
        volumes.append({"name": "pmrun-code", "configMap": {"name": NAME}})
        mount = {"name": "pmrun-code", "mountPath": config_map.FOLDER, "readOnly": True}
        container["volumeMounts"].append(mount)
    if said.shared_memory_mib is not None:
        memory = {"medium": "Memory", "sizeLimit": f"{said.shared_memory_mib}Mi"}
        volumes.append({"name": "shared-memory", "emptyDir": memory})
        container["volumeMounts"].append({"name": "shared-memory", "mountPath": "/dev/shm"})
    for number, (source, path) in enumerate(settings.get("volume", ())):
        volumes.append({"name": f"volume-{number}", **source})
        container["volumeMounts"].append({"name": f"volume-{number}", "mountPath": path})
    if wanted := _resources(job, settings):
        container["resources"] = {"requests": dict(wanted), "limits": dict(wanted)}
    if "pull" in settings:
        container["imagePullPolicy"] = settings["pull"]
    pod: dict[str, Any] = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": int(job.grace_s) + _MARGIN_S,
        "containers": [container],
        "volumes": volumes,
    }
    for key, field in (("service-account", "serviceAccountName"), ("priority-class", "priorityClassName")):
        if key in settings:
            pod[field] = settings[key]
    if "node-selector" in settings:
        pod["nodeSelector"] = dict(settings["node-selector"])
    if "toleration" in settings:
        pod["tolerations"] = list(settings["toleration"])
    if "pull-secret" in settings:
        pod["imagePullSecrets"] = [{"name": name} for name in settings["pull-secret"]]
    return pod


def _resources(job: Job, settings: dict[str, Any]) -> dict[str, str]:
    """Requests and limits alike: a node then counts the CPUs that it may use, and is the last to be evicted."""
    said = job.submission
    assert said is not None
    wanted = {}
    if said.cpu is not None:
        wanted["cpu"] = f"{said.cpu:g}" if said.cpu >= 1 else f"{round(said.cpu * 1000)}m"
    if said.memory_mib is not None:
        wanted["memory"] = f"{said.memory_mib}Mi"
    if said.gpu:
        wanted[settings.get("gpu-resource", "nvidia.com/gpu")] = str(said.gpu)
    return wanted


def _environment(job: Job) -> list[dict[str, Any]]:
    """The user's variables, then what makes a node of the pod; a later one may name an earlier."""

    def of_pod(name: str, path: str) -> dict[str, Any]:
        return {"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}}

    return [
        *({"name": name, "value": value.replace("$(", "$$(")} for name, value in job.env),
        of_pod("JOBSET_UID", f"metadata.labels['{PREFIX}jobset-uid']"),
        of_pod("JOBSET_RESTART_ATTEMPT", f"metadata.labels['{PREFIX}restart-attempt']"),
        of_pod(env.MAIN, f"metadata.annotations['{PREFIX}coordinator']"),
        {"name": env.RUN_TOKEN, "value": "$(JOBSET_UID) $(JOBSET_RESTART_ATTEMPT)"},
        {"name": env.NUM_NODES, "value": str(job.nodes.count)},
        {"name": env.SECRET_FILE, "value": f"{_SECRET_DIRECTORY}/{_SECRET_KEY}"},
        {"name": env.PYTHON_UNBUFFERED, "value": "1"},
    ]


def _secret(labels: dict[str, str]) -> dict[str, Any]:
    return {
        "apiVersion": "v1", "kind": "Secret", "metadata": {"name": NAME, "labels": dict(labels)},
        "stringData": {_SECRET_KEY: MARK},
    }  # fmt: skip


def _code(labels: dict[str, str], code: Code) -> dict[str, Any]:
    """The package, of which its hash is told here; it is put in when the job is submitted."""
    file = config_map.address(code["sha256"]).rpartition("/")[2]
    return {
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": NAME, "labels": dict(labels)},
        "immutable": True, "binaryData": {file: MARK},
    }  # fmt: skip


def _network_policy(labels: dict[str, str]) -> dict[str, Any]:
    """The job's pods hear one another, and nobody else."""
    members = {"matchLabels": {f"{PREFIX}jobset-name": NAME}}
    return {
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"name": NAME, "labels": dict(labels)},
        "spec": {
            "podSelector": members, "policyTypes": ["Ingress"], "ingress": [{"from": [{"podSelector": members}]}],
        },
    }  # fmt: skip


def _gang(job: Job, how: str | None, jobset: Any, labels: dict[str, str]) -> list[dict[str, Any]]:
    """What makes a scheduler start all pods or none: marks on the JobSet and its pods, and a pod group."""
    kind, _, queue = (how or "none").partition(":")
    template = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]
    if (kind == "kueue") != bool(queue) and kind != "volcano":
        raise UsageError(f"--gang {how}: write kueue:QUEUE, volcano or volcano:QUEUE, coscheduling, native, or none")
    group: dict[str, Any] = {"metadata": {"name": NAME, "labels": dict(labels)}}
    if kind == "kueue":
        jobset["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] = queue
        return []
    if kind == "volcano":
        template["metadata"]["annotations"] = {"scheduling.k8s.io/group-name": NAME}
        template["spec"]["schedulerName"] = "volcano"
        spec = {"minMember": job.nodes.count, **({"queue": queue} if queue else {})}
        return [{"apiVersion": "scheduling.volcano.sh/v1beta1", "kind": "PodGroup", **group, "spec": spec}]
    if kind == "coscheduling":
        template["metadata"]["labels"]["scheduling.x-k8s.io/pod-group"] = NAME
        template["spec"]["schedulerName"] = "scheduler-plugins-scheduler"
        spec = {"minMember": job.nodes.count, "scheduleTimeoutSeconds": max(1, int(job.start_timeout_s))}
        return [{"apiVersion": "scheduling.x-k8s.io/v1alpha1", "kind": "PodGroup", **group, "spec": spec}]
    if kind == "native":
        template["spec"]["schedulingGroup"] = {"podGroupName": NAME}
        spec = {"schedulingPolicy": {"gang": {"minCount": job.nodes.count}}}
        return [{"apiVersion": "scheduling.k8s.io/v1alpha2", "kind": "PodGroup", **group, "spec": spec}]
    if kind != "none":
        raise UsageError(f"--gang {how}: choose kueue:QUEUE, volcano:QUEUE, coscheduling, native or none")
    return []
