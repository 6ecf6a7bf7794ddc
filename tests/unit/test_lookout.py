# SPDX-License-Identifier: Apache-2.0
"""The agent's eye: what it tells of ranks that wait, from a window whose recorders the test writes."""

import os
import signal
import struct
import time

import pytest

from pmrun import window, wire
from pmrun.launcher import lookout, process_state

HERTZ = 1000


class Ranks:
    """Two ranks of a window, both in this process; a tick is a millisecond."""

    def __init__(self):
        self.window = window.Window(8, 2, 4, 2, 2 << 20)
        self.began = time.time()
        self.pids = [os.getpid(), os.getpid()]
        for local in range(2):
            self.count(local, 0)

    def base(self, local):
        return 8192 + local * 65536

    def count(self, local, count):
        head = struct.pack("<QQQqII", count, HERTZ, 0, int(self.began * 1e9), 0, 1)
        os.pwrite(self.window.fd, head, self.base(local))

    def call(self, local, number, *, done=0, kind=3, mode=window.MODE_CALL, entered=0, comm=0, peer=-1):
        seq = number if kind < 16 else 0
        record = struct.pack("<QQQQIIIiBBBBB", number, 8, entered, done, seq, comm, 0, peer, kind, 0, 0, 0, mode)
        os.pwrite(self.window.fd, record, self.base(local) + 64 + 64 * (number % 256))
        self.count(local, number)

    def join(self, local, place, comm, group, size):
        at = self.base(local) + 64 + 256 * 64 + 256 * 184
        os.pwrite(self.window.fd, struct.pack("<IIII", 1, comm, group, size), at + 16 * place)


@pytest.fixture
def ranks():
    made = Ranks()
    yield made
    made.window.close()


def eye(ranks, timeout_s=40.0, now=0.0, alone=True):
    return lookout.Lookout(ranks.window, 4, ranks.pids, alone, timeout_s, now)


def test_it_looks_once_a_second_or_more_often_for_short_timeouts(ranks):
    assert eye(ranks).deadline() == 1.0
    assert eye(ranks, 2.0).deadline() == 0.25
    assert eye(ranks, 0.0).deadline() is None


def test_a_wait_is_told_when_it_is_old_and_again_when_it_is_over(ranks):
    look = eye(ranks)
    ranks.call(0, 1)
    assert look.look(0.0) is None
    assert look.look(9.0) is None
    assert look.look(10.0) == wire.Waits(10.0)
    assert look.look(11.0) is None, "the same one"
    ranks.call(0, 1, done=9)
    assert look.look(12.0) == wire.Waits(-1.0)
    ranks.call(0, 2)
    assert look.look(13.0) is None and look.look(14.0) is None


def test_an_age_is_finer_than_the_looks_where_the_rank_says_when_it_entered(ranks, monkeypatch):
    look = eye(ranks, 2.0)
    ranks.call(1, 1, entered=400)
    monkeypatch.setattr(lookout.time, "time", lambda: ranks.began + 1.0)
    assert look.look(1.0) == wire.Waits(pytest.approx(0.6, abs=1e-3))
    ranks.call(1, 1, done=1)
    ranks.call(1, 2, entered=-1 % 2**64 >> 1)
    assert look.look(2.0) == wire.Waits(-1.0), "a clock that was set is not believed"


def test_what_nobody_waits_for_is_not_told(ranks):
    look = eye(ranks)
    ranks.call(0, 1, mode=window.MODE_STARTED)
    assert look.look(0.0) is None and look.look(100.0) is None
    ranks.call(0, 2, mode=window.MODE_WAIT)
    look.look(101.0)
    assert look.look(120.0) == wire.Waits(pytest.approx(20.0, abs=1.1))


def test_a_rank_that_ended_is_not_looked_at(ranks):
    look = eye(ranks)
    ranks.call(0, 1)
    look.on_exit(4)
    assert look.look(50.0) is None
    look.on_exit(5)
    assert look.deadline() is None
    assert look.sights(51.0) == {}


def test_sights(ranks):
    look = eye(ranks)
    ranks.join(0, 0, 0, 5, 8)
    ranks.join(0, 1, 0, 9, 2)  # the node's part of the world
    ranks.join(0, 2, 3, 7, 4)
    ranks.call(0, 1, comm=3, done=5)
    ranks.call(0, 2)
    ranks.call(1, 1, kind=17, peer=6)
    look.look(0.0)
    seen = look.sights(30.0)
    assert seen[4].waits == wire.Pending("allreduce #2", 30.0, 0, 5, 8, 2, -1)
    assert sorted(seen[4].entered) == [(0, 5, 2), (3, 7, 1)]
    assert seen[5].waits == wire.Pending("recv from rank 6", 30.0, 0, 0, 0, 0, 6)
    assert seen[4].pid == os.getpid() and not seen[4].held
    ranks.call(0, 2, done=9)
    assert look.sights(31.0)[4].last.text == "allreduce #2" and look.sights(31.0)[4].waits is None


def test_pace_leaves_the_longest_tenth_out(ranks):
    for number in range(1, 21):
        ranks.call(0, number, entered=number * 100, done=number * 100 + (90 if number == 7 else 10))
    assert ranks.window.pace(0) == window.Pace(20, pytest.approx(0.010), pytest.approx(1.91))
    assert ranks.window.pace(1) is None


@pytest.fixture
def traced():
    """A child that is stopped, and traced by this process."""
    import ctypes

    pid = os.fork()
    if pid == 0:
        ctypes.CDLL(None).ptrace(0, 0, 0, 0)
        os.kill(os.getpid(), signal.SIGSTOP)
        os._exit(0)
    os.waitpid(pid, os.WUNTRACED)
    yield pid
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def test_a_rank_in_a_debugger_is_told_while_somebody_waits(ranks, traced):
    ranks.pids[1] = traced
    look = eye(ranks)
    assert look.look(1.0) is None, "nobody waits"
    ranks.call(0, 1)
    look.look(2.0)
    assert look.look(3.0) == wire.Waits(-1.0, (5,))
    state = process_state.look_at(traced)
    assert state.held and state.text.startswith("in a debugger (") and str(os.getpid()) in state.text


def test_a_rank_in_a_debugger_is_told_at_once_where_those_that_wait_may_be_elsewhere(ranks, traced):
    ranks.pids[1] = traced
    look = eye(ranks, alone=False)
    assert look.look(1.0) == wire.Waits(-1.0, (5,))
    look.on_exit(5)
    assert look.look(2.0) == wire.Waits(-1.0, ())


def test_a_rank_that_says_it_is_in_pdb_is_one_in_a_debugger(ranks):
    look = eye(ranks)
    ranks.call(0, 1)
    look.on_debugger(5, True)
    look.look(2.0)
    assert look.look(3.0) == wire.Waits(-1.0, (5,))
    assert (look.sights(3.0)[5].state, look.sights(3.0)[5].held) == ("in pdb", True)
    look.on_debugger(5, False)
    assert look.look(4.0) == wire.Waits(-1.0, ())


def test_a_rank_that_waits_for_input_is_as_one_in_a_debugger():
    ours, theirs = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.dup2(ours, 0)
        os.close(theirs)
        os._exit(len(os.read(0, 1)))
    os.close(ours)
    try:
        end = time.monotonic() + 10.0
        while not process_state.with_a_person(pid):
            assert time.monotonic() < end
            os.sched_yield()
        assert process_state.look_at(pid) == process_state.ProcessState("reading its standard input", held=True)
    finally:
        os.close(theirs)
        os.waitpid(pid, 0)


def test_states():
    assert process_state.look_at(os.getpid()).text == "computing"
    pid = os.fork()
    if pid == 0:
        signal.pause()
    os.kill(pid, signal.SIGSTOP)
    os.waitpid(pid, os.WUNTRACED)
    assert process_state.look_at(pid) == process_state.ProcessState("stopped (SIGSTOP)", held=True)
    os.kill(pid, signal.SIGKILL)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    assert process_state.look_at(pid).text == "ended"
    os.waitpid(pid, 0)
    assert process_state.look_at(pid).text == "ended" and not process_state.with_a_person(pid)
