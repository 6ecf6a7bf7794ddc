# SPDX-License-Identifier: Apache-2.0
"""The order in which children are taken is that of their ends."""

import os
import random
import select
import signal

from pmrun.launcher.reaper import Reaper


def child():
    pid = os.fork()
    if pid == 0:
        signal.pause()
        os._exit(1)
    return pid


def kill(pid):
    """And wait until it has ended, without taking it."""
    fd = os.pidfd_open(pid)
    os.kill(pid, signal.SIGKILL)
    assert select.select([fd], [], [], 5.0)[0]
    os.close(fd)


def test_in_the_order_of_their_ends(rng):
    reaper = Reaper()
    watched = [child() for _ in range(6)]
    adopted = child()
    for pid in watched:
        reaper.watch(pid)
    assert reaper.next() == (0, 0)
    order = random.Random(rng.random()).sample(watched, 6)
    kill(adopted)
    for pid in order[:4]:
        kill(pid)
    assert [reaper.next() for _ in order[:4]] == [(pid, signal.SIGKILL) for pid in order[:4]]
    assert reaper.next() == (adopted, signal.SIGKILL)
    for pid in order[4:]:
        kill(pid)
    assert [reaper.next()[0] for _ in range(2)] == order[4:]
    assert reaper.next() == (-1, 0)


def test_without_descriptors_all_are_taken_all_the_same(monkeypatch):
    reaper = Reaper()

    def fail(pid):
        raise OSError("none is left")

    pids = {child() for _ in range(3)}
    with monkeypatch.context() as patched:
        patched.setattr(os, "pidfd_open", fail)
        for pid in pids:
            reaper.watch(pid)
    for pid in pids:
        kill(pid)
    assert {reaper.next()[0] for _ in pids} == pids
