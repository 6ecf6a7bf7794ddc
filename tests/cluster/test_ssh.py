# SPDX-License-Identifier: Apache-2.0
"""`pmrun --hosts` over real sshd: what runs where, what goes along, and what is said when it cannot be."""

from __future__ import annotations

import json
import os
import sys

import pytest

from pmrun import wire

SHOW = [
    "--",
    "sh",
    "-c",
    'echo "$PMRUN_RANK $PMRUN_NODE_RANK $(hostname) $PMRUN_LAYOUT $PMRUN_DATA_ADDRESS $PMRUN_PEERS"',
]


def lines(out):
    """Lines by rank, without their tags."""
    return sorted((line.partition("] ")[2] for line in out.splitlines()), key=lambda line: int(line.split()[0]))


def test_ranks_are_where_they_should_be(pmrun):
    rc, out, err = pmrun("a", "--hosts", "a:1,c:2,b:1", *SHOW)
    assert (rc, err) == (0, "")
    peers = "10.77.0.1,10.77.0.3,10.77.0.2"
    assert lines(out) == [
        f"0 0 a 1,2,1 10.77.0.1 {peers}", f"1 1 c 1,2,1 10.77.0.3 {peers}",
        f"2 1 c 1,2,1 10.77.0.3 {peers}", f"3 2 b 1,2,1 10.77.0.2 {peers}",
    ]  # fmt: skip
    assert {line[:6] for line in out.splitlines()} == {"[0 a] ", "[1 c] ", "[2 c] ", "[3 b] "}


def test_from_a_machine_that_is_no_node(pmrun):
    rc, out, _ = pmrun("d", "-n", "3", "--hosts", "a:2,b:2", *SHOW)
    assert rc == 0 and [line.split()[:4] for line in lines(out)] == [
        ["0", "0", "a", "2,1"], ["1", "0", "a", "2,1"], ["2", "1", "b", "2,1"],
    ]  # fmt: skip


def test_ipv6(pmrun):
    rc, out, err = pmrun("a", "--hosts", "[fd77::2]:1,c6:1", *SHOW)
    assert rc == 0, err
    assert lines(out) == ["0 0 b 1,1 fd77::2 fd77::2,fd77::3", "1 1 c 1,1 fd77::3 fd77::2,fd77::3"]


def test_a_host_file(pmrun, tmp_path):
    path = tmp_path / "hosts"
    path.write_text("# two\nb slots=1\nroot@c:2\n")
    rc, out, err = pmrun("a", "--hostfile", str(path), "--", "hostname")
    assert rc == 0, err
    assert sorted(out.split("\n")[:3]) == ["[0 b] b", "[1 c] c", "[2 c] c"]


@pytest.mark.parametrize("wanted", ["eth0", "10.77.0.0/24", "fd77::/64"])
def test_an_interface(pmrun, wanted):
    rc, out, err = pmrun("a", "--hosts", "a:1,b:1", "--interface", wanted, *SHOW)
    expected = "fd77::1,fd77::2" if wanted.startswith("fd") else "10.77.0.1,10.77.0.2"
    assert rc == 0 and all(line.endswith(expected) for line in lines(out)), err


def test_the_environment_and_the_directory_go_along(pmrun, tmp_path):
    code = "import os; print(os.environ['TOLD'], os.environ['GIVEN'], os.environ.get('SSH_CONNECTION') is not None, os.getcwd())"
    (tmp_path / "show.py").write_text(code)
    environment = {**os.environ, "TOLD": "it's\nhere", "SSH_CONNECTION": "", "HOME": "/somewhere"}
    rc, out, err = pmrun(
        "a", "--hosts", "b:1", "-x", "GIVEN=2", "--cwd", str(tmp_path), "--no-tag", "show.py", env=environment
    )
    assert (rc, out) == (0, f"it's\nhere 2 True {tmp_path}\n"), err


def test_input_reaches_the_rank_that_takes_it(pmrun):
    code = "import sys; print(len(sys.stdin.buffer.read()))"
    words = ["--hosts", "a:1,b:2", "--stdin", "2", "--no-tag", "--", sys.executable, "-c", code]
    rc, out, err = pmrun("a", *words, input="x" * 1_000_000)
    assert (rc, sorted(out.split())) == (0, ["0", "0", "1000000"]), err


def test_much_output_from_all_hosts_is_whole(pmrun):
    code = "import os; [print(os.environ['PMRUN_RANK'], n, 'x' * 80) for n in range(5000)]"
    rc, out, err = pmrun("a", "--hosts", "a:1,b:1,c:1", "--no-tag", "--", sys.executable, "-c", code)
    assert rc == 0, err
    for rank in range(3):
        assert [line for line in out.splitlines() if line.startswith(f"{rank} ")] == [
            f"{rank} {n} {'x' * 80}" for n in range(5000)
        ]


@pytest.mark.parametrize(("rank", "node"), [(0, "a"), (1, "b"), (3, "c")])
def test_the_first_failure_is_named_with_its_host(pmrun, rank, node):
    code = f"import os, signal, sys\nif os.environ['PMRUN_RANK'] == '{rank}': sys.exit('broken')\nsignal.pause()"
    rc, _, err = pmrun("a", "--hosts", "a:1,b:2,c:1", "--", sys.executable, "-c", code)
    assert rc == 1 and f"rank {rank} failed first: exit code 1 (node {node}, pid" in err and "broken" in err


def test_cores_are_those_of_the_host(pmrun):
    code = "import os; print(len(os.sched_getaffinity(0)))"
    rc, out, err = pmrun("a", "--hosts", "b:2,c:1", "--map-by", "core", "--no-tag", "--", sys.executable, "-c", code)
    assert rc == 0 and sum(map(int, out.split()[:2])) <= len(os.sched_getaffinity(0)) * 2, err


def test_two_jobs_on_the_same_hosts(start):
    jobs = [start("a", "--hosts", "a:1,b:1", "--", "sh", "-c", f"echo ready; exit {code}") for code in (0, 3)]
    assert [job.finish()[0] for job in jobs] == [0, 3]


def test_only_the_way_to_the_hosts_is_listened_on(start, cluster):
    job = start("a", "--hosts", "a:1,b:1", "--", "sh", "-c", "echo ready; exec sleep 60")
    job.read_until(2)
    assert cluster["a"].listening() - {("0.0.0.0", 22), ("::", 22)} != set()
    for ip, port in cluster["a"].listening() | cluster["b"].listening():
        assert port == 22 or ip == "10.77.0.1", (ip, port)
    job.signal(15)
    assert job.finish()[0] == 143


def test_a_dry_run_starts_nothing(pmrun):
    rc, out, err = pmrun("a", "--hosts", "a:1,nosuch:2", "--dry-run", "--", "true")
    assert (rc, err) == (0, "")
    told = json.loads(out)
    assert [(node["host"], node["ranks"]) for node in told["nodes"]] == [("a", [0]), ("nosuch", [1, 2])]
    assert told["nodes"][0]["agent"] == [sys.executable, "-m", "pmrun", "agent"]
    assert told["nodes"][1]["agent"][0] == "ssh" and "nosuch" in told["nodes"][1]["agent"]
    assert told["nodes"][1]["agent"][-1].endswith(f"exec {sys.executable} -m pmrun agent")


# ---- what cannot be ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--hosts", "nosuch:1,b:1"], "cannot reach nosuch: ssh: Could not resolve hostname nosuch"),
        (["--hosts", "c:1,b:1", "--ssh", "ssh -p 23"], "Connection refused; no sshd answers there"),
        (
            ["--hosts", "c:1", "--ssh", "ssh -F none -o UserKnownHostsFile=none"],
            "Host key verification failed.; its key",
        ),
        (["--hosts", "c:1", "--ssh", "ssh -o PubkeyAuthentication=no"], "Permission denied (publickey"),
        (["--hosts", "nobody@c:1"], "cannot reach nobody@c: nobody@c: Permission denied"),
        (["--hosts", "c:1", "--ssh", "/no/such"], "cannot start /no/such: No such file or directory; see --ssh"),
        (["--hosts", "c:1", "--ssh", "false"], "c: its agent ended with exit code 1"),
        (["--hosts", "a:1,b:1", "--interface", "10.77.0.1"], "b: --interface 10.77.0.1: b has none like it; it has lo"),
        (["--hosts", "a:1,b:1", "--interface", "eth9"], "--interface eth9: a has none like it; it has lo 127.0.0.1"),
    ],
)
def test_hosts_that_cannot_be_reached(pmrun, words, said):
    rc, out, err = pmrun("a", "-n", "1" if ",b" not in words[1] else "2", *words, "--", "true")
    assert rc in (2, 75) and out == "" and said in err and err.count("\n") == 1, err


def test_a_host_that_does_not_answer_is_named(pmrun):
    words = ["--hosts", "10.77.0.99:1,b:1", "--start-timeout", "1"]
    rc, _, err = pmrun("a", *words, "--", "true")
    said = "not all nodes came within --start-timeout 1 s: waiting for node 0 of 2: 10.77.0.99 dialled, no answer"
    assert rc == 75 and said in err


def test_a_firewall_before_the_controller(pmrun, cluster):
    """ssh gets through, the agent does not get back: the user reads which address and what happens there."""
    words = ["--hosts", "a:1,b:1", "--main", "10.77.0.1:4321", "--start-timeout", "2"]
    cluster["b"].run("ip", "route", "add", "blackhole", "10.77.0.1/32", check=True)
    cluster["a"].run("ip", "addr", "add", "10.77.0.50/24", "dev", "eth0", check=True)
    try:
        rc, _, err = pmrun("a", *words, "--ssh", "ssh -b 10.77.0.50", "--", "true")
    finally:
        cluster["b"].run("ip", "route", "del", "blackhole", "10.77.0.1/32")
        cluster["a"].run("ip", "addr", "del", "10.77.0.50/24", "dev", "eth0")
    assert rc == 75 and "b: 10.77.0.1:4321 dialled," in err and err.count("\n") == 1, err


def hidden(machine, path, content=None, folder=None):
    """Lay something else over a path on one machine."""
    if content is None:
        machine.run("mount", "-t", "tmpfs", "tmpfs", str(path), check=True)
    else:
        other = folder / "other"
        other.write_text(content)
        machine.run("mount", "--bind", str(other), str(path), check=True)


def test_a_host_without_this_python(pmrun, cluster):
    hidden(cluster["b"], os.path.dirname(sys.executable))
    try:
        rc, _, err = pmrun("a", "--hosts", "a:1,b:1", "--", "true")
    finally:
        cluster["b"].run("umount", os.path.dirname(sys.executable), check=True)
    assert rc == 75 and f"b has no {sys.executable}" in err and err.count("\n") == 1, err


def test_a_host_without_pmrun(pmrun, cluster, root):
    hidden(cluster["b"], root / "launcher")
    try:
        rc, _, err = pmrun("a", "--hosts", "a:1,b:1", "--", "true")
    finally:
        cluster["b"].run("umount", str(root / "launcher"), check=True)
    assert rc == 75 and "b: " in err and "pmrun.launcher" in err and "install the same environment" in err, err


def test_a_host_with_another_version(pmrun, cluster, root, tmp_path):
    path = root / "src" / "pmrun" / "wire.py"
    text = path.read_text().replace(f"VERSION: Final = {wire.VERSION} ", "VERSION: Final = 77 ")
    assert "= 77 " in text
    hidden(cluster["b"], path, text, tmp_path)
    try:
        rc, _, err = pmrun("a", "--hosts", "a:1,b:1", "--", "true")
    finally:
        cluster["b"].run("umount", str(path), check=True)
    assert rc == 75 and "(protocol 77)" in err and f"(protocol {wire.VERSION})" in err and err.startswith("pmrun: b: ")
    assert err.count("\n") == 1, err


def test_a_directory_that_one_host_lacks(pmrun, cluster, tmp_path):
    (tmp_path / "top" / "here").mkdir(parents=True)
    hidden(cluster["b"], tmp_path / "top")
    try:
        rc, _, err = pmrun("a", "--hosts", "a:1,b:1", "--cwd", str(tmp_path / "top" / "here"), "--", "true")
    finally:
        cluster["b"].run("umount", str(tmp_path / "top"), check=True)
    assert rc == 75 and "cannot start rank 1: cannot enter directory" in err and "(on b)" in err, err
