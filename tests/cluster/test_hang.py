# SPDX-License-Identifier: Apache-2.0
"""A hang across machines: one report, with the ranks of every node and where each of them is."""

import sys
import time

BODY = """
import signal
import pmrun as pm
world = pm.init()
pm.store.set(f"here/{world.rank}", b"")
pm.store.wait([f"here/{rank}" for rank in range(4)])  # they do not start at the same moment
print('ready', flush=True)
if world.rank == 3:
    pm.store.get("never")
world.allreduce(1.0)
"""


def test_the_culprit_and_its_node_are_named(start):
    job = start(
        "a", "--hosts", "a:1,b:2,c:1", "--hang-timeout", "0.5", "--grace", "0", "--", sys.executable, "-c", BODY
    )
    job.read_until(4)
    begin = time.monotonic()
    rc, _, err = job.finish()
    assert time.monotonic() - begin < 0.5 + 2.0 + 1.0, "named within two seconds, and then ended"
    assert rc == 79, err
    first, *rest = err.splitlines()
    assert first.startswith(
        "pmrun: hang: rank 3 never entered allreduce #1 at <string>:10 in <module>; it waits in the store "
    ), err
    assert "for key 'never' (node c); ranks 0-2 have waited in it for " in first
    assert any(
        line.startswith("  rank 3 (node c, pid ") and "is in the store for key 'never' since " in line for line in rest
    )
    assert any(line.startswith("  ranks 0-2 are in allreduce #1 at <string>:10 in <module> since ") for line in rest)
