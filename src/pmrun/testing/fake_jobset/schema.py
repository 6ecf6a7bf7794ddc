# SPDX-License-Identifier: Apache-2.0
"""Validation by the real CRD: unknown fields, types, defaults, and what may not change.

The CRD (crd/, of the JobSet project, with its licence) is read once and its OpenAPI schema turned into a JSON schema,
which the library jsonschema checks. A JobSet holds the template of Jobs and those of Pods, so the same file describes
them, too. Invariant: no object is changed in place; what the server would drop is reported by its path.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator
from importlib import resources as files
from typing import Any, Final

import jsonschema
import msgspec
import yaml

from pmrun.testing.fake_jobset.resources import Object

_CRD: Final = "jobset-crd-v0.12.0.yaml"
_IMMUTABLE: Final = "self == oldSelf"
_RULES: Final = "x-kubernetes-validations"
_ALL_OBJECTS_HAVE: Final = ("apiVersion", "kind", "metadata", "status")
_NOT_SCHEMA: Final = frozenset({"description", "format"})


class Schema:
    """One kind's."""

    def __init__(self, tree: Any) -> None:
        self._tree = tree
        self._validator = jsonschema.Draft7Validator(tree)

    def pruned(self, found: Object) -> tuple[Object, list[str]]:
        """The object without the fields that the schema does not know, and their paths."""
        unknown: list[str] = []
        return dict(_prune(found, self._tree, "", unknown)), unknown

    def defaulted(self, found: Object) -> Object:
        """The object with the schema's defaults where it says nothing."""
        return dict(_default(copy.deepcopy(found), self._tree))

    def errors(self, found: Object) -> list[tuple[str, str]]:
        """(path, what is wrong), in the order of the paths."""
        return sorted((_path(error), _words(error)) for error in self._validator.iter_errors(found))

    def changed(self, old: Object, new: Object) -> list[tuple[str, str]]:
        """What is immutable and changed all the same."""
        return list(_changed(old, new, self._tree, ""))


@functools.cache
def of_jobsets() -> Schema:
    """The CRD's own."""
    return Schema(_jobset_tree())


@functools.cache
def of_jobs() -> Schema:
    """That of a JobSet's template of Jobs."""
    return Schema(_within(_jobset_tree(), "spec", "replicatedJobs", "template"))


@functools.cache
def of_pods() -> Schema:
    """That of a Job's template of Pods."""
    return Schema(_within(_jobset_tree(), "spec", "replicatedJobs", "template", "spec", "template"))


@functools.cache
def _jobset_tree() -> Any:
    text = (files.files(__package__) / "crd" / _CRD).read_bytes()
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml's, ten times as fast, where PyYAML has it
    crd = yaml.load(text, Loader=loader)
    return _json_schema(crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"])


def _json_schema(tree: Any) -> Any:
    """Of a structural schema: what JSON schema says otherwise is rewritten."""
    if isinstance(tree, list):
        return [_json_schema(entry) for entry in tree]
    if not isinstance(tree, dict):
        return tree
    made = {
        name: {key: _json_schema(entry) for key, entry in value.items()}
        if name == "properties"
        else _json_schema(value)
        for name, value in tree.items()
        if name not in _NOT_SCHEMA or not isinstance(value, str)
    }
    if made.get("x-kubernetes-int-or-string"):
        made.pop("anyOf", None)
        made["type"] = ["integer", "string"]
    return made


def _within(tree: Any, *path: str) -> Any:
    for name in path:
        tree = tree["properties"][name]
        tree = tree.get("items", tree)
    return tree


def _prune(found: Any, tree: Any, path: str, unknown: list[str]) -> Any:
    if isinstance(found, list) and "items" in tree:
        return [_prune(entry, tree["items"], f"{path}[{number}]", unknown) for number, entry in enumerate(found)]
    if not isinstance(found, dict) or tree.get("x-kubernetes-preserve-unknown-fields"):
        return found
    properties, others = tree.get("properties"), tree.get("additionalProperties")
    if properties is None and others is None:  # free form, as `metadata` is
        return found
    kept = {}
    for name, value in found.items():
        where = f"{path}.{name}" if path else name
        if not path and name in _ALL_OBJECTS_HAVE:
            kept[name] = value
        elif name in (properties or {}):
            kept[name] = _prune(value, properties[name], where, unknown)
        elif isinstance(others, dict):
            kept[name] = _prune(value, others, where, unknown)
        else:
            unknown.append(where)
    return kept


def _default(found: Any, tree: Any) -> Any:
    if isinstance(found, list):
        return [_default(entry, tree.get("items", {})) for entry in found]
    if isinstance(found, dict):
        for name, inner in (tree.get("properties") or {}).items():
            if name not in found and "default" in inner:
                found[name] = copy.deepcopy(inner["default"])
            if name in found:
                found[name] = _default(found[name], inner)
    return found


def _changed(old: Any, new: Any, tree: Any, path: str) -> Iterator[tuple[str, str]]:
    for rule in tree.get(_RULES, ()):
        if rule["rule"] == _IMMUTABLE and old != new:
            yield path, f"Invalid value: {msgspec.json.encode(new).decode()}: {rule['message']}"
    if isinstance(old, dict) and isinstance(new, dict):
        for name, inner in (tree.get("properties") or {}).items():
            if name in old and name in new:
                yield from _changed(old[name], new[name], inner, f"{path}.{name}" if path else name)


def _path(error: jsonschema.ValidationError) -> str:
    text = ""
    for part in error.absolute_path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}"
    return text.lstrip(".") or "<root>"


def _words(error: jsonschema.ValidationError) -> str:
    if error.validator == "required":
        return f"Required value: {error.message}"
    if error.validator == "enum":
        choices = ", ".join(f'"{value}"' for value in error.validator_value)
        return f"Unsupported value: {msgspec.json.encode(error.instance).decode()}: supported values: {choices}"
    return f"Invalid value: {msgspec.json.encode(error.instance).decode()[:200]}: {error.message[:300]}"
