# SPDX-License-Identifier: Apache-2.0
"""Nodes that are started one by one: they find each other by address and secret, or say what is in the way."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import pytest

import machines

MAIN = "10.77.0.1"
SHOW = ["--", "sh", "-c", 'echo "$PMRUN_RANK $PMRUN_NODE_RANK $(hostname) $PMRUN_LAYOUT $PMRUN_PEERS"; exit ${CODE:-0}']


@pytest.fixture
def secret(pmrun, tmp_path):
    path = str(tmp_path / "job.key")
    assert pmrun("a", "secret", path) == (0, "", "")
    return path


@pytest.fixture
def nodes(start, secret):
    """Start the same command, or nearly, on some machines; returns what each said at its end."""

    def go(ranks, hosts, command=SHOW, each=None, **named):
        running = {}
        for name in hosts:
            words = ["-n", str(ranks), "--nnodes", str(len(hosts)), "--main", MAIN, "--secret-file", secret]
            running[name] = start(name, *words, *(each or {}).get(name, ()), *command, **named)
        return {name: one.finish() for name, one in running.items()}

    return go


def lines(out):
    return sorted((line.partition("] ")[2] for line in out.splitlines()), key=lambda line: int(line.split()[0]))


def test_numbered_nodes_with_uneven_ranks(nodes):
    ranks = {"c": ["--node-rank", "1"], "a": ["--node-rank", "0"], "b": ["--node-rank", "2"]}
    said = nodes(5, "cab", each=ranks)
    peers = "10.77.0.1,10.77.0.3,10.77.0.2"
    assert [said[name][0] for name in "abc"] == [0, 0, 0], said
    assert lines(said["a"][1]) == [
        f"0 0 a 2,2,1 {peers}", f"1 0 a 2,2,1 {peers}", f"2 1 c 2,2,1 {peers}", f"3 1 c 2,2,1 {peers}",
        f"4 2 b 2,2,1 {peers}",
    ]  # fmt: skip
    assert said["b"][1] == said["c"][1] == "", "the output is the main node's business"


def test_the_same_command_everywhere(nodes):
    said = nodes(4, "dbac")
    assert [line.split()[2] for line in lines(said["a"][1])] == ["a", "b", "c", "d"], said


def test_every_node_ends_with_the_jobs_code(nodes):
    said = nodes(2, "ab", env={**os.environ, "CODE": "7"})
    assert said["a"][0] == said["b"][0] == 7
    assert "failed first: exit code 7" in said["a"][2]
    assert "the job ended with exit code 7; the main node tells why" in said["b"][2]


def test_each_node_runs_what_it_was_given(start, secret, tmp_path):
    words = ["-n", "2", "--nnodes", "2", "--main", MAIN, "--secret-file", secret]
    (tmp_path / "there").mkdir()
    one = start("a", *words, "--no-tag", "--", "sh", "-c", "echo one $PWD", cwd=str(tmp_path))
    two = start("b", *words, "--cwd", str(tmp_path / "there"), "-x", "V=3", "--", "sh", "-c", "echo two $V $PWD")
    assert sorted(one.finish()[1].splitlines()) == [f"one {os.getcwd()}", f"two 3 {tmp_path / 'there'}"]
    assert two.finish()[0] == 0


def test_the_main_nodes_name_may_be_known_late(start, secret, cluster):
    words = ["-n", "2", "--nnodes", "2", "--secret-file", secret]
    late = start("b", *words, "--node-rank", "1", "--main", "late-name", *SHOW)
    line = late.process.stderr.readline().decode()
    assert "waiting for the main node: late-name: " in line
    main = start("a", *words, "--node-rank", "0", "--main", MAIN, *SHOW)
    # The hosts file is one file, laid over /etc/hosts on each machine.
    hosts = cluster.folder / "hosts"
    before = hosts.read_text()
    try:
        hosts.write_text(before + f"{MAIN} late-name\n")
        assert (main.finish()[0], late.finish()[0]) == (0, 0)
    finally:
        hosts.write_text(before)


def test_a_dry_run_starts_nothing(pmrun, secret):
    words = ["-n", "5", "--nnodes", "2", "--main", MAIN, "--secret-file", secret, "--dry-run", "--", "true"]
    main, other = (json.loads(pmrun(name, *words)[1]) for name in "ab")
    assert main["ranks_by_node"] == other["ranks_by_node"] == [3, 2] and main["main"] == other["main"]
    assert (main["node_rank"], main["listens"], other["listens"]) == (0, MAIN, None)
    assert Path(secret).read_text().strip() not in json.dumps(main)


# ---- what is refused --------------------------------------------------------------------------------------


def test_who_is_missing_is_named(start, secret):
    words = ["-n", "3", "--nnodes", "3", "--main", MAIN, "--secret-file", secret, "--start-timeout", "2"]
    main = start("a", *words, "--node-rank", "0", *SHOW)
    other = start("b", *words, "--node-rank", "2", *SHOW)
    rc, _, err = main.finish()
    assert rc == 75 and "not all nodes came within --start-timeout 2 s: waiting for node 1 of 3" in err
    assert other.finish()[0] == 75


def test_nobody_at_the_main_address(start, secret):
    words = ["-n", "2", "--nnodes", "2", "--main", MAIN, "--secret-file", secret, "--start-timeout", "1"]
    rc, _, err = start("b", *words, "--node-rank", "1", *SHOW).finish()
    assert rc == 75 and f"{MAIN}:" in err and "dialled, connection refused, for 1 s; is pmrun running there" in err


def test_another_secret(start, secret, pmrun, tmp_path):
    other = str(tmp_path / "other.key")
    assert pmrun("b", "secret", other)[0] == 0
    words = ["-n", "2", "--nnodes", "2", "--main", f"{MAIN}:4444", "--start-timeout", "4"]
    main = start("a", *words, "--secret-file", secret, "--node-rank", "0", *SHOW)
    rc, _, err = start("b", *words, "--secret-file", other, "--node-rank", "1", *SHOW).finish()
    assert rc == 75 and f"{MAIN}:4444 answers, but it does not take our secret" in err
    rc, _, err = main.finish()
    assert rc == 75 and "waiting for node 1 of 2" in err and "without this job's secret refused" in err


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (["-n", "4"], "was started with -n 4, the main node with -n 3"),
        (["--nnodes", "2"], "was started with --nnodes 2, the main node with 3"),
        (["--node-rank", "1"], "node 1 is there already (b (10.77.0.2)); c (10.77.0.3) has the same number"),
    ],
)
def test_a_node_that_does_not_fit(start, secret, cluster, changed, said):
    words = ["-n", "3", "--nnodes", "3", "--main", MAIN, "--secret-file", secret]
    main = start("a", *words, "--node-rank", "0", *SHOW)
    right = start("b", *words, "--node-rank", "1", *SHOW)
    machines.until(lambda: connections(cluster["a"]) >= 2, "node 1 at the meeting")
    wrong = start("c", *words, *changed, *SHOW)
    rc, _, err = wrong.finish()
    assert rc == 75 and said in err, err
    fitting = start("c", *words, "--node-rank", "2", *SHOW)
    assert [one.finish()[0] for one in (fitting, right)] == [0, 0]
    rc, _, err = main.finish()
    assert rc == 0 and "pmrun: refused: " in err and said in err


def connections(machine):
    """How many agents' connections the controller there has, its own agent's among them."""
    rows = machine.run("cat", "/proc/net/tcp").stdout.splitlines()[1:]
    local = [row.split()[1] for row in rows if row.split()[3] == "0A" and not row.split()[1].endswith(":0016")]
    return sum(row.split()[1] in local and row.split()[3] == "01" for row in rows)


def test_the_secret_file_is_looked_at_first(start, secret):
    Path(secret).chmod(0o644)
    words = ["-n", "2", "--nnodes", "2", "--main", MAIN, "--secret-file", secret]
    for name in "ab":
        rc, _, err = start(name, *words, *SHOW).finish()
        assert rc == 2 and "others may use it (mode 0644); try: chmod 600" in err and err.count("\n") == 1


def test_an_address_that_is_another_machines(start, secret):
    words = ["-n", "2", "--nnodes", "2", "--main", "10.77.0.3", "--secret-file", secret, "--node-rank", "0"]
    rc, _, err = start("a", *words, *SHOW).finish()
    assert rc == 2 and "10.77.0.3 is not this machine, which is node 0 and has" in err and "eth0 10.77.0.1" in err


def test_the_port_is_taken_by_another_job_with_this_secret(start, secret):
    words = ["-n", "2", "--nnodes", "2", "--main", MAIN, "--secret-file", secret, "--node-rank", "0"]
    first = start("a", *words, "--start-timeout", "5", *SHOW)
    second = start("a", *words, "--start-timeout", "5", *SHOW)
    codes = sorted([first.finish(), second.finish()], key=lambda said: "cannot listen" in said[2])
    assert "Address already in use; does another job with this secret run here" in codes[1][2]
    assert [said[0] for said in codes] == [75, 75]


# ---- ends -------------------------------------------------------------------------------------------------


def test_ctrl_c_on_a_node_that_is_not_the_main_one(start, secret, cluster):
    words = ["-n", "2", "--nnodes", "2", "--main", MAIN, "--secret-file", secret]
    command = ["--", sys.executable, "-c", "import signal; print('ready', flush=True); signal.pause()"]
    main, other = start("a", *words, *command), start("b", *words, *command)
    main.read_until(2)
    other.signal(signal.SIGINT)
    rc, _, err = main.finish(10)
    assert rc == 76 and "the agent on b is lost" in err
    assert other.finish(10)[0] != 0
    cluster.until_quiet(3)


def test_the_main_nodes_pmrun_is_killed(start, secret, cluster):
    words = ["-n", "2", "--nnodes", "2", "--main", MAIN, "--secret-file", secret]
    command = ["--", sys.executable, "-c", "import signal; print('ready', flush=True); signal.pause()"]
    main, other = start("a", *words, *command), start("b", *words, *command)
    main.read_until(2)
    main.signal(signal.SIGKILL)
    rc, _, err = other.finish(10)
    assert rc == 76 and "the main node is lost" in err
    cluster.until_quiet(5)


def test_a_node_that_is_asked_to_end_takes_all_with_it(start, secret, cluster):
    """As an engine does before it takes a machine away: their ranks need those of that node, and may save."""
    words = ["-n", "2", "--nnodes", "2", "--main", MAIN, "--secret-file", secret]
    command = ["--", sys.executable, "-c", "import signal; print('ready', flush=True); signal.pause()"]
    main, other = start("a", *words, *command), start("b", *words, *command)
    main.read_until(2)
    other.signal(signal.SIGTERM)
    rc, _, err = main.finish(10)
    assert rc == 143 and "pmrun: b was asked to end" in err
    assert other.finish(10)[0] == 143
