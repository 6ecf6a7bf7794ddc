# SPDX-License-Identifier: Apache-2.0
"""Kubernetes as the contract of engines has it (launcher/submission/contract.py), over the official client library.

A job's name is BACKEND/NAMESPACE/JOBSET; all that is known of it is in the cluster. Invariant: what `submit` made is
gone when it raises; a job that is deleted takes all that was its own along, as the JobSet owns it.
"""

from __future__ import annotations

import base64
import contextlib
import importlib
import secrets
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, Final, NamedTuple

from pmrun.errors import EngineError, UsageError
from pmrun.launcher.code_package import config_map
from pmrun.launcher.code_package.places import open_place
from pmrun.launcher.job import Job
from pmrun.launcher.jobset import manifest, reasons
from pmrun.launcher.jobset.pod_log import PodLog, lines_of
from pmrun.launcher.jobset.trouble import asking
from pmrun.launcher.submission.code import Code, pack_again, send_code
from pmrun.launcher.submission.contract import (
    Cursor,
    Finding,
    JobStatus,
    LogLine,
    NoSuchJob,
    Request,
    State,
)
from pmrun.secret import SECRET_BYTES

Object = dict[str, Any]

_LETTERS: Final = "bcdfghjklmnpqrstvwxz2456789"
_PAGE_LINES: Final = 2000
_LAST_LINES_S: Final = 2.0  # for what a pod that has ended still has to say


class Cluster(NamedTuple):
    """A connection: the library's ApiClient, and the namespace that is in use."""

    api: Any
    namespace: str


class JobSetClient:
    """One cluster; `connect` is called when it is first asked something."""

    calls_per_minute: ClassVar[int] = 12
    settle_s: ClassVar[float] = 1.0

    def __init__(self, connect: Callable[[], Cluster], engine: str) -> None:
        self._connect = connect
        self._engine = engine
        self._held: Cluster | None = None
        self._logs: dict[str, dict[str, PodLog]] = {}  # by the job's name and the pod's uid
        self._cancelled: set[str] = set()

    def request(self, job: Job) -> Request:
        """The objects, as one list that kubectl would take, too."""
        return manifest.make_request(job, self._engine)

    def submit(self, request: Request) -> str:
        """The JobSet first: it owns the others, so that they cannot be left over."""
        request = manifest.named(request, "".join(secrets.choice(_LETTERS) for _ in range(5)))
        jobset, *others = request["items"]
        self._send_code(request.get("code"), others)
        namespace = jobset["metadata"].get("namespace") or self._cluster.namespace
        self._check_scheduler(jobset, others)
        with asking(f"create the JobSet in namespace {namespace}"):
            made = self._custom.create_namespaced_custom_object(
                manifest.GROUP, manifest.VERSION, namespace, manifest.PLURAL, jobset, field_validation="Strict"
            )
        name = made["metadata"]["name"]
        try:
            for item in others:
                self._create_owned(namespace, item, made)
        except EngineError:
            self._delete(namespace, name)
            raise
        return f"{self._engine}/{namespace}/{name}"

    def status(self, name: str) -> JobStatus:
        """Two calls: the JobSet, and its pods."""
        namespace, stem = self._split(name)
        try:
            jobset = self._jobset(name)
        except NoSuchJob:
            if name in self._cancelled:
                return JobStatus(name, State.CANCELLED)
            raise
        return reasons.status_of(name, jobset, self._pods(namespace, stem, jobset))

    def read_logs(self, name: str, cursor: Cursor) -> tuple[list[LogLine], Cursor]:
        """Node 0's log has the output of all ranks; of the others those are read whose pods failed."""
        namespace, stem = self._split(name)
        pods = self._pods(namespace, stem)
        ended = {pod["metadata"]["uid"] for pod in pods if pod["status"].get("phase") in ("Succeeded", "Failed")}
        names = {pod["metadata"]["uid"]: pod["metadata"]["name"] for pod in pods}
        logs = self._logs.setdefault(name, {})
        for pod in pods:
            uid, phase = pod["metadata"]["uid"], pod["status"].get("phase")
            wanted = phase in ("Running", "Succeeded", "Failed") if reasons.node_rank(pod) == 0 else phase == "Failed"
            if wanted and uid not in logs:
                logs[uid] = PodLog(reasons.node_rank(pod), self._follower(namespace, pod["metadata"]["name"]))
        positions = dict(cursor.positions)
        lines: list[LogLine] = []
        for uid, log in list(logs.items()):
            begin = int(positions.get(uid, "0"))
            if begin < log.first and uid in names:  # somebody begins anew
                log = logs[uid] = PodLog(log.node_rank, self._follower(namespace, names[uid]))
            if uid in ended or uid not in names:
                log.wait(_LAST_LINES_S)
            begin = max(begin, log.first)
            page = log.take(begin, _PAGE_LINES - len(lines))
            positions[uid] = str(begin + len(page))
            lines += page
        return lines, Cursor(tuple(positions.items()))

    def cancel(self, name: str) -> None:
        """Delete the JobSet, and with it all that it owns."""
        namespace, stem = self._split(name)
        if self.status(name).state.over:
            return
        self._delete(namespace, stem)
        self._cancelled.add(name)

    def jobs(self) -> list[JobStatus]:
        """Those that pmrun made in the namespace that is in use."""
        namespace = self._cluster.namespace
        with asking(f"list the JobSets in namespace {namespace}"):
            found = self._custom.list_namespaced_custom_object(
                manifest.GROUP, manifest.VERSION, namespace, manifest.PLURAL, label_selector=f"{manifest.OURS}=pmrun"
            )["items"]
        found.sort(key=lambda jobset: jobset["metadata"]["creationTimestamp"], reverse=True)
        names = [f"{self._engine}/{namespace}/{jobset['metadata']['name']}" for jobset in found]
        return [
            reasons.status_of(name, jobset, self._pods(namespace, jobset["metadata"]["name"], jobset))
            for name, jobset in zip(names, found, strict=True)
        ]

    def why(self, name: str) -> list[Finding]:
        """What the JobSet, its pods and the cluster's events say."""
        namespace, stem = self._split(name)
        jobset = self._jobset(name)
        pods = self._pods(namespace, stem, jobset)
        with asking("read the cluster's events"):
            events = self._plain(self._core.list_namespaced_event(namespace))["items"]
        ours = [event for event in events if f"{event['involvedObject'].get('name', '')}-".startswith(f"{stem}-")]
        return reasons.findings(jobset, pods, ours)

    # ---- the cluster --------------------------------------------------------------------------------------

    @property
    def _cluster(self) -> Cluster:
        if self._held is None:
            self._held = self._connect()
        return self._held

    @property
    def _core(self) -> Any:
        return importlib.import_module("kubernetes.client").CoreV1Api(self._cluster.api)

    @property
    def _custom(self) -> Any:
        return importlib.import_module("kubernetes.client").CustomObjectsApi(self._cluster.api)

    def _plain(self, found: Any) -> Any:
        return self._cluster.api.sanitize_for_serialization(found)

    def _split(self, name: str) -> tuple[str, str]:
        parts = name.split("/")
        if len(parts) != 3 or not all(parts):
            raise UsageError(
                f"{name!r} is no job of Kubernetes: write {self._engine}/NAMESPACE/NAME, as pmrun printed it"
            )
        return parts[1], parts[2]

    def _jobset(self, name: str) -> Object:
        namespace, stem = self._split(name)
        with asking(f"read the JobSet {stem}", name):
            found: Object = self._custom.get_namespaced_custom_object(
                manifest.GROUP, manifest.VERSION, namespace, manifest.PLURAL, stem
            )
        return found

    def _pods(self, namespace: str, stem: str, jobset: Object | None = None) -> list[Object]:
        """Its pods; with the JobSet, those of the present attempt."""
        with asking("read the job's pods"):
            label = f"{manifest.PREFIX}jobset-name={stem}"
            found = self._plain(self._core.list_namespaced_pod(namespace, label_selector=label))["items"]
        now = None if jobset is None else str((jobset.get("status") or {}).get("restarts", 0))
        return [pod for pod in found if now in (None, reasons.attempt(pod))]

    def _follower(self, namespace: str, pod: str) -> Callable[[str], Iterator[bytes]]:
        def follow(since: str) -> Iterator[bytes]:
            more = {"since_time": since} if since else {}
            with asking(f"read the log of {pod}"):
                answer = self._core.read_namespaced_pod_log(
                    pod, namespace, container="main", follow=True, timestamps=True, _preload_content=False, **more
                )
                with contextlib.closing(answer):
                    yield from lines_of(answer)

        return follow

    def _check_scheduler(self, jobset: Object, others: list[Object]) -> None:
        """EngineError where the cluster has no such pod groups, or no Kueue: the job would wait for ever."""
        groups = {item["apiVersion"] for item in others if item["kind"] == "PodGroup"}
        if "kueue.x-k8s.io/queue-name" in jobset["metadata"]["labels"]:
            groups.add("kueue.x-k8s.io/v1beta1")
        if not groups:
            return
        with asking("ask the cluster what it serves"):
            found = importlib.import_module("kubernetes.client").ApisApi(self._cluster.api).get_api_versions()
        served = {version.group_version for group in found.groups for version in group.versions}
        missing = sorted(groups - served)
        if missing:
            raise EngineError(
                f"--gang: this cluster does not serve {', '.join(missing)}; choose another, or --gang none"
            )

    def _send_code(self, code: Code | None, items: list[Object]) -> None:
        """To its place, or into its ConfigMap."""
        if code is None:
            return
        if code["store"] is not None:
            send_code(code, open_place(code["store"]))
            return
        with pack_again(code) as package:
            data = config_map.manifest(package)["binaryData"]
        for item in items:
            if item["kind"] == "ConfigMap":
                item["binaryData"] = data

    def _create_owned(self, namespace: str, item: Object, owner: Object) -> None:
        metadata = owner["metadata"]
        reference = {
            "apiVersion": owner["apiVersion"], "kind": owner["kind"], "name": metadata["name"], "uid": metadata["uid"],
            "controller": False, "blockOwnerDeletion": False,
        }  # fmt: skip
        item["metadata"]["ownerReferences"] = [reference]
        kind = item["kind"]
        with asking(f"create the job's {kind}"):
            if kind == "Secret":
                fresh = base64.b64encode(secrets.token_bytes(SECRET_BYTES)).decode()
                data = dict.fromkeys(item.pop("stringData"), fresh)
                self._core.create_namespaced_secret(namespace, {**item, "data": data})
            elif kind == "ConfigMap":
                self._core.create_namespaced_config_map(namespace, item)
            elif kind == "NetworkPolicy":
                api = importlib.import_module("kubernetes.client").NetworkingV1Api(self._cluster.api)
                api.create_namespaced_network_policy(namespace, item)
            else:
                group, _, version = item["apiVersion"].partition("/")
                self._custom.create_namespaced_custom_object(group, version, namespace, "podgroups", item)

    def _delete(self, namespace: str, stem: str) -> None:
        with asking(f"delete the JobSet {stem}", f"{self._engine}/{namespace}/{stem}"), contextlib.suppress(NoSuchJob):
            self._custom.delete_namespaced_custom_object(
                manifest.GROUP, manifest.VERSION, namespace, manifest.PLURAL, stem, propagation_policy="Background"
            )
