# SPDX-License-Identifier: Apache-2.0
"""Watches: what changed since a version, as long as the client listens.

Invariant: a watch tells of every change after the version where it began, in order and once; an object that begins to
fit the selector is ADDED, one that no longer does is DELETED.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Final

import msgspec

from pmrun.testing.fake_jobset.resources import Object, Resource
from pmrun.testing.fake_jobset.selectors import Test
from pmrun.testing.fake_jobset.statuses import ApiError
from pmrun.testing.fake_jobset.store import Change, Store

_LOOK_S: Final = 0.5
_BOOKMARK_S: Final = 60.0


class Watch:
    """One watch."""

    def __init__(self, store: Store, resource: Resource, namespace: str, test: Test, since: str) -> None:
        self._store = store
        self._resource = resource
        self._namespace = namespace
        self._test = test
        self._first: list[Object] = []
        if since in ("", "0"):  # from whatever is there
            found, self._version = store.all_of(resource, namespace)
            self._first = [entry for entry in found if test(entry)]
        else:
            self._version = int(since)
            store.since(self._version)  # raises where that is forgotten

    def lines(self, timeout_s: float, bookmarks: bool, broken: Callable[[], bool]) -> Iterator[bytes]:
        """One JSON document per line, until the time is up or the stream is to break off."""
        end = time.monotonic() + timeout_s
        next_bookmark = time.monotonic() + _BOOKMARK_S
        for entry in self._first:
            yield _line("ADDED", entry)
        while not broken() and time.monotonic() < end:
            with self._store.changed:
                if self._store.version <= self._version:
                    self._store.changed.wait(_LOOK_S)
                try:
                    changes = self._store.since(self._version)
                except ApiError as error:
                    yield _line("ERROR", error.status())
                    return
                self._version = max(self._version, self._store.version)
            for change in changes:
                yield from self._told(change)
            if bookmarks and time.monotonic() >= next_bookmark:
                next_bookmark += _BOOKMARK_S
                yield self._bookmark()

    def _told(self, change: Change) -> Iterator[bytes]:
        if change.key.resource != self._resource or self._namespace not in ("", change.key.namespace):
            return
        before = change.before is not None and self._test(change.before)
        after = change.after is not None and self._test(change.after)
        if after and change.after is not None:
            yield _line("MODIFIED" if before else "ADDED", change.after)
        elif before and change.before is not None:
            last = change.after or change.before
            yield _line("DELETED", last)

    def _bookmark(self) -> bytes:
        found = {
            "kind": self._resource.kind, "apiVersion": self._resource.api_version,
            "metadata": {"resourceVersion": str(self._version)},
        }  # fmt: skip
        return _line("BOOKMARK", found)


def _line(kind: str, found: Object) -> bytes:
    return msgspec.json.encode({"type": kind, "object": found}) + b"\n"
