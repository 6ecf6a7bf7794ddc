# SPDX-License-Identifier: Apache-2.0
"""The nodes meet, and their ranks' data does not get through: said in time, naming the pair of nodes.

What stands between them is real: a router that drops every packet above a size without a word, a host that drops
what comes from ports it does not know.
"""

from __future__ import annotations

import re
import sys

import pytest

PORT = "4321"
INIT = ["--", sys.executable, "-c", "import pmrun; pmrun.init(); print('through')"]


@pytest.fixture
def narrow(cluster):
    """The way to b takes no packet above 1000 bytes, and nobody is told; what controls the job keeps below that."""
    for name, port in (("a", "sport"), ("b", "dport")):
        run = cluster[name].run
        run("ip", "link", "set", "eth0", "gso_max_segs", "1", check=True)  # bundles of packets would be let through
        run("ip", "rule", "add", "pref", "1", "ipproto", "tcp", port, PORT, "lookup", "10", check=True)
        run("ip", "route", "add", "10.77.0.0/24", "dev", "eth0", "table", "10", "mtu", "900", check=True)
    cluster.switch.run("ip", "link", "set", "to-b", "mtu", "1000", check=True)
    yield
    cluster.switch.run("ip", "link", "set", "to-b", "mtu", "1500", check=True)
    for name in "ab":
        cluster[name].run("ip", "link", "set", "eth0", "gso_max_segs", "65535", check=True)
        cluster[name].run("ip", "route", "flush", "table", "10", check=True)
        cluster[name].run("ip", "rule", "del", "pref", "1", check=True)


@pytest.fixture
def walled(cluster):
    """To b comes only what the controller's port sends."""
    rules = [f"pref 1 iif eth0 ipproto tcp sport {PORT} lookup local", "pref 2 iif eth0 ipproto tcp blackhole"]
    for rule in [*rules, "pref 3 lookup local"]:
        cluster["b"].run("ip", "rule", "add", *rule.split(), check=True)
    cluster["b"].run("ip", "rule", "del", "pref", "0", check=True)
    yield
    cluster["b"].run("ip", "rule", "add", "pref", "0", "lookup", "local", check=True)
    for number in "123":
        cluster["b"].run("ip", "rule", "del", "pref", number, check=True)


@pytest.mark.parametrize("obstacle", ["narrow", "walled"])
def test_what_lets_the_join_through_and_not_the_data(request, start, pmrun, tmp_path, obstacle):
    request.getfixturevalue(obstacle)
    secret = str(tmp_path / "job.key")
    assert pmrun("a", "secret", secret)[0] == 0
    words = ["-n", "2", "--nnodes", "2", "--main", f"10.77.0.1:{PORT}", "--secret-file", secret]
    words += ["-x", "PMRUN_JOIN_TIMEOUT=1"]  # else as long as --start-timeout
    nodes = [start("a", *words, "--node-rank", "0", *INIT), start("b", *words, "--node-rank", "1", *INIT)]
    rc, out, err = nodes[0].finish()
    assert rc == 1 and "through" not in out, err
    here, there = r"node 0 \(tcp 10\.77\.0\.1:\d+\)", r"node 1 \(tcp 10\.77\.0\.2:\d+\)"
    said = rf"CollectiveTimeout: no data came to ({here} from {there}|{there} from {here}) within 1 s: does a firewall"
    assert re.search(said, err), err
    assert nodes[1].finish()[0] == 1
