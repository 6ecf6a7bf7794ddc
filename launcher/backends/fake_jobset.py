# SPDX-License-Identifier: Apache-2.0
"""Runs a job as Kubernetes would, on this machine: `pmrun -n 4 --on fake-jobset --nodes 2 train.py`.

Objects, client and log are those of `--on k8s`; the cluster is pmrun.testing.fake_jobset, which lives as long as the
command. No image need be named, and nodes begin in this directory. Invariant: when the command ends, nothing of the job
is left.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, ClassVar, Final

import msgspec

from pmrun.errors import UsageError
from pmrun.launcher.job import Job
from pmrun.launcher.jobset.client import Cluster, JobSetClient
from pmrun.launcher.jobset.manifest import make_request
from pmrun.launcher.submission.backend import EngineBackend
from pmrun.launcher.submission.contract import Client

if TYPE_CHECKING:
    from pmrun.testing.fake_jobset import FakeJobSet

ENGINE: Final = "fake-jobset"
_CARRIED: Final = ("PYTHONPATH", "TMPDIR")  # what this machine's programs may need to be found


class Backend(EngineBackend):
    """One job, and a cluster for it."""

    def __init__(self) -> None:
        self._held: Client | None = None

    def client(self) -> Client:
        if self._held is None:
            raise UsageError("a job of fake-jobset lives as long as the command that runs it: look at what that shows")
        return self._held

    def dry_run(self, job: Job) -> dict[str, object]:
        return make_request(_completed(job), ENGINE)

    def run(self, job: Job) -> int:
        assert job.submission is not None
        if job.submission.detach:
            raise UsageError("--detach: a job of fake-jobset ends with the command; leave it out")
        try:
            fake_jobset = importlib.import_module("pmrun.testing.fake_jobset")
            importlib.import_module("kubernetes")
            importlib.import_module("jsonschema")
        except ImportError as error:
            raise UsageError(
                f"fake-jobset needs {error.name}, which is not installed; run: pip install 'pmrun[k8s]'"
            ) from None
        carried = {name: os.environ[name] for name in _CARRIED if name in os.environ}
        namespace = job.submission.namespace or "default"
        with fake_jobset.start(fake_jobset.Options(environment=carried, namespaces=(namespace,))) as cluster:
            self._held = QuickClient(lambda: connect(cluster, namespace), ENGINE)
            return super().run(_completed(job))


class QuickClient(JobSetClient):
    """Asks a cluster that costs nothing, and shows lines at once."""

    calls_per_minute: ClassVar[int] = 600
    settle_s: ClassVar[float] = 0.0


def connect(cluster: FakeJobSet, namespace: str = "default") -> Cluster:
    """The official client, on a fake cluster."""
    client = importlib.import_module("kubernetes.client")
    settings = client.Configuration(host=cluster.url)
    settings.retries = False
    if cluster.options.token:
        settings.api_key = {"authorization": f"Bearer {cluster.options.token}"}
    return Cluster(client.ApiClient(settings), namespace)


def _completed(job: Job) -> Job:
    """What Kubernetes has to be told and here follows by itself."""
    said = job.submission
    assert said is not None
    submission = msgspec.structs.replace(said, image=said.image or "this-machine")
    return msgspec.structs.replace(
        job, cwd=job.cwd or (os.getcwd() if said.code is None else None), submission=submission
    )
