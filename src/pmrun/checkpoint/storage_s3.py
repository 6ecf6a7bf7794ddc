# SPDX-License-Identifier: Apache-2.0
"""Checkpoints in an S3 bucket, by boto3: `s3://bucket/prefix`.

A file is an object `prefix/version/name`, sent in parts as it is made. There are no locks; a version is claimed by an
object that S3 makes only where there is none (If-None-Match), so two jobs never write into one. Region, endpoint and
credentials are boto3's own business (AWS_REGION, AWS_ENDPOINT_URL, roles, ...). Invariant: an object is there whole or not
at all, and what a listing shows is what was last written, as S3 promises.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator
from typing import Any, Final

from pmrun.checkpoint.storage import Missing, Sink, Taken
from pmrun.s3 import split_url

_CLAIM: Final = "claim"
_TAKEN: Final = ("PreconditionFailed", "ConditionalRequestConflict")
_ABSENT: Final = ("NoSuchKey", "NotFound", "404")
_PART_BYTES_MIN: Final = 8 << 20
_PARTS_MAX: Final = 9000  # S3 takes 10,000
_DELETES_MAX: Final = 1000  # of one request


def open_storage(url: str) -> Bucket:
    """The prefix that an address names; no request is sent yet."""
    return Bucket(*split_url(url))


class Bucket:
    """Versions as common prefixes, under one."""

    def __init__(self, boto3: Any, bucket: str, prefix: str) -> None:
        self._boto3 = boto3
        self._bucket = bucket
        self._prefix = prefix
        self._opened: Any = None
        self._troubles: tuple[type[Exception], ...] = (
            importlib.import_module("botocore.exceptions").ClientError,
            importlib.import_module("botocore.exceptions").BotoCoreError,
            importlib.import_module("boto3.exceptions").Boto3Error,
        )

    def lock(self, owner: str) -> bool:
        return False

    def versions(self) -> dict[str, set[str]]:
        found: dict[str, set[str]] = {}
        for key in self._keys(self._prefix):
            version, slash, name = key.removeprefix(self._prefix).partition("/")
            if slash:
                found.setdefault(version, set()).add(name)
        return found

    def claim(self, version: str) -> None:
        key = self._key(version, _CLAIM)
        with self._told(key):
            try:
                self._client.put_object(Bucket=self._bucket, Key=key, Body=b"", IfNoneMatch="*")
            except self._troubles as error:
                if _code(error) in _TAKEN:
                    raise Taken(version) from None
                raise

    def put(self, version: str, name: str, size: int, blocks: Iterator[memoryview]) -> None:
        key = self._key(version, name)
        config = importlib.import_module("boto3.s3.transfer").TransferConfig(
            multipart_chunksize=max(_PART_BYTES_MIN, size // _PARTS_MAX)
        )
        with self._told(key):
            self._client.upload_fileobj(_Stream(blocks), self._bucket, key, Config=config)

    def get(self, version: str, name: str, sink: Sink) -> None:
        key = self._key(version, name)
        with self._told(key):
            try:
                self._client.download_fileobj(self._bucket, key, sink)
            except self._troubles as error:
                if _code(error) in _ABSENT:
                    raise Missing(name) from None
                raise

    def remove(self, version: str, first: str) -> None:
        key = self._key(version, first)
        with self._told(key):
            self._client.delete_object(Bucket=self._bucket, Key=key)
            keys = self._keys(self._key(version, ""))
            for start in range(0, len(keys), _DELETES_MAX):
                names = [{"Key": name} for name in keys[start : start + _DELETES_MAX]]
                answer = self._client.delete_objects(Bucket=self._bucket, Delete={"Objects": names, "Quiet": True})
                for problem in answer.get("Errors", ()):
                    raise OSError(f"s3://{self._bucket}/{problem['Key']}: {problem['Message']}")
            self._abort_uploads(self._key(version, ""))

    def close(self) -> None:
        if self._opened is not None:
            self._opened.close()
            self._opened = None

    # ---- details ----------------------------------------------------------------------------------------

    @property
    def _client(self) -> Any:
        if self._opened is None:
            self._opened = self._boto3.client("s3")
        return self._opened

    def _key(self, version: str, name: str) -> str:
        return f"{self._prefix}{version}/{name}"

    def _keys(self, prefix: str) -> list[str]:
        with self._told(prefix):
            pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self._bucket, Prefix=prefix)
            return [item["Key"] for page in pages for item in page.get("Contents", ())]

    def _abort_uploads(self, prefix: str) -> None:
        """Parts that a died save has sent are paid for until somebody says that no more will come."""
        pages = self._client.get_paginator("list_multipart_uploads").paginate(Bucket=self._bucket, Prefix=prefix)
        for upload in [item for page in pages for item in page.get("Uploads", ())]:
            self._client.abort_multipart_upload(Bucket=self._bucket, Key=upload["Key"], UploadId=upload["UploadId"])

    @contextlib.contextmanager
    def _told(self, key: str) -> Iterator[None]:
        """boto3's errors as OSError: one line, with the object's address."""
        try:
            yield
        except self._troubles as error:
            text = " ".join(str(error).split())
            raise OSError(f"s3://{self._bucket}/{key}: {text}") from None


class _Stream:
    """Blocks as the file that boto3 reads."""

    def __init__(self, blocks: Iterator[memoryview]) -> None:
        self._blocks = blocks
        self._block = memoryview(b"")

    def read(self, count: int = -1) -> bytes:
        """So many bytes, fewer only at the end; all that are left where it is negative."""
        data = bytearray()
        while count < 0 or len(data) < count:
            if not self._block:
                block = next(self._blocks, None)
                if block is None:
                    break
                self._block = block
            taken = len(self._block) if count < 0 else count - len(data)
            data += self._block[:taken]
            self._block = self._block[taken:]
        return bytes(data)


def _code(error: Exception) -> str:
    """S3's own name for what went wrong."""
    response = getattr(error, "response", {})
    return str(response.get("Error", {}).get("Code", ""))
