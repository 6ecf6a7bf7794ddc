# SPDX-License-Identifier: Apache-2.0
"""What `pmrun bench` computes and shows: data and checks, rates, overlap, table, file, comparison, plot."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pmrun.bench import checks, overlap, points
from pmrun.errors import UsageError
from pmrun.launcher.bench import choices, record
from pmrun.launcher.bench.plot import draw_lines
from pmrun.launcher.bench.record import Spread
from pmrun.launcher.bench.table import Table

SETTINGS = {"ranks": 4, "dtype": "float32", "op": "sum"}
DTYPES = [name for name in points.ITEM_BYTES if name != "bfloat16"]


def results(name: str, size: int, world: int, turn: int, op: str, dtype: str) -> list[np.ndarray]:
    """What numpy makes of `fill`'s data, by rank, with the operation done on whole vectors."""
    sent, received = points.elements(name, size, world, points.ITEM_BYTES[dtype])
    sends = [np.zeros(sent, dtype) for _ in range(world)]
    for rank, send in enumerate(sends):
        checks.fill(name, send, rank, world, turn, op)
    ufunc = {"sum": np.add, "prod": np.multiply, "max": np.maximum, "min": np.minimum}[op]

    def over(ranks: int) -> np.ndarray:
        total = sends[0].copy()
        for send in sends[1:ranks]:
            total = ufunc(total, send)
        return total

    block = received if name in ("scatter", "reduce_scatter") else sent // world
    parts = [slice(rank * block, (rank + 1) * block) for rank in range(world)]
    found: dict[str, Any] = {
        "allreduce": lambda rank: over(world),
        "broadcast": lambda rank: sends[0],
        "reduce": lambda rank: over(world),
        "allgather": lambda rank: np.concatenate(sends),
        "gather": lambda rank: np.concatenate(sends),
        "scatter": lambda rank: sends[0][parts[rank]],
        "reduce_scatter": lambda rank: over(world)[parts[rank]],
        "alltoall": lambda rank: np.concatenate([send[parts[rank]] for send in sends]),
        "scan": lambda rank: over(rank + 1),
        "exscan": lambda rank: over(rank) if rank else np.zeros(received, dtype),
    }
    return [found[name](rank) for rank in range(world)]


@pytest.mark.parametrize("op", points.OPS)
@pytest.mark.parametrize("name", [op for op in points.COLLECTIVES if op != "barrier"])
def test_right_results_pass_and_a_wrong_element_does_not(name: str, op: str) -> None:
    for dtype in ("int8", "float16", "float64"):
        for rank, result in enumerate(results(name, 5000, 4, 3, op, dtype)):
            checks.check(name, result, rank, 4, 3, op)
            if checks.expected(name, result.size, rank, 4, 3, op, dtype) is None:
                continue
            wrong = result.copy()
            wrong[777 % wrong.size] += 1
            with pytest.raises(checks.WrongResult, match=rf"^{name} of .* rank {rank} got .* at element .*; 1 of "):
                checks.check(name, wrong, rank, 4, 3, op)


def test_data_of_another_call_rank_or_block_is_wrong() -> None:
    one = results("alltoall", 8000, 4, 1, "sum", "float32")
    with pytest.raises(checks.WrongResult):
        checks.check("alltoall", one[2], 2, 4, 2, "sum")
    with pytest.raises(checks.WrongResult):
        checks.check("alltoall", one[2], 1, 4, 1, "sum")
    blocks = one[0].reshape(4, -1)[::-1].reshape(-1)
    with pytest.raises(checks.WrongResult):
        checks.check("alltoall", blocks, 0, 4, 1, "sum")


@pytest.mark.parametrize("world", [2, 16, 17, 150, 1000])
def test_sums_are_exact_in_every_dtype(world: int) -> None:
    exact = checks.reduced(range(world), world, 5, "sum", np.int64)
    for dtype in DTYPES:
        assert (checks.reduced(range(world), world, 5, "sum", dtype) == exact).all(), dtype


def test_rates_are_those_of_nccl_tests() -> None:
    assert points.rates("allreduce", 1000, 4, 1e-6) == pytest.approx((1.0, 1.5))
    assert points.rates("allgather", 1000, 4, 1e-6) == pytest.approx((4.0, 3.0))
    assert points.rates("reduce_scatter", 1000, 4, 1e-6) == pytest.approx((1.0, 0.75))
    assert points.rates("alltoall", 1000, 4, 1e-6) == pytest.approx((1.0, 0.75))
    assert points.rates("broadcast", 1000, 4, 1e-6) == pytest.approx((1.0, 1.0))
    assert points.rates("iallreduce", 1000, 2, 1e-6) == pytest.approx((1.0, 1.0))
    assert points.rates("barrier", 0, 4, 1e-6) is None


def test_overlap_by_both_definitions() -> None:
    assert overlap.osu_percent(10.0, 10.0, 10.0) == 100.0
    assert overlap.osu_percent(10.0, 10.0, 20.0) == 0.0
    assert overlap.osu_percent(10.0, 10.0, 40.0) == 0.0
    assert overlap.imb_percent(10.0, 12.0, 12.0) == pytest.approx(1000 / 12)
    assert overlap.imb_percent(10.0, 10.0, 9.0) == 100.0
    assert overlap.imb_percent(10.0, 10.0, 15.0) == 50.0


# ---- command line -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "size"), [("8", 8), ("8B", 8), ("64K", 65536), ("1MiB", 1 << 20), ("2g", 2 << 30), ("3mb", 3 << 20)]
)
def test_sizes(text: str, size: int) -> None:
    assert choices.parse_size(text) == size


@pytest.mark.parametrize("text", ["", "0", "-1", "1.5K", "K", "8X", "B", "65G"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(ValueError, match=r"size|measured"):
        choices.parse_size(text)


def test_options_and_operations_may_come_in_any_order() -> None:
    found = choices.read(
        ["allreduce", "--min", "4", "-n", "2", "p2p", "--max=64", "--factor", "4", "--check", "allreduce"]
    )
    assert found.operations == ["allreduce", "latency", "bandwidth", "bibandwidth"]
    assert found.sizes == [4, 16, 64]
    assert [(setting.option.name, setting.text) for setting in found.settings] == [("n", "2")]
    assert found.values.get(choices.CHECK) is True


def test_the_page_has_every_option_and_is_no_wider_than_pmruns() -> None:
    page = choices.help_text()
    assert all(f"--{option.name}" in page for option in choices.TABLE)
    assert max(map(len, page.splitlines())) <= 100


def test_a_package_that_is_missing_is_named_with_the_remedy() -> None:
    with pytest.raises(
        UsageError, match=r"^--plot needs no_such_package, which is not installed here: pip install it$"
    ):
        choices.need("no_such_package", "--plot", "pip install it")


# ---- table, file, comparison, plot ------------------------------------------------------------------------------


def point(op: str, size: int, *loops_us: float) -> dict[str, Any]:
    who = {"contender": "pmrun", "variant": "private", "round": 0, "ranks": 4}
    return {"kind": "point", "op": op, "bytes": size, "loops_us": list(loops_us), **who}


def test_columns_stay_where_they_are() -> None:
    out = io.StringIO()
    table = Table(out, 4, "float32", {("allreduce", 8, "pmrun", "private"): Spread(2.0, 1.0, 3.0)})
    table.add(point("allreduce", 8, 4.0, 5.0, 6.0))
    table.add(point("reduce_scatter", 1 << 30, 123456.7, 1234567.8))
    table.add(point("barrier", 0, 0.05))
    head, *lines = out.getvalue().splitlines()
    assert lines[0].endswith("2.50 slower")
    ends = [head.index(word) + len(word) for word in ("time µs", "min to max", "busbw GB/s", "new/old")]
    for line in lines:
        for end in ends:
            assert line[end - 1] != " " and line[end : end + 1].strip() == "", (end, line)


def test_a_head_for_each_kind_of_line() -> None:
    out = io.StringIO()
    table = Table(out, 2, "float32", None)
    table.add(
        {
            "kind": "pairs",
            "names": ["a", "b"],
            "latency_us": [[None, 2.0], [2.0, None]],
            "gb_s": [[None, 1.0], [1.0, None]],
        }
    )
    times = {"pure_us": 5.0, "compute_us": 5.0, "overall_us": 6.0, "osu_percent": 90.4, "imb_percent": 80.0}
    table.add({"kind": "overlap", "op": "iallreduce", "bytes": 1024, **times})
    lines = out.getvalue().splitlines()
    assert [line.split()[0] for line in lines if line] == [
        "latency",
        "a",
        "b",
        "bandwidth",
        "a",
        "b",
        "overlap",
        "iallreduce",
    ]
    assert lines[1].split() == ["a", "-", "2.00"] and lines[-1].split()[-2:] == ["90", "80"]


def test_a_file_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = str(tmp_path / "old.json")
    lines = [point("allreduce", 8, 1.0, 2.0), point("allreduce", 8, 9.0), point("barrier", 0, 4.0)]
    record.write(path, SETTINGS, lines, complete=True)
    assert record.read(path, SETTINGS) == {
        ("allreduce", 8, "pmrun", "private"): Spread(2.0, 1.0, 9.0),
        ("barrier", 0, "pmrun", "private"): Spread(4.0, 4.0, 4.0),
    }


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("{", "this is no file of pmrun bench"),
        ("[]", "this is no file of pmrun bench"),
        (json.dumps({"format": "pmrun-bench-0"}), "this is no file of pmrun bench"),
        (json.dumps({"format": record.FORMAT, "settings": SETTINGS}), "it is damaged"),
        (json.dumps({"format": record.FORMAT, "settings": SETTINGS, "lines": [{"kind": "point"}]}), "it is damaged"),
        (json.dumps({"format": record.FORMAT, "settings": {**SETTINGS, "ranks": 2}, "lines": []}), "with ranks 2, this run has 4"),
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_compared_is_refused(tmp_path: Path, content: str, text: str) -> None:
    path = tmp_path / "old.json"
    path.write_text(content)
    with pytest.raises(UsageError, match=text) as caught:
        record.read(str(path), SETTINGS)
    assert "\n" not in str(caught.value)


def test_only_what_is_beyond_both_spreads_is_marked() -> None:
    assert record.verdict(Spread(5.0, 4.0, 6.0), Spread(2.0, 1.0, 3.0)) == "slower"
    assert record.verdict(Spread(5.0, 3.0, 6.0), Spread(2.0, 1.0, 3.0)) == ""
    assert record.verdict(Spread(1.0, 0.5, 0.9), Spread(2.0, 1.0, 3.0)) == "faster"


@pytest.mark.slow
def test_plots_are_the_same_for_the_same_figures(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    lines = [point(op, size, 2.0 * size) for op in ("allreduce", "latency", "alltoall", "scan") for size in (8, 1024)]
    lines.append(point("barrier", 0, 3.0))
    code = (  # matplotlib keeps its fonts open, so a process of its own
        "import json, sys; from pmrun.launcher.bench.plot import draw_lines\n"
        "lines = json.load(sys.stdin)\nfor name in ('one.svg', 'two.svg'): draw_lines(lines, name)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, input=json.dumps(lines), text=True, check=True)
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()
    with pytest.raises(UsageError, match="nothing is drawn"):
        draw_lines([], "x.png")
