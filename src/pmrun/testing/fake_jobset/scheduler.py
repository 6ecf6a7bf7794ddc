# SPDX-License-Identifier: Apache-2.0
"""The scheduler: which pod goes to which node, or why it goes to none, in the real one's words.

A pure function. Pods of a pod group (coscheduling, Volcano, native) are placed as soon as enough of them fit at once,
and otherwise none is. Invariant: no node gets more than it has.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import Any, Final, NamedTuple

from pmrun.testing.fake_jobset.resources import POD_GROUPS, Object, Resource

_UNITS: Final = {
    "": 1.0, "m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12,
    "Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30, "Ti": 2.0**40,
}  # fmt: skip
SCHEDULERS: Final = {
    "default-scheduler": "", "volcano": "volcano", "scheduler-plugins-scheduler": "coscheduling",
}  # fmt: skip


class Verdict(NamedTuple):
    """On one pod."""

    pod: Object
    node: str  # "": nowhere
    reason: str


def place(
    pods: list[Object], nodes: list[Object], groups: dict[tuple[Resource, str, str], Object], extras: frozenset[str],
    claims: set[tuple[str, str]],
) -> list[Verdict]:  # fmt: skip
    """Verdicts on all pods that wait for a node; `extras`: what schedulers there are."""
    free = {node["metadata"]["name"]: dict(_allocatable(node)) for node in nodes}
    members: Counter[tuple[Resource, str, str]] = Counter()
    for pod in pods:
        name = pod["spec"].get("nodeName")
        if name and pod["status"].get("phase") not in ("Succeeded", "Failed"):
            _take(free.get(name, {}), needs(pod))
            members[_group(pod)] += 1
    waiting: dict[Any, list[Object]] = {}
    for pod in sorted(pods, key=lambda pod: -int(pod["spec"].get("priority", 0))):
        if _waits(pod, extras):
            group = _group(pod)
            waiting.setdefault(group if group[2] else pod["metadata"]["uid"], []).append(pod)
    verdicts: list[Verdict] = []
    for group, some in waiting.items():
        least = 1
        if isinstance(group, tuple):
            found = groups.get(group)
            if found is None:
                verdicts += [Verdict(pod, "", f'pod group "{group[2]}" not found') for pod in some]
                continue
            least = _least(found) - members[group]
        verdicts += _place_group(some, least, nodes, free, claims)
    return verdicts


def _place_group(
    pods: list[Object], least: int, nodes: list[Object], free: dict[str, dict[str, float]], claims: set[tuple[str, str]]
) -> list[Verdict]:
    trial = {name: dict(left) for name, left in free.items()}
    verdicts = [_place_one(pod, nodes, trial, claims) for pod in pods]
    placed = sum(bool(verdict.node) for verdict in verdicts)
    if placed < least:
        text = f"pod group is not ready: {placed} of {least} pods fit"
        return [Verdict(pod, "", verdict.reason or text) for pod, verdict in zip(pods, verdicts, strict=True)]
    for name, left in trial.items():
        free[name] = left
    return verdicts


def _place_one(
    pod: Object, nodes: list[Object], free: dict[str, dict[str, float]], claims: set[tuple[str, str]]
) -> Verdict:
    for volume in pod["spec"].get("volumes", ()):
        claim = (volume.get("persistentVolumeClaim") or {}).get("claimName")
        if claim and (pod["metadata"]["namespace"], claim) not in claims:
            text = f'persistentvolumeclaim "{claim}" not found'
            return Verdict(pod, "", f"0/{len(nodes)} nodes are available: {text}.")
    wanted = needs(pod)
    reasons: Counter[str] = Counter()
    fits: list[str] = []
    for node in nodes:
        why = _why_not(pod, node, wanted, free[node["metadata"]["name"]])
        if why:
            reasons.update(why)
        else:
            fits.append(node["metadata"]["name"])
    if not fits:
        told = ", ".join(f"{count} {text}" for text, count in sorted(reasons.items()))
        return Verdict(pod, "", f"0/{len(nodes)} nodes are available: {told}." if told else "no nodes available")
    best = max(fits, key=lambda name: (free[name].get("cpu", 0.0), free[name].get("pods", 0.0)))
    _take(free[best], wanted)
    return Verdict(pod, best, "")


def _why_not(pod: Object, node: Object, wanted: dict[str, float], left: dict[str, float]) -> list[str]:
    labels = node["metadata"].get("labels") or {}
    if any(labels.get(name) != value for name, value in (pod["spec"].get("nodeSelector") or {}).items()):
        return ["node(s) didn't match Pod's node affinity/selector"]
    if node["spec"].get("unschedulable"):
        return ["node(s) were unschedulable"]
    for taint in node["spec"].get("taints", ()):
        if taint["effect"] in ("NoSchedule", "NoExecute") and not tolerates(pod, taint):
            return [f"node(s) had untolerated taint {{{taint['key']}: {taint.get('value', '')}}}"]
    return [
        "Too many pods" if name == "pods" else f"Insufficient {name}"
        for name, amount in wanted.items()
        if amount > left.get(name, 0.0)
    ]


def tolerates(pod: Object, taint: Object) -> bool:
    """Whether a pod may be where a taint is."""
    for entry in pod["spec"].get("tolerations", ()):
        key, effect = entry.get("key") or "", entry.get("effect") or ""
        same = entry.get("operator") == "Exists" or entry.get("value", "") == taint.get("value", "")
        if key in ("", taint["key"]) and effect in ("", taint["effect"]) and same:
            return True
    return False


def needs(pod: Object) -> dict[str, float]:
    """What a pod asks for in sum; a limit without a request is a request."""
    amounts = {"pods": 1.0}
    for container in pod["spec"]["containers"]:
        resources = container.get("resources") or {}
        for name, value in {**(resources.get("limits") or {}), **(resources.get("requests") or {})}.items():
            amounts[name] = amounts.get(name, 0.0) + quantity(value)
    return amounts


def quantity(value: object) -> float:
    """Of `500m`, `2Gi`, `3`."""
    found = re.fullmatch(r"([0-9.]+)(m|k|M|G|T|Ki|Mi|Gi|Ti)?", str(value))
    return float(found[1]) * _UNITS[found[2] or ""] if found else 0.0


def _allocatable(node: Object) -> dict[str, float]:
    return {name: quantity(value) for name, value in node["status"].get("allocatable", {}).items()}


def _take(left: dict[str, float], wanted: dict[str, float]) -> None:
    for name, amount in wanted.items():
        left[name] = left.get(name, 0.0) - amount


def _waits(pod: Object, extras: frozenset[str]) -> bool:
    scheduler = SCHEDULERS.get(pod["spec"].get("schedulerName", "default-scheduler"))
    served = scheduler == "" or scheduler in extras
    bound = pod["spec"].get("nodeName") or "deletionTimestamp" in pod["metadata"]
    return served and not bound and not pod["spec"].get("schedulingGates") and pod["status"].get("phase") == "Pending"


def _group(pod: Object) -> tuple[Resource, str, str]:
    """The pod group that it names: kind, namespace, name; no name: none."""
    metadata = pod["metadata"]
    labels, notes = metadata.get("labels") or {}, metadata.get("annotations") or {}
    named = (
        labels.get("scheduling.x-k8s.io/pod-group", ""),
        notes.get("scheduling.k8s.io/group-name") or notes.get("scheduling.volcano.sh/group-name") or "",
        (pod["spec"].get("schedulingGroup") or {}).get("podGroupName", ""),
    )
    for resource, name in zip(POD_GROUPS, named, strict=True):
        if name:
            return resource, metadata["namespace"], name
    return POD_GROUPS[0], "", ""


def _least(group: Object) -> int:
    spec = group.get("spec") or {}
    gang = ((spec.get("schedulingPolicy") or {}).get("gang")) or {}
    return int(spec.get("minMember") or gang.get("minCount") or 1)
