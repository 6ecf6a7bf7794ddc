# SPDX-License-Identifier: Apache-2.0
"""Checkpoints and requests to stop of a gang that spans nodes, each of which has a /dev/shm of its own."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Callable

BODY = """
import os, shutil, signal
import numpy as np
import pmrun as pm
world = pm.init()
alone = pm.Checkpoint("/dev/shm/runs")
alone.save(7, {"w": np.arange(3)})
step, state = alone.load()
try:
    pm.Checkpoint("/dev/shm/shards", sharded=True).save(1, world.rank)
except pm.CheckpointError as error:
    told = str(error)
turn = 0
while not pm.should_stop():
    turn += 1
    if world.rank == 3 and turn == 5:
        os.kill(os.getpid(), signal.SIGTERM)
print(step, state["w"].tolist(), turn, told, flush=True)
world.barrier()
if world.rank == 0:
    shutil.rmtree("/dev/shm/runs")
    shutil.rmtree("/dev/shm/shards")
pm.exit_resumable()
"""


def test_what_nodes_share_and_what_they_must(pmrun: Callable[..., tuple[int, str, str]]) -> None:
    words = ["--hosts", "a:2,b:2", "--stdin", "none", "--", sys.executable, "-c", textwrap.dedent(BODY)]
    code, out, err = pmrun("a", *words)
    missing = "shard-00002.safetensors.part: No such file or directory; give a directory that every node sees"
    lines = sorted(out.splitlines())
    assert len(lines) == 4, out + err
    for rank, line in enumerate(lines):
        assert line.startswith(
            f"[{rank} {'ab'[rank // 2]}] 7 [0, 1, 2] 5 cannot save step 1 to /dev/shm/shards: rank 2: "
        )
        assert line.endswith(missing)
    assert (code, len(err.splitlines())) == (75, 1), err
    assert "the job can be resumed" in err
