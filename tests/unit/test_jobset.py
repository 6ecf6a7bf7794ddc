# SPDX-License-Identifier: Apache-2.0
"""Kubernetes as an engine, without a cluster: objects against a file and the real CRD; states, findings, logs.

`python tests/unit/test_jobset.py` writes the objects anew, for whoever meant to change them.
"""

from __future__ import annotations

import json
import random
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pmrun.errors import EngineError, UsageError
from pmrun.launcher import cli
from pmrun.launcher.code_package import config_map
from pmrun.launcher.command_line import split
from pmrun.launcher.jobset import manifest, reasons
from pmrun.launcher.jobset.pod_log import PodLog, lines_of
from pmrun.launcher.submission.contract import State, Transient
from pmrun.testing.fake_jobset.api import Api, How
from pmrun.testing.fake_jobset.resources import JOBS, JOBSETS, NAMESPACES, PODS, SECRETS, SERVICE_ACCOUNTS
from pmrun.testing.fake_jobset.store import Key, Store

GOLDEN = Path(__file__).parent / "jobset_requests.json"
BASE = "--on k8s --image img"
COMBINATIONS = [
    "-n 1 train.py",
    "-n 8 --nodes 2 train.py",
    "-n 7 --nodes 3 train.py --lr 0.1",
    "-n 1000 --nodes 1000 train.py",
    "-n 2 --nodes 2 -m pkg.train",
    "-n 2 --nodes 2 -- ./program 'a b'",
    "-n 2 --nodes 2 --cpu 4 train.py",
    "-n 2 --nodes 2 --cpu 0.5 --memory 512M train.py",
    "-n 16 --nodes 2 --gpu 8 --cpu 96 --memory 1T --shared-memory 8G train.py",
    "-n 2 --nodes 2 --gpu 1 --with gpu-resource=amd.com/gpu train.py",
    "-n 2 --nodes 2 --retries 3 train.py",
    "-n 2 --nodes 2 --timeout 90.5 --start-timeout 600 --grace 30 train.py",
    "-n 2 --nodes 2 --job-name night-run --namespace team train.py",
    "-n 2 --nodes 2 --with node-selector=size=big --with node-selector=zone=a --with toleration=gpu:NoSchedule train.py",
    "-n 2 --nodes 2 --with toleration=for=me --with service-account=trainer --with priority-class=high train.py",
    "-n 2 --nodes 2 --with volume=claim:data:/data --with volume=host:/scratch:/scratch --with volume=empty::/tmp/x train.py",
    "-n 2 --nodes 2 --with pull=Always --with pull-secret=registry --with ttl=600 --with network-policy=yes train.py",
    "-n 2 --nodes 2 --with label=team=vision --with 'annotation=note=a b' train.py",
    "-n 2 --nodes 2 --gang kueue:q train.py",
    "-n 2 --nodes 2 --gang volcano:q train.py",
    "-n 2 --nodes 2 --gang coscheduling train.py",
    "-n 2 --nodes 2 --gang native train.py",
    "-n 4 --nodes 2 --env A=1 --env 'B=$(A)' --cwd /app --max-restarts 2 --transport tcp 'my job.v2.py'",
]


def request_of(arguments: str) -> dict[str, Any]:
    return manifest.make_request(cli.build_job(split(shlex.split(f"{BASE} {arguments}"))), "k8s")


@pytest.fixture
def api() -> Api:
    made = Api(Store(random.Random(1), lambda: None), clock=lambda: 1_000_000.0)
    made.create(NAMESPACES, "", {"metadata": {"name": "default"}})
    made.create(NAMESPACES, "", {"metadata": {"name": "team"}})
    made.create(SERVICE_ACCOUNTS, "default", {"metadata": {"name": "default"}})
    return made


@pytest.mark.parametrize("arguments", COMBINATIONS)
def test_objects_are_as_kept_and_as_the_crd_wants_them(arguments: str, api: Api) -> None:
    request = request_of(arguments)
    assert request == json.loads(GOLDEN.read_text())[arguments]
    jobset, secret = manifest.named(request, "abcde")["items"][:2]
    assert manifest.NAME not in json.dumps(jobset)
    made, _ = api.create(
        JOBSETS, jobset["metadata"].get("namespace", "default"), jobset, How(field_validation="Strict")
    )
    template = made["spec"]["replicatedJobs"][0]["template"]
    api.create(JOBS, "default", {"metadata": {"name": "job"}, "spec": template["spec"]}, How(field_validation="Strict"))
    api.create(SECRETS, "default", {**secret, "metadata": {**secret["metadata"], "namespace": "default"}})


def test_code_goes_in_a_config_map_or_waits_in_its_store(tmp_path: Path, api: Api) -> None:
    code, store = tmp_path / "code", tmp_path / "store"
    code.mkdir()
    store.mkdir()
    (code / "train.py").write_text("print(1)")
    request = request_of(f"-n 2 --nodes 2 --code {code} train.py")
    jobset, _, held = manifest.named(request, "abcde")["items"]
    api.create(JOBSETS, "default", jobset, How(field_validation="Strict"))
    pod = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    (file,) = held["binaryData"]
    assert file.startswith(request["code"]["sha256"]) and held["metadata"]["name"] == jobset["metadata"]["name"]
    assert {"name": "pmrun-code", "configMap": {"name": held["metadata"]["name"]}} in pod["volumes"]
    words = pod["containers"][0]["command"]
    assert words[words.index("--code") + 1] == f"{config_map.FOLDER}/{file}"
    stored = request_of(f"-n 2 --nodes 2 --code {code} --code-store {store} train.py")
    assert [item["kind"] for item in stored["items"]] == ["JobSet", "Secret"]
    assert str(store / file) in json.dumps(stored)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("-n 2 --nodes 2 --job-name Big train.py", "small letters, digits and '-'"),
        (f"-n 2 --nodes 2 --job-name {'x' * 60} train.py", "may have 51 characters, not 60"),
        ("-n 2 --nodes 2 --queue q train.py", "--queue has no meaning with --on k8s"),
        ("-n 2 --nodes 2 --gang slurm train.py", "choose kueue:QUEUE, volcano:QUEUE, coscheduling, native or none"),
        ("-n 2 --nodes 2 --gang kueue train.py", "write kueue:QUEUE"),
        ("-n 2 --nodes 2 --with tolerate=x train.py", "toleration"),
        ("-n 2 --nodes 2 --with volume=data:/x train.py", "write --with volume=claim:NAME:/path"),
        ("-n 20000 --nodes 20000 train.py", "at most 10,000 nodes"),
    ],
)
def test_what_kubernetes_would_not_take_is_refused(arguments: str, words: str) -> None:
    with pytest.raises(UsageError) as refused:
        request_of(arguments)
    assert words in str(refused.value)


def a_pod(index: int, attempt: int = 0, **status: Any) -> dict[str, Any]:
    labels = {reasons.INDEX: str(index), f"{manifest.PREFIX}restart-attempt": str(attempt)}
    metadata = {"name": f"gang-n-0-{index}-abcde", "labels": labels, "creationTimestamp": "2026-01-01T00:00:00Z"}
    return {"metadata": metadata, "spec": {"nodeName": "m"} if status.pop("bound", True) else {}, "status": status}


def ended(code: int, reason: str = "Error") -> list[dict[str, Any]]:
    return [{"state": {"terminated": {"exitCode": code, "reason": reason}}}]


def a_jobset(state: str = "", **spec: Any) -> dict[str, Any]:
    end = {"type": state, "status": "True", "message": "why", "lastTransitionTime": "2026-01-01T00:01:00Z"}
    return {
        "metadata": {"name": "gang", "namespace": "default", "labels": {}, "annotations": {manifest.TITLE: "train"}},
        "spec": {"replicatedJobs": [{"template": {"spec": {"completions": 2}}}], **spec},
        "status": {"terminalState": state, "restarts": 1, "conditions": [end] if state else []},
    }


def test_states() -> None:
    def state(pods: list[dict[str, Any]], jobset: dict[str, Any] | None = None) -> tuple[State, int | None]:
        status = reasons.status_of("k8s/default/gang", jobset or a_jobset(), pods)
        assert status.attempt == 1 and status.title == "train"
        return status.state, status.exit_code

    waits = a_pod(1, phase="Pending", bound=False)
    assert state([]) == state([a_pod(0, phase="Pending", bound=False), waits]) == (State.QUEUED, None)
    assert state([a_pod(0, phase="Pending"), waits]) == (State.STARTING, None)
    assert state([a_pod(0, phase="Running"), a_pod(1, phase="Running")]) == (State.RUNNING, None)
    done = a_pod(0, phase="Succeeded", containerStatuses=ended(0))
    assert state([done], a_jobset("Completed")) == (State.SUCCEEDED, 0)
    culprit = a_pod(1, phase="Failed", containerStatuses=ended(7))
    assert state([culprit], a_jobset("Failed")) == (State.FAILED, 7)
    assert state([a_pod(0, phase="Failed", containerStatuses=ended(3)), culprit], a_jobset("Failed"))[1] == 3


def test_findings_name_pod_cause_and_remedy() -> None:
    unscheduled = {"type": "PodScheduled", "status": "False", "message": "0/2 nodes are available: 2 Insufficient cpu."}
    pods = [
        a_pod(0, phase="Pending", bound=False, conditions=[unscheduled]),
        a_pod(
            1, phase="Pending", containerStatuses=[{"state": {"waiting": {"reason": "ErrImagePull", "message": "x"}}}]
        ),
        a_pod(2, phase="Failed", containerStatuses=ended(137, "OOMKilled")),
    ]
    mount = {
        "type": "Warning",
        "reason": "FailedMount",
        "message": "no secret",
        "involvedObject": {"name": "gang-n-0-0"},
    }
    found = reasons.findings(a_jobset(suspend=True), pods, [mount, mount])
    texts = [finding.what for finding in found]
    assert texts[0] == "the JobSet is suspended" and "Insufficient cpu" in texts[1]
    assert "node 1 (gang-n-0-1-abcde) cannot start: ErrImagePull: x" in texts
    assert "node 2 (gang-n-0-2-abcde) ran out of memory" in texts and texts.count("gang-n-0-0: no secret") == 1
    assert "--memory" in found[texts.index("node 2 (gang-n-0-2-abcde) ran out of memory")].remedy


def test_a_broken_log_is_read_on_without_a_gap_or_a_repetition() -> None:
    times = ["2026-01-01T00:00:01.1Z", "2026-01-01T00:00:01.2Z", "2026-01-01T00:00:01.2Z", "2026-01-01T00:00:02Z"]
    lines = [f"{time} line {number}".encode() for number, time in enumerate(times)]
    asked: list[str] = []

    def follow(since: str) -> Iterator[bytes]:
        asked.append(since)
        if not since:
            yield from lines[:2]
            raise Transient("the connection broke")
        yield from lines  # the API goes back to the whole second

    log = PodLog(0, follow)
    log.wait(5)
    first = log.take(0, 100)
    log.wait(5)
    rest = log.take(2, 100)
    assert [line.text for line in [*first, *rest]] == [b"line 0", b"line 1", b"line 2", b"line 3"]
    assert asked == ["", times[1]] and first[0].time_s is not None
    assert log.take(2, 1) == rest[:1]

    def never(since: str) -> Iterator[bytes]:
        raise EngineError("no")
        yield b""

    broken = PodLog(0, never)
    broken.wait(5)
    with pytest.raises(EngineError, match="no"):
        broken.take(0, 1)
    broken.wait(5)


def test_lines_are_put_together() -> None:
    class Answer:
        def stream(self) -> Iterator[bytes]:
            yield from (b"a", b"b\nc\n", b"d")

    assert list(lines_of(Answer())) == [b"ab", b"c", b"d"]


def test_pods_of_the_objects_are_admitted(api: Api) -> None:
    jobset = manifest.named(request_of("-n 2 --nodes 2 train.py"), "abcde")["items"][0]
    template = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]
    api.create(PODS, "default", {**template, "metadata": {"name": "p"}}, How(field_validation="Strict"))
    assert api.store.get(Key(PODS, "default", "p"))["spec"]["terminationGracePeriodSeconds"] == 30


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps({line: request_of(line) for line in COMBINATIONS}, indent=1) + "\n")
