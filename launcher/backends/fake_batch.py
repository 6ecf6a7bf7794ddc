# SPDX-License-Identifier: Apache-2.0
"""Runs a job as AWS Batch would, on this machine: `pmrun -n 4 --on fake-batch --nodes 2 train.py`.

Requests, client and log are those of `--on batch`; Batch itself is pmrun.testing.fake_batch, which lives as long as the
command. Image, queue and role need not be named, and nodes begin in this directory. Invariant: when the command ends,
nothing of the job is left.
"""

from __future__ import annotations

import os
from typing import ClassVar, Final

import msgspec

from pmrun.errors import UsageError
from pmrun.launcher.aws_batch.client import BatchClient
from pmrun.launcher.aws_batch.request import make_request
from pmrun.launcher.job import Job
from pmrun.launcher.submission.backend import EngineBackend
from pmrun.launcher.submission.contract import Client

_ENGINE: Final = "fake-batch"
_ROLE: Final = "arn:aws:iam::123456789012:role/fake"


class Backend(EngineBackend):
    """One job, and Batch for it."""

    def __init__(self) -> None:
        self._held: Client | None = None

    def client(self) -> Client:
        if self._held is None:
            raise UsageError("a job of fake-batch lives as long as the command that runs it: look at what that shows")
        return self._held

    def dry_run(self, job: Job) -> dict[str, object]:
        return make_request(_completed(job), _ENGINE)

    def run(self, job: Job) -> int:
        from pmrun.testing.fake_batch import FakeBatch

        assert job.submission is not None
        if job.submission.detach:
            raise UsageError("--detach: a job of fake-batch ends with the command; leave it out")
        with FakeBatch() as aws:
            self._held = _QuickClient(lambda service, region: aws.client(service, region_name=region), _ENGINE)
            return super().run(_completed(job))


class _QuickClient(BatchClient):
    """Asks an engine that costs nothing and shows lines at once."""

    calls_per_minute: ClassVar[int] = 600
    settle_s: ClassVar[float] = 0.0


def _completed(job: Job) -> Job:
    """What Batch has to be told and here follows by itself."""
    said = job.submission
    assert said is not None
    settings = said.settings
    if not any(key == "execution-role" for key, _ in settings):
        settings = (*settings, ("execution-role", _ROLE))
    submission = msgspec.structs.replace(
        said, image=said.image or "this-machine", queue=said.queue or "fake-queue", settings=settings,
        on_interrupt="cancel",  # the job cannot go on without this command
    )  # fmt: skip
    return msgspec.structs.replace(
        job, cwd=job.cwd or (os.getcwd() if said.code is None else None), submission=submission
    )
