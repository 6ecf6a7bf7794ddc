# SPDX-License-Identifier: Apache-2.0
"""S3, as far as a package of code needs it: buckets by path, objects in memory, put, get, head and delete.

Signatures are not checked, and an object comes in one piece: uploads in parts are refused. Invariant: an object is
there whole or not at all.
"""

from __future__ import annotations

import hashlib
import re
import time
import urllib.parse
from collections.abc import Mapping
from email.utils import formatdate
from typing import Final, NamedTuple
from xml.sax.saxutils import escape

_BUCKET: Final = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_RANGE: Final = re.compile(r"bytes=(\d+)-(\d*)")


class Answer(NamedTuple):
    """Of HTTP."""

    status: int
    headers: dict[str, str]
    body: bytes = b""


class _Object(NamedTuple):
    data: bytes
    tag: str
    kind: str
    metadata: dict[str, str]
    changed_s: float


class ObjectsApi:
    """All buckets of the fake."""

    def __init__(self) -> None:
        self._buckets: dict[str, dict[str, _Object]] = {}

    def answer(self, method: str, target: str, headers: Mapping[str, str], body: bytes) -> Answer:
        """Answer one request."""
        path, _, query = target.partition("?")
        bucket, _, key = urllib.parse.unquote(path.lstrip("/")).partition("/")
        if not _BUCKET.fullmatch(bucket):
            return _refused(400, "InvalidBucketName", "The specified bucket is not valid.")
        if {"uploads", "uploadId"} & set(urllib.parse.parse_qs(query, keep_blank_values=True)):
            return _refused(501, "NotImplemented", "This fake takes objects in one piece.")
        if method == "PUT" and not key:
            self._buckets.setdefault(bucket, {})
            return Answer(200, {"Location": f"/{bucket}"})
        if bucket not in self._buckets:
            return _refused(404, "NoSuchBucket", "The specified bucket does not exist")
        if not key:
            return Answer(200, {}) if method == "HEAD" else _refused(501, "NotImplemented", "This fake lists nothing.")
        return self._on_object(method, self._buckets[bucket], key, headers, body)

    def _on_object(
        self, method: str, objects: dict[str, _Object], key: str, headers: Mapping[str, str], body: bytes
    ) -> Answer:
        if method == "PUT":
            return _put(objects, key, headers, body)
        if method == "DELETE":
            objects.pop(key, None)
            return Answer(204, {})
        if method not in ("GET", "HEAD"):
            return _refused(405, "MethodNotAllowed", "The specified method is not allowed against this resource.")
        found = objects.get(key)
        if found is None:
            return _refused(404, "NoSuchKey", "The specified key does not exist.")
        told = {
            "ETag": found.tag, "Content-Type": found.kind, "Accept-Ranges": "bytes",
            "Last-Modified": formatdate(found.changed_s, usegmt=True), **found.metadata,
        }  # fmt: skip
        part = _RANGE.fullmatch(headers.get("Range", ""))
        if part is None:
            return Answer(200, told, found.data)
        first = int(part[1])
        last = min(int(part[2] or len(found.data) - 1), len(found.data) - 1)
        if first > last:
            return _refused(416, "InvalidRange", "The requested range is not satisfiable")
        told["Content-Range"] = f"bytes {first}-{last}/{len(found.data)}"
        return Answer(206, told, found.data[first : last + 1])


def _put(objects: dict[str, _Object], key: str, headers: Mapping[str, str], body: bytes) -> Answer:
    if "aws-chunked" in headers.get("Content-Encoding", ""):
        return _refused(501, "NotImplemented", "This fake takes objects in one piece.")
    if headers.get("If-None-Match") == "*" and key in objects:
        return _refused(412, "PreconditionFailed", "At least one of the pre-conditions you specified did not hold")
    tag = f'"{hashlib.md5(body, usedforsecurity=False).hexdigest()}"'
    metadata = {name.lower(): value for name, value in headers.items() if name.lower().startswith("x-amz-meta-")}
    kind = headers.get("Content-Type", "binary/octet-stream")
    objects[key] = _Object(body, tag, kind, metadata, time.time())
    return Answer(200, {"ETag": tag})


def _refused(status: int, code: str, message: str) -> Answer:
    body = f'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>{code}</Code><Message>{escape(message)}</Message></Error>'
    return Answer(status, {"Content-Type": "application/xml"}, body.encode())
