# SPDX-License-Identifier: Apache-2.0
"""All objects of the cluster with their versions, and the history that watches read.

One lock for everything; who waits for changes waits on `changed`. Invariant: a stored object is never changed, each
write stores a new one under a new version, so that readers share what they read; the history is in the order of the
versions, and an object's versions only grow.
"""

from __future__ import annotations

import random
import threading
import uuid
from collections import deque
from collections.abc import Callable
from typing import Final, NamedTuple

from pmrun.testing.fake_jobset.resources import Object, Resource
from pmrun.testing.fake_jobset.statuses import already_exists, conflict, expired, not_found

_HISTORY: Final = 10_000
_SUFFIX: Final = "bcdfghjklmnpqrstvwxz2456789"  # of generated names: nothing that could spell a word


class Key(NamedTuple):
    """Where an object is."""

    resource: Resource
    namespace: str
    name: str


class Change(NamedTuple):
    """One write."""

    version: int
    key: Key
    before: Object | None
    after: Object | None  # None: deleted; `before` then has the version of the deletion


class Store:
    """The objects."""

    def __init__(self, rng: random.Random, wake: Callable[[], None]) -> None:
        self.changed = threading.Condition(threading.RLock())
        self._rng = rng
        self._wake = wake
        self._objects: dict[Key, Object] = {}
        self._history: deque[Change] = deque(maxlen=_HISTORY)
        self.version = 1

    def new_uid(self) -> str:
        """A uid that nothing else has."""
        return str(uuid.UUID(int=self._rng.getrandbits(128), version=4))

    def suffix(self) -> str:
        """Five random characters, as generated names have."""
        return "".join(self._rng.choice(_SUFFIX) for _ in range(5))

    def get(self, key: Key) -> Object:
        """One object; ApiError where there is none."""
        with self.changed:
            found = self._objects.get(key)
        if found is None:
            raise not_found(key.resource, key.name)
        return found

    def find(self, key: Key) -> Object | None:
        """One object, if there is one."""
        with self.changed:
            return self._objects.get(key)

    def all_of(self, resource: Resource, namespace: str = "") -> tuple[list[Object], int]:
        """The objects of a kind, by name, and the version at which they were so; "": of all namespaces."""
        with self.changed:
            found = [
                (key, entry)
                for key, entry in self._objects.items()
                if key.resource == resource and namespace in ("", key.namespace)
            ]
            return [entry for _, entry in sorted(found, key=lambda pair: pair[0][1:])], self.version

    def everything(self) -> dict[Key, Object]:
        """All there is."""
        with self.changed:
            return dict(self._objects)

    def create(self, key: Key, new: Object) -> Object:
        """A new object, in its first version."""
        with self.changed:
            if key in self._objects:
                raise already_exists(key.resource, key.name)
            return self._write(key, new)

    def replace(self, key: Key, new: Object) -> Object:
        """Another state of an object that is there; one that changes nothing leaves no trace."""
        with self.changed:
            old = self.get(key)
            metadata = {**new["metadata"]}
            version = metadata.get("resourceVersion")
            if version and version != old["metadata"]["resourceVersion"]:
                raise conflict(key.resource, key.name)
            if metadata.get("uid", old["metadata"]["uid"]) != old["metadata"]["uid"]:
                raise conflict(key.resource, key.name, "the UID in the precondition does not match that of the object")
            for name in ("uid", "creationTimestamp", "generation", "resourceVersion", "name", "namespace"):
                if name in old["metadata"]:
                    metadata[name] = old["metadata"][name]
            made = {**new, "metadata": metadata}
            if made == old:
                return old
            if made.get("spec") != old.get("spec"):
                metadata["generation"] = old["metadata"]["generation"] + 1
            return self._write(key, made)

    def remove(self, key: Key) -> Object:
        """The object is gone."""
        with self.changed:
            old = self.get(key)
            del self._objects[key]
            self.version += 1
            last = {**old, "metadata": {**old["metadata"], "resourceVersion": str(self.version)}}
            self._tell(Change(self.version, key, last, None))
            return last

    def since(self, version: int) -> list[Change]:
        """What was written after a version; ApiError where that is forgotten."""
        with self.changed:
            if version < self.version and (not self._history or self._history[0].version > version + 1):
                raise expired()
            found = []
            for change in reversed(self._history):
                if change.version <= version:
                    break
                found.append(change)
            return found[::-1]

    def forget(self) -> None:
        """Drop the history, as the real server does after some minutes."""
        with self.changed:
            self.version += 1
            self._history.clear()
            self.changed.notify_all()

    def _write(self, key: Key, new: Object) -> Object:
        self.version += 1
        before = self._objects.get(key)
        made = {**new, "metadata": {**new["metadata"], "resourceVersion": str(self.version)}}
        self._objects[key] = made
        self._tell(Change(self.version, key, before, made))
        return made

    def _tell(self, change: Change) -> None:
        self._history.append(change)
        self.changed.notify_all()
        self._wake()
