# SPDX-License-Identifier: Apache-2.0
"""Who dies, what the user is told, which exit code comes out, and that nothing survives."""

import os
import re
import signal
import sys
import time

import pytest

from pmrun.launcher.lease import LEASE_S

PYTHON = sys.executable
WAIT = "import os, signal, sys; rank = int(os.environ['PMRUN_RANK'])\n"
READY = WAIT + "print('ready', flush=True); signal.pause()"

DAEMON = """
import os, signal, sys
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        print('daemon', os.getpid(), flush=True)
        while True:
            signal.pause()
    os._exit(0)
os.wait()
"""


def code(body: str) -> list[str]:
    return [PYTHON, "-c", WAIT + body]


def test_rank_killed(launch):
    job = launch([PYTHON, "-c", READY], 4)
    job.read_until(4)
    victim = job.ranks()[1]
    begin = time.monotonic()
    os.kill(victim, signal.SIGKILL)
    rc, _, err = job.finish()
    assert rc == 128 + 9
    assert f"rank 1 failed first: killed by SIGKILL (node {os.uname().nodename}, pid {victim})" in err.decode()
    assert "ranks 0, 2-3 stopped by pmrun" in err.decode()
    assert time.monotonic() - begin < 5
    job.assert_nothing_left(0)


@pytest.mark.parametrize(
    ("body", "rc", "said"),
    [
        ("sys.exit(3) if rank == 2 else signal.pause()", 3, "exit code 3"),
        ("os.kill(os.getpid(), signal.SIGSEGV) if rank == 2 else signal.pause()", 139, "killed by SIGSEGV"),
        ("os.abort() if rank == 2 else signal.pause()", 134, "killed by SIGABRT"),
        ("os._exit(255) if rank == 2 else signal.pause()", 255, "exit code 255"),
    ],
)
def test_exit_code_is_the_culprits(launch, body, rc, said):
    job = launch(code(body), 4)
    got, _, err = job.finish()
    assert got == rc
    assert f"rank 2 failed first: {said} (node" in err.decode()
    job.assert_nothing_left(0)


def test_exception_shows_its_traceback_once_named(launch, tmp_path):
    script = tmp_path / "train.py"
    script.write_text(
        WAIT + "def load_batch():\n    raise ValueError('no such shard')\n"
        "if rank == 1:\n    load_batch()\nsignal.pause()\n"
    )
    job = launch([PYTHON, str(script)], 3)
    rc, _, err = job.finish()
    report = err.decode().split("pmrun: ", 1)[1]
    assert rc == 1
    assert report.startswith("rank 1 failed first: exit code 1")
    assert f"  traceback of rank 1 (node {os.uname().nodename}):\n    Traceback (most recent call last):" in report
    assert "in load_batch" in report and "ValueError: no such shard" in report
    assert report.count("Traceback") == 1


def test_last_lines_where_there_is_no_traceback(launch):
    job = launch(code("[print('line', i, file=sys.stderr) for i in range(50)]; sys.exit(rank)"), 2)
    rc, _, err = job.finish()
    report = err.decode().split("pmrun: ", 1)[1]
    assert rc == 1
    assert f"last lines of rank 1 (node {os.uname().nodename}):" in report
    assert re.findall(r"^    line (\d+)$", report, re.M) == [str(i) for i in range(30, 50)]


def test_followers_are_folded(launch):
    body = "signal.signal(signal.SIGTERM, lambda *_: sys.exit(9)); print('ready'); signal.pause()"
    job = launch(code(body), 8)
    job.read_until(8)
    os.kill(job.ranks()[5], signal.SIGKILL)
    rc, _, err = job.finish()
    assert rc == 137
    assert "ranks 0-4, 6-7 stopped by pmrun" in err.decode()


def test_early_exit_0_is_normal(launch):
    job = launch(code("print('done' if rank else sys.stdin.read())"), 4)
    assert job.finish()[0] == 0


def test_ranks_that_ignore_sigterm_are_gone_in_time(launch, launched):
    body = "signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready')\nwhile True: signal.pause()"
    job = launch(code(body), 4)
    job.read_until(4)
    ranks = job.ranks()
    os.kill(ranks.pop(0), signal.SIGKILL)
    begin = time.monotonic()
    for pid in ranks.values():
        assert launched.ended(pid, 5)
    took = time.monotonic() - begin
    rc, _, _ = job.finish()
    assert rc == 137
    assert took < 1.5, "0.3 s, with room for a loaded machine"


def test_pmrun_killed(launch, launched):
    job = launch([PYTHON, "-c", DAEMON + READY], 4)
    job.read_until(4)
    assert len(job.everything()) >= 4 + 4 + 2
    job.signal(signal.SIGKILL)
    job.assert_nothing_left()


def test_agent_killed(launch):
    job = launch([PYTHON, "-c", DAEMON + READY], 4)
    job.read_until(4)
    os.kill(job.agent(), signal.SIGKILL)
    rc, _, err = job.finish()
    assert rc == 76
    assert f"the agent on {os.uname().nodename} is lost (" in err.decode()
    job.assert_nothing_left(0)


def test_agent_stopped(launch):
    """It cannot end its ranks, and its socket stays open: silence alone tells, and the controller does its work."""
    job = launch([PYTHON, "-c", DAEMON + READY], 2)
    job.read_until(2)
    os.kill(job.agent(), signal.SIGSTOP)
    rc, _, err = job.finish()
    assert rc == 76
    line = f"pmrun: the agent on {os.uname().nodename} is lost (no sign of life for {LEASE_S:g} s); every process that it had"
    assert line in err.decode()
    job.assert_nothing_left(0)


def test_agent_terminated(launch):
    job = launch([PYTHON, "-c", DAEMON + READY], 2)
    job.read_until(2)
    os.kill(job.agent(), signal.SIGTERM)
    assert job.finish()[0] == 76
    job.assert_nothing_left(0)


@pytest.mark.parametrize("ending", ["sys.exit(0)", "sys.exit(5 * (rank == 1))"])
def test_daemonised_grandchild_neither_delays_nor_survives(launch, ending):
    job = launch([PYTHON, "-c", DAEMON + WAIT + ending], 3)
    begin = time.monotonic()
    rc, out, _ = job.finish()
    assert rc == (5 if "5" in ending else 0)
    assert time.monotonic() - begin < 10
    assert b"daemon" in out
    job.assert_nothing_left(0)


def test_output_of_a_dead_rank_comes_before_the_report(launch, tmp_path):
    both = os.open(tmp_path / "both", os.O_RDWR | os.O_CREAT)
    body = "sys.stdout.write('x' * 99 + '\\n') ; " * 200 + "sys.stdout.flush(); os._exit(4 if rank else 0)"
    job = launch(code(body), 2, stdout=both, stderr=both)
    rc, _, _ = job.finish()
    os.close(both)
    lines = (tmp_path / "both").read_text().splitlines()
    assert rc == 4
    assert sum(line == "[1] " + "x" * 99 for line in lines) == 200
    report = next(at for at, line in enumerate(lines) if line.startswith("pmrun: rank 1"))
    assert not any("x" * 99 in line and line.startswith("[") for line in lines[report:])


def test_children_that_pmrun_had_before_stay(launch, launched):
    script = 'sleep 600 & echo $!; exec "$@"'
    import subprocess

    job = subprocess.Popen(
        ["sh", "-c", script, "sh", PYTHON, str(launched.DRIVE), '{"command": ["true"], "world_size": 2}'],
        stdout=subprocess.PIPE,
    )
    child = int(job.stdout.readline())
    try:
        assert job.wait(30) == 0
        assert not launched.ended(child, 0)
    finally:
        os.kill(child, signal.SIGKILL)
        job.stdout.close()
