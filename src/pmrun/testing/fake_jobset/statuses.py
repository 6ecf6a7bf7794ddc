# SPDX-License-Identifier: Apache-2.0
"""Errors as the API answers them: `Status` objects, with the words of the real server.

Invariant: whatever goes wrong in a request is an `ApiError`, and its text is one that users of a real cluster know.
"""

from __future__ import annotations

from collections.abc import Sequence

from pmrun.testing.fake_jobset.resources import Object, Resource


class ApiError(Exception):
    """A request that failed, with the answer to it."""

    def __init__(
        self, code: int, reason: str, message: str, details: Object | None = None, retry_after_s: int | None = None
    ) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason
        self.details = details or {}
        self.retry_after_s = retry_after_s

    def status(self) -> Object:
        """The body of the answer."""
        details = dict(self.details)
        if self.retry_after_s is not None:
            details["retryAfterSeconds"] = self.retry_after_s
        return {
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": str(self),
            "reason": self.reason, "details": details, "code": self.code,
        }  # fmt: skip


def _about(resource: Resource, name: str) -> Object:
    return {"name": name, "group": resource.group, "kind": resource.plural}


def no_such_path() -> ApiError:
    """Nothing is served there: an unknown kind reads like this."""
    return ApiError(404, "NotFound", "the server could not find the requested resource")


def not_found(resource: Resource, name: str) -> ApiError:
    """The object does not exist."""
    return ApiError(404, "NotFound", f'{resource.qualified} "{name}" not found', _about(resource, name))


def already_exists(resource: Resource, name: str) -> ApiError:
    """Two creations of one name."""
    return ApiError(409, "AlreadyExists", f'{resource.qualified} "{name}" already exists', _about(resource, name))


def conflict(resource: Resource, name: str, why: str = "") -> ApiError:
    """Somebody else wrote it since it was read."""
    why = why or "the object has been modified; please apply your changes to the latest version and try again"
    text = f'Operation cannot be fulfilled on {resource.qualified} "{name}": {why}'
    return ApiError(409, "Conflict", text, _about(resource, name))


def invalid(resource: Resource, name: str, causes: Sequence[tuple[str, str]]) -> ApiError:
    """Fields that cannot be so: (path, what is wrong)."""
    kind = f"{resource.kind}.{resource.group}" if resource.group else resource.kind
    lines = [f"{path}: {text}" for path, text in causes]
    body = lines[0] if len(lines) == 1 else f"[{', '.join(lines)}]"
    told = [{"reason": "FieldValueInvalid", "field": path, "message": text} for path, text in causes]
    details = {"name": name, "group": resource.group, "kind": resource.kind, "causes": told}
    return ApiError(422, "Invalid", f'{kind} "{name}" is invalid: {body}', details)


def bad_request(message: str) -> ApiError:
    """The request itself makes no sense."""
    return ApiError(400, "BadRequest", message)


def forbidden(resource: Resource, name: str, why: str) -> ApiError:
    """An admission plugin refuses the object."""
    return ApiError(403, "Forbidden", f'{resource.qualified} "{name}" is forbidden: {why}', _about(resource, name))


def denied(webhook: str, why: str) -> ApiError:
    """An admission webhook refuses the object."""
    return ApiError(403, "Forbidden", f'admission webhook "{webhook}" denied the request: {why}')


def no_right(resource: Resource, verb: str, namespace: str) -> ApiError:
    """The user may not do this."""
    where = f'in the namespace "{namespace}"' if namespace else "at the cluster scope"
    text = (
        f'{resource.qualified} is forbidden: User "fake" cannot {verb} resource "{resource.plural}" '
        f'in API group "{resource.group}" {where}'
    )
    return ApiError(403, "Forbidden", text, _about(resource, ""))


def expired() -> ApiError:
    """A watch asks for history that is gone."""
    return ApiError(410, "Expired", "The resourceVersion for the provided watch is too old.")
