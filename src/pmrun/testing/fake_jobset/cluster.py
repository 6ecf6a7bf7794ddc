# SPDX-License-Identifier: Apache-2.0
"""The cluster: store, server, controllers and kubelets, and the one loop that drives all but the server.

Every change in the store and every event of a process wakes the loop, which lets each controller look at each object of
its kind; what they plan is carried out by the verbs that clients use. Invariant: the loop's thread starts all processes
and outlives them, so they end when this process does, however that happens.
"""

from __future__ import annotations

import os
import random
import selectors
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from pmrun.testing.fake_jobset import garbage, job_controller, jobset_controller, machines
from pmrun.testing.fake_jobset.api import Api
from pmrun.testing.fake_jobset.faults import Faults, Rule
from pmrun.testing.fake_jobset.kubelets import Kubelets
from pmrun.testing.fake_jobset.logs import Log
from pmrun.testing.fake_jobset.options import NodeSpec, Options
from pmrun.testing.fake_jobset.plan import Plan, is_owned
from pmrun.testing.fake_jobset.pod_run import Tools
from pmrun.testing.fake_jobset.resources import (
    JOBS,
    JOBSETS,
    NAMESPACES,
    NODES,
    PODS,
    SERVICE_ACCOUNTS,
    SERVICES,
    Catalogue,
    Object,
    Resource,
)
from pmrun.testing.fake_jobset.server import Server, Site
from pmrun.testing.fake_jobset.statuses import ApiError, bad_request
from pmrun.testing.fake_jobset.store import Key, Store

_AGAIN_S: Final = 1.0  # times of objects have seconds: what waits for one looks once a second


class Cluster:
    """All of it, in this process."""

    def __init__(self, options: Options, folder: Path) -> None:
        self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._wake_fd, selectors.EVENT_READ, self._awake)
        self._options = options
        self._rng = random.Random(options.seed)
        self._catalogue = Catalogue(options.extras)
        self.api = Api(Store(self._rng, self.wake))
        self._faults = Faults()
        self._machines = machines.choose(options.isolation)
        tools = Tools(self.api, options, self._machines, folder, self._rng, self._watch, self._forget)
        self._kubelets = Kubelets(tools)
        self._lock = threading.RLock()  # the loop's step, or a request that asks the kubelets
        self._furnish()
        site = Site(self.api, self._catalogue, self._faults, self, options.token)
        self.server = Server(site, options.port)

    @property
    def url(self) -> str:
        """Where the server listens."""
        return f"http://127.0.0.1:{self.server.server_address[1]}"

    def run(self, lifeline: int) -> None:
        """Drive the cluster until the lifeline's other end is closed."""
        ended: list[bool] = []
        self._watch(lifeline, lambda: ended.append(True) if not os.read(lifeline, 1024) else None)
        serving = threading.Thread(target=self.server.serve_forever, name="api server", daemon=True)
        serving.start()
        try:
            while not ended:
                again_s = self._step()
                for key, _ in self._selector.select(again_s):
                    with self._lock:
                        if key.fd in self._selector.get_map():  # an earlier one may have ended it
                            key.data()
        finally:
            self._faults.break_streams()
            self.server.shutdown()
            self.server.server_close()
            with self._lock:
                self._kubelets.close()
                self._machines.close()
            self._selector.close()
            os.close(self._wake_fd)

    def wake(self) -> None:
        """There is something to do."""
        os.eventfd_write(self._wake_fd, 1)

    # ---- what the server asks -----------------------------------------------------------------------------

    def log(self, pod: Object, container: str, previous: bool) -> Log | None:
        """A container's output."""
        with self._lock:
            return self._kubelets.log(pod, container, previous)

    def evict(self, key: Key, uid: str) -> None:
        """As the eviction API does."""
        with self._lock:
            self._kubelets.evict(key, uid)

    def command(self, name: str, body: Object) -> Object:
        """The trouble that a test makes."""
        with self._lock:
            if name == "fail-requests":
                self._faults.add(Rule(**body))
            elif name == "heal-requests":
                self._faults.clear()
            elif name == "break-streams":
                self._faults.break_streams()
            elif name == "expire-history":
                self.api.store.forget()
            else:
                try:
                    self._kubelets.command(name, body)
                except KeyError as error:
                    raise bad_request(f"/fake/{name} needs {error}") from None
        self.wake()
        return {}

    # ---- the loop -----------------------------------------------------------------------------------------

    def _awake(self) -> None:
        os.eventfd_read(self._wake_fd)

    def _watch(self, fd: int, callback: Callable[[], None]) -> None:
        self._selector.register(fd, selectors.EVENT_READ, callback)

    def _forget(self, fd: int) -> None:
        if fd in self._selector.get_map():
            self._selector.unregister(fd)

    def _step(self) -> float | None:
        """Let everybody look once; gives how long to sleep, if nothing happens before."""
        with self._lock:
            garbage.collect(self.api)
            self._give_accounts()
            waits = [*self._control(JOBSETS, self._plan_jobset), *self._control(JOBS, self._plan_job)]
            again = self._kubelets.step()
            if again is not None:
                waits.append(max(again - time.time(), 0.0))
            return min(waits, default=None)

    def _control(self, resource: Resource, plan: Callable[[Object], Plan]) -> list[float]:
        waits = []
        for found in self.api.store.all_of(resource)[0]:
            made = plan(found)
            self._carry_out(found, resource, made)
            if made.again_s is not None:
                waits.append(min(max(made.again_s, 0.0), _AGAIN_S))
        return waits

    def _plan_jobset(self, jobset: Object) -> Plan:
        namespace = jobset["metadata"]["namespace"]
        jobs = [job for job in self.api.store.all_of(JOBS, namespace)[0] if is_owned(job, jobset)]
        services = {service["metadata"]["name"] for service in self.api.store.all_of(SERVICES, namespace)[0]}
        return jobset_controller.reconcile(jobset, jobs, services, self.api.now())

    def _plan_job(self, job: Object) -> Plan:
        pods = [pod for pod in self.api.store.all_of(PODS, job["metadata"]["namespace"])[0] if is_owned(pod, job)]
        backoff_s = self._options.pod_backoff_s
        return job_controller.reconcile(job, pods, self.api.now(), self.api.store.suffix, backoff_s)

    def _carry_out(self, found: Object, resource: Resource, plan: Plan) -> None:
        metadata = found["metadata"]
        component = "jobset" if resource == JOBSETS else "job-controller"
        if plan.status is not None:
            key = Key(resource, metadata["namespace"], metadata["name"])
            self.api.set_status(key, plan.status, metadata["uid"])
        for kind, reason, message in plan.events:
            self.api.record(found, kind, reason, message, component)
        for other, changed in plan.changes:
            self.api.update(_key(other, changed), changed, whole=other == PODS)
        for other, gone, how in plan.deletions:
            current = self.api.store.find(_key(other, gone))
            if current is not None and "deletionTimestamp" not in current["metadata"]:
                self.api.delete(_key(other, gone), {"propagationPolicy": how})
        for other, new in plan.creations:
            try:
                self.api.create(other, metadata["namespace"], new)
            except ApiError as error:
                self.api.record(found, "Warning", plan.refused, f"Error creating: {error}", component)
                return

    def _furnish(self) -> None:
        """What every cluster has."""
        for name in dict.fromkeys(("default", "kube-system", *self._options.namespaces)):
            self.api.create(NAMESPACES, "", {"metadata": {"name": name}})
        for node in self._options.nodes:
            self.api.create(NODES, "", _node(node, self.api.now()))
        self._give_accounts()

    def _give_accounts(self) -> None:
        """A namespace has an account for its pods."""
        for space in self.api.store.all_of(NAMESPACES)[0]:
            key = Key(SERVICE_ACCOUNTS, space["metadata"]["name"], "default")
            if self.api.store.find(key) is None and "deletionTimestamp" not in space["metadata"]:
                self.api.create(SERVICE_ACCOUNTS, key.namespace, {"metadata": {"name": "default"}})


def _key(resource: Resource, found: Object) -> Key:
    return Key(resource, found["metadata"].get("namespace", ""), found["metadata"]["name"])


def _node(spec: NodeSpec, now: str) -> Object:
    has = {"cpu": spec.cpu, "memory": spec.memory, "pods": "110"}
    if spec.gpu:
        has["nvidia.com/gpu"] = str(spec.gpu)
    ready = {
        "type": "Ready", "status": "True", "reason": "KubeletReady", "message": "kubelet is posting ready status",
        "lastTransitionTime": now,
    }  # fmt: skip
    return {
        "metadata": {"name": spec.name, "labels": {"kubernetes.io/hostname": spec.name, **spec.labels}},
        "spec": {"taints": [dict(taint) for taint in spec.taints]} if spec.taints else {},
        "status": {"capacity": has, "allocatable": has, "conditions": [ready]},
    }
