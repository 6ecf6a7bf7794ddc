# SPDX-License-Identifier: Apache-2.0
"""`FakeBatch`: the services, the nodes and the clock, held together by one thread.

The thread waits for requests, for what nodes write, for their ends and for the next thing that is due. Whoever holds
the fake talks to it through that thread, so no state is shared and nothing is locked. Invariant: after `close` no
node, thread, descriptor or file is left; when this process dies its nodes follow.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import json
import os
import random
import selectors
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import Future
from types import TracebackType
from typing import Any, Final, TypeVar

from pmrun.testing.fake_batch.batch_api import BatchApi
from pmrun.testing.fake_batch.errors import Refused
from pmrun.testing.fake_batch.jobs import Job
from pmrun.testing.fake_batch.lifecycle import USUAL_DELAYS, Delays
from pmrun.testing.fake_batch.logs import LogsApi
from pmrun.testing.fake_batch.objects import Answer, ObjectsApi
from pmrun.testing.fake_batch.parameters import ParametersApi
from pmrun.testing.fake_batch.runner import Runner
from pmrun.testing.fake_batch.server import Server
from pmrun.testing.fake_batch.services import Fault, Services
from pmrun.testing.simulated_nodes import Network

ACCOUNT: Final = "123456789012"
_METADATA: Final = "/v4"
_T = TypeVar("_T")


class FakeBatch:
    """AWS Batch on this machine: a context manager, or closed with `close`.

    It begins with a job queue `fake-queue` on a managed EC2 compute environment `fake-environment`.

    Parameters
    ----------
    seed : int
        Of all that is random: orders, delays, names.
    delays : Delays
        How long jobs and nodes take to start.
    unseen : int
        How often DescribeJobs does not know a job that was just submitted.
    stop_timeout_s : float
        From SIGTERM to SIGKILL, when a container is stopped.
    missing_images : collection of str
        Images that cannot be pulled.
    isolated : bool, optional
        Whether nodes have namespaces of their own; default: where they may.

    Attributes
    ----------
    endpoint_url : str
        For boto3, here.
    region : str
    """

    def __init__(
        self, *, seed: int = 0, delays: Delays = USUAL_DELAYS, unseen: int = 1, stop_timeout_s: float = 30.0,
        missing_images: Collection[str] = (), isolated: bool | None = None,
    ) -> None:  # fmt: skip
        self.region = "us-east-1"
        rng = random.Random(seed)
        self._since = time.time() - time.monotonic()  # a clock that nobody sets
        self._asked: deque[Callable[[], None]] = deque()
        self._waiting: list[tuple[str, Future[str]]] = []
        self._closing = False
        self._broken: Exception | None = None  # what ended the thread too early: a defect of the fake
        self._logs, self._objects = LogsApi(), ObjectsApi()
        self._parameters = ParametersApi(f"arn:aws:ssm:{self.region}:{ACCOUNT}:parameter")
        self._batch = BatchApi(
            f"arn:aws:batch:{self.region}:{ACCOUNT}", lambda job, actions: self._runner.perform(job, actions),
            self._now, rng, delays, unseen,
        )  # fmt: skip
        self._services = Services({"batch": self._batch, "logs": self._logs, "ssm": self._parameters})
        with contextlib.ExitStack() as undo:
            self._network = Network(isolated)
            undo.callback(self._network.close)
            self._selector = undo.enter_context(selectors.DefaultSelector())
            self._wakeups, self._wakeup = os.pipe()
            undo.callback(os.close, self._wakeups)
            undo.callback(os.close, self._wakeup)
            os.set_blocking(self._wakeup, False)
            self._selector.register(self._wakeups, selectors.EVENT_READ, lambda: os.read(self._wakeups, 4096))
            self.endpoint_url = self._listen("127.0.0.1", undo, lambda make: make())
            inside = self.endpoint_url
            if self._network.isolated:
                inside = self._listen(self._network.gateway, undo, self._network.here)
            self._runner = Runner(
                self._network, self._selector, self._logs, self._parameters, self._now, rng,
                self._variables(inside), inside + _METADATA, stop_timeout_s, missing_images,
            )  # fmt: skip
            self._furnish()
            self._undo = undo.pop_all()
        self._thread = threading.Thread(target=self._run, name="fake-batch")
        self._thread.start()

    def __enter__(self) -> FakeBatch:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End all jobs and the fake."""
        if not self._closing:
            self._closing = True
            self._wake()
            self._thread.join()
            self._undo.close()
            if self._broken is not None:
                raise self._broken

    # ---- for who holds it -----------------------------------------------------------------------------------

    def environment(self) -> dict[str, str]:
        """Variables by which any program's boto3 talks to the fake."""
        return self._variables(self.endpoint_url)

    def client(self, service: str, **named: Any) -> Any:
        """boto3's client of `batch`, `logs`, `ssm` or `s3`."""
        return self._session.client(service, **{"endpoint_url": self.endpoint_url, **named})

    def fail(
        self, operation: str = "", *, status: int = 429, code: str = "TooManyRequestsException",
        message: str = "Too Many Requests", times: int = 1,
    ) -> None:  # fmt: skip
        """Answer the next calls of an operation (`DescribeJobs`; "": any) with an error."""
        self._ask(lambda: self._services.faults.append(Fault(operation, Refused(code, message, status), times)))

    def calls(self) -> list[str]:
        """The operations that were asked for so far, in order; those of S3 are not among them."""
        return self._ask(lambda: list(self._services.calls))

    def kill_node(self, job_id: str, node: int, *, status_reason: str = "", reason: str = "") -> None:
        """SIGKILL to a node's container. The reasons are what DescribeJobs will say, as of memory that ran out
        (`reason="OutOfMemoryError: Container killed due to memory usage"`) or of a host that was lost
        (`status_reason="Host EC2 (instance i-0123456789abcdef0) terminated."`)."""
        self._ask(lambda: self._runner.kill(self._job(job_id), node, status_reason, reason))

    def withhold_capacity(self, reason: str) -> None:
        """From now on no job gets instances; `reason` is what DescribeJobs says, in Batch's words."""
        self._ask(lambda: self._batch.set_capacity(reason))

    def grant_capacity(self) -> None:
        """Jobs get instances again."""
        self._ask(lambda: self._batch.set_capacity(""))

    def wait(self, job_id: str, timeout_s: float = 60.0) -> str:
        """Wait until a job and all its nodes have ended; returns its status. TimeoutError where they have not."""
        done: Future[str] = Future()
        self._ask(lambda: self._waiting.append((self._job(job_id).job_id, done)))
        return done.result(timeout_s)

    # ---- the thread -----------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            self._serve()
        except Exception as error:  # noqa: BLE001 - all who wait for this thread get it, and so does `close`
            self._broken = error
        finally:
            self._runner.close()
        while self._asked:
            self._asked.popleft()()
        for _, done in self._waiting:
            done.set_exception(self._broken or RuntimeError("the fake was closed"))

    def _serve(self) -> None:
        while not self._closing:
            for key, _ in self._selector.select(self._patience_s()):
                if self._selector.get_map().get(key.fileobj) is key:  # else one before it has closed it
                    key.data()
            while self._asked:
                self._asked.popleft()()
            now = self._now()
            for job in self._batch.jobs.values():
                self._runner.perform(job, job.life.tick(now))
            self._runner.tick(now)
            self._tell()

    def _patience_s(self) -> float | None:
        times = [job.life.due_s() for job in self._batch.jobs.values()] + [self._runner.due_s()]
        soonest = min((time_s for time_s in times if time_s is not None), default=None)
        return None if soonest is None else max(0.0, soonest - self._now())

    def _tell(self) -> None:
        """Those who wait for jobs that have ended."""
        for job_id, done in [*self._waiting]:
            life = self._batch.jobs[job_id].life
            if life.over:
                self._waiting.remove((job_id, done))
                done.set_result(life.status)

    def _answer(self, method: str, target: str, headers: Mapping[str, str], body: bytes) -> Answer:
        path = target.partition("?")[0]
        if path.startswith(_METADATA + "/"):
            found = self._runner.metadata(path.rpartition("/")[2])
            return Answer(
                404 if found is None else 200, {"Content-Type": "application/json"}, json.dumps(found).encode()
            )
        if self._services.understands(path, headers):
            return self._services.answer(path, headers, body)
        return self._objects.answer(method, target, headers, body)

    # ---- details --------------------------------------------------------------------------------------------

    def _ask(self, function: Callable[[], _T]) -> _T:
        """What a function returns on the fake's thread."""
        done: Future[_T] = Future()

        def answer() -> None:
            try:
                if self._broken is not None:
                    raise self._broken
                done.set_result(function())
            except Exception as error:  # noqa: BLE001 - it is the asker's
                done.set_exception(error)

        self._asked.append(answer)
        if self._closing or not self._thread.is_alive():
            raise RuntimeError("the fake was closed") from self._broken
        self._wake()
        return done.result()

    def _wake(self) -> None:
        with contextlib.suppress(BlockingIOError):  # then it is awake
            os.write(self._wakeup, b"w")

    @functools.cached_property
    def _session(self) -> Any:
        return importlib.import_module("boto3").session.Session("fake", "fake", region_name=self.region)

    def _job(self, job_id: str) -> Job:
        job = self._batch.jobs.get(job_id)
        if job is None:
            raise ValueError(f"the fake has no job {job_id}")
        return job

    def _now(self) -> float:
        return self._since + time.monotonic()

    def _listen(self, address: str, undo: contextlib.ExitStack, where: Callable[[Callable[[], Server]], Server]) -> str:
        server = where(functools.partial(Server, address, self._selector, self._answer))
        undo.callback(server.close)
        return f"http://{address}:{server.server_port}"

    def _variables(self, endpoint_url: str) -> dict[str, str]:
        return {
            "AWS_ENDPOINT_URL": endpoint_url,
            "AWS_ACCESS_KEY_ID": "fake",
            "AWS_SECRET_ACCESS_KEY": "fake",
            "AWS_REGION": self.region,
            "AWS_DEFAULT_REGION": self.region,
        }

    def _furnish(self) -> None:
        arn = f"arn:aws:iam::{ACCOUNT}:instance-profile/ecsInstanceRole"
        resources = {
            "type": "EC2", "allocationStrategy": "BEST_FIT_PROGRESSIVE", "minvCpus": 0, "maxvCpus": 4096,
            "instanceTypes": ["optimal"], "subnets": ["subnet-0fake"], "securityGroupIds": ["sg-0fake"], "instanceRole": arn,
        }  # fmt: skip
        self._batch.create_compute_environment(
            {"computeEnvironmentName": "fake-environment", "type": "MANAGED", "computeResources": resources}
        )
        order = [{"order": 1, "computeEnvironment": "fake-environment"}]
        self._batch.create_job_queue({"jobQueueName": "fake-queue", "priority": 1, "computeEnvironmentOrder": order})
