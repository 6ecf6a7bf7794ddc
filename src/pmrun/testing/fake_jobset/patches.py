# SPDX-License-Identifier: Apache-2.0
"""The four patches of the API: JSON patch, merge patch, strategic merge patch, and apply.

Lists of a strategic patch are merged by the keys below; its directives (`$patch` and the like) are refused, as nothing
here writes them. Apply makes the object or merges into it, without owners of fields. Invariant: the object that is
patched stays as it is; the result is new.
"""

from __future__ import annotations

import copy
from typing import Any, Final

import jsonpatch
import msgspec
import yaml

from pmrun.testing.fake_jobset.resources import Object
from pmrun.testing.fake_jobset.statuses import ApiError, bad_request

JSON: Final = "application/json-patch+json"
MERGE: Final = "application/merge-patch+json"
STRATEGIC: Final = "application/strategic-merge-patch+json"
APPLY: Final = "application/apply-patch+yaml"

_MERGE_KEYS: Final = {
    "containers": "name", "initContainers": "name", "env": "name", "volumes": "name", "volumeMounts": "mountPath",
    "ports": "containerPort", "conditions": "type", "ownerReferences": "uid", "imagePullSecrets": "name",
    "hostAliases": "ip", "schedulingGates": "name", "addresses": "type", "secrets": "name",
}  # fmt: skip
_LISTS_OF_WORDS: Final = ("finalizers",)


def apply(found: Object, kind: str, body: bytes, custom: bool) -> Object:
    """The object after a patch; `custom`: it is of a kind that a CRD describes."""
    if kind == JSON:
        try:
            done = jsonpatch.JsonPatch(_decode(body)).apply(found)
        except (jsonpatch.JsonPatchException, jsonpatch.JsonPointerException) as error:
            raise ApiError(422, "Invalid", f"the server rejected our request: {error}") from None
        if not isinstance(done, dict):
            raise bad_request("the patch left no object")
        return done
    if kind == STRATEGIC and custom:
        raise _unsupported(kind, (JSON, MERGE, APPLY))
    if kind not in (MERGE, STRATEGIC, APPLY):
        raise _unsupported(kind, (JSON, MERGE, APPLY) if custom else (JSON, MERGE, STRATEGIC, APPLY))
    patch = read_applied(body) if kind == APPLY else _decode(body)
    if not isinstance(patch, dict):
        raise bad_request("a patch of this kind is an object")
    return dict(_merged(copy.deepcopy(found), patch, by_key=kind != MERGE and not custom))


def read_applied(body: bytes) -> Object:
    """What `kubectl apply --server-side` sends: YAML, of which JSON is a part."""
    try:
        read = yaml.safe_load(body)
    except yaml.YAMLError as error:
        raise bad_request(f"error decoding YAML: {error}") from None
    if not isinstance(read, dict):
        raise bad_request("an applied object is a mapping")
    return read


def _decode(body: bytes) -> Any:
    try:
        return msgspec.json.decode(body)
    except msgspec.DecodeError as error:
        raise bad_request(f"error decoding patch: {error}") from None


def _unsupported(kind: str, supported: tuple[str, ...]) -> ApiError:
    text = f"the body of the request was in an unknown format - accepted media types include: {', '.join(supported)}"
    return ApiError(415, "UnsupportedMediaType", text if kind else f"no Content-Type: {text}")


def _merged(found: Any, patch: Any, by_key: bool) -> Any:
    """RFC 7386; `by_key`: lists of objects with a merge key are merged, too."""
    if not isinstance(patch, dict):
        return patch
    merged = found if isinstance(found, dict) else {}
    for name, value in patch.items():
        if by_key and name.startswith("$"):
            raise bad_request(f"the directive {name} of strategic merge patches is not understood here")
        if value is None:
            merged.pop(name, None)
        elif by_key and name in _MERGE_KEYS and isinstance(value, list) and isinstance(merged.get(name), list):
            merged[name] = _merged_list(merged[name], value, _MERGE_KEYS[name])
        elif by_key and name in _LISTS_OF_WORDS:
            merged[name] = list(dict.fromkeys([*merged.get(name, []), *value]))
        else:
            merged[name] = _merged(merged.get(name), value, by_key)
    return merged


def _merged_list(found: list[Any], patch: list[Any], key: str) -> list[Any]:
    merged = list(found)
    places = {entry.get(key): number for number, entry in enumerate(merged)}
    for entry in patch:
        if entry.get(key) in places:
            at = places[entry[key]]
            merged[at] = _merged(merged[at], entry, by_key=True)
        else:
            merged.append(_merged({}, entry, by_key=True))
    return merged
