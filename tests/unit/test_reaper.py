# SPDX-License-Identifier: Apache-2.0
"""The order in which children are taken is that of their ends. In a process of its own, as it takes all children."""

import subprocess
import sys

import pytest

HEAD = """
import os, random, select, signal, sys
from pmrun.launcher.reaper import Reaper

def child():
    pid = os.fork()
    if pid == 0:
        signal.pause()
        os._exit(1)
    return pid

def kill(pid):  # and wait until it has ended, without taking it
    fd = pidfd_open(pid)
    os.kill(pid, signal.SIGKILL)
    assert select.select([fd], [], [], 5.0)[0]
    os.close(fd)

pidfd_open = os.pidfd_open
reaper = Reaper()
"""
IN_ORDER = """
watched = [child() for _ in range(6)]
adopted = child()
for pid in watched:
    reaper.watch(pid)
assert reaper.next() == (0, 0)
order = random.Random(int(sys.argv[1])).sample(watched, 6)
kill(adopted)
for pid in order[:4]:
    kill(pid)
assert [reaper.next() for _ in order[:4]] == [(pid, signal.SIGKILL) for pid in order[:4]]
assert reaper.next() == (adopted, signal.SIGKILL)
for pid in order[4:]:
    kill(pid)
assert [reaper.next()[0] for _ in range(2)] == order[4:]
assert reaper.next() == (-1, 0)
"""
WITHOUT_DESCRIPTORS = """
def fail(pid):
    raise OSError("none is left")
os.pidfd_open = fail
pids = {child() for _ in range(3)}
for pid in pids:
    reaper.watch(pid)
for pid in pids:
    kill(pid)
assert {reaper.next()[0] for _ in pids} == pids
assert reaper.next() == (-1, 0)
"""


@pytest.mark.parametrize("body", [IN_ORDER, WITHOUT_DESCRIPTORS], ids=["in order", "without descriptors"])
def test_children_that_ended(body, rng):
    words = [sys.executable, "-c", HEAD + body, str(rng.randrange(2**32))]
    done = subprocess.run(words, capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr
