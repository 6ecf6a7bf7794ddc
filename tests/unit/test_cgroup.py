# SPDX-License-Identifier: Apache-2.0
"""Limits of control groups, read from directories that look like version 1 and version 2."""

import os

import pytest

from pmrun.launcher.cgroup import ControlGroups, OomWatch, usable_cpus


def tree(root, files):
    for path, text in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    return ControlGroups(str(root))


def test_version_2(tmp_path):
    groups = tree(tmp_path, {
        "proc/self/cgroup": "0::/a/b\n",
        "sys/fs/cgroup/a/cpu.max": "150000 100000\n",
        "sys/fs/cgroup/a/b/cpu.max": "max 100000\n",
        "sys/fs/cgroup/a/memory.max": "1073741824\n",
        "sys/fs/cgroup/a/b/memory.max": "max\n",
        "sys/fs/cgroup/a/memory.current": "268435456\n",
        "sys/fs/cgroup/a/b/memory.current": "4096\n",
        "sys/fs/cgroup/a/pids.max": "100\n",
        "sys/fs/cgroup/a/pids.current": "40\n",
        "sys/fs/cgroup/a/b/memory.events": "low 0\noom 3\noom_kill 2\n",
        "sys/fs/cgroup/a/memory.events": "oom_kill 7\n",
        "proc/vmstat": "oom_kill 50\n",
    })  # fmt: skip
    assert groups.cpu_quota() == 1.5
    assert groups.memory_limit() == 1 << 30
    assert groups.memory_left() == 3 << 28, "what the group with the limit uses counts, not what the nearest does"
    assert groups.processes_left() == 60
    assert groups.oom_kills() == 2


def test_version_1(tmp_path):
    groups = tree(tmp_path, {
        "proc/self/cgroup": "8:pids:/\n4:memory:/job\n1:cpu,cpuacct:/job\n0::/\n",
        "sys/fs/cgroup/cpu/job/cpu.cfs_quota_us": "50000\n",
        "sys/fs/cgroup/cpu/job/cpu.cfs_period_us": "100000\n",
        "sys/fs/cgroup/memory/job/memory.limit_in_bytes": "2147483648\n",
        "sys/fs/cgroup/memory/job/memory.usage_in_bytes": "2147000000\n",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
        "sys/fs/cgroup/memory/memory.usage_in_bytes": "9000000000\n",
        "sys/fs/cgroup/memory/job/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 4\n",
    })  # fmt: skip
    assert groups.cpu_quota() == 0.5
    assert usable_cpus(groups) == 1
    assert groups.memory_limit() == 2 << 30
    assert groups.memory_left() == 1 << 30, "half of it may be page cache"
    assert groups.oom_kills() == 4


def test_container_whose_path_is_not_mounted(tmp_path):
    groups = tree(tmp_path, {
        "proc/self/cgroup": "0::/docker/0123\n",
        "sys/fs/cgroup/cpu.max": "200000 100000\n",
        "sys/fs/cgroup/memory.max": "max\n",
        "proc/vmstat": "nr_free_pages 1\noom_kill 9\n",
    })  # fmt: skip
    assert groups.cpu_quota() == 2.0
    assert groups.memory_limit() is None
    assert groups.oom_kills() == 9, "the machine's count where no group has one"


def test_each_kill_for_memory_explains_one_end(tmp_path):
    def kills(count):
        return {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.events": f"oom 9\noom_kill {count}\n"}

    watch = OomWatch(tree(tmp_path, kills(3)))
    assert not watch.explains(), "those from before are others'"
    tree(tmp_path, kills(5))
    assert [watch.explains() for _ in range(3)] == [True, True, False]


@pytest.mark.parametrize("text", ["", "garbage", "0::/../..\n", "0:::::\nx:y\n"])
def test_odd_systems_have_no_limits(tmp_path, text):
    groups = tree(tmp_path, {"proc/self/cgroup": text, "sys/fs/cgroup/cpu.max": "nonsense\n"})
    assert groups.cpu_quota() is None
    assert groups.memory_limit() is None
    assert groups.memory_left() is None
    assert groups.processes_left() is None
    assert groups.oom_kills() == 0
    assert usable_cpus(groups) == len(os.sched_getaffinity(0))
