# SPDX-License-Identifier: Apache-2.0
"""The store of a gang that spans nodes: requests go through the agents to the controller's table."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

DRIVE = Path(__file__).with_name("drive_nodes.py")


def run(nodes: int, body: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(DRIVE), str(nodes), sys.executable, "-c", textwrap.dedent(body)]
    return subprocess.run(command, text=True, capture_output=True, check=False, timeout=60, stdin=subprocess.DEVNULL)


def test_ranks_of_all_nodes_meet() -> None:
    done = run(
        3,
        """
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
        print(pm.node_rank(), heard, right, pm.store.get("n"), pm.store.data_key() == b"")
        """,
    )
    assert (done.returncode, done.stderr) == (0, "")
    told = sorted(done.stdout.splitlines())
    assert told == [f"[{rank}] {rank // 2} b'012345' True b'15' True" for rank in range(6)]


def test_a_timeout_names_the_ranks_of_other_nodes() -> None:
    done = run(
        2,
        """
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
        """,
    )
    assert "nobody set 'never' within 0.3 s; ranks 1, 2 have not used the store yet" in done.stderr
    assert "rank 3 failed first" in done.stderr


def test_a_death_on_one_node_ends_the_waits_on_the_others() -> None:
    done = run(
        2,
        """
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
        """,
    )
    assert done.returncode == 137
    told = sorted(line for line in done.stdout.splitlines() if "failed" in line)
    assert told == [f"[{rank}] rank 3 on node-1 failed: killed by SIGKILL" for rank in range(3)]


def test_garbage_is_told_once() -> None:
    done = run(
        2,
        """
        import os
        import pmrun as pm
        from pmrun import env
        if pm.rank() == 2:
            os.write(int(os.environ[env.STORE_FD]), b"\\xff" * 64)
            pm.store.data_key()
        """,
    )
    assert done.returncode == 1
    (line,) = (line for line in done.stderr.splitlines() if line.startswith("pmrun: rank 2 sent bytes"))
    assert line.endswith("; its store is closed")
