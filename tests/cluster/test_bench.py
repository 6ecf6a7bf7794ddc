# SPDX-License-Identifier: Apache-2.0
"""`pmrun bench` between machines: by ssh, started by hand on each, and beside peers."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from pmrun.launcher.bench.peers import PEERS, Environments

ENVIRONMENTS = Path(__file__).parents[2] / ".venv-bench"
WORDS = ("--time", "1ms", "--warm-up", "1", "--sizes", "8,256K", "--check")


@pytest.mark.parametrize("transport", ["tcp", "zmq"])
def test_between_two_machines_and_from_a_third(pmrun, tmp_path: Path, transport: str) -> None:
    path = tmp_path / "new.json"
    words = ["--hosts", "a:1,b:2", "--transport", transport, *WORDS, "--json", str(path)]
    rc, out, err = pmrun("d", "bench", *words, "latency", "bandwidth", "pairs", "allreduce", "iallreduce")
    assert (rc, err) == (0, ""), err
    kept = json.loads(path.read_text())
    assert (kept["settings"]["transport"], kept["settings"]["nodes"]) == (transport, ["a", "b"])
    assert kept["settings"]["transport_used"] == f"{transport} (asked for)"
    head = "pmrun bench: 3 ranks on 2 nodes (a, b), float32, sum, every result checked\n"
    assert out.startswith(f"{head}between nodes: {transport} (asked for)\n\n")
    pairs = next(line for line in kept["lines"] if line["kind"] == "pairs")
    assert pairs["names"] == ["a", "b"] and pairs["latency_us"][0][1] > 0
    assert [line["op"] for line in kept["lines"]].count("allreduce") == 2


def test_nodes_by_hand_show_the_table_on_the_main_node_alone(start, cluster, tmp_path: Path) -> None:
    secret = tmp_path / "job.key"
    assert cluster["a"].run("sh", "-c", f"umask 077; head -c 32 /dev/urandom > {secret}").returncode == 0
    by_hand = ["-n", "2", "--nnodes", "2", "--main", "10.77.0.1", "--secret-file", str(secret)]
    nodes = [
        start(name, "bench", *by_hand, "--node-rank", str(rank), *WORDS, "allreduce") for rank, name in enumerate("ab")
    ]
    (rc, out, err), other = (node.finish() for node in nodes)
    assert (rc, err, other[:2]) == (0, "", (0, ""))
    assert re.fullmatch("(pmrun: waiting for the main node: .*\n)*", other[2]), "it may be the first to begin"
    assert re.search(r"^between nodes: (tcp|zmq) \(tcp \d+ µs and \d+ µs, zmq \d+ µs", out, re.MULTILINE)
    assert out.count("allreduce") == 2


def test_compared_with_an_earlier_run_and_drawn(pmrun, tmp_path: Path) -> None:
    old, plot = tmp_path / "old.json", tmp_path / "times.svg"
    words = ["bench", "--hosts", "a:1,b:1", *WORDS, "allreduce"]
    assert pmrun("a", *words, "--json", str(old))[0] == 0
    rc, out, err = pmrun("a", *words, "--compare", str(old), "--plot", str(plot))
    assert (rc, err) == (0, ""), err
    assert " of 2 points that both have are slower beyond the spread of both" in out
    assert "allreduce, 2 ranks" in plot.read_text()


@pytest.mark.slow
@pytest.mark.parametrize("peer", list(PEERS))
def test_peers_run_on_the_same_machines(pmrun, tmp_path: Path, peer: str) -> None:
    if peer not in Environments(ENVIRONMENTS).available():
        pytest.skip(f"{peer} is not installed: python benchmarks/peers.py does it")
    path = tmp_path / "new.json"
    words = ["--hosts", "a:1,b:1", *WORDS, "--rounds", "1", "--peers", peer, "--peers-dir", str(ENVIRONMENTS)]
    rc, out, err = pmrun("d", "bench", *words, "allreduce", "latency", "--json", str(path))
    assert rc == 0, err
    kept = json.loads(path.read_text())
    assert kept["complete"] and kept["settings"]["nodes"] == ["a", "b"]
    assert {line["contender"] for line in kept["lines"]} == {"pmrun", PEERS[peer].shown}
    assert "best peer's time over pmrun's" in out
