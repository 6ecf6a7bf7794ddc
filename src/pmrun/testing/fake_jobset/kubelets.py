# SPDX-License-Identifier: Apache-2.0
"""All nodes of the cluster: binding of pods, their runs, the names they know, and the nodes' own life and death.

A lost node is silent: its pods' processes are gone, but the API shows them as they were until the node counts as
unreachable, and its pods go when their toleration of that is over, or when the node is deleted. Invariant: a pod's run
exists from its binding until the pod is gone, one for each uid.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from typing import Any, Final

from pmrun.testing.fake_jobset import scheduler
from pmrun.testing.fake_jobset.logs import Log
from pmrun.testing.fake_jobset.plan import has_condition, set_condition
from pmrun.testing.fake_jobset.pod_run import PodRun, Tools
from pmrun.testing.fake_jobset.resources import CLAIMS, NODES, POD_GROUPS, PODS, SERVICES, Object
from pmrun.testing.fake_jobset.selectors import match_labels
from pmrun.testing.fake_jobset.statuses import ApiError, bad_request
from pmrun.testing.fake_jobset.store import Key

_UNREACHABLE: Final = "node.kubernetes.io/unreachable"
_EVICTIONS: Final = {  # who ends a pod: the reason of its DisruptionTarget, and the message
    "api": ("EvictionByEvictionAPI", "Eviction API: evicting"),
    "preemption": ("PreemptionByScheduler", "default-scheduler: preempting to accommodate a higher priority pod"),
    "taint": ("DeletionByTaintManager", "Taint manager: deleting due to NoExecute taint"),
    "node": ("DeletionByPodGC", "PodGC: node no longer exists"),
    "kubelet": ("TerminationByKubelet", "The node was low on resource: memory."),
}


class Kubelets:
    """Of all nodes."""

    def __init__(self, tools: Tools) -> None:
        self._tools = tools
        self._api = tools.api
        self._runs: dict[str, PodRun] = {}  # by uid
        self._lost: dict[str, float] = {}  # nodes that are silent, and since when
        self._known: dict[str, float] = {}  # when a pod's name became known, by uid

    def step(self) -> float | None:
        """Do what can be done; gives the time at which to look again."""
        now_s = self._api.clock()
        self._schedule()
        waits = [self._lose_pods(now_s)]
        for pod in self._api.store.all_of(PODS)[0]:
            uid, node = pod["metadata"]["uid"], pod["spec"].get("nodeName")
            if node and uid not in self._runs and pod["status"]["phase"] == "Pending":
                starts = now_s + self._tools.rng.uniform(0, self._tools.options.start_spread_s)
                self._runs[uid] = PodRun(self._tools, pod, starts)
        for uid, run in list(self._runs.items()):
            here = self._here(run)
            if not run.done and run.pod["spec"]["nodeName"] not in self._lost:
                waits.append(run.step(now_s))
            elif not here:
                run.end_now()
                run.done = True
            if run.done and not here:
                run.forget()
                del self._runs[uid]
        waits.append(self._write_hosts(now_s))
        return min((wait for wait in waits if wait is not None), default=None)

    def close(self) -> None:
        """End all pods at once."""
        for run in self._runs.values():
            run.end_now()
            run.forget()
        self._runs.clear()

    def _here(self, run: PodRun) -> bool:
        found = self._api.store.find(run.key)
        return found is not None and found["metadata"]["uid"] == run.uid

    # ---- the scheduler ------------------------------------------------------------------------------------

    def _schedule(self) -> None:
        groups = {}
        for resource in POD_GROUPS:
            for group in self._api.store.all_of(resource)[0]:
                groups[resource, group["metadata"]["namespace"], group["metadata"]["name"]] = group
        claims = {
            (claim["metadata"]["namespace"], claim["metadata"]["name"]) for claim in self._api.store.all_of(CLAIMS)[0]
        }
        pods, nodes = self._api.store.all_of(PODS)[0], self._api.store.all_of(NODES)[0]
        for pod, node, reason in scheduler.place(pods, nodes, groups, frozenset(self._tools.options.extras), claims):
            key = Key(PODS, pod["metadata"]["namespace"], pod["metadata"]["name"])
            status = dict(pod["status"])
            if node:
                set_condition(status, "PodScheduled", True, "", "", self._api.now())
                bound = {**pod, "spec": {**pod["spec"], "nodeName": node}, "status": status}
                self._api.update(key, bound, whole=True)
                text = f"Successfully assigned {key.namespace}/{key.name} to {node}"
                self._api.record(pod, "Normal", "Scheduled", text, "default-scheduler")
                continue
            before = status.get("conditions")
            set_condition(status, "PodScheduled", False, "Unschedulable", reason, self._api.now())
            if status.get("conditions") != before:
                self._api.set_status(key, status, pod["metadata"]["uid"])
                self._api.record(pod, "Warning", "FailedScheduling", reason, "default-scheduler")

    # ---- names --------------------------------------------------------------------------------------------

    def _write_hosts(self, now_s: float) -> float | None:
        """Give each pod's hosts file the names that are known; gives when the next one will be."""
        names: dict[str, list[str]] = {}
        later: list[float] = []
        for pod in self._named_pods():
            known = self._known.setdefault(pod["metadata"]["uid"], now_s + self._tools.options.dns_delay_s)
            if now_s < known:
                later.append(known)
                continue
            metadata, spec = pod["metadata"], pod["spec"]
            short = f"{spec['hostname']}.{spec['subdomain']}"
            space = f"{short}.{metadata['namespace']}"
            line = f"{pod['status']['podIP']} {space}.svc.cluster.local {space}.svc {space} {short}"
            names.setdefault(metadata["namespace"], []).append(line)
        for run in self._runs.values():
            if run.machine is not None:
                own = run.pod["spec"].get("hostname") or run.key.name
                lines = ["127.0.0.1 localhost", f"{run.machine.ip} {own}", *names.get(run.key.namespace, ())]
                data = ("\n".join(lines) + "\n").encode()
                if run.hosts.read_bytes() != data:
                    fd = os.open(run.hosts, os.O_WRONLY)  # the file is mounted elsewhere: it must stay the same file
                    os.pwrite(fd, data, 0)
                    os.ftruncate(fd, len(data))
                    os.close(fd)
        return min(later, default=None)

    def _named_pods(self) -> Iterator[Object]:
        """Those that a headless service gives names."""
        pods = self._api.store.all_of(PODS)[0]
        for service in self._api.store.all_of(SERVICES)[0]:
            spec = service.get("spec") or {}
            if spec.get("clusterIP") != "None":
                continue
            for pod in pods:
                same = pod["metadata"]["namespace"] == service["metadata"]["namespace"]
                named = pod["spec"].get("subdomain") == service["metadata"]["name"] and pod["spec"].get("hostname")
                shown = spec.get("publishNotReadyAddresses") or has_condition(pod, "Ready")
                alive = pod["status"].get("podIP") and pod["status"]["phase"] in ("Pending", "Running")
                if same and named and shown and alive and match_labels(spec.get("selector"), pod):
                    yield pod

    # ---- nodes --------------------------------------------------------------------------------------------

    def _lose_pods(self, now_s: float) -> float | None:
        """What the cluster does about silent and missing nodes; gives when it will do more."""
        options, nodes = self._tools.options, {node["metadata"]["name"] for node in self._api.store.all_of(NODES)[0]}
        later: list[float] = []
        for name, since_s in self._lost.items():
            if name in nodes:
                unreachable_s = since_s + options.node_grace_s
                if now_s < unreachable_s:
                    later.append(unreachable_s)
                    continue
                self._mark_unreachable(name)
                if now_s < unreachable_s + options.toleration_s:
                    later.append(unreachable_s + options.toleration_s)
                    continue
            for pod in self._on(name):
                if "deletionTimestamp" not in pod["metadata"]:
                    self._disrupt(pod, "taint")
        for pod in self._api.store.all_of(PODS)[0]:
            node = pod["spec"].get("nodeName")
            if node and node not in nodes and pod["status"]["phase"] in ("Pending", "Running"):
                self._disrupt(pod, "node")
            elif not node and "deletionTimestamp" in pod["metadata"] and pod["status"]["phase"] == "Pending":
                self._set_status(pod, {**pod["status"], "phase": "Failed"})  # nobody else would tell its Job of its end
        return min(later, default=None)

    def _on(self, node: str) -> list[Object]:
        return [pod for pod in self._api.store.all_of(PODS)[0] if pod["spec"].get("nodeName") == node]

    def _mark_unreachable(self, name: str) -> None:
        key = Key(NODES, "", name)
        node = self._api.store.get(key)
        if any(taint["key"] == _UNREACHABLE for taint in node["spec"].get("taints", ())):
            return
        status = dict(node["status"])
        text = "Kubelet stopped posting node status."
        set_condition(status, "Ready", False, "NodeStatusUnknown", text, self._api.now())
        status["conditions"][-1]["status"] = "Unknown"
        taints = [{"key": _UNREACHABLE, "effect": effect} for effect in ("NoSchedule", "NoExecute")]
        spec = {**node["spec"], "taints": [*node["spec"].get("taints", ()), *taints]}
        self._api.update(key, {**node, "spec": spec, "status": status}, whole=True)
        self._api.record(node, "Normal", "NodeNotReady", f"Node {name} status is now: NodeNotReady", "node-controller")
        for pod in self._on(name):
            if pod["status"]["phase"] == "Running":
                told = dict(pod["status"])
                set_condition(told, "Ready", False, "NodeNotReady", "", self._api.now())
                self._set_status(pod, told)

    def _disrupt(self, pod: Object, by: str) -> None:
        """A pod has to go, for no fault of its own: say so, and end it."""
        reason, message = _EVICTIONS[by]
        status = dict(pod["status"])
        set_condition(status, "DisruptionTarget", True, reason, message, self._api.now())
        if by == "node":
            status["phase"] = "Failed"
        self._set_status(pod, status)
        key = Key(PODS, pod["metadata"]["namespace"], pod["metadata"]["name"])
        if by == "kubelet":
            run = self._runs.get(pod["metadata"]["uid"])
            if run is None:
                raise bad_request(f"pod {key.name} runs nowhere")
            run.fail("Evicted", message)
            self._api.record(pod, "Warning", "Evicted", message, "kubelet")
        else:
            self._api.delete(key, {"gracePeriodSeconds": 0} if by == "node" else {})

    def _set_status(self, pod: Object, status: Object) -> None:
        metadata = pod["metadata"]
        self._api.set_status(Key(PODS, metadata["namespace"], metadata["name"]), status, metadata["uid"])

    # ---- what the server asks -----------------------------------------------------------------------------

    def log(self, pod: Object, container: str, previous: bool) -> Log | None:
        """A container's output; ApiError: it cannot have one yet; None: the pod runs nowhere."""
        name, node = pod["metadata"]["name"], pod["spec"].get("nodeName")
        names = [spec["name"] for spec in (*pod["spec"].get("initContainers", ()), *pod["spec"]["containers"])]
        if not container and len(pod["spec"]["containers"]) > 1:
            choices = " ".join(names)
            raise bad_request(f"a container name must be specified for pod {name}, choose one of: [{choices}]")
        container = container or pod["spec"]["containers"][0]["name"]
        if container not in names:
            raise bad_request(f"container {container} is not valid for pod {name}")
        if not node:
            return None
        if node in self._lost:
            text = f'Get "https://{node}:10250/containerLogs/{name}": dial tcp: connect: no route to host'
            raise ApiError(500, "InternalError", text)
        run = self._runs.get(pod["metadata"]["uid"])
        found = [entry for entry in run.containers if entry.spec["name"] == container] if run else []
        log = (found[0].previous if previous else found[0].log) if found else None
        if log is None and previous:
            text = f'previous terminated container "{container}" in pod "{name}" not found'
            raise bad_request(text)
        if log is None:
            state = found[0].state.get("waiting", {}) if found else {}
            why = state.get("reason", "ContainerCreating")
            if why in ("ErrImagePull", "ImagePullBackOff"):
                why = "trying and failing to pull image"
            raise bad_request(f'container "{container}" in pod "{name}" is waiting to start: {why}')
        return log

    def evict(self, key: Key, uid: str) -> None:
        """As the eviction API does."""
        self._disrupt(self._api.store.get(key), "api")

    def command(self, name: str, body: Any) -> Object:
        """One of the troubles that a test can make; see handle.py."""
        with self._api.store.changed:
            if name in ("lose-node", "return-node"):
                return self._set_lost(body["node"], name == "lose-node")
            pod = self._api.store.get(Key(PODS, body.get("namespace", "default"), body["pod"]))
            run = self._runs.get(pod["metadata"]["uid"])
            if name == "evict":
                if body.get("by") not in _EVICTIONS:
                    raise bad_request(f"a pod is evicted by one of {', '.join(_EVICTIONS)}")
                self._disrupt(pod, body["by"])
            elif run is None or run.machine is None:
                raise bad_request(f"pod {body['pod']} does not run")
            elif name == "kill":
                run.kill(int(body.get("signal", signal.SIGKILL)), bool(body.get("out_of_memory")))
            elif name == "cut":
                try:
                    run.machine.cut()
                except OSError as error:
                    raise bad_request(str(error)) from None
            else:
                raise bad_request(f"there is no /fake/{name}")
        return {}

    def _set_lost(self, name: str, lost: bool) -> Object:
        node = self._api.store.get(Key(NODES, "", name))
        if not lost:
            self._lost.pop(name, None)
            status = dict(node["status"])
            set_condition(status, "Ready", True, "KubeletReady", "kubelet is posting ready status", self._api.now())
            taints = [taint for taint in node["spec"].get("taints", ()) if taint["key"] != _UNREACHABLE]
            back = {**node, "spec": {**node["spec"], "taints": taints}, "status": status}
            self._api.update(Key(NODES, "", name), back, whole=True)
            return {}
        self._lost[name] = self._api.clock()
        for run in self._runs.values():
            if run.pod["spec"]["nodeName"] == name:
                run.end_now()
        return {}
