# SPDX-License-Identifier: Apache-2.0
"""What is refused before the start: more ranks than processes or memory allow, each in one line with its remedy."""

import pytest

from pmrun.launcher import limits
from pmrun.launcher.cgroup import ControlGroups


@pytest.fixture
def groups(tmp_path):
    """A control group that allows 100 MiB and 50 processes, of which 40 MiB and 20 processes are taken."""
    files = {
        "proc/self/cgroup": "0::/\n",
        "sys/fs/cgroup/memory.max": f"{100 << 20}\n",
        "sys/fs/cgroup/memory.current": f"{40 << 20}\n",
        "sys/fs/cgroup/pids.max": "50\n",
        "sys/fs/cgroup/pids.current": "20\n",
    }
    for path, text in files.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    return ControlGroups(str(tmp_path))


def test_what_fits_is_not_refused(groups):
    assert limits.refuse(30, b"/bin/true", groups) is None


def test_more_ranks_than_processes(groups):
    assert limits.refuse(31, b"/bin/true", groups) == (
        "31 ranks need 31 processes, the pids control group has 30 left: start fewer ranks"
    )


def test_more_ranks_than_memory(groups, tmp_path):
    (tmp_path / "sys/fs/cgroup/pids.max").write_text("max\n")
    assert limits.refuse(30, b"/bin/true", groups) is None
    assert limits.refuse(31, b"/bin/true", groups) == (
        "31 ranks need at least 62 MiB of memory, 60 MiB are available: start fewer ranks"
    )


@pytest.mark.parametrize("word", [b"python", b"/usr/bin/python3.11", b"/v/bin/python3", b"python3.13t", b"pypy3"])
def test_an_interpreter_needs_more_than_a_program(groups, word):
    assert limits.refuse(12, word, groups) is None
    assert limits.refuse(13, word, groups) == (
        "13 ranks of Python need at least 65 MiB of memory, 60 MiB are available: start fewer ranks"
    )
    assert limits.refuse(13, b"/usr/bin/pythonic", groups) is None


def test_no_group_helps_beyond_the_most():
    assert limits.refuse(limits.RANKS_MAX + 1, b"python", ControlGroups("/nowhere")) == (
        f"{limits.RANKS_MAX + 1} ranks on one node: the most is {limits.RANKS_MAX}; use more nodes"
    )
