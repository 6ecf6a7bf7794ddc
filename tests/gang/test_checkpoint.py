# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of several ranks under the real command: one version for all, other world sizes, deaths in a save."""

from __future__ import annotations

import re
from pathlib import Path

import pytest


def test_a_replicated_state_is_loaded_by_any_number_of_ranks(gang, tmp_path: Path) -> None:
    body = """
        import sys
        import numpy as np, pmrun as pm
        from gang_report import report
        world = pm.init()
        checkpoint = pm.Checkpoint(sys.argv[1], keep=2)
        start, state = checkpoint.load({"w": np.zeros(1000), "text": "", "none": np.empty(0)})
        for step in range(start, start + 4):
            state["w"] = world.allreduce(np.full(1000, 1.0)) + state["w"]
            state["text"] += str(world.size)
            checkpoint.isave(step + 1, state)
        checkpoint.wait()
        step, loaded = checkpoint.load()
        report((start, step, loaded["text"], float(loaded["w"][-1]), pm.store.keys("pmrun/checkpoint")))
        """
    path = str(tmp_path / "runs")
    assert gang(2, body, path).results == [(0, 4, "2222", 8.0, [])] * 2
    assert gang(3, body, path).results == [(4, 8, "22223333", 20.0, [])] * 3


SHARDED = """
    import sys
    import numpy as np, pmrun as pm
    from gang_report import report
    world = pm.init()
    checkpoint = pm.Checkpoint(sys.argv[1], sharded=True)
    try:
        step, state = checkpoint.load(np.zeros(4))
        assert (state == step * (world.rank + 1)).all(), state
        for _ in range(2):
            step += 1
            checkpoint.save(step, np.full(4, step * (world.rank + 1.0)))
        report(checkpoint.load().step)
    except pm.CheckpointError as error:
        report(str(error))
    """


def test_a_sharded_state_is_loaded_by_as_many_ranks(gang, tmp_path: Path) -> None:
    folder = tmp_path / "runs"
    assert gang(3, SHARDED, str(folder)).results == [2] * 3
    told = f"cannot load from {folder}: step 2 has a shard for each of 3 ranks, and there are 2 now: start 3, or save"
    assert [result.startswith(told) for result in gang(2, SHARDED, str(folder)).results] == [True] * 2
    shard = folder / "000002-step-2" / "shard-00002.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1] + b"?")
    run = gang(3, SHARDED, str(folder))
    assert run.results == [3] * 3
    assert [f"{shard}: its SHA-256 differs; trying the one before" in text for text in run.errors] == [
        True,
        False,
        False,
    ]


def test_one_verdict_on_all_ranks(gang, tmp_path: Path) -> None:
    run = gang(
        3,
        """
        import sys
        import pmrun as pm
        from gang_report import report
        pm.init()
        said = []
        one = pm.Checkpoint(sys.argv[1], sharded=True, timeout=20)
        two = pm.Checkpoint(sys.argv[2], sharded=pm.rank() == 2)
        three = pm.Checkpoint(sys.argv[3])
        for checkpoint, step, state in (
            (one, 1, print if pm.rank() == 1 else 1), (one, 2 + (pm.rank() == 2), 1), (two, 1, 1), (three, 1, 1),
        ):
            try:
                checkpoint.save(step, state)
            except pm.CheckpointError as error:
                said.append(str(error))
        one.save(5, pm.rank())
        report((said, one.load()))
        """,
        str(tmp_path / "one"),
        str(tmp_path / "two"),
        "/proc/version/runs",
    )
    for rank, (said, loaded) in enumerate(run.results):
        assert loaded == (5, rank)
        assert re.search(r"save step 1 to .*one: rank 1: cannot save state, which is a builtin", said[0])
        assert re.search(r"one: rank 2 saves step 3: all ranks must save the same one", said[1])
        assert re.search(r"two: sharded=True on rank 2: all ranks must have the same", said[2])
        assert re.search(r"cannot save step 1 to /proc/version/runs: /proc/version: Not a directory", said[3])
    assert not [path for path in (tmp_path / "two").iterdir() if path.name != ".lock"]


def test_a_rank_that_leaves_without_saving_is_named(gang, tmp_path: Path) -> None:
    run = gang(
        3,
        """
        import sys
        import pmrun as pm
        from gang_report import report
        pm.init()
        checkpoint = pm.Checkpoint(sys.argv[1], timeout=0.2)
        if pm.rank() != 2:
            try:
                checkpoint.save(1, 1)
            except pm.CheckpointError as error:
                report(str(error))
        """,
        str(tmp_path / "runs"),
    )
    assert re.search(r"rank 2 did not take part, and .*: every rank must save each step", run.results[0])


@pytest.mark.parametrize("sharded", [False, True])
def test_a_rank_dies_in_a_save(gang, tmp_path: Path, rng, sharded: bool) -> None:
    """Whenever it dies, all ranks go on from one step, which was the last complete one or the one under way."""
    body = """
        import os, signal, sys, threading
        import numpy as np, pmrun as pm
        from gang_report import report
        world = pm.init()
        checkpoint = pm.Checkpoint(sys.argv[1], sharded=sys.argv[2] == "True")
        start, state = checkpoint.load(np.zeros(50_000))
        assert (state == start).all()
        report(start)
        step = start
        while float(sys.argv[3]):
            step += 1
            checkpoint.isave(step, np.full(50_000, step))
            report(step)
            if world.rank == 1 and step == 3:
                threading.Timer(float(sys.argv[3]), os.kill, (os.getpid(), signal.SIGKILL)).start()
        """
    arguments = (str(tmp_path / "runs"), str(sharded))
    run = gang(2, body, *arguments, str(rng.random() / 50), check=False)
    assert run.returncode == 137 and "rank 1 failed first: killed by SIGKILL" in run.stderr, run
    begun = run.results[0]
    run = gang(2, body, *arguments, "0")
    assert run.results[0] == run.results[1] > 0
    assert begun - 2 <= run.results[0] <= begun + 1
