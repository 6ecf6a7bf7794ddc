# SPDX-License-Identifier: Apache-2.0
"""Ctrl-C once and twice, SIGTERM, SIGHUP, --timeout: who gets what, how long it takes, which code comes out."""

import os
import signal
import sys
import time

import pytest

PYTHON = sys.executable
HEAD = "import os, signal, sys, time; rank = int(os.environ['PMRUN_RANK'])\n"
STUBBORN = (
    HEAD
    + """
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, lambda n, _: print('got', n, flush=True))
print('ready', flush=True)
while True:
    signal.pause()
"""
)


def test_interrupt_once_is_graceful(launch):
    body = (
        HEAD
        + """
try:
    print('ready', flush=True)
    signal.pause()
except KeyboardInterrupt:
    print('saved', rank, flush=True)
"""
    )
    job = launch([PYTHON, "-c", body], 4)
    job.read_until(4)
    job.signal(signal.SIGINT)
    rc, out, err = job.finish()
    assert rc == 130
    assert out.count(b"saved") == 4
    assert b"SIGINT: the ranks have 5 s to end (Ctrl-C again: at once)" in err
    job.assert_nothing_left(0)


def test_interrupt_tells_who_waits_where(launch, tmp_path):
    script = tmp_path / "train.py"
    script.write_text("""
import os, signal, struct
import pmrun as pm
world = pm.init()
world.broadcast_object('x')
if world.rank == 1:
    fd, first = int(os.environ['PMRUN_WINDOW_FD']), 8192 + 64
    for other in (0, 2):
        while struct.unpack('<Q', os.pread(fd, 8, first + other * 65536 + 3 * 64)) != (3,):
            os.sched_yield()
    print('ready', flush=True)
    signal.pause()
world.allreduce_object(1, max)
""")
    job = launch([PYTHON, str(script)], 3)
    job.read_until(1)
    job.signal(signal.SIGINT)
    rc, _, err = job.finish()
    assert rc == 130
    lines = err.decode().split("pmrun: stopped by SIGINT\n")[1].splitlines()
    assert lines[0].startswith("  ranks 0, 2 wait in allreduce_object #3 at ") and "train.py:13" in lines[0]
    assert lines[1].startswith("  rank 1 is in no call; its last was broadcast_object #2 at ")


def test_interrupt_reaches_each_rank_once(launch):
    job = launch([PYTHON, "-c", STUBBORN], 3, grace_s=0.3)
    job.read_until(3)
    job.signal(signal.SIGINT)
    rc, out, _ = job.finish()
    assert rc == 130
    assert out.count(b"got 2") == 3
    assert out.count(b"got 15") == 3, "SIGTERM when the grace is over"
    job.assert_nothing_left(0)


def test_interrupt_twice_kills(launch):
    job = launch([PYTHON, "-c", STUBBORN], 4, grace_s=60)
    job.read_until(4)
    job.signal(signal.SIGINT)
    job.read_until(4, b"got 2")
    begin = time.monotonic()
    job.signal(signal.SIGINT)
    rc, _, _ = job.finish()
    assert rc == 130
    assert time.monotonic() - begin < 1.5, "0.3 s, with room for a loaded machine"
    job.assert_nothing_left(0)


def test_one_rank_may_end_and_another_still_save(launch):
    body = (
        HEAD
        + """
try:
    print('ready', flush=True)
    signal.pause()
except KeyboardInterrupt:
    if rank == 0:
        signal.sigtimedwait([signal.SIGALRM], 0.8)
        print('saved late', flush=True)
    else:
        raise
"""
    )
    job = launch([PYTHON, "-c", body], 2)
    job.read_until(2)
    job.signal(signal.SIGINT)
    rc, out, _ = job.finish()
    assert rc == 130
    assert b"saved late" in out


@pytest.mark.parametrize(("number", "rc"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_other_signals_of_pmrun(launch, number, rc):
    job = launch([PYTHON, "-c", STUBBORN], 2, grace_s=0.2)
    job.read_until(2)
    job.signal(number)
    got, out, _ = job.finish()
    assert got == rc
    assert out.count(b"got %d\n" % number) >= 2
    job.assert_nothing_left(0)


def test_timeout(launch):
    job = launch([PYTHON, "-c", STUBBORN], 2, timeout_s=1.0, grace_s=0.1)
    rc, _, err = job.finish()
    assert rc == 124
    assert err == b"" or b"pmrun: --timeout of 1 s ran out\n" in err
    assert b"--timeout of 1 s ran out" in err
    job.assert_nothing_left(0)


def test_signals_work_while_nobody_reads(launch):
    body = HEAD + "print('ready', flush=True)\nwhile True: sys.stdout.write('x' * 1000 + '\\n')"
    job = launch([PYTHON, "-c", body], 4)
    job.read_until(4)
    ranks = job.ranks()
    assert len(ranks) == 4
    job.signal(signal.SIGINT)
    job.signal(signal.SIGINT)
    for pid in ranks.values():
        _wait_gone(pid)
    rc, _, _ = job.finish()
    assert rc == 130


def _wait_gone(pid):
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    import select

    assert select.select([fd], [], [], 5)[0]
    os.close(fd)


def test_ignored_hangup_stays_ignored(launch):
    job = launch([PYTHON, "-c", STUBBORN], 2, grace_s=0.1, preexec=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
    job.read_until(2)
    job.signal(signal.SIGHUP)
    job.signal(signal.SIGTERM)
    rc, out, _ = job.finish()
    assert rc == 143
    assert b"got 1\n" not in out


def test_stop_and_continue(launch, launched):
    body = HEAD + "print('ready', flush=True)\nwhile True: time.perf_counter()"
    job = launch([PYTHON, "-c", body], 2)
    job.read_until(2)
    job.signal(signal.SIGTSTP)
    launched.until_idle(job.everything(), "pmrun and its ranks are stopped")
    ranks = job.ranks()
    assert all(launched.state(pid) == "T" for pid in [job.pid, *ranks.values()])
    job.signal(signal.SIGCONT)
    launched.until(lambda: all(launched.state(pid) == "R" for pid in ranks.values()), "the ranks go on")
    os.kill(ranks[1], signal.SIGKILL)
    rc, _, err = job.finish()
    assert rc == 137
    assert b"rank 1 failed first: killed by SIGKILL" in err


def test_third_signal_gives_up_on_an_agent_that_hangs(launch, launched):
    job = launch([PYTHON, "-c", STUBBORN], 2, grace_s=60)
    job.read_until(2)
    os.kill(job.agent(), signal.SIGSTOP)
    for _ in range(3):
        job.signal(signal.SIGINT)
        launched.until_idle([job.pid], "pmrun has taken the signal")
    rc, _, _ = job.finish()
    assert rc == 130
    job.assert_nothing_left(0)
