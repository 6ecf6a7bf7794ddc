# SPDX-License-Identifier: Apache-2.0
"""The fake cluster, driven by a real kubectl."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from jobset_helper import jobset, pod_spec
from pmrun.testing import fake_jobset

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def kubectl(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    program = shutil.which("kubectl")
    if program is None:
        pytest.skip("there is no kubectl here")
    home = tmp_path_factory.mktemp("kubectl")
    with fake_jobset.start(fake_jobset.Options(start_spread_s=0.0)) as cluster:
        words = [program, f"--kubeconfig={cluster.kubeconfig}", f"--cache-dir={home / 'cache'}"]

        def run(*more: str, given: object = None) -> subprocess.CompletedProcess[str]:
            text = None if given is None else json.dumps(given)
            return subprocess.run([*words, *more], input=text, capture_output=True, text=True, timeout=60, check=False)

        yield run


@pytest.mark.slow
def test_a_jobset_from_creation_to_deletion(kubectl: Run) -> None:
    body = jobset("gang", "import os; print('index', os.environ['JOB_COMPLETION_INDEX'])")
    assert kubectl("create", "-f", "-", given=body).stdout == "jobset.jobset.x-k8s.io/gang created\n"
    assert "AlreadyExists" in kubectl("create", "-f", "-", given=body).stderr
    done = kubectl("wait", "--for=condition=Completed", "jobset/gang", "--timeout=30s")
    assert done.stdout == "jobset.jobset.x-k8s.io/gang condition met\n", done.stderr
    logs = kubectl("logs", "--selector=jobset.sigs.k8s.io/jobset-name=gang", "--prefix").stdout
    assert sorted(line.split("/main] ")[1] for line in logs.splitlines()) == ["index 0", "index 1"]
    assert kubectl("label", "jobset", "gang", "team=blue").returncode == 0
    assert kubectl("get", "jobsets", "-l", "team in (blue,red)", "-o", "name").stdout.strip().endswith("/gang")
    immutable = '{"spec": {"failurePolicy": {"maxRestarts": 3}, "network": {"enableDNSHostnames": false}}}'
    assert "Value is immutable" in kubectl("patch", "jobset", "gang", "--type=merge", "-p", immutable).stderr
    assert 'jobset.x-k8s.io "gang" deleted' in kubectl("delete", "jobset", "gang", "--cascade=foreground").stdout
    assert kubectl("get", "pods,jobs,services").stderr.strip() == "No resources found in default namespace."


@pytest.mark.slow
def test_what_is_refused(kubectl: Run, tmp_path: Path) -> None:
    typo = jobset("typo", "pass")
    pod_spec(typo)["restartPolcy"] = "Never"
    told = kubectl("create", "-f", "-", given=typo).stderr
    assert 'unknown field "spec.replicatedJobs[0].template.spec.template.spec.restartPolcy"' in told
    lenient = kubectl("create", "--validate=warn", "--dry-run=server", "-f", "-", given=typo)
    assert "Warning: unknown field" in lenient.stderr and lenient.returncode == 0
    told = kubectl("create", "-f", "-", given=jobset("x" * 60, "pass")).stderr
    assert "job names generated for this JobSet will exceed 63 characters" in told
    told = kubectl("create", "-f", "-", "-n", "nowhere", given=jobset("gang", "pass")).stderr
    assert 'namespaces "nowhere" not found' in told


@pytest.mark.slow
def test_apply_merges(kubectl: Run) -> None:
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "key"}, "stringData": {"one": "1"}}
    assert kubectl("apply", "--server-side", "-f", "-", given=secret).returncode == 0
    more = {**secret, "stringData": {"two": "2"}}
    assert kubectl("apply", "--server-side", "-f", "-", given=more).returncode == 0
    data = json.loads(kubectl("get", "secret", "key", "-o", "json").stdout)["data"]
    assert data == {"one": "MQ==", "two": "Mg=="}
    assert kubectl("delete", "secret/key").returncode == 0
