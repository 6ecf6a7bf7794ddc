# SPDX-License-Identifier: Apache-2.0
"""Jobs as JobSets on a fake cluster: the real command, and the client that it uses, with what goes wrong there."""

from __future__ import annotations

import contextlib
import shlex
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import gang_helper
import jobset_helper
import machines
from pmrun.errors import EngineError, ExitCode
from pmrun.launcher import cli
from pmrun.launcher.backends import fake_jobset as backend
from pmrun.launcher.command_line import split
from pmrun.launcher.submission.contract import Cursor, JobStatus, NoSuchJob, State, Transient
from pmrun.testing import fake_jobset

TRAIN = """
import hashlib
import numpy as np
import pmrun as pm

world = pm.init()
rng = np.random.default_rng(7)
features, weights = rng.standard_normal((64, 16), dtype=np.float32), np.zeros(16, np.float32)
wanted = features @ np.arange(16, dtype=np.float32)
mine = slice(world.rank * 64 // world.size, (world.rank + 1) * 64 // world.size)
for _ in range(20):
    gradient = features[mine].T @ (features[mine] @ weights - wanted[mine])
    weights -= np.float32(0.005) * world.allreduce(gradient)
if world.rank == 0:
    print("weights", hashlib.sha256(weights.tobytes()).hexdigest())
"""
WAIT = "import signal; print('up', flush=True); signal.pause()"
PROMPT_S = 3.0 + 3.0  # and something for a machine that others use, too


@contextlib.contextmanager
def a_client(cluster: fake_jobset.FakeJobSet) -> Iterator[backend.QuickClient]:
    """One that knows nothing of what another did."""
    connection = backend.connect(cluster)
    try:
        yield backend.QuickClient(lambda: connection, backend.ENGINE)
    finally:
        jobset_helper.hang_up(connection.api)


@pytest.fixture(scope="module")
def cluster() -> Iterator[fake_jobset.FakeJobSet]:
    options = fake_jobset.Options(start_spread_s=0.1, extras=("jobset", "coscheduling"), namespaces=("default",))
    with fake_jobset.start(options) as found:
        yield found


@pytest.fixture
def client(cluster: fake_jobset.FakeJobSet) -> Iterator[backend.QuickClient]:
    with a_client(cluster) as found:
        yield found
    cluster.heal_requests()


@pytest.fixture
def raw(cluster: fake_jobset.FakeJobSet) -> Iterator[jobset_helper.Client]:
    """The cluster as it is seen without pmrun."""
    with jobset_helper.client_of(cluster) as found:
        yield found


def submit(client: backend.QuickClient, arguments: str) -> str:
    job = cli.build_job(split(shlex.split(f"--on fake-jobset --image any {arguments}")))
    return client.submit(client.request(job))


def until(client: backend.QuickClient, name: str, *states: State) -> JobStatus:
    found: list[JobStatus] = []

    def look() -> bool:
        found[:] = [client.status(name)]
        return found[0].state in states

    machines.until(look, f"{name} being {', '.join(state.value for state in states)}")
    return found[0]


class Reader:
    """Reads a job's log as the follower does, and keeps it."""

    def __init__(self, client: backend.QuickClient, name: str) -> None:
        self._client, self._name = client, name
        self._cursor, self._lines = Cursor(), list[bytes]()

    def text(self) -> str:
        """All that was written so far."""
        lines, self._cursor = self._client.read_logs(self._name, self._cursor)
        self._lines += [line.text for line in lines]
        return b"\n".join(self._lines).decode()


@pytest.mark.slow
def test_training_gives_the_weights_of_a_local_run(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(TRAIN)
    words = [str(gang_helper.COMMAND), "-n", "3", "--no-tag"]
    shown = []
    for more in ((), ("--on", "fake-jobset", "--nodes", "2", "--code", ".")):
        done = subprocess.run([*words, *more, "train.py"], cwd=tmp_path, capture_output=True, text=True, timeout=90)
        assert done.returncode == 0, done.stderr
        shown.append([line for line in done.stdout.splitlines() if not line.startswith("pmrun: ")])
    assert shown[0] == shown[1] and shown[0][0].startswith("weights ")


@pytest.mark.slow
def test_a_ranks_exit_code_is_the_jobs(client: backend.QuickClient, raw: jobset_helper.Client) -> None:
    script = "import os, sys; sys.exit(7) if os.environ['PMRUN_RANK'] == '1' else __import__('signal').pause()"
    name = submit(client, f"-n 2 --nodes 2 -- python -c {shlex.quote(script)}")
    status = until(client, name, State.FAILED)
    assert status.exit_code == 7, status
    assert "exit code 7" in Reader(client, name).text()
    assert any("exit code 7" in finding.what for finding in client.why(name))
    client.cancel(name)  # it is over: nothing happens
    assert client.status(name).state is State.FAILED
    assert client.jobs()[0].name == name
    raw.delete(name.split("/")[2])


@pytest.mark.slow
def test_a_killed_pod_ends_the_gang(
    client: backend.QuickClient, raw: jobset_helper.Client, cluster: fake_jobset.FakeJobSet
) -> None:
    name = submit(client, f"-n 2 --nodes 2 --grace 0.5 -- python -c {shlex.quote(WAIT)}")
    log = Reader(client, name)
    machines.until(lambda: log.text().count("] up") == 2, "both ranks")
    cluster.kill_pod(client.status(name).nodes[1].where.split()[0])
    began = time.monotonic()
    status = until(client, name, State.FAILED)
    assert time.monotonic() - began < PROMPT_S
    assert status.exit_code not in (0, None)
    assert any("node 1" in finding.what and "137" in finding.what for finding in client.why(name)), client.why(name)
    raw.delete(name.split("/")[2])


@pytest.mark.slow
def test_retries_begin_the_job_again(
    client: backend.QuickClient, raw: jobset_helper.Client, cluster: fake_jobset.FakeJobSet
) -> None:
    script = f"import os\nif os.environ['JOBSET_RESTART_ATTEMPT'] == '0':\n    {WAIT}"
    name = submit(client, f"-n 2 --nodes 2 --retries 1 --grace 0.5 -- python -c {shlex.quote(script)}")
    log = Reader(client, name)
    machines.until(lambda: log.text().count("] up") == 2, "both ranks")
    cluster.evict_pod(client.status(name).nodes[0].where.split()[0], "preemption")
    status = until(client, name, State.SUCCEEDED)
    assert (status.exit_code, status.attempt) == (0, 1)
    assert raw.get(name.split("/")[2])["status"]["restartsCountTowardsMax"] == 0  # it was no failure
    raw.delete(name.split("/")[2])


@pytest.mark.slow
def test_what_was_half_started_is_gone_at_its_deadline(client: backend.QuickClient, raw: jobset_helper.Client) -> None:
    others = [node.metadata.name for node in raw.core.list_node().items[1:]]
    for node in others:
        raw.core.patch_node(node, {"spec": {"unschedulable": True}})
    name = submit(client, f"-n 2 --nodes 2 --cpu 40 --start-timeout 1 -- python -c {shlex.quote(WAIT)}")
    until(client, name, State.RUNNING, State.FAILED)  # one of the two
    began = time.monotonic()
    status = until(client, name, State.FAILED)
    assert time.monotonic() - began < 1.0 + 2.0 + PROMPT_S
    assert status.exit_code == ExitCode.START_FAILED
    machines.until(lambda: len(raw.pods(name.split("/")[2])) == 1, "the end of the pod that had no place")
    for node in others:
        raw.core.patch_node(node, {"spec": {"unschedulable": False}})
    raw.delete(name.split("/")[2])


@pytest.mark.slow
def test_a_job_can_be_watched_and_cancelled_from_elsewhere(
    client: backend.QuickClient, raw: jobset_helper.Client, cluster: fake_jobset.FakeJobSet
) -> None:
    name = submit(client, "-n 1 --gang coscheduling --with network-policy=yes -- sh -c 'echo up; exec sleep 600'")
    with a_client(cluster) as other:
        log = Reader(other, name)
        machines.until(lambda: "up" in log.text(), "its log")
        cluster.break_streams()
        other.cancel(name)
        machines.until(lambda: other.status(name).state is State.CANCELLED, "the end")
    with pytest.raises(NoSuchJob, match="knows no job"):
        client.status(name)
    machines.until(lambda: not raw.pods(name.split("/")[2]), "the end of its pods")
    machines.until(lambda: not raw.core.list_namespaced_secret("default").items, "the end of its secret")


def test_a_job_that_cannot_be_placed_says_why(client: backend.QuickClient) -> None:
    name = submit(client, "-n 1 --cpu 100 --job-name large train.py")
    machines.until(lambda: "Insufficient cpu" in client.status(name).reason, "the scheduler's words")
    assert client.status(name).state is State.QUEUED
    assert "8 Insufficient cpu" in client.why(name)[0].what and client.why(name)[0].remedy
    with pytest.raises(EngineError, match="already exists; give the job another name"):
        submit(client, "-n 1 --job-name large train.py")
    client.cancel(name)


def test_what_the_cluster_does_not_have(client: backend.QuickClient) -> None:
    with pytest.raises(EngineError, match='namespaces "nowhere" not found'):
        submit(client, "-n 1 --namespace nowhere train.py")
    with pytest.raises(EngineError, match="this cluster does not serve kueue"):
        submit(client, "-n 1 --gang kueue:q train.py")
    name = submit(client, "-n 1 --with service-account=nobody train.py")
    why = 'serviceaccount "nobody" not found'
    machines.until(lambda: any(why in finding.what for finding in client.why(name)), "the reason")
    client.cancel(name)


def test_errors_of_the_api_are_those_of_the_contract(
    client: backend.QuickClient, cluster: fake_jobset.FakeJobSet
) -> None:
    cluster.fail_requests(429, times=1, retry_after_s=3)
    with pytest.raises(Transient) as busy:
        client.jobs()
    assert busy.value.after_s == 3.0
    cluster.fail_requests(500, times=1)
    with pytest.raises(Transient, match="etcdserver"):
        client.jobs()
    cluster.fail_requests(403, verb="create", plural="secrets")
    with pytest.raises(EngineError, match="ask who runs the cluster for that right"):
        submit(client, "-n 1 train.py")
    cluster.heal_requests()
    assert client.jobs() == []  # what was begun was taken back
