# SPDX-License-Identifier: Apache-2.0
"""Runs a job on Kubernetes, as a JobSet: `pmrun -n 32 --on k8s --nodes 4 --image IMAGE train.py`.

Invariant: the client library is loaded when the cluster is first asked something.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any, Final

from pmrun.errors import UsageError
from pmrun.launcher.jobset.client import Cluster, JobSetClient
from pmrun.launcher.submission.backend import EngineBackend
from pmrun.launcher.submission.contract import Client

_NAMESPACE_OF_POD: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")


class Backend(EngineBackend):
    """The cluster of the current context of kubectl, or the one in which this is a pod."""

    def client(self) -> Client:
        return JobSetClient(_connect, "k8s")


def _connect() -> Cluster:
    try:
        client = importlib.import_module("kubernetes.client")
        config: Any = importlib.import_module("kubernetes.config")
    except ImportError:
        raise UsageError(
            "Kubernetes needs its client library, which is not installed; run: pip install 'pmrun[k8s]'"
        ) from None
    settings = client.Configuration()
    settings.retries = False  # pmrun tries again itself, by a budget of its own
    try:
        config.load_kube_config(client_configuration=settings)
        _, current = config.list_kube_config_contexts()
        namespace = current["context"].get("namespace") or "default"
    except config.ConfigException as error:
        try:
            config.load_incluster_config(client_configuration=settings)
            namespace = _NAMESPACE_OF_POD.read_text().strip()
        except (config.ConfigException, OSError):
            raise UsageError(f"no cluster is configured: {error}; see: kubectl config current-context") from None
    return Cluster(client.ApiClient(settings), namespace)
