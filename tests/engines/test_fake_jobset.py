# SPDX-License-Identifier: Apache-2.0
"""The fake cluster, driven by the official client: pods are processes, and the controllers do what the real ones do."""

from __future__ import annotations

import os
import select
import signal
import urllib.error
import urllib.request
from collections.abc import Iterator

import kubernetes
import pytest

import jobset_helper
import machines
from jobset_helper import JOBSET, Client, jobset, pod_spec
from pmrun.testing import fake_jobset

# The first process of a container hears SIGTERM only where it asks for it.
SLEEP = "import signal, sys; signal.signal(15, lambda *_: sys.exit(143)); print('ready', flush=True); signal.pause()"
ONCE = f"import os\nif os.environ['ATTEMPT'] == '0':\n    {SLEEP}"
ATTEMPT = {
    "name": "ATTEMPT",
    "valueFrom": {"fieldRef": {"fieldPath": f"metadata.annotations['{JOBSET}restart-attempt']"}},
}


@pytest.fixture(scope="module")
def cluster() -> Iterator[fake_jobset.FakeJobSet]:
    options = fake_jobset.Options(
        seed=1, images=("any",), dns_delay_s=0.1, start_spread_s=0.1,
        nodes=(fake_jobset.NodeSpec("big"), fake_jobset.NodeSpec("small", cpu="2", labels={"size": "s"})),
    )  # fmt: skip
    with fake_jobset.start(options) as found:
        yield found


@pytest.fixture
def client(cluster: fake_jobset.FakeJobSet) -> Iterator[Client]:
    with jobset_helper.client_of(cluster) as found:
        yield found


@pytest.fixture(scope="module")
def lonely() -> Iterator[fake_jobset.FakeJobSet]:
    """Without namespaces, behind a token, with impatient nodes."""
    options = fake_jobset.Options(isolation="loopback", token="secret", node_grace_s=0.0, toleration_s=0.0)
    with fake_jobset.start(options) as found:
        yield found


@pytest.fixture
def alone(lonely: fake_jobset.FakeJobSet) -> Iterator[Client]:
    with jobset_helper.client_of(lonely) as found:
        yield found


MEET = """
import os, select, socket, time
index, end = int(os.environ['JOB_COMPLETION_INDEX']), time.monotonic() + 20
if index == 0:
    with socket.create_server(('0.0.0.0' if os.environ['MAIN'][0] != '1' else os.environ['IP'], 7000)) as server:
        taken = server.accept()[0]
        print('heard', taken.recv(100).decode(), 'of', os.environ['NAME'])
while index:
    try:
        with socket.create_connection((os.environ['MAIN'], 7000)) as sock:
            sock.sendall(os.environ['IP'].encode())
            break
    except OSError:
        assert time.monotonic() < end
        select.select([], [], [], 0.02)
"""


@pytest.mark.slow
@pytest.mark.parametrize("place", ["namespaces", "loopback"])
def test_pods_meet_at_the_coordinators_name(place: str, client: Client, alone: Client) -> None:
    client = client if place == "namespaces" else alone
    body = jobset("meet", MEET, coordinator={"replicatedJob": "w", "jobIndex": 0, "podIndex": 0})
    pod_spec(body)["containers"][0]["env"] = [
        {"name": "MAIN", "value": "meet-w-0-0.meet"},
        {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
        {"name": "NAME", "valueFrom": {"fieldRef": {"fieldPath": f"metadata.annotations['{JOBSET}coordinator']"}}},
    ]
    client.create(body)
    assert client.until_ended("meet")["terminalState"] == "Completed"
    first, second = client.pods("meet")
    main = "meet-w-0-0.meet" if place == "namespaces" else first["status"]["podIP"]
    assert client.log(first) == f"heard {second['status']['podIP']} of {main}\n"
    assert first["spec"]["hostname"] == "meet-w-0-0" and first["spec"]["subdomain"] == "meet"
    assert client.log(first, tail_lines=1, timestamps=True).partition("Z ")[2].startswith("heard")
    client.delete("meet")
    assert not client.batch.list_namespaced_job("default").items
    services = client.core.list_namespaced_service("default").items
    machines.until(lambda: not client.core.list_namespaced_service("default").items, f"the end of {services}")


@pytest.mark.slow
def test_a_killed_pod_restarts_all_of_them(client: Client) -> None:
    body = jobset("again", ONCE, failurePolicy={"maxRestarts": 1, "restartStrategy": "BlockingRecreate"})
    pod_spec(body)["containers"][0]["env"] = [ATTEMPT]
    client.create(body)
    before = client.until_running("again", 2)
    client.cluster.kill_pod(before[1]["metadata"]["name"])
    status = client.until_ended("again")
    assert (status["terminalState"], status["restarts"], status["restartsCountTowardsMax"]) == ("Completed", 1, 1)
    after = client.pods("again")
    assert [pod["spec"]["hostname"] for pod in after] == [pod["spec"]["hostname"] for pod in before]
    assert not {pod["metadata"]["uid"] for pod in after} & {pod["metadata"]["uid"] for pod in before}
    assert {pod["metadata"]["labels"][f"{JOBSET}restart-attempt"] for pod in after} == {"1"}
    assert any(
        "applying RestartJobSet failure policy" in text for text in client.events("RestartJobSetFailurePolicyAction")
    )
    client.delete("again")


@pytest.mark.slow
def test_an_evicted_pods_restart_does_not_count(client: Client) -> None:
    rule = {"name": "gone", "action": "RestartJobSetAndIgnoreMaxRestarts", "onJobFailureReasons": ["PodFailurePolicy"]}
    body = jobset(
        "evicted", ONCE, job={"podFailurePolicy": {"rules": [jobset_helper.DISRUPTED]}},
        failurePolicy={"maxRestarts": 0, "rules": [rule], "restartStrategy": "BlockingRecreate"},
    )  # fmt: skip
    pod_spec(body)["containers"][0]["env"] = [ATTEMPT]
    client.create(body)
    victim = client.until_running("evicted", 2)[0]["metadata"]["name"]
    client.cluster.evict_pod(victim, "preemption")
    status = client.until_ended("evicted")
    assert (status["terminalState"], status["restarts"], status["restartsCountTowardsMax"]) == ("Completed", 1, 0)
    client.delete("evicted")


@pytest.mark.slow
def test_a_pod_that_was_out_of_memory_fails_the_jobset(client: Client) -> None:
    client.create(jobset("hungry", SLEEP))
    running = client.until_running("hungry", 2)
    client.cluster.kill_pod(running[0]["metadata"]["name"], out_of_memory=True)
    status = client.until_ended("hungry")
    assert status["conditions"][-1]["reason"] == "FailedJobs"
    assert "first failed job: hungry-w-0" in status["conditions"][-1]["message"]
    dead = client.pods("hungry")[0]["status"]
    ended = dead["containerStatuses"][0]["state"]["terminated"]
    assert (dead["phase"], ended["exitCode"], ended["reason"]) == ("Failed", 137, "OOMKilled")
    client.delete("hungry")


@pytest.mark.slow
def test_what_keeps_pods_from_running_is_told(client: Client) -> None:
    bodies = {name: jobset(name, SLEEP, 1) for name in ("huge", "unknown", "keyless", "nothere")}
    pod_spec(bodies["huge"]).update(
        nodeSelector={"size": "s"},
        containers=[{"name": "main", "image": "any", "resources": {"limits": {"cpu": "3"}}, "command": ["true"]}],
    )
    pod_spec(bodies["unknown"])["containers"][0]["image"] = "none"
    pod_spec(bodies["keyless"])["volumes"] = [{"name": "key", "secret": {"secretName": "lost"}}]
    pod_spec(bodies["nothere"])["serviceAccountName"] = "nobody"
    for body in bodies.values():
        client.create(body)
    why = "0/2 nodes are available: 1 Insufficient cpu, 1 node(s) didn't match Pod's node affinity/selector."
    machines.until(lambda: why in client.events("FailedScheduling"), "the scheduler's words")
    machines.until(
        lambda: any('secret "lost" not found' in text for text in client.events("FailedMount")), "the kubelet's words"
    )
    machines.until(
        lambda: any('serviceaccount "nobody" not found' in text for text in client.events("FailedCreate")),
        "the job controller's words",
    )
    machines.until(lambda: client.events("Failed"), "the failed pull")
    with pytest.raises(kubernetes.client.ApiException, match="trying and failing to pull image"):
        client.log(client.pods("unknown")[0])
    for name in bodies:
        client.delete(name)


@pytest.mark.slow
def test_requests_and_streams_fail_as_told(client: Client) -> None:
    client.cluster.fail_requests(429, times=1, verb="list", plural="pods", retry_after_s=7)
    with pytest.raises(urllib.error.HTTPError) as busy:  # the client would wait and try again
        urllib.request.urlopen(f"{client.cluster.url}/api/v1/pods", timeout=10)
    assert (busy.value.code, busy.value.headers["Retry-After"]) == (429, "7")
    busy.value.close()
    client.cluster.fail_requests(403, verb="create", plural="jobsets")
    with pytest.raises(kubernetes.client.ApiException, match="cannot create resource"):
        client.create(jobset("x", SLEEP))
    assert not client.may("create", "jobsets") and client.may("list", "jobsets")
    client.cluster.heal_requests()
    created = client.create(jobset("follow", SLEEP, 1))
    version = created["metadata"]["resourceVersion"]
    pod = client.until_running("follow", 1)[0]["metadata"]["name"]
    watched = client.core.list_namespaced_pod("default", watch=True, resource_version=version, _preload_content=False)
    log = client.core.read_namespaced_pod_log(pod, "default", follow=True, _preload_content=False)
    assert log.read(6) == b"ready\n"
    assert b'"ADDED"' in watched.readline()
    client.cluster.break_streams()
    with pytest.raises(Exception, match=r"Connection broken|IncompleteRead"):
        log.read()
    watched.close()
    client.cluster.expire_history()
    with pytest.raises(kubernetes.client.ApiException) as expired:
        client.core.list_namespaced_pod("default", watch=True, resource_version=version)
    assert expired.value.status == 410
    client.delete("follow")


@pytest.mark.slow
def test_a_lost_node_takes_its_pods_when_the_cluster_notices(alone: Client) -> None:
    alone.create(jobset("lost", SLEEP, failurePolicy={"maxRestarts": 0}))
    victim = alone.until_running("lost", 2)[1]
    alone.cluster.lose_node(victim["spec"]["nodeName"])
    machines.until(
        lambda: any("deletionTimestamp" in pod["metadata"] for pod in alone.pods("lost")), "the eviction by taint"
    )
    alone.core.delete_node(victim["spec"]["nodeName"])
    assert alone.until_ended("lost")["terminalState"] == "Failed"
    alone.delete("lost")


def test_without_the_token_nothing_is_answered(alone: Client) -> None:
    configuration = kubernetes.client.Configuration(host=alone.cluster.url)
    with kubernetes.client.ApiClient(configuration) as api:
        with pytest.raises(kubernetes.client.ApiException) as stranger:
            kubernetes.client.CoreV1Api(api).list_namespaced_pod("default")
        jobset_helper.hang_up(api)
    assert stranger.value.status == 401


@pytest.mark.slow
def test_a_killed_cluster_leaves_nothing() -> None:
    with fake_jobset.start(fake_jobset.Options(start_spread_s=0.0)) as cluster:
        with jobset_helper.client_of(cluster) as client:
            client.create(jobset("left", "import os; print(os.readlink('/proc/self/ns/net'), flush=True); " + SLEEP, 1))
            pod = client.until_running("left", 1)[0]
            machines.until(lambda: "ready" in client.log(pod), "the pod's first words")
        server = cluster._process.pid
        children = [int(word) for word in _children(server)]
        assert children
        fds = [os.pidfd_open(child) for child in children]
        os.kill(server, signal.SIGKILL)
        for fd in fds:
            assert select.select([fd], [], [], 10)[0], "a process outlived its cluster"
            os.close(fd)


def _children(pid: int) -> list[str]:
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        return file.read().split()
