# SPDX-License-Identifier: Apache-2.0
"""Counting CPUs: the affinity mask and the tightest quota of cgroup v2 and v1, in folders made for the test."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pmrun.launcher.cpus import available_cpus, cpu_quota


@pytest.fixture(autouse=True)
def sixteen_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)))


def make(root: Path, files: dict[str, str]) -> tuple[str, str]:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return str(root / "self"), str(root / "cgroup")


@pytest.mark.parametrize(
    ("files", "cpus"),
    [
        pytest.param({}, 16, id="no cgroups"),
        pytest.param({"self": "0::/\n"}, 16, id="v2, no limit file at the root"),
        pytest.param({"self": "0::/a/b\n", "cgroup/a/b/cpu.max": "max 100000\n"}, 16, id="v2, no limit"),
        pytest.param({"self": "0::/a/b\n", "cgroup/a/b/cpu.max": "400000 100000\n"}, 4, id="v2, own limit"),
        pytest.param(
            {"self": "0::/a/b\n", "cgroup/a/b/cpu.max": "800000 100000\n", "cgroup/a/cpu.max": "300000 100000\n"},
            3,
            id="v2, a tighter limit above",
        ),
        pytest.param({"self": "0::/host/path\n", "cgroup/cpu.max": "250000 100000\n"}, 2, id="v2, path of the host"),
        pytest.param({"self": "0::/\n", "cgroup/cpu.max": "50000 100000\n"}, 1, id="half a CPU is one rank"),
        pytest.param({"self": "0::/\n", "cgroup/cpu.max": "9900000 100000\n"}, 16, id="more than the mask"),
        pytest.param(
            {
                "self": "5:cpu,cpuacct:/docker/x\n4:memory:/docker/x\n",
                "cgroup/cpu,cpuacct/docker/x/cpu.cfs_quota_us": "600000\n",
                "cgroup/cpu,cpuacct/docker/x/cpu.cfs_period_us": "100000\n",
            },
            6,
            id="v1",
        ),
        pytest.param(
            {"self": "5:cpu:/\n", "cgroup/cpu/cpu.cfs_quota_us": "-1\n", "cgroup/cpu/cpu.cfs_period_us": "100000\n"},
            16,
            id="v1, no limit",
        ),
        pytest.param({"self": "not a line of a cgroup file\n"}, 16, id="nonsense"),
    ],
)
def test_counts(files: dict[str, str], cpus: int, tmp_path: Path) -> None:
    assert available_cpus(*make(tmp_path, files)) == cpus


def test_the_quota_itself_is_exact(tmp_path: Path) -> None:
    assert cpu_quota(*make(tmp_path, {"self": "0::/\n", "cgroup/cpu.max": "150000 100000\n"})) == 1.5


def test_this_machine_has_at_least_one() -> None:
    assert available_cpus() >= 1
