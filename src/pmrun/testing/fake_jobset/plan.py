# SPDX-License-Identifier: Apache-2.0
"""What a controller wants done after a look at an object: creations, deletions, a status, events.

Controllers are pure functions that return a Plan; launching it is the cluster's business. Invariant: a plan that was
carried out in part, because one step was refused, is made anew at the next look.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from pmrun.testing.fake_jobset.resources import Object, Resource


@dataclasses.dataclass
class Plan:
    """Steps, in the order in which they are taken."""

    deletions: list[tuple[Resource, Object, str]] = dataclasses.field(default_factory=list)  # and how: Foreground, ...
    changes: list[tuple[Resource, Object]] = dataclasses.field(default_factory=list)
    status: Object | None = None  # of the object looked at
    events: list[tuple[str, str, str]] = dataclasses.field(default_factory=list)  # type, reason, message
    creations: list[tuple[Resource, Object]] = dataclasses.field(default_factory=list)
    refused: str = ""  # the reason of the event when a creation is refused
    again_s: float | None = None  # look again after this time, even if nothing changes


def has_condition(found: Object, kind: str) -> bool:
    """Whether a condition is there and true."""
    return condition(found, kind).get("status") == "True"


def condition(found: Object, kind: str) -> Object:
    """A condition; empty where there is none."""
    for entry in (found.get("status") or {}).get("conditions", ()):
        if entry["type"] == kind:
            return dict(entry)
    return {}


def set_condition(status: Object, kind: str, value: bool, reason: str, message: str, now: str, **more: Any) -> bool:
    """Write a condition into a status that is being made; whether its value changed."""
    told = {"type": kind, "status": str(value), "reason": reason, "message": message, "lastTransitionTime": now, **more}
    conditions = [dict(entry) for entry in status.get("conditions", ())]
    status["conditions"] = conditions
    for number, entry in enumerate(conditions):
        if entry["type"] == kind:
            changed = bool(entry["status"] != str(value))
            if changed or (entry.get("reason"), entry.get("message")) != (reason, message):
                conditions[number] = told if changed else {**told, "lastTransitionTime": entry["lastTransitionTime"]}
            return changed
    conditions.append(told)
    return True


def owned_by(owner: Object, kind: str, api_version: str) -> list[Object]:
    """The reference that makes an object its owner's."""
    metadata = owner["metadata"]
    return [{
        "apiVersion": api_version, "kind": kind, "name": metadata["name"], "uid": metadata["uid"],
        "controller": True, "blockOwnerDeletion": True,
    }]  # fmt: skip


def is_owned(found: Object, owner: Object) -> bool:
    """Whether one object is another's."""
    references = found["metadata"].get("ownerReferences", ())
    return any(reference["uid"] == owner["metadata"]["uid"] for reference in references)
