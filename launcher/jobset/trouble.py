# SPDX-License-Identifier: Apache-2.0
"""What goes wrong between pmrun and a cluster, in the errors of the contract, each with one line.

Invariant: no exception of the client library or of what it stands on leaves `asking`.
"""

from __future__ import annotations

import contextlib
import importlib
import json
from collections.abc import Iterator
from typing import Any, Final

from pmrun.errors import EngineError
from pmrun.launcher.submission.contract import NoSuchJob, NotSignedIn, Transient

INSTALL: Final = (
    "this cluster has no JobSets; who runs it can install them: kubectl apply --server-side -f "
    "https://github.com/kubernetes-sigs/jobset/releases/latest/download/manifests.yaml"
)


@contextlib.contextmanager
def asking(what: str, job: str = "") -> Iterator[None]:
    """`what`: "create the JobSet", say; `job`: whose absence is meant by 404, where that can be meant."""
    rest = importlib.import_module("kubernetes.client.rest")
    wire = importlib.import_module("urllib3.exceptions")
    try:
        yield
    except rest.ApiException as error:
        raise _of_answer(what, job, error) from None
    except wire.HTTPError as error:
        raise Transient(f"cannot {what}: {_line(error)}") from None
    except OSError as error:
        raise Transient(f"cannot {what}: {error.strerror or error}") from None


def _of_answer(what: str, job: str, error: Any) -> EngineError:
    text = f"cannot {what}: {_message(error)}"
    if error.status == 404 and "could not find the requested resource" in text:
        return EngineError(INSTALL)
    if error.status == 404 and job:
        return NoSuchJob(f"the cluster knows no job {job}: it never did, or the job was deleted")
    if error.status == 401:
        return NotSignedIn(f"{text}; sign in to the cluster again, and see: kubectl auth whoami")
    if error.status == 403 and "cannot" in _message(error):
        return EngineError(f"{text}; ask who runs the cluster for that right")
    if error.status == 409 and "already exists" in text:
        return EngineError(f"{text}; give the job another name with --job-name, or leave that out")
    if error.status == 429 or error.status >= 500:
        after = (error.headers or {}).get("Retry-After", "")
        return Transient(text, float(after) if after.isdecimal() else None)
    return EngineError(text)


def _message(error: Any) -> str:
    try:
        return " ".join(str(json.loads(error.body)["message"]).split())
    except (KeyError, TypeError, ValueError):
        return f"{error.status} {error.reason}"


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
