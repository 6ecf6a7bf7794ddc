# SPDX-License-Identifier: Apache-2.0
"""The store of a gang that spans nodes: requests go through the agents to the controller's table."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Callable

Run = Callable[..., tuple[int, str, str]]


def command(hosts: str, body: str) -> list[str]:
    return ["--hosts", hosts, "--stdin", "none", "--", sys.executable, "-c", textwrap.dedent(body)]


def test_ranks_of_all_nodes_meet(pmrun: Run) -> None:
    code, out, err = pmrun("a", *command("a:2,b:2,c:2", """
        import pmrun as pm
        rank, size = pm.rank(), pm.world_size()
        pm.store.set(f"from/{rank}", str(rank))
        heard = b"".join(pm.store.get_many(f"from/{i}" for i in range(size)))
        pm.store.add("n", rank)
        pm.store.set_many({f"big/{rank}/{i}": bytes([rank]) * (1 << 20) for i in range(3)})
        big = pm.store.get_many(f"big/{i}/{j}" for i in range(size) for j in range(3))
        right = big == [bytes([i]) * (1 << 20) for i in range(size) for j in range(3)]
        pm.store.set(f"done/{rank}", b"")
        pm.store.wait(f"done/{i}" for i in range(size))
        pm.store.set(f"data/{rank}", pm.store.data_key())
        keys = set(pm.store.get_many(f"data/{i}" for i in range(size)))
        print(pm.node_rank(), heard, right, pm.store.get("n"), len(keys), len(keys.pop()))
        """))  # fmt: skip
    assert (code, err) == (0, "")
    told = sorted(out.splitlines())
    assert told == [f"[{rank} {'abc'[rank // 2]}] {rank // 2} b'012345' True b'15' 1 32" for rank in range(6)]


def test_a_timeout_names_the_ranks_of_other_nodes(pmrun: Run) -> None:
    _, _, err = pmrun("a", *command("a:2,b:2", """
        import signal
        import pmrun as pm
        if pm.rank() == 3:
            pm.store.wait("a")
            pm.store.get("never", timeout=0.3)
        elif pm.rank() == 0:
            pm.store.set("a", b"")
            pm.store.get("never")
        else:
            signal.pause()
        """))  # fmt: skip
    assert "nobody set 'never' within 0.3 s; ranks 1, 2 have not used the store yet" in err
    assert "rank 3 failed first" in err


def test_a_death_on_one_node_ends_the_waits_on_the_others(pmrun: Run) -> None:
    code, out, _ = pmrun("a", *command("a:2,b:2", """
        import os, signal
        import pmrun as pm
        pm.store.add("here")
        if pm.rank() == 3:
            while pm.store.get("here") != b"4":
                pass
            os.kill(os.getpid(), signal.SIGKILL)
        try:
            pm.store.get("never")
        except pm.RankFailed as error:
            print(error, flush=True)
            raise
        """))  # fmt: skip
    assert code == 137
    told = sorted(line for line in out.splitlines() if "failed" in line)
    assert told == [f"[{rank} {'aab'[rank]}] rank 3 on b failed: killed by SIGKILL" for rank in range(3)]


def test_garbage_is_told_once(pmrun: Run) -> None:
    code, _, err = pmrun("a", *command("a:2,b:2", """
        import os
        import pmrun as pm
        from pmrun import env
        if pm.rank() == 2:
            os.write(int(os.environ[env.STORE_FD]), b"\\xff" * 64)
            pm.store.data_key()
        """))  # fmt: skip
    assert code == 1
    (line,) = (line for line in err.splitlines() if line.startswith("pmrun: rank 2 sent bytes"))
    assert line.endswith("; its store is closed")
