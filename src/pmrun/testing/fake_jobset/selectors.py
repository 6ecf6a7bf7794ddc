# SPDX-License-Identifier: Apache-2.0
"""Label and field selectors of lists and watches.

A selector is read once and is then a function of an object. Invariant: what cannot be read is answered with 400, and
never selects everything.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from pmrun.testing.fake_jobset.resources import Object
from pmrun.testing.fake_jobset.statuses import bad_request

Test = Callable[[Object], bool]

_SET = re.compile(r"^([\w./-]+)\s+(in|notin)\s+\(([^)]*)\)$")
_EQUAL = re.compile(r"^([\w./-]+)\s*(==|=|!=)\s*([\w.-]*)$")
_EXISTS = re.compile(r"^(!?)\s*([\w./-]+)$")
_FIELDS = ("metadata.name", "metadata.namespace", "spec.nodeName", "status.phase", "type", "reason")
_EVENT_FIELDS = tuple(f"involvedObject.{name}" for name in ("kind", "name", "namespace", "uid", "apiVersion"))


def both(labels: str, fields: str) -> Test:
    """What a request's two selectors select together."""
    by_label, by_field = read_labels(labels), read_fields(fields)
    return lambda found: by_label(found) and by_field(found)


def read_labels(text: str) -> Test:
    """`a=b,c!=d,e in (f,g),!h`."""
    tests = [_label_test(part.strip()) for part in re.split(r",(?![^(]*\))", text) if part.strip()]
    return lambda found: all(test(found["metadata"].get("labels") or {}) for test in tests)


def _label_test(part: str) -> Callable[[Mapping[str, str]], bool]:
    if found := _SET.match(part):
        name, how, values = found[1], found[2], {value.strip() for value in found[3].split(",")}
        if how == "in":
            return lambda labels: labels.get(name) in values
        return lambda labels: labels.get(name) not in values
    if found := _EQUAL.match(part):
        name, how, value = found[1], found[2], found[3]
        return lambda labels: (labels.get(name) == value) is (how != "!=")
    if found := _EXISTS.match(part):
        name, present = found[2], not found[1]
        return lambda labels: (name in labels) is present
    raise bad_request(f"unable to parse requirement: found {part!r}")


def read_fields(text: str) -> Test:
    """`metadata.name=x,status.phase!=Running`."""
    tests = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        found = re.match(r"^([\w.]+)(==|=|!=)(.*)$", part)
        if not found:
            raise bad_request(f"invalid selector: {part!r}; can't understand it")
        if found[1] not in (*_FIELDS, *_EVENT_FIELDS):
            raise bad_request(f'field label not supported: "{found[1]}"')
        tests.append((found[1].split("."), found[2] != "!=", found[3]))
    return lambda found: all((_at(found, path) == value) is wanted for path, wanted, value in tests)


def _at(found: Any, path: list[str]) -> str:
    for name in path:
        found = found.get(name) if isinstance(found, dict) else None
    return "" if found is None else str(found)


def match_labels(selector: Mapping[str, str] | None, found: Object) -> bool:
    """The plain form that services have; an empty one selects nothing."""
    labels = found["metadata"].get("labels") or {}
    return bool(selector) and all(labels.get(name) == value for name, value in (selector or {}).items())
