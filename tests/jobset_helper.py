# SPDX-License-Identifier: Apache-2.0
"""JobSets for the tests, and a client of a fake cluster that waits for what the tests want to see."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import kubernetes

import machines
from pmrun.testing.fake_jobset import FakeJobSet

Object = dict[str, Any]
KIND = ("jobset.x-k8s.io", "v1alpha2", "default", "jobsets")
JOBSET = "jobset.sigs.k8s.io/"
DISRUPTED = {"action": "FailJob", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}


def jobset(name: str, script: str, completions: int = 2, job: Object | None = None, **spec: Any) -> Object:
    """One replicated job `w` whose pods run a Python script; `job` and `spec` add to the Job's and the JobSet's."""
    container = {"name": "main", "image": "any", "command": ["python", "-c", script]}
    template = {
        "completions": completions, "parallelism": completions, "backoffLimit": 0, "completionMode": "Indexed",
        "template": {"spec": {
            "restartPolicy": "Never", "terminationGracePeriodSeconds": 1, "containers": [container],
        }},
        **(job or {}),
    }  # fmt: skip
    replicated = {"name": "w", "replicas": 1, "template": {"spec": template}}
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2", "kind": "JobSet", "metadata": {"name": name},
        "spec": {"replicatedJobs": [replicated], **spec},
    }  # fmt: skip


def pod_spec(found: Object) -> Object:
    """The specification of a JobSet's pods."""
    spec: Object = found["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    return spec


class Client:
    """The pip client on one cluster."""

    def __init__(self, cluster: FakeJobSet, api: Any) -> None:
        self.cluster = cluster
        self.core = kubernetes.client.CoreV1Api(api)
        self.batch = kubernetes.client.BatchV1Api(api)
        self.custom = kubernetes.client.CustomObjectsApi(api)
        self._api = api

    def create(self, body: Object) -> Object:
        return dict(self.custom.create_namespaced_custom_object(*KIND, body))

    def get(self, name: str) -> Object:
        return dict(self.custom.get_namespaced_custom_object(*KIND, name))

    def delete(self, name: str) -> None:
        """And wait until all that was its is gone."""
        self.custom.delete_namespaced_custom_object(*KIND, name)
        machines.until(lambda: not self.pods(name), f"the end of {name}'s pods")

    def pods(self, name: str) -> list[Object]:
        """A JobSet's, by index, as the API has them."""
        found = self.core.list_namespaced_pod("default", label_selector=f"{JOBSET}jobset-name={name}")
        plain = self._api.sanitize_for_serialization(found)["items"]
        return sorted(plain, key=lambda pod: pod["metadata"]["name"])

    def until_running(self, name: str, count: int) -> list[Object]:
        """Its pods, once all run."""
        running: list[Object] = []

        def look() -> bool:
            running[:] = [pod for pod in self.pods(name) if pod["status"]["phase"] == "Running"]
            return len(running) == count

        machines.until(look, f"{count} running pods of {name}")
        return running

    def until_ended(self, name: str) -> Object:
        """The JobSet's status at its end."""
        machines.until(lambda: self.get(name).get("status", {}).get("terminalState"), f"the end of {name}")
        status: Object = self.get(name)["status"]
        return status

    def log(self, pod: Object, **named: Any) -> str:
        name = pod["metadata"]["name"]
        answer = self.core.read_namespaced_pod_log(name, "default", _preload_content=False, **named)
        return bytes(answer.data).decode()

    def may(self, verb: str, plural: str) -> bool:
        """What an access review says."""
        asked = {"spec": {"resourceAttributes": {"verb": verb, "resource": plural, "namespace": "default"}}}
        review = kubernetes.client.AuthorizationV1Api(self._api).create_self_subject_access_review(asked)
        return bool(review.status.allowed)

    def events(self, reason: str) -> list[str]:
        """Messages, in no order."""
        found = self.core.list_namespaced_event("default", field_selector=f"reason={reason}")
        return [event.message for event in found.items]


@contextlib.contextmanager
def client_of(cluster: FakeJobSet) -> Iterator[Client]:
    """A client, whose connections are closed in the end."""
    api = kubernetes.config.new_client_from_config(str(cluster.kubeconfig))
    try:
        yield Client(cluster, api)
    finally:
        hang_up(api)


def hang_up(api: Any) -> None:
    """Close a client's connections, which wait for its last reference otherwise."""
    pools = api.rest_client.pool_manager.pools
    for key in pools.keys():  # noqa: SIM118 - it is no dict, and cannot be iterated over
        pools[key].close()
    api.close()
