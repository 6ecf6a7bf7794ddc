# SPDX-License-Identifier: Apache-2.0
"""--max-restarts across machines: the same ranks on the same nodes, a spare for a lost one, or fewer nodes.

The `cluster` fixture's end asserts that nothing is left on any host.
"""

from __future__ import annotations

import os
import signal
import sys

import pytest

SHOW = """
import os, signal
print("ready", *(os.environ["PMRUN_" + name] for name in ("ATTEMPT", "RANK", "NODE_NAME", "LAYOUT")), flush=True)
signal.pause()
"""
COMMAND = ["--", sys.executable, "-c", SHOW]
MAIN = "10.77.0.1"


def places(running, attempt):
    """Rank, node and layout of an attempt's ranks, as far as they have spoken."""
    lines = [line.split("ready ")[1].split() for line in running.seen.decode().splitlines() if "ready" in line]
    return sorted((int(rank), node, layout) for number, rank, node, layout in lines if number == str(attempt))


def ready(running, attempt, ranks):
    """Wait until all ranks of an attempt have spoken; where they are."""
    running.read_until(ranks, f"ready {attempt} ".encode())
    return places(running, attempt)


def rank_on(machine):
    return next(pid for pid, words in machine.processes().items() if words.startswith(f"{sys.executable} -c"))


def ssh_to(machine, host):
    return next(pid for pid, words in machine.processes().items() if words.startswith("ssh ") and f" {host} " in words)


def stop(running):
    running.signal(signal.SIGTERM)
    rc, _, err = running.finish()
    assert rc == 143, err
    return err


@pytest.fixture
def lose(cluster):
    """`lose(machine)`: its cable is pulled, and the way to it cut, which otherwise takes the lease's time."""
    lost = []

    def go(machine):
        lost.append(machine)
        machine.link(False)
        os.kill(ssh_to(cluster["a"], machine.name), signal.SIGKILL)

    yield go
    for machine in lost:
        machine.link(True)
        machine.until_quiet()


def test_the_same_places_and_a_spare_for_a_lost_host(start, cluster, lose):
    words = ["--hosts", "a:1,b:2,c:2", "--nodes", "1:2", "--max-restarts", "2", "--start-timeout", "5"]
    job = start("a", *words, *COMMAND)
    places = [(0, "a", "1,2"), (1, "b", "1,2"), (2, "b", "1,2")]
    assert ready(job, 0, 3) == places
    os.kill(rank_on(cluster["b"]), signal.SIGKILL)
    assert ready(job, 1, 3) == places
    lose(cluster["b"])
    assert ready(job, 2, 3) == [(0, "a", "1,2"), (1, "c", "1,2"), (2, "c", "1,2")]
    err = stop(job)
    assert "(node b) was killed by SIGKILL; starting attempt 1 (restart 1 of 2)" in err
    assert "attempt 1 ended: the agent on b is lost" in err and "c takes its place" in err


def test_nodes_by_hand_stand_by_and_come_again(start, cluster, pmrun, tmp_path):
    secret = str(tmp_path / "job.key")
    assert pmrun("a", "secret", secret) == (0, "", "")
    words = ["-n", "2", "--nodes", "1:2", "--main", MAIN, "--secret-file", secret, "--max-restarts", "2"]
    words += ["--start-timeout", "5", *COMMAND]
    job = start("a", *words)
    assert ready(job, 0, 1) == [(0, "a", "1")], "fewer are enough"
    late = start("b", *words)
    assert "started with 1 node; it stands by for the next attempt" in late.process.stderr.readline().decode()
    os.kill(rank_on(cluster["a"]), signal.SIGKILL)
    assert ready(job, 1, 2) == [(0, "a", "1,1"), (1, "b", "1,1")], "and more are taken"
    os.kill(max(pid for pid, words in cluster["b"].processes().items() if "--nodes" in words), signal.SIGKILL)
    assert ready(job, 2, 2) == [(0, "a", "1,1"), (1, "b", "1,1")]
    err = stop(job)
    assert "going on without node 1 of 2" in err and "attempt 1 ended: the agent on b is lost" in err
    assert late.finish()[0] == 143
