# SPDX-License-Identifier: Apache-2.0
"""Whatever dies on whatever host: everything ends everywhere, in time, and the user reads what it was.

The `cluster` fixture's end asserts that nothing is left on any host.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time

import pytest

import machines
from pmrun.launcher.lease import LEASE_S

READY = ["--", sys.executable, "-c", "import os, subprocess, signal; print('ready', os.getpid()); signal.pause()"]
# A rank whose grandchild leaves its session, and ignores what may be ignored.
STUBBORN = """
import os, signal, subprocess, sys
child = "import signal, os; os.setsid(); signal.signal(15, signal.SIG_IGN); print('ready', flush=True); signal.pause()"
subprocess.Popen([sys.executable, "-c", child])
signal.signal(15, signal.SIG_IGN)
signal.pause()
"""


@pytest.fixture
def job(start):
    """Two ranks on a, which is where pmrun runs, two on b, one on c; all are ready."""
    running = start("a", "--hosts", "a:2,b:2,c:1", *READY)
    running.read_until(5)
    return running


def rank_on(machine):
    return next(pid for pid, words in machine.processes().items() if words.startswith(f"{sys.executable} -c"))


def within(seconds, job):
    begin = time.monotonic()
    result = job.finish()
    assert time.monotonic() - begin < seconds, result
    return result


@pytest.mark.parametrize("host", ["a", "b"])
def test_a_rank_is_killed(job, cluster, host):
    os.kill(rank_on(cluster[host]), signal.SIGKILL)
    rc, _, err = within(5, job)
    assert rc == 137 and "failed first: killed by SIGKILL" in err and f"(node {host}, pid" in err
    assert "stopped by pmrun" in err
    cluster.until_quiet(2)


@pytest.mark.parametrize("host", ["a", "b"])
@pytest.mark.parametrize("which", ["keeper", "agent", "both"])
def test_an_agent_is_killed(job, cluster, host, which):
    keeper, agent = cluster[host].agents()
    for pid in {"keeper": [keeper], "agent": [agent], "both": [keeper, agent]}[which]:
        with contextlib.suppress(ProcessLookupError):  # it died with the other
            os.kill(pid, signal.SIGKILL)
    rc, _, err = within(5, job)
    assert rc == 76 and f"the agent on {host} is lost" in err and err.count("\n") == 1, err
    cluster.until_quiet(3)


def test_stubborn_grandchildren_of_a_killed_agent(start, cluster):
    job = start("a", "--hosts", "b:2,c:1", "--", sys.executable, "-c", STUBBORN)
    job.read_until(3)
    os.kill(cluster["b"].agents()[1], signal.SIGKILL)
    rc, _, err = within(5, job)
    assert rc == 76 and "the agent on b is lost" in err
    cluster.until_quiet(3)


def test_ssh_is_killed(job, cluster):
    ssh = next(pid for pid, words in cluster["a"].processes().items() if words.startswith("ssh ") and " b " in words)
    os.kill(ssh, signal.SIGKILL)
    rc, _, err = within(5, job)
    assert rc == 76 and "on b is lost" in err and err.count("\n") == 1, err
    cluster.until_quiet(3)


def test_pmrun_is_killed(job, cluster):
    job.signal(signal.SIGKILL)
    job.finish()
    cluster.until_quiet(5)


def test_pmrun_and_its_ssh_are_killed(job, cluster):
    for pid, words in cluster["a"].processes().items():
        if words.startswith("ssh ") or "bin/pmrun" in words:
            os.kill(pid, signal.SIGKILL)
    job.finish()
    cluster.until_quiet(5)


@pytest.mark.slow
def test_a_cable_is_cut(job, cluster):
    """Neither side hears of it; both find out by themselves."""
    cluster["b"].link(up=False)
    try:
        rc, _, err = within(LEASE_S + 5, job)
        assert rc == 76 and f"the agent on b is lost (no sign of life for {LEASE_S:g} s)" in err
        cluster["b"].until_quiet(LEASE_S)
    finally:
        for pid in cluster["b"].sessions():
            os.kill(pid, signal.SIGKILL)  # sshd would notice minutes later
        cluster["b"].link(up=True)


@pytest.mark.slow
def test_an_agent_that_hangs(job, cluster):
    keeper, agent = cluster["b"].agents()
    os.kill(agent, signal.SIGSTOP)
    rc, _, err = within(LEASE_S + 10, job)
    assert rc == 76 and "no sign of life" in err
    cluster.until_quiet(30)


@pytest.mark.slow
def test_pmrun_is_stopped_for_longer_than_a_lease(start, cluster):
    """Ctrl-Z: the ranks stop too, and nobody is lost when it goes on."""
    job = start("a", "--hosts", "a:1,b:1", *READY)
    job.read_until(2)
    job.signal(signal.SIGTSTP)
    ended = time.monotonic() + LEASE_S + 2
    while time.monotonic() < ended:
        assert job.process.poll() is None
        assert cluster["b"].processes()
        signal.sigtimedwait([signal.SIGUSR2], 0.5)
    job.signal(signal.SIGCONT)
    job.signal(signal.SIGTERM)
    assert within(10, job)[0] == 143


def test_ctrl_c_reaches_every_rank(start, cluster):
    code = "import signal\ntry:\n    print('ready', flush=True); signal.pause()\nexcept KeyboardInterrupt:\n    print('bye')"
    job = start("a", "--hosts", "a:1,b:1,c:1", "--", sys.executable, "-c", code)
    job.read_until(3)
    job.signal(signal.SIGINT)
    rc, out, err = within(5, job)
    assert (rc, out.count("bye")) == (130, 3), err


def test_ctrl_c_twice(start, cluster):
    job = start("a", "--hosts", "b:1,c:1", "--grace", "1h", "--", sys.executable, "-c", STUBBORN)
    job.read_until(2)
    job.signal(signal.SIGINT)
    job.signal(signal.SIGINT)
    assert within(5, job)[0] == 130


def test_ctrl_c_while_a_host_does_not_answer(start, cluster):
    job = start("a", "--hosts", "10.77.0.99:1,b:1", "--", "true")
    machine = cluster["b"]

    machines.until(lambda: any("agent" in words for words in machine.processes().values()), "an agent on b")
    job.signal(signal.SIGINT)
    rc, _, err = within(5, job)
    assert rc == 130 and "before the gang had started" in err
    cluster.until_quiet(3)


def test_a_timeout(start, cluster):
    job = start("a", "--hosts", "a:1,b:1", "--timeout", "1", "--grace", "0", *READY)
    rc, _, err = within(10, job)
    assert rc == 124 and "--timeout of 1 s ran out" in err


def test_a_program_that_is_not_there_on_one_host(start, cluster, tmp_path):
    """All start, or none does."""
    program = tmp_path / "bin" / "only-here"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\necho ran\n")
    program.chmod(0o755)
    cluster["b"].run("mount", "-t", "tmpfs", "tmpfs", str(program.parent), check=True)
    try:
        rc, _, err = within(10, start("a", "--hosts", "a:1,b:1", "--", str(program)))
    finally:
        cluster["b"].run("umount", str(program.parent), check=True)
    assert rc == 127 and "cannot start rank 1: program" in err and "(on b)" in err, err
