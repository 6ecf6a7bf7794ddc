# SPDX-License-Identifier: Apache-2.0
"""`pmrun bench` between machines: by ssh, and started by hand on each."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

WORDS = ("--time", "1ms", "--warm-up", "1", "--sizes", "8,256K", "--check")


@pytest.mark.parametrize("transport", ["tcp", "zmq"])
def test_between_two_machines_and_from_a_third(pmrun, tmp_path: Path, transport: str) -> None:
    path = tmp_path / "new.json"
    words = ["--hosts", "a:1,b:2", "--transport", transport, *WORDS, "--json", str(path)]
    rc, out, err = pmrun("d", "bench", *words, "latency", "bandwidth", "pairs", "allreduce", "iallreduce")
    assert (rc, err) == (0, ""), err
    kept = json.loads(path.read_text())
    assert (kept["settings"]["transport"], kept["settings"]["nodes"]) == (transport, ["a", "b"])
    assert out.startswith("pmrun bench: 3 ranks on 2 nodes (a, b), float32, sum, every result checked\n")
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
    (rc, out, err), (_, other_out, other_err) = (node.finish() for node in nodes)
    assert (rc, other_out) == (0, ""), err + other_err
    assert out.count("allreduce") == 2
