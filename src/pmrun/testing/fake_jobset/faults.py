# SPDX-License-Identifier: Apache-2.0
"""Requests that fail because a test wants them to.

A rule says which requests (verb and kind; "" is any), how they fail, and how often. Invariant: the first rule that fits
decides, and a rule that was used up is gone; watches that were broken stay broken.
"""

from __future__ import annotations

import dataclasses
import threading

from pmrun.testing.fake_jobset.resources import REVIEWS, Resource
from pmrun.testing.fake_jobset.statuses import ApiError, no_right

_REASONS = {401: "Unauthorized", 429: "TooManyRequests", 500: "InternalError", 503: "ServiceUnavailable"}
_WORDS = {
    401: "Unauthorized",
    429: "the server has received too many requests and has asked us to try again later",
    500: "Internal error occurred: etcdserver: request timed out",
    503: "the server is currently unable to handle the request",
}


@dataclasses.dataclass
class Rule:
    """One way to fail."""

    code: int
    times: int = -1  # -1: always
    verb: str = ""
    plural: str = ""
    retry_after_s: int | None = None


class Faults:
    """The rules in force, and the generation of the streams: one that began under another is broken."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._rules: list[Rule] = []
        self.streams = 0

    def add(self, rule: Rule) -> None:
        """From now on."""
        with self._lock:
            self._rules.append(rule)

    def clear(self) -> None:
        """All requests work again."""
        with self._lock:
            self._rules.clear()

    def break_streams(self) -> None:
        """End all watches and followed logs in the middle."""
        with self._lock:
            self.streams += 1

    def check(self, verb: str, resource: Resource, namespace: str) -> None:
        """ApiError where this request is to fail."""
        with self._lock:
            rule = self._find(verb, resource)
            if rule is None or (rule.code == 403 and resource == REVIEWS):
                return
            if rule.times > 0:
                rule.times -= 1
                if rule.times == 0:
                    self._rules.remove(rule)
        if rule.code == 403:
            raise no_right(resource, verb, namespace)
        raise ApiError(
            rule.code, _REASONS.get(rule.code, ""), _WORDS.get(rule.code, "unknown"), None, rule.retry_after_s
        )

    def allows(self, verb: str, plural: str) -> bool:
        """Whether the user has the right: what an access review asks."""
        with self._lock:
            return not any(
                rule.code == 403 and rule.verb in ("", verb) and rule.plural in ("", plural) for rule in self._rules
            )

    def _find(self, verb: str, resource: Resource) -> Rule | None:
        for rule in self._rules:
            if rule.verb in ("", verb) and rule.plural in ("", resource.plural):
                return rule
        return None
