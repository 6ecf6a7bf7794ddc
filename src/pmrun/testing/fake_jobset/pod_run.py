# SPDX-License-Identifier: Apache-2.0
"""One pod on its node, from its first image to its last process: what a kubelet does for it.

The loop calls `step` again and again; whatever can be done now is done, and the pod's status says what is so. Init
containers run first, one after the other; the restart policy decides what becomes of a container that ended. Invariant:
a pod whose end was written has no process left, and a container's log is whole before its end is written.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import random
import re
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from pmrun.testing.fake_jobset import containers
from pmrun.testing.fake_jobset.api import Api
from pmrun.testing.fake_jobset.containers import CannotStart
from pmrun.testing.fake_jobset.logs import Log
from pmrun.testing.fake_jobset.machines import Machine, Machines
from pmrun.testing.fake_jobset.options import Options
from pmrun.testing.fake_jobset.plan import has_condition, set_condition
from pmrun.testing.fake_jobset.resources import PODS, Object, Resource
from pmrun.testing.fake_jobset.statuses import ApiError
from pmrun.testing.fake_jobset.store import Key

_CRASH_BACKOFF_S: Final = 10.0
_LONGEST_BACKOFF_S: Final = 300.0
_RETRY_S: Final = 1.0  # after something that a pod needs was not there
_AT_ONCE: Final = 65_536


@dataclasses.dataclass
class Tools:
    """What every pod of the cluster uses."""

    api: Api
    options: Options
    machines: Machines
    folder: Path
    rng: random.Random
    watch: Callable[[int, Callable[[], None]], None]  # call when a descriptor can be read
    forget: Callable[[int], None]


@dataclasses.dataclass
class Container:
    """One container of a pod, through all its restarts."""

    spec: Object
    first: bool  # an init container
    state: Object
    process: subprocess.Popen[bytes] | None = None
    ended_fd: int = -1
    log: Log | None = None
    previous: Log | None = None
    last_state: Object = dataclasses.field(default_factory=dict)
    restarts: int = 0
    retry_at_s: float = 0.0
    out_of_memory: bool = False

    @property
    def over(self) -> bool:
        """It ended, and is not to run again."""
        return "terminated" in self.state

    @property
    def code(self) -> int:
        """Its exit code."""
        return int(self.state.get("terminated", {}).get("exitCode", 0))


class PodRun:
    """One pod."""

    def __init__(self, tools: Tools, pod: Object, start_at_s: float) -> None:
        self.pod = pod
        self.uid: str = pod["metadata"]["uid"]
        self.key = Key(PODS, pod["metadata"]["namespace"], pod["metadata"]["name"])
        self.folder = tools.folder / "pods" / self.uid
        self.hosts = self.folder / "hosts"
        self.machine: Machine | None = None
        self.done = False
        self._tools = tools
        self._start_at_s = start_at_s
        self._kill_at_s: float | None = None
        self._volumes: dict[str, Path] | None = None
        self._verdict: tuple[str, str] | None = None  # reason and message of a pod that failed as a whole
        self._began = ""
        waiting = {"waiting": {"reason": "ContainerCreating"}}
        self.containers = [
            *(Container(spec, True, dict(waiting)) for spec in pod["spec"].get("initContainers", ())),
            *(Container(spec, False, dict(waiting)) for spec in pod["spec"]["containers"]),
        ]

    def step(self, now_s: float) -> float | None:
        """Do what can be done; gives when to look again, if nothing happens before."""
        pod = self._tools.api.store.find(self.key)
        here = pod is not None and pod["metadata"]["uid"] == self.uid
        if here and pod is not None:
            self.pod = pod
        if not here:
            self.end_now()
        elif "deletionTimestamp" in self.pod["metadata"] or self._verdict:
            self._terminate(now_s)
        elif now_s < self._start_at_s:
            return self._start_at_s
        else:
            self._obey_deadline(now_s)
            self._start_what_can(now_s)
        if here:
            self._write_status()
        if not here or (self._all_over() and ("deletionTimestamp" in self.pod["metadata"] or self._ended())):
            self._leave(here)
            return None
        waits = [entry.retry_at_s for entry in self.containers if "waiting" in entry.state and entry.retry_at_s > now_s]
        return min([*waits, *([self._kill_at_s] if self._kill_at_s is not None else [])], default=None)

    def fail(self, reason: str, message: str) -> None:
        """The kubelet ends the pod: evicted, too late."""
        self._verdict = (reason, message)
        self._kill_at_s = 0.0

    def kill(self, number: int, out_of_memory: bool) -> None:
        """A signal to the first process of each container that runs."""
        for entry in self.containers:
            if entry.process is not None and self.machine is not None:
                entry.out_of_memory = out_of_memory
                self.machine.signal(entry.process, number)

    def end_now(self) -> None:
        """As the power's end does: nothing is waited for or written."""
        for entry in self.containers:
            if entry.process is not None and self.machine is not None:
                self.machine.signal(entry.process, signal.SIGKILL)
                entry.process.wait()
                self._collect(entry)
        self._close_machine()

    def forget(self) -> None:
        """Its logs and files go, too."""
        for entry in self.containers:
            for log in (entry.log, entry.previous):
                if log is not None:
                    log.remove()
        shutil.rmtree(self.folder, ignore_errors=True)

    # ---- starting -----------------------------------------------------------------------------------------

    def _start_what_can(self, now_s: float) -> None:
        for entry in self.containers:
            if "waiting" in entry.state and entry.process is None and now_s >= entry.retry_at_s:
                self._try_start(entry, now_s)
            if entry.first and not (entry.over and entry.code == 0):
                return

    def _try_start(self, entry: Container, now_s: float) -> None:
        image, images = entry.spec.get("image", ""), self._tools.options.images
        if images and image not in images:
            again = entry.state["waiting"]["reason"] == "ErrImagePull"
            text = f'failed to pull and unpack image "{image}": not found'
            self._wait(entry, now_s, "ImagePullBackOff" if again else "ErrImagePull",
                       f'Back-off pulling image "{image}"' if again else text)  # fmt: skip
            self._tell("Warning", "Failed", f'Failed to pull image "{image}": {text}')
            return
        try:
            self._begin()
            recipe = self._recipe(entry)
        except CannotStart as error:
            self._not_started(entry, now_s, error.reason, str(error))
            return
        except (OSError, subprocess.CalledProcessError) as error:
            text = f"Failed to create pod sandbox: {getattr(error, 'stderr', None) or error}"
            self._not_started(entry, now_s, "FailedCreatePodSandBox", text)
            return
        assert self.machine is not None
        entry.previous, entry.log = entry.log, Log(self.folder / f"{entry.spec['name']}.{entry.restarts}.log")
        entry.process = self.machine.start(recipe.words, recipe.env, recipe.cwd)
        entry.state = {"running": {"startedAt": self._tools.api.now()}}
        assert entry.process.stdout is not None
        os.set_blocking(entry.process.stdout.fileno(), False)
        entry.ended_fd = os.pidfd_open(entry.process.pid)
        self._tools.watch(entry.process.stdout.fileno(), lambda: self._read(entry))
        self._tools.watch(entry.ended_fd, lambda: self._reap(entry))
        self._tell("Normal", "Started", f"Started container {entry.spec['name']}")

    def _begin(self) -> None:
        """The pod's own place and files, at the first container."""
        tools, metadata = self._tools, self.pod["metadata"]
        (self.folder / "work").mkdir(parents=True, exist_ok=True)
        self.hosts.touch()
        if self._volumes is None:
            self._volumes = containers.make_volumes(self.pod, self.folder, tools.folder / "claims", self._find)
        if self.machine is None:
            hostname = self.pod["spec"].get("hostname") or metadata["name"]
            self.machine = tools.machines.open(hostname, metadata["namespace"], self.hosts)
            self._began = tools.api.now()
            status = {
                **self.pod["status"], "podIP": self.machine.ip, "podIPs": [{"ip": self.machine.ip}],
                "hostIP": self.machine.ip, "startTime": self._began,
            }  # fmt: skip
            self.pod = {**self.pod, "status": status}

    def _recipe(self, entry: Container) -> containers.Recipe:
        return containers.cook(
            self.pod, entry.spec, self._volumes or {}, self.folder / "work", self._find,
            dict(self._tools.options.environment), self._renamed,
        )  # fmt: skip

    def _not_started(self, entry: Container, now_s: float, reason: str, text: str) -> None:
        self._tell("Warning", "FailedMount" if reason == "FailedMount" else "Failed", text)
        if reason == "StartError":
            now = self._tools.api.now()
            ended = {"exitCode": 128, "reason": reason, "message": text, "startedAt": now, "finishedAt": now}
            entry.state = {"terminated": ended}
            self._restart_or_not(entry, now_s)
        elif reason in ("FailedMount", "FailedCreatePodSandBox"):  # told by the event alone
            self._wait(entry, now_s, "ContainerCreating", "")
        else:
            self._wait(entry, now_s, reason, text)

    def _wait(self, entry: Container, now_s: float, reason: str, message: str) -> None:
        entry.state = {"waiting": {"reason": reason, **({"message": message} if message else {})}}
        entry.retry_at_s = now_s + _RETRY_S

    def _find(self, resource: Resource, name: str) -> Object | None:
        return self._tools.api.store.find(Key(resource, self.key.namespace, name))

    def _renamed(self, text: str) -> str:
        """Names of this pod's siblings as addresses, where they could not be looked up."""
        subdomain, machines = self.pod["spec"].get("subdomain", ""), self._tools.machines
        if machines.named or f".{subdomain}" not in text or not subdomain:
            return text
        tail = rf"\.{re.escape(subdomain)}(\.{self.key.namespace}(\.svc(\.cluster\.local)?)?)?"
        pattern = re.compile(rf"(?<![\w.-])([a-z0-9]([-a-z0-9]*[a-z0-9])?){tail}(?![\w-])")
        return pattern.sub(lambda found: machines.address(found[1], self.key.namespace), text)

    # ---- ending -------------------------------------------------------------------------------------------

    def _read(self, entry: Container) -> None:
        """Output, as much as there is."""
        assert entry.process is not None and entry.process.stdout is not None and entry.log is not None
        with contextlib.suppress(BlockingIOError):
            while True:
                data = os.read(entry.process.stdout.fileno(), _AT_ONCE)
                if not data:
                    self._tools.forget(entry.process.stdout.fileno())
                    return
                entry.log.write(data)
                if len(data) < _AT_ONCE:
                    return

    def _reap(self, entry: Container) -> None:
        assert entry.process is not None
        if entry.process.poll() is not None:
            self._collect(entry)
            self._restart_or_not(entry, self._tools.api.clock())

    def _collect(self, entry: Container) -> None:
        """The container's first process has ended: take the rest of its output, and end what it left."""
        process, log = entry.process, entry.log
        assert process is not None and process.stdout is not None and log is not None and self.machine is not None
        self.machine.signal(process, signal.SIGKILL)
        with contextlib.suppress(BlockingIOError):
            while data := os.read(process.stdout.fileno(), _AT_ONCE):
                log.write(data)
        self._tools.forget(process.stdout.fileno())
        self._tools.forget(entry.ended_fd)
        process.stdout.close()
        os.close(entry.ended_fd)
        log.end()
        code = process.returncode if process.returncode >= 0 else 128 - process.returncode
        reason = "OOMKilled" if entry.out_of_memory else "Error" if code else "Completed"
        entry.state = {"terminated": {
            "exitCode": code, "reason": reason, "startedAt": entry.state["running"]["startedAt"],
            "finishedAt": self._tools.api.now(), "containerID": f"pmrun://{self.uid}",
        }}  # fmt: skip
        entry.process, entry.out_of_memory = None, False

    def _restart_or_not(self, entry: Container, now_s: float) -> None:
        policy = self.pod["spec"]["restartPolicy"]
        again = policy == "OnFailure" and entry.code != 0
        if policy == "Always":
            again = not entry.first or entry.code != 0
        if not again or self._kill_at_s is not None or "deletionTimestamp" in self.pod["metadata"]:
            return
        delay_s = min(_CRASH_BACKOFF_S * 2 ** (entry.restarts - 1), _LONGEST_BACKOFF_S) if entry.restarts else 0.0
        entry.last_state = entry.state
        entry.restarts += 1
        entry.retry_at_s = now_s + delay_s
        text = f"back-off {delay_s:.0f}s restarting failed container={entry.spec['name']} pod={self.key.name}"
        entry.state = {"waiting": {"reason": "CrashLoopBackOff", "message": text}}
        if delay_s:
            self._tell("Warning", "BackOff", text)

    def _terminate(self, now_s: float) -> None:
        grace_s = float(self.pod["metadata"].get("deletionGracePeriodSeconds", 0))
        first = self._kill_at_s is None
        self._kill_at_s = min(now_s + grace_s, self._kill_at_s if self._kill_at_s is not None else now_s + grace_s)
        if first:
            self._tell("Normal", "Killing", "Stopping container " + self.containers[-1].spec["name"])
            self.kill(signal.SIGTERM, False)
        if now_s >= self._kill_at_s:
            self.kill(signal.SIGKILL, False)

    def _obey_deadline(self, now_s: float) -> None:
        limit_s = self.pod["spec"].get("activeDeadlineSeconds")
        if limit_s is not None and now_s >= self._start_at_s + limit_s:
            self.fail("DeadlineExceeded", "Pod was active on the node longer than the specified deadline")

    def _all_over(self) -> bool:
        return all(entry.process is None for entry in self.containers)

    def _ended(self) -> bool:
        return self._phase() in ("Succeeded", "Failed")

    def _leave(self, here: bool) -> None:
        """The pod needs its node no more."""
        self._close_machine()
        self.done = True
        if here and "deletionTimestamp" in self.pod["metadata"]:
            with contextlib.suppress(ApiError):  # somebody else may have removed it in this moment
                self._tools.api.delete(self.key, {"gracePeriodSeconds": 0, "preconditions": {"uid": self.uid}})

    def _close_machine(self) -> None:
        if self.machine is not None:
            self.machine.close()
            self.machine = None

    # ---- telling ------------------------------------------------------------------------------------------

    def _tell(self, kind: str, reason: str, message: str) -> None:
        self._tools.api.record(self.pod, kind, reason, message, "kubelet")

    def _phase(self) -> str:
        if self._verdict and self._all_over():
            return "Failed"
        main = [entry for entry in self.containers if not entry.first]
        broken = [entry for entry in self.containers if entry.first and entry.over and entry.code]
        stopped = "deletionTimestamp" in self.pod["metadata"] and self._all_over()
        if broken or all(entry.over for entry in main) or stopped:
            good = not broken and all(entry.over and entry.code == 0 for entry in main)
            return "Succeeded" if good else "Failed"
        begun = all("waiting" not in entry.state or entry.restarts for entry in main)
        return "Running" if begun else "Pending"

    def _write_status(self) -> None:
        now, status = self._tools.api.now(), dict(self.pod["status"])
        phase = self._phase()
        status["phase"] = phase
        main = [entry for entry in self.containers if not entry.first]
        ready = phase == "Running" and all("running" in entry.state for entry in main)
        not_ready = "" if ready else "PodCompleted" if phase == "Succeeded" else "ContainersNotReady"
        started = all(entry.over and entry.code == 0 for entry in self.containers if entry.first)
        for kind, value, reason in (
            ("PodReadyToStartContainers", self.machine is not None, ""), ("Initialized", started, ""),
            ("ContainersReady", ready, not_ready), ("Ready", ready, not_ready),
        ):  # fmt: skip
            set_condition(status, kind, value, reason, "", now)
        if self._verdict and phase == "Failed":
            status["reason"], status["message"] = self._verdict
        for part, some in (("containerStatuses", main), ("initContainerStatuses", self.containers[: -len(main)])):
            if some:
                status[part] = [_row(entry) for entry in some]
        if status != self.pod["status"] or not has_condition(self.pod, "PodScheduled"):
            self._tools.api.set_status(self.key, status, self.uid)
            self.pod = {**self.pod, "status": status}


def _row(entry: Container) -> Any:
    running = "running" in entry.state
    return {
        "name": entry.spec["name"], "image": entry.spec.get("image", ""), "imageID": entry.spec.get("image", ""),
        "state": entry.state, "lastState": entry.last_state, "restartCount": entry.restarts, "ready": running,
        "started": running,
    }  # fmt: skip
