# SPDX-License-Identifier: Apache-2.0
"""Runs the containers of jobs' nodes: does what their lives ask for, and tells them what became of it.

A container has a fresh working directory, a clean environment and the interpreter that runs the fake; its image is a
name only. What it writes goes line by line to a log stream of its own. Invariant: a node that was started is told to
its job as ended exactly once, after all that it wrote is in its stream.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import sys
import uuid
from collections.abc import Callable, Collection, Mapping
from random import Random
from typing import Any, Final

from pmrun.env import MAIN
from pmrun.testing.fake_batch.jobs import Job
from pmrun.testing.fake_batch.lifecycle import EXITED, Action, Start
from pmrun.testing.fake_batch.logs import GROUP, LogsApi, Stream
from pmrun.testing.fake_batch.parameters import ParametersApi
from pmrun.testing.simulated_nodes import Network, Node

_READ_BYTES: Final = 1 << 16
_NOT_STARTED: Final = "Task failed to start"


class _Running:
    """One node's container."""

    def __init__(self, job: Job, index: int, node: Node, stream: Stream) -> None:
        self.job = job
        self.index = index
        self.node = node
        self.stream = stream
        self.kill_s: float | None = None  # when SIGTERM was not enough
        self.status_reason = EXITED
        self.reason = ""


class Runner:
    """All containers that run.

    Parameters
    ----------
    outside : mapping of str to str
        Variables of every container, by which boto3 reaches the fake: what a role and an instance tell it at AWS.
    metadata_uri : str
        Where the task metadata endpoint is, without the task.
    """

    def __init__(
        self, network: Network, selector: selectors.BaseSelector, logs: LogsApi, parameters: ParametersApi,
        clock: Callable[[], float], rng: Random, outside: Mapping[str, str], metadata_uri: str,
        stop_timeout_s: float, missing_images: Collection[str],
    ) -> None:  # fmt: skip
        self._network = network
        self._selector = selector
        self._logs = logs
        self._parameters = parameters
        self._clock = clock
        self._rng = rng
        self._outside = outside
        self._metadata_uri = metadata_uri
        self._stop_timeout_s = stop_timeout_s
        self._missing_images = missing_images
        self._running: dict[tuple[str, int], _Running] = {}

    def perform(self, job: Job, actions: list[Action]) -> None:
        """Do what a job's life asks for."""
        queue = list(actions)
        for action in queue:
            if isinstance(action, Start):
                queue += self._start(job, action.node)
            elif (running := self._running.get((job.job_id, action.node))) is not None:
                running.node.stop()
                running.kill_s = self._clock() + self._stop_timeout_s

    def due_s(self) -> float | None:
        """When `tick` has something to do."""
        return min((item.kill_s for item in self._running.values() if item.kill_s is not None), default=None)

    def tick(self, now: float) -> None:
        """Containers that did not heed SIGTERM for long enough are killed."""
        for running in self._running.values():
            if running.kill_s is not None and now >= running.kill_s:
                running.kill_s = None
                running.node.kill()

    def kill(self, job: Job, index: int, status_reason: str, reason: str) -> None:
        """End one container at once; what DescribeJobs will say of it is given, where it is not the usual."""
        running = self._running.get((job.job_id, index))
        if running is None:
            raise ValueError(f"node {index} of job {job.job_id} does not run")
        running.status_reason = status_reason or EXITED
        running.reason = reason
        running.node.kill()

    def metadata(self, task: str) -> dict[str, Any] | None:
        """What the task metadata endpoint says to a container."""
        for running in self._running.values():
            if running.job.life.nodes[running.index].stream.endswith(task):
                network = {"NetworkMode": "awsvpc", "IPv4Addresses": [running.node.address]}
                return {"DockerId": task, "Name": "default", "Networks": [network]}
        return None

    def close(self) -> None:
        """End all containers."""
        for running in self._running.values():
            self._unwatch(running.node.output)
            self._unwatch(running.node.ended)
            running.node.close()
        self._running.clear()

    # ---- details ----------------------------------------------------------------------------------------

    def _start(self, job: Job, index: int) -> list[Action]:
        container = job.container(index)
        refusal = self._refusal(container)
        if refusal:
            return job.life.node_ended(index, None, _NOT_STARTED, refusal, self._clock())
        address = self._network.address()
        task = uuid.UUID(int=self._rng.getrandbits(128), version=4).hex
        options = container.get("logConfiguration", {}).get("options", {})
        name = f"{options.get('awslogs-stream-prefix', job.definition['jobDefinitionName'])}/default/{task}"
        stream = self._logs.stream(options.get("awslogs-group", GROUP), name)
        env = self._environment(job, index, container, task, address)
        node = self._network.start(address, job.command(index), env, job.shared_memory_mib(index))
        running = _Running(job, index, node, stream)
        self._running[job.job_id, index] = running
        self._selector.register(node.output, selectors.EVENT_READ, lambda: self._read(running))
        self._selector.register(node.ended, selectors.EVENT_READ, lambda: self._ended(running))
        job.life.node_started(index, address, name, self._clock())
        return []

    def _refusal(self, container: Mapping[str, Any]) -> str:
        """Why a container cannot be started, or ""."""
        image = container["image"]
        if image in self._missing_images:
            return f"CannotPullContainerError: pull image manifest has been retried 1 time(s): failed to resolve ref {image}"
        lost = [item["valueFrom"] for item in container.get("secrets", ()) if self._secret(item) is None]
        if lost:
            return (
                "ResourceInitializationError: unable to pull secrets or registry auth: unable to retrieve secrets from "
                f"ssm: invalid ssm parameters: {', '.join(lost)}"
            )
        return "" if container.get("command") else "CannotStartContainerError: no command specified"

    def _secret(self, item: Mapping[str, str]) -> str | None:
        return self._parameters.value(item["valueFrom"])

    def _environment(
        self, job: Job, index: int, container: Mapping[str, Any], task: str, address: str
    ) -> dict[str, str]:
        life = job.life
        env = {
            "PATH": f"{os.path.dirname(sys.executable)}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "AWS_EXECUTION_ENV": "AWS_ECS_EC2",
            "ECS_CONTAINER_METADATA_URI_V4": f"{self._metadata_uri}/{task}",
            **self._outside,
            **{item["name"]: item.get("value", "") for item in container.get("environment", ())},
            **job.variables(index, life.nodes[life.main].address),
        }
        env.update((item["name"], self._secret(item) or "") for item in container.get("secrets", ()))
        if not self._network.isolated and index == life.main:
            env.setdefault(MAIN, address)  # its routes do not say which address of this machine is its own
        return env

    def _read(self, running: _Running) -> bool:
        """Take what a node wrote; False where there is nothing (more)."""
        try:
            data = os.read(running.node.output, _READ_BYTES)
        except BlockingIOError:
            return False
        running.stream.write(data)
        if not data:
            self._unwatch(running.node.output)
        return bool(data)

    def _ended(self, running: _Running) -> None:
        while self._read(running):
            continue
        running.stream.close()
        self._unwatch(running.node.output)
        self._unwatch(running.node.ended)
        del self._running[running.job.job_id, running.index]
        code = running.node.close()
        life = running.job.life
        self.perform(
            running.job, life.node_ended(running.index, code, running.status_reason, running.reason, self._clock())
        )

    def _unwatch(self, descriptor: int) -> None:
        with contextlib.suppress(KeyError):  # its end came before
            self._selector.unregister(descriptor)
