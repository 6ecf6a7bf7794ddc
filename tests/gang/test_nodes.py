# SPDX-License-Identifier: Apache-2.0
"""The same program over several nodes: results, communicators, errors, as on one."""

from __future__ import annotations

from pathlib import Path

import pytest
from nodes_helper import nodes_run

BODY = Path(__file__).parent / "collectives_body.py"


@pytest.mark.slow
@pytest.mark.parametrize("group", ["reductions", "sizes", "blocks", "vectors", "layouts"])
@pytest.mark.parametrize("layout", [[1, 1], [2, 2], [4, 2]], ids=str)
def test_results_are_numpys(tmp_path: Path, rng, layout: list[int], group: str) -> None:
    seed = rng.randrange(2**31)
    assert nodes_run(layout, BODY, str(seed), group, directory=tmp_path) == [[]] * sum(layout), f"seed {seed}"


@pytest.mark.slow
@pytest.mark.parametrize("layout", [[3, 2], [1, 2, 2], [4, 2]], ids=str)
def test_bits_are_those_of_one_node_where_asked_for(tmp_path: Path, rng, layout: list[int]) -> None:
    seed = rng.randrange(2**31)
    extra = {"PMRUN_REPRODUCIBLE": "1"}
    for group in ("reductions", "sizes", "divided"):
        run = nodes_run(layout, BODY, str(seed), group, directory=tmp_path, extra=extra)
        assert run == [[]] * sum(layout), f"seed {seed}"


def test_requests_run_while_python_computes(tmp_path: Path) -> None:
    body = """
        import numpy as np
        import pmrun as pm
        from gang_report import init, report
        world = init(timeout=30)
        data = np.full(300_000, world.rank + 1.0)
        requests = [world.iallreduce(data), world.ibroadcast(data.copy(), root=2), world.ibarrier()]
        report([float(request.wait(timeout=30)[7]) for request in requests[:2]] + [requests[2].wait(timeout=30)])
    """
    assert nodes_run([2, 1], body, directory=tmp_path) == [[6.0, 3.0, None]] * 3


def test_a_mismatch_names_both_calls_on_every_rank(tmp_path: Path) -> None:
    body = """
        import numpy as np
        import pmrun as pm
        from gang_report import init, report
        world = init(timeout=30)
        world.barrier()
        try:
            if world.rank == 2:
                world.allreduce(np.zeros(3))
            else:
                world.allgather(np.zeros(5, np.int8))
        except pm.CollectiveMismatch as error:
            report(str(error))
    """
    texts = nodes_run([2, 1], body, directory=tmp_path)
    assert len(set(texts)) == 1
    assert "rank 2: allreduce(float64, 24 bytes, sum) at /" in texts[0]
    assert "allgather(int8, 5 bytes) at /" in texts[0]
    assert texts[0].count("body.py:") == 2


def test_a_deadline_names_who_did_not_come(tmp_path: Path) -> None:
    body = """
        import pmrun as pm
        from gang_report import init, report, HERE
        import os, time
        world = init(timeout=0.5)
        other = world.dup()
        if world.rank == 1:
            while not all((HERE / f"result-{rank}.pickle").exists() for rank in (0, 2)):
                os.sched_yield()
            report("late")
        else:
            try:
                world.barrier()
            except pm.CollectiveTimeout as error:
                report(str(error))
    """
    texts = nodes_run([1, 2], body, directory=tmp_path)
    assert texts[1] == "late"
    assert "not entered by rank(s) 1;" in texts[0]
    assert texts[0] == texts[2]
