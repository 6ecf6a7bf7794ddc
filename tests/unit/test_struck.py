# SPDX-License-Identifier: Apache-2.0
"""What the scripts that strike gangs make of what they saw: one that overlooks a wrong blame would be worse than none."""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
MODULES = ("bench_deaths", "bench_scenarios", "struck", "nodes", "peers")


@pytest.fixture(scope="module")
def bench() -> Iterator[SimpleNamespace]:
    """The scripts import each other by name, so their folder is on the path meanwhile."""
    sys.path.insert(0, str(BENCHMARKS))
    try:
        yield SimpleNamespace(**{name: importlib.import_module(name) for name in MODULES})
    finally:
        sys.path.remove(str(BENCHMARKS))
        for name in MODULES:
            sys.modules.pop(name, None)


@pytest.mark.parametrize(
    ("err", "code", "said"),
    [
        ("lost\npmrun: rank 2 failed first: killed\n", 137, ""),
        ("pmrun: rank 1 failed first: killed\npmrun: rank 2 failed\n", 137, "rank 2 is killed, but: pmrun: rank 1"),
        ("Traceback\n", 137, "but: no report"),
        ("pmrun: rank 2 failed first: killed\n", 1, "exit code 1"),
    ],
)
def test_a_death_is_judged(bench: SimpleNamespace, err: str, code: int, said: str) -> None:
    death = bench.bench_deaths.Death(4, 2, "is killed", 20, (0, 1))
    found = bench.bench_deaths.judge(death, err, code, 137)
    assert (said in found) if said else found == ""


def test_a_seed_says_all_of_a_death(bench: SimpleNamespace) -> None:
    draw = bench.bench_deaths.draw
    deaths = [draw(seed) for seed in range(200)]
    assert deaths == [draw(seed) for seed in range(200)]
    assert {death.how for death in deaths} == {*bench.bench_deaths.WAYS, *bench.bench_deaths.OUTSIDE}
    for death in [*deaths, *(draw(seed, bench.nodes.Layout(4, 2)) for seed in range(50))]:
        assert death.culprit in range(death.ranks) and death.culprit not in death.followers


@pytest.mark.parametrize(
    ("key", "change", "said"),
    [
        ("killed", {}, ""),
        ("killed", {"names": [0]}, "names [0]"),
        ("killed", {"code": 1}, "exit code 1"),
        ("killed", {"ended_s": float("inf")}, "ended after inf s"),
        ("leave", {"code": 0}, "exit code 0"),
        ("mismatch", {"code": 1, "names": [0, 1]}, "not raised on all ranks"),
    ],
)
def test_a_mishap_is_judged(bench: SimpleNamespace, key: str, change: dict[str, Any], said: str) -> None:
    found = {"code": 137, "names": [1], "gone_s": 0.1, "ended_s": 0.2, **change}
    wrong = bench.bench_scenarios.judge(key, found, "pmrun: rank 1 failed first")
    assert (said in wrong) if said else not wrong


@pytest.mark.parametrize(
    ("text", "ranks"),
    [
        ("pmrun: rank 1 left with exit code 0 while rank 0 still needed it", [1]),
        ("pmrun: hang: rank 1 is stopped (SIGSTOP)", [1]),
        ("mpirun noticed that process rank 1 with PID 12 on node a exited on signal 9", [1]),
        ("[0]:\n  rank      : 3 (local_rank: 3)\n", [3]),
        ("no rank at all, nor ranks 2-3", []),
    ],
)
def test_who_is_named(bench: SimpleNamespace, text: str, ranks: list[int]) -> None:
    assert bench.bench_scenarios.names_in(text) == ranks


def test_slices_add_up(bench: SimpleNamespace, tmp_path: Path) -> None:
    """Each takes what is missing until its time is over; lines of other places and kinds are not its own."""
    out = tmp_path / "build" / "lines.jsonl"
    asked = argparse.Namespace(out=out, append=True, budget_s=60.0)
    here, plan = SimpleNamespace(name="4x2"), [("a", 1), ("b", 1), ("a", 2)]

    def play(field: Any, how: str, seed: int) -> dict[str, Any]:
        return {"kind": "loss", "where": field.name, "how": how, "seed": seed, "problem": "", "left": []}

    assert len(bench.struck.in_slices(asked, "loss", here, plan[:2], play)) == 2
    with out.open("a") as file:
        file.write(json.dumps(play(SimpleNamespace(name="1"), "a", 2)) + "\n")
    asked.budget_s = 0.0
    assert len(bench.struck.in_slices(asked, "loss", here, plan, play)) == 2, "no time"
    asked.budget_s = 60.0
    assert [(line["how"], line["seed"]) for line in bench.struck.in_slices(asked, "loss", here, plan, play)] == plan
