# SPDX-License-Identifier: Apache-2.0
"""What happens to an object between a request and the store: unknown fields, defaults, validation, by kind.

JobSets, Jobs and Pods are held to the schemas of the CRD, and JobSets to the rules of the webhooks; the other kinds are
stored as they come. Invariant: an object that is admitted can be read by the controllers without a further check.
"""

from __future__ import annotations

import base64
import contextlib
import copy
import re
from collections.abc import Callable
from typing import Any, Final

from pmrun.testing.fake_jobset import jobset_rules, schema
from pmrun.testing.fake_jobset.resources import (
    JOBS,
    JOBSETS,
    NAMESPACES,
    PODS,
    PRIORITIES,
    SECRETS,
    SERVICE_ACCOUNTS,
    SERVICES,
    Object,
    Resource,
)
from pmrun.testing.fake_jobset.statuses import bad_request, denied, forbidden, invalid

Exists = Callable[[Resource, str, str], bool]  # of a kind, in a namespace, by name

_NAME: Final = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_NAME_WORDS: Final = (
    "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start "
    "and end with an alphanumeric character"
)
_LABEL_VALUE: Final = re.compile(r"(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?")
_SCHEMAS: Final = {JOBSETS: schema.of_jobsets, JOBS: schema.of_jobs, PODS: schema.of_pods}
_TOLERATION_S: Final = 300
_SYSTEM_PRIORITIES: Final = ("system-cluster-critical", "system-node-critical")
_NOT_MODELLED: Final = ("backoffLimitPerIndex", "maxFailedIndexes", "successPolicy", "managedBy")  # of Jobs
_POD_MAY_CHANGE: Final = ("activeDeadlineSeconds", "tolerations", "schedulingGates", "terminationGracePeriodSeconds")


def known_fields(resource: Resource, found: Object, how: str) -> tuple[Object, list[str]]:
    """The object without unknown fields, and warnings; refused where `how` is Strict."""
    if resource not in _SCHEMAS:
        return found, []
    kept, unknown = _SCHEMAS[resource]().pruned(found)
    told = [f'unknown field "{path}"' for path in unknown]
    if told and how == "Strict":
        raise bad_request(
            f'{resource.kind} in version "{resource.version}" cannot be handled as a {resource.kind}: '
            f"strict decoding error: {', '.join(told)}"
        )
    return kept, told if how != "Ignore" else []


def admit_new(resource: Resource, found: Object, exists: Exists) -> Object:
    """A new object with its defaults; ApiError where the server would refuse it."""
    _check_metadata(resource, found)
    if resource in _SCHEMAS:
        found = _SCHEMAS[resource]().defaulted(found)
        if resource == JOBSETS:
            with contextlib.suppress(AttributeError, KeyError, TypeError):  # of a shape that the schema refuses
                found = jobset_rules.defaulted(found)
        _check_schema(resource, found)
    if resource == JOBSETS:
        _deny(jobset_rules.refusals(found))
    elif resource == JOBS:
        found = _job_with_defaults(found)
        _check_job(found)
    elif resource == PODS:
        _check_pod(found, exists)
        found = _pod_with_defaults(found)
    elif resource == SERVICES:
        found.setdefault("spec", {}).setdefault("type", "ClusterIP")
        found.setdefault("status", {"loadBalancer": {}})
    elif resource == SECRETS:
        found = _encoded(found)
    elif resource == NAMESPACES:
        found["status"] = {"phase": "Active"}
    return found


def admit_change(resource: Resource, old: Object, new: Object) -> Object:
    """Another state of an object; ApiError where the server would refuse it."""
    _check_metadata(resource, new)
    name = new["metadata"]["name"]
    if resource in _SCHEMAS:
        new = _SCHEMAS[resource]().defaulted(new)
        if resource == JOBSETS:
            with contextlib.suppress(AttributeError, KeyError, TypeError):
                new = jobset_rules.defaulted(new)
        _check_schema(resource, new)
        changed = _SCHEMAS[resource]().changed(old, new)
        if changed:
            raise invalid(resource, name, changed)
    if resource == JOBSETS:
        _deny(jobset_rules.changes(old, new))
    elif resource == JOBS:
        fixed = [part for part in ("completions", "selector", "completionMode", "podFailurePolicy")
                 if old["spec"].get(part) != new["spec"].get(part)]  # fmt: skip
        if old["spec"]["template"] != new["spec"]["template"] and not (
            old["spec"].get("suspend") or new["spec"].get("suspend")
        ):
            fixed.append("template")
        if fixed:
            raise invalid(JOBS, name, [(f"spec.{part}", "Invalid value: field is immutable") for part in fixed])
    elif resource == SECRETS:
        new = _encoded(new)
    elif resource == PODS and _fixed(old) != _fixed(new):
        text = f"Forbidden: pod updates may not change fields other than image, {', '.join(_POD_MAY_CHANGE)}"
        raise invalid(PODS, name, [("spec", text)])
    return new


def _check_metadata(resource: Resource, found: Object) -> None:
    metadata = found["metadata"]
    name = metadata["name"]
    if not _NAME.fullmatch(name):
        raise invalid(resource, name, [("metadata.name", f'Invalid value: "{name}": {_NAME_WORDS}')])
    if len(name) > 253:
        raise invalid(resource, name, [("metadata.name", "Too long: may not be more than 253 bytes")])
    for label, value in (metadata.get("labels") or {}).items():
        if not isinstance(value, str) or len(value) > 63 or not _LABEL_VALUE.fullmatch(value):
            text = f'Invalid value: "{value}": must be no more than 63 characters of a-z, A-Z, 0-9, "-", "_" and "."'
            raise invalid(resource, name, [("metadata.labels", f"{label}: {text}")])


def _check_schema(resource: Resource, found: Object) -> None:
    errors = _SCHEMAS[resource]().errors(found)
    if errors:
        raise invalid(resource, found["metadata"]["name"], errors)


def _deny(reasons: list[str]) -> None:
    if reasons:
        raise denied(jobset_rules.WEBHOOK, "\n".join(reasons))


def _encoded(secret: Object) -> Object:
    """What came as text is kept in base64 like the rest."""
    rest = {name: value for name, value in secret.items() if name != "stringData"}
    plain = {
        name: base64.b64encode(str(value).encode()).decode() for name, value in (secret.get("stringData") or {}).items()
    }
    return {"type": "Opaque", **rest, "data": {**(secret.get("data") or {}), **plain}}


def _job_with_defaults(found: Object) -> Object:
    made = copy.deepcopy(found)
    spec = made["spec"]
    if "completions" not in spec and "parallelism" not in spec:
        spec["completions"] = 1
    spec.setdefault("parallelism", 1)
    spec.setdefault("backoffLimit", 6)
    spec.setdefault("completionMode", "NonIndexed")
    spec.setdefault("suspend", False)
    spec.setdefault("podReplacementPolicy", "Failed" if "podFailurePolicy" in spec else "TerminatingOrFailed")
    uid, name = made["metadata"]["uid"], made["metadata"]["name"]
    spec.setdefault("selector", {"matchLabels": {"batch.kubernetes.io/controller-uid": uid}})
    labels = spec["template"].setdefault("metadata", {}).setdefault("labels", {})
    for prefix in ("", "batch.kubernetes.io/"):
        labels.setdefault(f"{prefix}job-name", name)
        labels.setdefault(f"{prefix}controller-uid", uid)
    return made


def _check_job(found: Object) -> None:
    name, spec = found["metadata"]["name"], found["spec"]
    policy = spec["template"]["spec"].get("restartPolicy")
    wrong: list[tuple[str, str]] = []
    if policy not in ("Never", "OnFailure"):
        text = 'valid values: "OnFailure", "Never"'
        what = f'Unsupported value: "{policy}": supported' if policy else "Required value:"
        wrong.append(("spec.template.spec.restartPolicy", f"{what} {text}"))
    if "podFailurePolicy" in spec and policy != "Never":
        wrong.append(("spec.podFailurePolicy", "Invalid value: only usable with restartPolicy: Never"))
    if spec["completionMode"] == "Indexed" and "completions" not in spec:
        wrong.append(("spec.completions", "Required value: when completion mode is Indexed"))
    for part in _NOT_MODELLED:
        if part in spec:
            wrong.append((f"spec.{part}", "Forbidden: pmrun's fake cluster does not model this field"))
    if wrong:
        raise invalid(JOBS, name, wrong)


def _check_pod(found: Object, exists: Exists) -> None:
    metadata, spec = found["metadata"], found["spec"]
    account = spec.get("serviceAccountName", "default")
    if not exists(SERVICE_ACCOUNTS, metadata["namespace"], account):
        why = (
            f'error looking up service account {metadata["namespace"]}/{account}: serviceaccount "{account}" not found'
        )
        raise forbidden(PODS, metadata["name"], why)
    priority = spec.get("priorityClassName")
    if priority and priority not in _SYSTEM_PRIORITIES and not exists(PRIORITIES, "", priority):
        raise forbidden(PODS, metadata["name"], f"no PriorityClass with name {priority} was found")


def _pod_with_defaults(found: Object) -> Object:
    made = copy.deepcopy(found)
    spec = made["spec"]
    for name, value in (
        ("restartPolicy", "Always"), ("terminationGracePeriodSeconds", 30), ("dnsPolicy", "ClusterFirst"),
        ("schedulerName", "default-scheduler"), ("serviceAccountName", "default"), ("enableServiceLinks", True),
    ):  # fmt: skip
        spec.setdefault(name, value)
    for container in (*spec.get("initContainers", ()), *spec["containers"]):
        newest = container.get("image", "").endswith(":latest") or ":" not in container.get("image", "")
        container.setdefault("imagePullPolicy", "Always" if newest else "IfNotPresent")
        container.setdefault("resources", {})
    tolerated = {entry.get("key") for entry in spec.get("tolerations", ())}
    for key in ("node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"):
        if key not in tolerated and None not in tolerated:
            toleration = {
                "key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": _TOLERATION_S,
            }  # fmt: skip
            spec.setdefault("tolerations", []).append(toleration)
    made["status"] = {"phase": "Pending"}
    return made


def _fixed(pod: Object) -> Any:
    spec = {name: value for name, value in pod["spec"].items() if name not in _POD_MAY_CHANGE}
    for part in ("containers", "initContainers"):
        if part in spec:
            spec[part] = [{**container, "image": ""} for container in spec[part]]
    return spec
