# SPDX-License-Identifier: Apache-2.0
"""What the JobSet project's webhooks do and the CRD does not say: defaults, names that would be too long, changes.

Pure functions of a JobSet that fits the CRD. Invariant: the texts are those of the real webhook, as users search for
them; `defaulted` gives a new object.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from typing import Any, Final

from pmrun.testing.fake_jobset.resources import Object

REASONS: Final = (
    *("BackoffLimitExceeded", "DeadlineExceeded", "FailedIndexes", "MaxFailedIndexesExceeded", "PodFailurePolicy"),
)
ACTIONS: Final = ("FailJobSet", "RestartJobSet", "RestartJobSetAndIgnoreMaxRestarts")
WEBHOOK: Final = "vjobset.kb.io"

_LABEL: Final = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
_RULE_NAME: Final = re.compile(r"[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?")
_MANAGER: Final = re.compile(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?/[A-Za-z0-9/\-._~%!$&'()*+,;=:]+")
_LONGEST: Final = 63
_MOST: Final = 2**31 - 1
_LABEL_WORDS: Final = (
    "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, "
    "and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for validation is "
    "'[a-z]([-a-z0-9]*[a-z0-9])?')"
)
_TEMPLATE_MAY_CHANGE: Final = (  # of a suspended JobSet, for the sake of queues
    *(("metadata", "annotations"), ("metadata", "labels"), ("spec", "nodeSelector")),
    *(("spec", "tolerations"), ("spec", "schedulingGates")),
)


def defaulted(jobset: Object) -> Object:
    """The JobSet with the webhook's defaults."""
    made = copy.deepcopy(jobset)
    spec = made["spec"]
    spec.setdefault("successPolicy", {"operator": "All"})
    spec.setdefault("startupPolicy", {"startupPolicyOrder": "AnyOrder"})
    for replicated in spec.get("replicatedJobs", ()):
        job = replicated["template"].setdefault("spec", {})
        job.setdefault("completionMode", "Indexed")
        job.setdefault("template", {}).setdefault("spec", {}).setdefault("restartPolicy", "OnFailure")
    network = spec.setdefault("network", {})
    network.setdefault("enableDNSHostnames", True)
    network.setdefault("publishNotReadyAddresses", True)
    for number, rule in enumerate((spec.get("failurePolicy") or {}).get("rules", ())):
        rule["name"] = rule.get("name") or f"failurePolicyRule{number}"
    return made


def refusals(jobset: Object) -> list[str]:
    """Why a new JobSet is refused; empty: it is not."""
    spec = jobset["spec"]
    names = [replicated["name"] for replicated in spec.get("replicatedJobs", ())]
    return [
        *_network(spec),
        *_manager(spec),
        *_replicated_jobs(jobset),
        *_policies(spec, names),
        *_coordinator(jobset),
    ]


def changes(old: Object, new: Object) -> list[str]:
    """Why a change is refused."""
    before, after = copy.deepcopy(old["spec"]), copy.deepcopy(new["spec"])
    if before.get("suspend") or after.get("suspend"):
        for one, other in zip(before.get("replicatedJobs", ()), after.get("replicatedJobs", ()), strict=False):
            for part, name in _TEMPLATE_MAY_CHANGE:
                for replicated in (one, other):
                    replicated["template"]["spec"]["template"].get(part, {}).pop(name, None)
    changed = [name for name in ("replicatedJobs", "managedBy") if before.get(name) != after.get(name)]
    return [f"spec.{name}: Invalid value: field is immutable" for name in changed]


def _label(text: str, too_long: str) -> Iterator[str]:
    if len(text) > _LONGEST:
        yield too_long
    if not _LABEL.fullmatch(text):
        yield _LABEL_WORDS


def _network(spec: Any) -> Iterator[str]:
    if spec["network"].get("subdomain"):
        yield from _label(
            spec["network"]["subdomain"], ".spec.network.subdomain is too long, must be less than 63 characters"
        )


def _manager(spec: Any) -> Iterator[str]:
    manager = spec.get("managedBy")
    if manager is not None:
        if not _MANAGER.fullmatch(manager):
            yield (
                f'spec.managedBy: Invalid value: "{manager}": must be a domain-prefixed path (such as "acme.io/foo")'
            )
        if len(manager) > _LONGEST:
            yield f"spec.managedBy: Too long: may not be more than {_LONGEST} bytes"


def _replicated_jobs(jobset: Object) -> Iterator[str]:
    seen: set[str] = set()
    for number, replicated in enumerate(jobset["spec"].get("replicatedJobs", ())):
        name, replicas, job = replicated["name"], int(replicated.get("replicas", 1)), replicated["template"]["spec"]
        needs = replicated.get("dependsOn")
        if number == 0 and needs is not None:
            yield "DependsOn can't be set for the first ReplicatedJob"
        if job.get("parallelism", 1) * replicas > _MOST:
            yield f"the product of replicas and parallelism must not exceed {_MOST} for replicatedJob '{name}'"
        yield from _label(
            replicated.get("groupName", "default"),
            ".spec.replicatedJob[].groupName is too long, must be less than 63 characters",
        )
        longest = f"{jobset['metadata']['name']}-{name}-{replicas - 1}"
        too_long = "JobSet name is too long, {} names generated for this JobSet will exceed 63 characters"
        yield from _label(longest, too_long.format("job"))
        if job["completionMode"] == "Indexed" and "completions" in job:
            yield from _label(f"{longest}-{job['completions'] - 1}-abcde", too_long.format("pod"))
        seen.add(name)
        if needs and needs[0]["name"] not in seen:
            yield f"replicatedJob: {name} cannot depend on replicatedJob: {needs[0]['name']}"


def _policies(spec: Any, names: list[str]) -> Iterator[str]:
    for name in spec["successPolicy"].get("targetReplicatedJobs", ()):
        if name not in names:
            yield f"invalid replicatedJob name '{name}' does not appear in .spec.ReplicatedJobs"
    failure = spec.get("failurePolicy") or {}
    if failure.get("restartStrategy") == "InPlaceRestart":
        yield "the InPlaceRestart restart strategy needs the feature gate InPlaceRestart, which is off"
    rules = failure.get("rules", ())
    for rule in rules:
        if len(rule["name"]) > 128 or not _RULE_NAME.fullmatch(rule["name"]):
            yield (
                f"invalid failure policy rule name '{rule['name']}', a failure policy rule name must start with an "
                "alphabetic character, optionally followed by a string of alphanumeric characters or '_,:', and must "
                "end with an alphanumeric character or '_'"
            )
        if rule["action"] not in ACTIONS:
            yield f"the action {rule['action']} needs a feature gate which is off"
        for name in rule.get("targetReplicatedJobs", ()):
            if name not in names:
                yield (f"invalid replicatedJob name '{name}' in failure policy does not appear in .spec.ReplicatedJobs")
        for reason in rule.get("onJobFailureReasons", ()):
            if reason not in REASONS:
                yield (
                    f"invalid job failure reason '{reason}' in failure policy is not a recognized job failure reason"
                )
    used = [rule["name"] for rule in rules]
    for name in dict.fromkeys(used):
        if used.count(name) > 1:
            places = " ".join(str(number) for number, other in enumerate(used) if other == name)
            yield f"rule names are not unique, rules with indices [{places}] all have the same name '{name}'"


def _coordinator(jobset: Object) -> Iterator[str]:
    wanted = jobset["spec"].get("coordinator")
    if not wanted:
        return
    by_name = {replicated["name"]: replicated for replicated in jobset["spec"].get("replicatedJobs", ())}
    replicated = by_name.get(wanted["replicatedJob"])
    if replicated is None:
        yield f"coordinator replicatedJob {wanted['replicatedJob']} does not exist"
        return
    job_index, pod_index = wanted.get("jobIndex", 0), wanted.get("podIndex", 0)
    if not 0 <= job_index < replicated.get("replicas", 1):
        yield f"coordinator job index {job_index} is invalid for replicatedJob {replicated['name']}"
    job = replicated["template"]["spec"]
    if job["completionMode"] != "Indexed" or "completions" not in job:
        yield "job for coordinator pod must be indexed completion mode, and completions number must be set"
    elif not 0 <= pod_index < job["completions"]:
        yield f"coordinator pod index {pod_index} is invalid for replicatedJob {replicated['name']}"
    if len(coordinator_address(jobset)) > _LONGEST:
        yield f"coordinator endpoint {coordinator_address(jobset)} is no valid label value: more than 63 characters"


def subdomain(jobset: Object) -> str:
    """Of all its pods, and the name of their service."""
    return str(jobset["spec"]["network"].get("subdomain") or jobset["metadata"]["name"])


def coordinator_address(jobset: Object) -> str:
    """The name of the coordinator's pod; "" where there is none."""
    wanted = jobset["spec"].get("coordinator")
    if not wanted:
        return ""
    job = f"{jobset['metadata']['name']}-{wanted['replicatedJob']}-{wanted.get('jobIndex', 0)}"
    return f"{job}-{wanted.get('podIndex', 0)}.{subdomain(jobset)}"
