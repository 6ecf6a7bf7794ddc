# SPDX-License-Identifier: Apache-2.0
"""Hosts as people and MPI write them, and the ranks that each gets."""

import pytest

from pmrun.errors import UsageError
from pmrun.launcher import cli
from pmrun.launcher.backends.ssh import Roster
from pmrun.launcher.command_line import split
from pmrun.launcher.hosts import Host, parse_host_file, parse_hosts, share, spread


@pytest.mark.parametrize(
    ("text", "hosts"),
    [
        ("a:8,b:8", [("a", 8), ("b", 8)]),
        ("a", [("a", None)]),
        ("me@node-1.example.org:2, 10.0.0.7:3", [("me@node-1.example.org", 2), ("10.0.0.7", 3)]),
        ("[fd00::7]:4,[::1]", [("[fd00::7]", 4), ("[::1]", None)]),
        ("a:2,b:1,a:3", [("a", 5), ("b", 1)]),
        ("a:2,a", [("a", None)]),
    ],
)
def test_hosts(text, hosts):
    assert parse_hosts(text) == tuple(Host(*host) for host in hosts)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a:0", "'0' is not a number of ranks"),
        ("a:x", "'x' is not a number of ranks"),
        ("a,,b", "missing between two commas"),
        ("-oProxyCommand=x:1", "is not a host's name"),
        ("a b", "is not a host's name"),
        ("fd00::7:4", "in brackets"),
        ("a;reboot:1", "is not a host's name"),
    ],
)
def test_bad_hosts(text, said):
    with pytest.raises(ValueError, match=said):
        parse_hosts(text)


def test_host_files_of_both_kinds():
    text = "# a comment\na slots=4 max_slots=8\n\nb:2   # MPICH's\n  c max-slots=3 slots=3\nd\na:1\ne slots=1 user=me\n"
    assert parse_host_file(text) == (Host("a", 5), Host("b", 2), Host("c", 3), Host("d", None), Host("me@e", 1))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a slots=x", "line 1: 'x' is not a number"),
        ("a\nb 8", "line 2: '8' is not understood"),
        ("# nothing\n", "no host is named"),
        ("a slots=9 max_slots=8", "more slots than"),
    ],
)
def test_bad_host_files(text, said):
    with pytest.raises(ValueError, match=said):
        parse_host_file(text)


@pytest.mark.parametrize(
    ("text", "ranks", "counts"),
    [
        ("a:8,b:8", None, [8, 8]),
        ("a:8,b:8", 10, [8, 2]),
        ("a:8,b:8", 3, [3, 0]),
        ("a,b,c", 7, [3, 2, 2]),
        ("a:4,b,c", 7, [4, 2, 1]),
        ("a:4,b", 3, [3, 0]),
    ],
)
def test_spread(text, ranks, counts):
    assert spread(parse_hosts(text), ranks) == counts


def test_what_does_not_fit_is_said():
    with pytest.raises(ValueError, match=r"-n 17: the hosts hold 16 ranks \(a:8,b:8\)"):
        spread(parse_hosts("a:8,b:8"), 17)
    with pytest.raises(ValueError, match="say how many ranks"):
        spread(parse_hosts("a:8,b"), None)


def test_share():
    assert share(7, 3) == (3, 2, 2)
    assert share(4, 4) == (1, 1, 1, 1)


# ---- the command line -------------------------------------------------------------------------------------


def job(*words):
    return cli.build_job(split([*words, "--", "true"]))


def test_hosts_make_it_a_job_for_ssh(tmp_path):
    path = tmp_path / "hosts"
    path.write_text("b slots=2\nc:3\n")
    found = job("--hosts", "a:2", "--hostfile", str(path), "-n", "6", "--ssh", "ssh -p 2222")
    assert (found.backend, found.world_size, found.nodes.ssh) == ("ssh", 6, ("ssh", "-p", "2222"))
    assert found.nodes.hosts == (("a", 2), ("b", 2), ("c", 2))
    assert job("--hosts", "a:2,b:2", "-n", "2").nodes.hosts == (("a", 2),), "a host without ranks is no node"
    assert job("--hosts", "a:2", "--on", "local", "-n", "2").backend == "local"


def test_nodes_by_hand(tmp_path):
    words = ["-n", "8", "--nnodes", "2", "--main", "10.0.0.1", "--secret-file", "key"]
    found = job(*words, "--node-rank", "1", "--encrypt", "--transport", "tcp")
    assert (found.backend, found.nodes.count, found.nodes.rank) == ("by_hand", 2, 1)
    assert found.encrypt and not found.reproducible and found.transport == "tcp"
    assert job(*words).nodes.rank is None


def test_what_is_exported_for_ranks_of_another_launcher_is_no_mistake(monkeypatch):
    for name in ("SECRET_FILE", "MAIN", "INTERFACE"):
        monkeypatch.setenv(f"PMRUN_{name}", "x")
    assert job("-n", "2").backend == "local"
    assert job("--hosts", "a:2").backend == "ssh"


def test_hosts_without_ranks_are_spares_where_there_are_restarts():
    words = ["--hosts", "a:2,b:2,c:3", "-n", "4"]
    assert job(*words).nodes.spares == ()
    found = job(*words, "--max-restarts", "1")
    assert found.max_restarts == 1 and found.nodes.spares == (("c", 3),) and found.nodes.least is None
    found = job("--hosts", "a:2,b:2,c:3", "--nodes", "2", "--max-restarts", "1")
    assert found.world_size == 4 and found.nodes.spares == (("c", 3),), "the first two hosts, all of each"
    (spare,) = job("--hosts", "a:2,b", "-n", "2", "--max-restarts", "1").nodes.spares
    assert spare[0] == "b" and spare[1] > 1000, "without a number it takes what comes"


def test_a_range_of_nodes():
    found = job("--hosts", "a:2,b:2,c:3", "--nodes", "1:2").nodes
    assert (found.hosts, found.spares, found.least) == ((("a", 2), ("b", 2)), (("c", 3),), 1)
    by_hand = ["-n", "8", "--main", "10.0.0.1", "--secret-file", "key"]
    found = job(*by_hand, "--nodes", "2:4")
    assert (found.backend, found.nodes.count, found.nodes.least) == ("by_hand", 4, 2)
    assert job(*by_hand, "--nodes", "4").nodes == job(*by_hand, "--nnodes", "4").nodes


def test_places_and_spares_from_attempt_to_attempt():
    roster = Roster(job("--hosts", "127.0.0.1:2,127.0.0.2:1,127.0.0.3:1", "-n", "3", "--max-restarts", "9"))
    assert not roster.substitute(0, frozenset()), "the spare has not enough room"
    assert roster.substitute(1, frozenset())
    assert roster.places == [("127.0.0.1", 2), ("127.0.0.3", 1)] and roster.spares == [("127.0.0.2", 1)]
    assert not roster.substitute(1, frozenset({"127.0.0.2"})), "it failed in this attempt already"
    assert roster.substitute(1, frozenset()) and roster.places[1] == ("127.0.0.2", 1)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--hosts", "a:2,b:2", "--nodes", "1:3"], "2 hosts are named"),
        (["--hosts", "a:2,b:2", "--nodes", "1:2", "-n", "4"], "without -n"),
        (["--hosts", "a:2,b", "--nodes", "1:2"], "the hosts' numbers say how many ranks"),
        (["--hosts", "a:2,b:2", "--nodes", "2:1"], "runs backwards; write 1:2"),
        (["--hosts", "a:2,b:2", "--nodes", "0:1"], "the number of nodes is a whole number from 1"),
        (["--nodes", "1:2", "--nnodes", "2"], "give one of them"),
        (["--nodes", "1:2", "-n", "3", "--main", "a", "--secret-file", "x"], "a multiple of 2"),
        (["--max-restarts", "-1"], "the number of restarts is a whole number from 0"),
        (["--hosts", "a:2", "--nnodes", "2"], "give one of them"),
        (["--hosts", "a:2", "-n", "3"], "the hosts hold 2 ranks"),
        (["--hosts", "a:2", "--ssh", "ssh '"], "No closing quotation"),
        (["--hosts", "a:2", "--ssh", " "], "--ssh: it is empty"),
        (["--hosts", "a:2", "--secret-file", "x"], "--secret-file has no meaning without --nnodes"),
        (["--on", "ssh"], "no host is named"),
        (["--on", "by_hand"], "--nnodes N"),
        (["--hostfile", "/no/such"], "--hostfile /no/such: No such file"),
        (["--main", "a"], "--main has no meaning without --hosts or --nnodes"),
        (["--nnodes", "2", "--secret-file", "x", "-n", "4"], "--main ADDRESS"),
        (["--nnodes", "2", "--main", "a", "-n", "4"], "pmrun secret FILE"),
        (["--nnodes", "2", "--main", "a", "--secret-file", "x"], "-n N"),
        (["--nnodes", "3", "--main", "a", "--secret-file", "x", "-n", "2"], "less than one rank for each of 3"),
        (["--nnodes", "2", "--node-rank", "2", "--main", "a", "--secret-file", "x", "-n", "2"], "are 0 to 1"),
    ],
)
def test_machines_that_do_not_fit_together(words, said):
    with pytest.raises(UsageError) as caught:
        job(*words)
    assert said in str(caught.value) and "\n" not in str(caught.value)
