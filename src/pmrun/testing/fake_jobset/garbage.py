# SPDX-License-Identifier: Apache-2.0
"""What goes when its owner goes: the garbage collector, and the end of namespaces.

Invariant: nothing is collected while one of its owners is there; an object that is deleted in the foreground goes after
all that block it.
"""

from __future__ import annotations

from pmrun.testing.fake_jobset.api import Api
from pmrun.testing.fake_jobset.job_controller import TRACKING, counted
from pmrun.testing.fake_jobset.resources import NAMESPACES, PODS, Object
from pmrun.testing.fake_jobset.store import Key

_FOREGROUND = "foregroundDeletion"


def collect(api: Api) -> None:
    """One pass; each write causes another."""
    everything = api.store.everything()
    uids = {found["metadata"]["uid"] for found in everything.values()}
    dependents: dict[str, list[Key]] = {}
    for key, found in everything.items():
        owners = [reference["uid"] for reference in found["metadata"].get("ownerReferences", ())]
        for owner in owners:
            dependents.setdefault(owner, []).append(key)
        if owners and not uids.intersection(owners):
            _delete(api, key, found)
    for key, found in everything.items():
        waits = found["metadata"].get("finalizers", ()) if "deletionTimestamp" in found["metadata"] else ()
        below = [other for other in dependents.get(found["metadata"]["uid"], ()) if other in everything]
        if _FOREGROUND in waits:
            for other in below:
                _delete(api, other, everything[other])
            if not below:
                _finish(api, key, _FOREGROUND)
        elif "orphan" in waits:
            for other in below:
                _leave_owner(api, other, found["metadata"]["uid"])
            _finish(api, key, "orphan")
        elif key.resource == NAMESPACES and "kubernetes" in waits:
            inside = [other for other in everything if other.namespace == key.name]
            for other in inside:
                _delete(api, other, everything[other])
            if not inside:
                _finish(api, key, "kubernetes")


def _delete(api: Api, key: Key, found: Object) -> None:
    """In the background; a pod of a Job that is gone is counted by nobody."""
    if key.resource == PODS and TRACKING in found["metadata"].get("finalizers", ()):
        api.update(key, counted(found), whole=True)
    current = api.store.find(key)
    if current is not None and "deletionTimestamp" not in current["metadata"]:
        api.delete(key)


def _finish(api: Api, key: Key, finalizer: str) -> None:
    found = api.store.get(key)
    rest = [name for name in found["metadata"]["finalizers"] if name != finalizer]
    api.update(key, {**found, "metadata": {**found["metadata"], "finalizers": rest}}, whole=True)


def _leave_owner(api: Api, key: Key, uid: str) -> None:
    found = api.store.get(key)
    rest = [reference for reference in found["metadata"]["ownerReferences"] if reference["uid"] != uid]
    api.update(key, {**found, "metadata": {**found["metadata"], "ownerReferences": rest}}, whole=True)
