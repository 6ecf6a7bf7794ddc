# SPDX-License-Identifier: Apache-2.0
"""Packages in an S3 bucket, by boto3: objects `prefix/<hash>.tar.gz`.

Region, endpoint and credentials are boto3's own business (AWS_REGION, AWS_ENDPOINT_URL, roles, ...). Whether a package is
there is asked first; who may write but not look gets "forbidden" for that, and sends it. Invariant: an object is there
whole or not at all, as S3 promises.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator
from typing import Any, Final

from pmrun.errors import LaunchError
from pmrun.launcher.code_package.archive import SUFFIX, Package
from pmrun.launcher.code_package.places import Sink
from pmrun.s3 import split_url

_UNSEEN: Final = ("404", "403", "400")  # to a HEAD, whose answer has no words: what is wrong, PUT will say
_REMEDIES: Final = {
    "NoSuchBucket": "there is no such bucket; create it, or name another by --code-store",
    "NoSuchKey": "it is not there any more; submit the job again",
    "404": "it is not there any more; submit the job again",
    "AccessDenied": "no right to; whoever submits needs s3:GetObject and s3:PutObject, the nodes' role s3:GetObject",
    "403": "no right to; whoever submits needs s3:GetObject and s3:PutObject, the nodes' role s3:GetObject",
    "400": "the credentials have expired, or are wrong; sign in again",
    "ExpiredToken": "the credentials have expired; sign in again",
    "InvalidAccessKeyId": "the credentials are wrong; sign in again, or choose others by AWS_PROFILE",
    "SignatureDoesNotMatch": "the credentials are wrong; sign in again, or choose others by AWS_PROFILE",
    "NoCredentialsError": "there are no credentials; sign in (aws configure, aws sso login), or give the nodes a role",
}


def open_place(url: str) -> Bucket:
    return Bucket(*split_url(url))


class Bucket:
    """One prefix of a bucket."""

    def __init__(self, boto3: Any, bucket: str, prefix: str) -> None:
        self._boto3 = boto3
        self._bucket = bucket
        self._prefix = prefix
        errors = importlib.import_module("botocore.exceptions")
        self._troubles: tuple[type[Exception], ...] = (errors.ClientError, errors.BotoCoreError)

    def address(self, digest: str) -> str:
        return f"s3://{self._bucket}/{self._key(digest)}"

    def keep(self, package: Package) -> bool:
        with self._client(f"write {self.address(package.digest)}") as client:
            try:
                client.head_object(Bucket=self._bucket, Key=self._key(package.digest))
            except self._troubles as error:
                if _code(error) not in _UNSEEN:
                    raise
            else:
                return False
            client.put_object(Bucket=self._bucket, Key=self._key(package.digest), Body=package.file)
        return True

    def fetch(self, digest: str, sink: Sink) -> None:
        with self._client(f"read {self.address(digest)}") as client:
            client.download_fileobj(self._bucket, self._key(digest), sink)

    def _key(self, digest: str) -> str:
        return f"{self._prefix}{digest}{SUFFIX}"

    @contextlib.contextmanager
    def _client(self, what: str) -> Iterator[Any]:
        """A client; its errors become one line."""
        try:
            with contextlib.closing(self._boto3.client("s3")) as client:
                yield client
        except self._troubles as error:
            words = _REMEDIES.get(_code(error), " ".join(str(error).split()))
            raise LaunchError(f"cannot {what}: {words}") from None


def _code(error: Exception) -> str:
    """S3's own name for what went wrong, else boto3's."""
    response = getattr(error, "response", {})
    return str(response.get("Error", {}).get("Code", "")) or type(error).__name__
