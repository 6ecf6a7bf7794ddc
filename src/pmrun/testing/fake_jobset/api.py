# SPDX-License-Identifier: Apache-2.0
"""The verbs of the API on the store: what a request does, without HTTP.

Controllers and kubelet use the same verbs as clients do. Invariant: every write passes admission, keeps what its writer
may not change (uid, status through the object, the object through its status), and either happens whole or raises
`ApiError`.
"""

from __future__ import annotations

import copy
import hashlib
import time
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from pmrun.testing.fake_jobset import admission, patches
from pmrun.testing.fake_jobset.resources import EVENTS, JOBS, JOBSETS, NAMESPACES, NODES, PODS, Object, Resource
from pmrun.testing.fake_jobset.statuses import bad_request, conflict, forbidden, not_found
from pmrun.testing.fake_jobset.store import Key, Store
from pmrun.testing.fake_jobset.times import stamp

_OURS: Final = ("uid", "resourceVersion", "creationTimestamp", "generation", "deletionTimestamp", "selfLink")
_DELETION: Final = ("deletionTimestamp", "deletionGracePeriodSeconds")
_PROPAGATION: Final = {"Foreground": "foregroundDeletion", "Orphan": "orphan"}


class How(NamedTuple):
    """What a request says beside its object."""

    dry_run: bool = False
    field_validation: str = "Warn"


_DEFAULT: Final = How()


class Api:
    """The verbs."""

    def __init__(self, store: Store, clock: Callable[[], float] = time.time) -> None:
        self.store = store
        self.clock = clock

    def now(self) -> str:
        """The time as objects have it."""
        return stamp(self.clock())

    def exists(self, resource: Resource, namespace: str, name: str) -> bool:
        """Whether there is such an object."""
        return self.store.find(Key(resource, namespace, name)) is not None

    def create(self, resource: Resource, namespace: str, body: Object, how: How = _DEFAULT) -> tuple[Object, list[str]]:
        """A new object as it is stored, and warnings."""
        found, warnings = admission.known_fields(resource, self._named(resource, namespace, body), how.field_validation)
        with self.store.changed:
            space = self.store.find(Key(NAMESPACES, "", namespace)) if namespace else None
            if namespace and space is None:
                raise not_found(NAMESPACES, namespace)
            name = found["metadata"]["name"]
            if space and "deletionTimestamp" in space["metadata"]:
                why = f"unable to create new content in namespace {namespace} because it is being terminated"
                raise forbidden(resource, name, why)
            if resource in (JOBSETS, JOBS, PODS):
                found.pop("status", None)
            found = admission.admit_new(resource, found, self.exists)
            if how.dry_run:
                return found, warnings
            return self.store.create(Key(resource, namespace, name), found), warnings

    def update(
        self, key: Key, body: Object, part: str = "", how: How = _DEFAULT, *, whole: bool = False
    ) -> tuple[Object, list[str]]:
        """Put another state in an object's place; `part`: "status"; `whole`: everything, as only this server may."""
        new, warnings = admission.known_fields(key.resource, _typed(key.resource, body), how.field_validation)
        if new["metadata"].get("name") != key.name:
            raise bad_request("the name of the object does not match the name on the URL")
        with self.store.changed:
            old = self.store.get(key)
            if not whole:
                new = self._mixed(old, new, key.resource, part)
                if part != "status":
                    new = admission.admit_change(key.resource, old, new)
            if how.dry_run:
                return new, warnings
            if self._may_go(key.resource, new):
                self.store.replace(key, new)
                return self.store.remove(key), warnings
            return self.store.replace(key, new), warnings

    def patch(self, key: Key, kind: str, body: bytes, part: str = "", how: How = _DEFAULT) -> tuple[Object, list[str]]:
        """Change an object by one of the four kinds of patches; an apply makes it where there is none."""
        with self.store.changed:
            old = self.store.find(key)
            if old is None:
                if kind != patches.APPLY:
                    raise not_found(key.resource, key.name)
                return self.create(key.resource, key.namespace, patches.read_applied(body), how)
            custom = key.resource == JOBSETS or bool(key.resource.extra)
            new = patches.apply(old, kind, body, custom)
            return self.update(key, new, part, how)

    def delete(self, key: Key, options: Object | None = None, dry_run: bool = False) -> Object:
        """The object as it was, or as it is while it waits for its end."""
        options = options or {}
        with self.store.changed:
            old = self.store.get(key)
            wanted = options.get("preconditions") or {}
            for name in ("uid", "resourceVersion"):
                if wanted.get(name) not in (None, old["metadata"][name]):
                    why = f"Precondition failed: {name} in precondition: {wanted[name]}, in object meta: "
                    raise conflict(key.resource, key.name, why + str(old["metadata"][name]))
            if dry_run:
                return old
            metadata = {**old["metadata"]}
            if finalizer := _finalizer(key.resource, options):
                metadata["finalizers"] = list(dict.fromkeys([*metadata.get("finalizers", ()), finalizer]))
            grace_s = _grace_s(key.resource, old, options)
            if "deletionTimestamp" not in metadata or grace_s < metadata["deletionGracePeriodSeconds"]:
                metadata["deletionTimestamp"] = stamp(self.clock() + grace_s)
                metadata["deletionGracePeriodSeconds"] = grace_s
            new = {**old, "metadata": metadata}
            if key.resource == NAMESPACES:
                new["status"] = {"phase": "Terminating"}
            if self._may_go(key.resource, new):
                return self.store.remove(key)
            return self.store.replace(key, new)

    def set_status(self, key: Key, status: Object, uid: str) -> None:
        """Another status; nothing where the object is gone or another has its name."""
        with self.store.changed:
            old = self.store.find(key)
            if old is not None and old["metadata"]["uid"] == uid:
                self.store.replace(key, {**old, "status": status})

    def record(self, about: Object, kind: str, reason: str, message: str, component: str) -> None:
        """An event; the same one again counts up."""
        metadata = about["metadata"]
        namespace = metadata.get("namespace", "default")
        same = hashlib.sha256(f"{metadata['uid']} {reason} {message}".encode()).hexdigest()[:16]
        name = f"{metadata['name']}.{same}"
        key = Key(EVENTS, namespace, name)
        with self.store.changed:
            if not self.exists(NAMESPACES, "", namespace):
                return
            old = self.store.find(key)
            if old is not None:
                self.store.replace(key, {**old, "count": old["count"] + 1, "lastTimestamp": self.now()})
                return
            told = {
                "metadata": {"name": name, "namespace": namespace},
                "involvedObject": {
                    "kind": about["kind"], "namespace": namespace, "name": metadata["name"], "uid": metadata["uid"],
                    "apiVersion": about["apiVersion"], "resourceVersion": metadata["resourceVersion"],
                },
                "type": kind, "reason": reason, "message": message, "source": {"component": component}, "count": 1,
                "firstTimestamp": self.now(), "lastTimestamp": self.now(), "reportingComponent": component,
            }  # fmt: skip
            self.create(EVENTS, namespace, told)

    def _named(self, resource: Resource, namespace: str, body: Object) -> Object:
        """A copy with kind, name and what the server gives every new object."""
        found = _typed(resource, body)
        metadata = {name: value for name, value in found["metadata"].items() if name not in _OURS and value is not None}
        if namespace and metadata.setdefault("namespace", namespace) != namespace:
            raise bad_request(
                f"the namespace of the provided object does not match the namespace sent on the request: "
                f"{metadata['namespace']}"
            )
        if not metadata.get("name"):
            if not metadata.get("generateName"):
                raise bad_request(f"{resource.kind}: metadata.name: Required value: name or generateName is required")
            metadata["name"] = metadata["generateName"] + self.store.suffix()
        metadata.update(uid=self.store.new_uid(), creationTimestamp=self.now(), generation=1)
        return {**found, "metadata": metadata}

    def _mixed(self, old: Object, new: Object, resource: Resource, part: str) -> Object:
        """The parts of the new state that this request may write, and the others of the old."""
        if part == "status":
            version = new["metadata"].get("resourceVersion")
            metadata = {**old["metadata"], **({"resourceVersion": version} if version else {})}
            return {**old, "metadata": metadata, "status": new.get("status", {})}
        metadata = {**new["metadata"]}
        for name in _DELETION:
            metadata.pop(name, None)
            if name in old["metadata"]:
                metadata[name] = old["metadata"][name]
        mixed = {**new, "metadata": metadata}
        if "status" in resource.subresources and resource != NODES:
            mixed.pop("status", None)
            if "status" in old:
                mixed["status"] = old["status"]
        return mixed

    def _may_go(self, resource: Resource, found: Object) -> bool:
        """Whether nothing keeps an object that is being deleted."""
        metadata = found["metadata"]
        waits = resource == PODS and metadata.get("deletionGracePeriodSeconds", 0) > 0
        return "deletionTimestamp" in metadata and not metadata.get("finalizers") and not waits


def _typed(resource: Resource, body: Object) -> Object:
    found = copy.deepcopy(body)
    if found.setdefault("kind", resource.kind) != resource.kind:
        raise bad_request(f"the kind of the provided object, {found['kind']}, is not that of the URL, {resource.kind}")
    if found.setdefault("apiVersion", resource.api_version) != resource.api_version:
        text = f"the API version in the data ({found['apiVersion']}) does not match the expected API version"
        raise bad_request(f"{text} ({resource.api_version})")
    metadata = found.setdefault("metadata", {})
    if not isinstance(metadata, dict):
        raise bad_request("metadata is no object")
    metadata.pop("managedFields", None)
    return found


def _finalizer(resource: Resource, options: Object) -> str | None:
    if resource == NAMESPACES:
        return "kubernetes"
    wanted = options.get("propagationPolicy") or ("Orphan" if options.get("orphanDependents") else "Background")
    return _PROPAGATION.get(wanted)


def _grace_s(resource: Resource, found: Object, options: Object) -> int:
    """How long a pod may take to end; one that does not run needs nothing."""
    if resource != PODS:
        return 0
    idle = "nodeName" not in found["spec"] or found.get("status", {}).get("phase") in ("Succeeded", "Failed")
    given: Any = options.get("gracePeriodSeconds")
    return 0 if idle else int(given if given is not None else found["spec"]["terminationGracePeriodSeconds"])
