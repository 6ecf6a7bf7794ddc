# SPDX-License-Identifier: Apache-2.0
"""The benchmarks' arithmetic: a report that flatters would be worse than none, so its rules are held here."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pmrun.bench import points
from pmrun.errors import UsageError
from pmrun.launcher.bench import across
from pmrun.launcher.bench.gangs import Contender, GangFailed, measured, run_gang
from pmrun.launcher.bench.peers import PEERS, Environments
from pmrun.launcher.bench.standings import Standings
from pmrun.launcher.job import Nodes

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
MODULES = ("bench_report", "bench_collectives", "bench_nodes", "nodes", "peers", "stranger", "strangers")


@pytest.fixture(scope="module")
def bench() -> Iterator[dict[str, Any]]:
    """The benchmarks are scripts that import each other by name, so their folder is on the path meanwhile."""
    sys.path.insert(0, str(BENCHMARKS))
    try:
        yield {name: importlib.import_module(name) for name in MODULES}
    finally:
        sys.path.remove(str(BENCHMARKS))
        for name in MODULES:
            sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def report(bench: dict[str, Any]) -> Any:
    return bench["bench_report"]


@pytest.fixture(scope="module")
def nodes(bench: dict[str, Any]) -> Any:
    return bench["nodes"]


def line(contender: str, variant: str, loops_us: list[float], turn: int = 0, **place: Any) -> dict[str, Any]:
    where = {"op": "allreduce", "ranks": 2, "bytes": 8, **place}
    return {
        "kind": "point",
        "contender": contender,
        "variant": variant,
        "round": turn,
        "loops_us": loops_us,
        **where,
    }


POINT = ("allreduce", 2, 8)


def test_a_figure_is_the_median_over_rounds_of_the_median_over_loops() -> None:
    turns = ([1.0, 2.0, 90.0], [4.0, 4.0, 1.0], [3.0, 99.0, 1.0])
    data = Standings(line("MPICH", "single", loops, turn) for turn, loops in enumerate(turns))
    assert data.figures(POINT) == {("MPICH", "single"): 3.0}


def test_the_better_variant_counts_for_a_peer_and_the_best_peer_for_the_ratio() -> None:
    lines = [
        line("MPICH", "single", [8.0]),
        line("MPICH", "multiple", [6.0]),
        line("Open MPI", "yield", [7.0]),
        line("pmrun", "private", [3.0]),
    ]
    found = Standings(lines).compare(POINT, "private")
    assert (found.best_peer, found.best_us, found.ratio) == ("MPICH", 6.0, 2.0)


def test_pmrun_is_no_peer_of_itself() -> None:
    lines = [line("pmrun", "private", [3.0]), line("pmrun", "library", [1.0])]
    data = Standings(lines)
    assert data.compare(POINT, "private") is None
    assert data.peers_best(POINT) == {}


def test_the_spread_is_that_of_single_rounds() -> None:
    lines = [line("pmrun", "private", [us], turn) for turn, us in enumerate((1.0, 2.0, 4.0))]
    lines += [line("Intel MPI", "default", [us], turn) for turn, us in enumerate((4.0, 4.0, 2.0))]
    found = Standings(lines).compare(POINT, "private")
    assert (found.low, found.ratio, found.high) == (0.5, 2.0, 4.0)


def test_a_lost_point_is_listed_and_a_won_one_is_not(report: Any) -> None:
    lines = [
        line("Intel MPI", "default", [10.0]),
        line("pmrun", "private", [20.0]),
        line("pmrun", "library", [5.0]),
    ]
    text = "\n".join(report.summary_section(Standings(lines)))
    assert "private: allreduce, 2 ranks, 8 B: 20.0 µs against 10.0 µs of Intel MPI (0.50×" in text
    assert "library: allreduce" not in text
    assert "| private | 1 | 0.50× | 0.50× | 1 |" in text
    assert "| library | 1 | 2.00× | 2.00× | 0 |" in text


def test_the_page_holds_every_point_and_says_where_one_is_missing(report: Any) -> None:
    lines = [line("MPICH", "single", [2.0]), line("MPICH", "single", [9.0], bytes=1 << 20)]
    lines += [line("pmrun", "private", [1.0])]
    page = report.page(lines, Standings(lines))
    assert "| allreduce 8 B | 2.00 | 1.00 | 2.00 (2.00–2.00) | - | - |" in page
    assert "| allreduce 1 MiB | 9.00 | - | - | - | - |" in page


def test_hung_runs_are_shown_beside_the_figure(report: Any) -> None:
    figure = {"kind": "figure", "what": "64 × true", "who": "mpirun", "unit": "s", "values": [], "failed": 2}
    assert "| 64 × true | mpirun | - | - | 2 |" in report.figures_section([figure])


def test_the_geometric_mean_of_a_ratio_and_its_inverse_is_one(report: Any) -> None:
    assert report.geometric_mean([4.0, 0.25]) == pytest.approx(1.0)


def test_the_command_writes_the_page_from_files(report: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, target = tmp_path / "in.jsonl", tmp_path / "out.md"
    figure = {"kind": "figure", "what": "pmrun --help", "who": "pmrun", "unit": "s", "values": [0.08, 0.07, 0.09]}
    source.write_text(json.dumps(figure) + "\n", encoding="utf-8")
    monkeypatch.setattr(sys, "argv", ["bench_report.py", str(source), "--results", str(target)])
    assert report.main() == 0
    assert "| pmrun --help | pmrun | 0.08 s | 0.07–0.09 | - |" in target.read_text(encoding="utf-8")


def test_sections_stay_that_the_input_has_nothing_for(report: Any) -> None:
    old = (
        "# Results\n\nMeasured on a machine.\n\n## By hand\n\nA remark.\n\n## Start, overhead, memory\n\nold figures\n"
    )
    new = report.page([{"kind": "figure", "what": "x", "who": "pmrun", "unit": "s", "values": [1.0]}], Standings([]))
    page = report.with_kept(new, old)
    assert page.startswith(
        "# Results\n\nMeasured on a machine.\n\n## By hand\n\nA remark.\n\n## Start, overhead, memory\n\n| what"
    )
    assert "old figures" not in page
    assert report.with_kept(page, page) == page
    assert report.with_kept(page, "") == page


def test_predictions_stand_beside_what_was_measured(report: Any) -> None:
    machine = {
        "date": "today",
        "cpu": "a CPU",
        "cores": 2,
        "memory_gib": 4,
        "kernel": "6",
        "load_at_start": 0,
        "versions": {},
    }
    point = {"kind": "prediction", "op": "allreduce", "size": 64, "nodes": 2, "per_node": 1, "mbit": 1000}
    lines = [
        {"kind": "prediction model", "machine": machine, "parameters": {"send_us": 2.0}, "assumed": {"link_gbit": 25.0, "latency_us": 15.0}},
        {**point, "fitted": True, "measured_us": 10.0, "predicted_us": 5.0},
        {**point, "fitted": False, "nodes": 8, "measured_us": 50.0, "predicted_us": 100.0},
        {"kind": "far prediction", "op": "barrier", "bytes": 0, "nodes": 2048, "per_node": 8, "us": 300.0, "algorithm": "tree"},
    ]  # fmt: skip
    page = report.page(lines, Standings(lines))
    assert "| 1000 Mbit/s | 2.00× (1) | - | 2.00× (1) | - |" in page
    assert "| call | 2x1 | 8x1, not seen |" in page
    assert "| allreduce 64 B | 5.00 / 10.0 = 0.50 | 100 / 50.0 = 2.00 |" in page
    assert "| call | 2048 nodes, 16,384 ranks |" in page
    assert "| barrier - | 300 (tree) |" in page


@pytest.mark.parametrize("world_size", (2, 4, 8))
def test_blocks_fit_the_vectors_they_are_cut_from(world_size: int) -> None:
    for op, size in points.plan(list(points.COLLECTIVES), points.size_range(8, 64 << 20, 8)):
        sent, received = points.elements(op, size, world_size)
        if op in ("reduce_scatter", "scatter"):
            assert sent == received * world_size
        if op in ("alltoall", "reduce_scatter", "scatter"):
            assert sent % world_size == 0
            assert sent * 4 == max(size // (4 * world_size) * 4 * world_size, world_size * 4)
        if op in ("allgather", "gather"):
            assert received == sent * world_size


@pytest.mark.parametrize(("ranks", "cores"), ((2, 2), (8, 2), (8, 16)))
def test_every_peer_takes_part_once_per_variant(tmp_path: Path, ranks: int, cores: int) -> None:
    found = Environments(tmp_path).contenders(list(PEERS), ranks, cores)
    assert {contender.name for contender in found} == {"Open MPI", "MPICH", "Intel MPI", "Gloo"}
    assert len({(contender.name, contender.variant) for contender in found}) == len(found)
    spinning = [c for c in found if c.name == "MPICH" and c.variant == "single"]
    assert len(spinning) == (1 if ranks <= cores else 0)


def test_a_gang_that_fails_is_reported_with_its_last_lines() -> None:
    contender = Contender("MPICH", "single", (), (sys.executable,), ("mpi", "single"))
    with pytest.raises(GangFailed, match=r"MPICH \(single\) ended with 3: .*no such fabric"):
        run_gang(contender, [sys.executable, "-c", "import sys; print('no such fabric'); sys.exit(3)"], 60)


def test_a_gang_that_hangs_is_stopped() -> None:
    contender = Contender("Open MPI", "yield", (), (sys.executable,), ("mpi", "multiple"))
    with pytest.raises(GangFailed, match="took more than"):
        run_gang(contender, [sys.executable, "-c", "import signal; signal.pause()"], 0.2)


def test_a_plan_is_measured_by_whoever_runs_the_gang() -> None:
    contender = Contender("MPICH", "single", ("mpiexec",), ("python",), ("mpi", "single"))
    asked = []

    def elsewhere(contender: Contender, command: list[str], timeout_s: float) -> str:
        asked.append((contender.name, command[:4], timeout_s))
        return 'a library\'s greeting\n{"kind": "point", "op": "barrier"}\n'

    assert measured(contender, {"operations": ["barrier"]}, 5.0, elsewhere) == [{"kind": "point", "op": "barrier"}]
    assert asked == [("MPICH", ["mpiexec", "python", "-m", "pmrun_bench"], 5.0)]


# ---- over several machines --------------------------------------------------------------------------------


def node_line(contender: str, variant: str, us: float, turn: int = 0, **place: Any) -> dict[str, Any]:
    return line(contender, variant, [us], turn, **{"ranks": "2x4", **place}) | {"kind": "nodes point"}


def test_layouts_are_ordered_by_their_ranks_and_kept_apart_from_one_machine() -> None:
    lines = [
        line("MPICH", "single", [8.0]),
        *(node_line("MPICH", "single", 1.0, ranks=world) for world in ("2x4", "4x1", "2x1")),
    ]
    assert [world for _, world, _ in Standings(lines, "nodes point").points()] == ["2x1", "4x1", "2x4"]
    assert Standings(lines).points() == [POINT]


def test_gloo_and_the_best_mpi_are_counted_apart(report: Any) -> None:
    lines = [
        node_line("pmrun", "tcp", 10.0), node_line("Gloo", "eth0", 50.0),
        node_line("MPICH", "single", 9.0), node_line("Intel MPI", "yield", 7.0),
    ]  # fmt: skip
    text = "\n".join(report.groups_section(Standings(lines, "nodes point")))
    assert "| tcp against Gloo | 1 | 5.00× | 5.00× | 0 | 0 |" in text
    assert "| tcp against best MPI | 1 | 0.70× | 0.70× | 1 | 1 |" in text
    assert "zmq" not in text


def test_points_over_machines_are_on_the_page_beside_those_of_one(report: Any) -> None:
    lines = [
        line("MPICH", "single", [2.0]), line("pmrun", "private", [1.0]),
        node_line("MPICH", "single", 9.0), node_line("pmrun", "tcp", 10.0),
    ]  # fmt: skip
    page = report.page(lines, Standings(lines))
    assert "### 2 ranks" in page
    assert "### 2x4 nodes × ranks" in page
    assert "- tcp: allreduce, 2x4 nodes × ranks, 8 B: 10.0 µs against 9.00 µs of MPICH" in page


def test_the_floor_and_limited_links_are_on_the_page(report: Any) -> None:
    plain = [
        node_line("plain TCP", "-", us, turn=turn, op="exchange", bytes=1 << 20)
        for turn, us in enumerate((500.0, 600.0))
    ]
    where = {"kind": "nodes overlap", "mbit": 1000, "ranks": "2x1", "contender": "pmrun", "variant": "tcp"}
    shaped = [
        {**where, "op": "iallreduce", "bytes": 4_000_000, "round": turn, "pure_us": 32_000.0, "imb_percent": percent}
        for turn, percent in enumerate((80.0, 90.0, 100.0))
    ]
    text = report.page([*plain, *shaped], Standings([*plain, *shaped]))
    assert "| exchange of 1 MiB | 550 | 1.91 |" in text
    assert "| 1000 Mbit/s, 4000000 B, pmrun (tcp) | 1.000 | 90 % (80–100) |" in text


@pytest.mark.parametrize("text", ["2", "x", "2x", "x2", "1x2", "9x1", "2x0", "2x-1", "axb"])
def test_a_layout_that_cannot_be_is_refused(nodes: Any, text: str) -> None:
    with pytest.raises(ValueError, match="a layout is NODESxRANKS"):
        nodes.Layout.parse(text)


def test_a_layout_is_started_alike_by_everybody(nodes: Any, tmp_path: Path) -> None:
    layout = nodes.Layout.parse("2x4")
    assert (str(layout), layout.ranks, layout.place.listed) == ("2x4", 8, "a:4,b:4")
    found = across.contenders(Environments(tmp_path), list(PEERS), layout.place)
    assert {contender.name for contender in found} == {peer.shown for peer in PEERS.values()}
    for contender in found:
        assert "a:4,b:4" in contender.command or {"a,b", "-ppn", "4", "8"} <= set(contender.command)
        assert contender.env["PYTHONPATH"] == str(tmp_path / "modules")
        assert contender.nodes == 2


def test_who_polls_without_yielding_takes_part_where_there_is_a_core_for_each(tmp_path: Path) -> None:
    place = across.Place((("a", 1), ("b", 1)), "eth0", False, ("pmrun",))
    variants = [
        {contender.variant for contender in across.contenders(Environments(tmp_path), list(PEERS), where)}
        for where in (place, place._replace(crowded=True))
    ]
    assert variants[0] - variants[1] == {"single", "default", "polling"}


@pytest.mark.parametrize(
    ("place", "names", "text"),
    [
        (Nodes((("a", 1), ("me@b", 1))), ["mpich"], "do not take 'me@b': give it a name, and its user"),
        (Nodes((("a", 1), ("b", 2))), ["gloo", "impi"], "the same number of ranks on each host"),
        (Nodes((("a", 1), ("b", 1)), ssh=("ssh", "-p", "2222")), ["mpich"], "take an --ssh without options"),
    ],
)
def test_what_a_peers_launcher_cannot_do_is_refused(place: Nodes, names: list[str], text: str) -> None:
    with pytest.raises(UsageError, match=text):
        across.place_of(place, ["pmrun"], 2, names)


def test_the_interface_is_that_of_the_option_or_of_the_way() -> None:
    for interface in (None, "lo", "127.0.0.0/8"):
        place = across.place_of(Nodes((("127.0.0.1", 3),), interface=interface), ["pmrun"], 2, ["mpich"])
        assert (place.interface, place.crowded, place.ranks) == ("lo", True, 3)


def test_a_peer_that_ran_elsewhere_is_left_out() -> None:
    contender = Contender("Intel MPI", "yield", ("mpiexec",), ("python",), ("mpi", "multiple"), nodes=2)

    def on_one(contender: Contender, command: list[str], timeout_s: float) -> str:
        return '{"kind": "world", "ranks": 2, "nodes": [["a", 0]]}\n'

    with pytest.raises(GangFailed, match=r"Intel MPI \(yield\) ran on a instead of 2 nodes"):
        measured(contender, {}, 5.0, on_one)


def test_a_run_in_slices_counts_its_rounds_on(bench: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "nodes.jsonl"
    lines = [{"kind": "machine"}, *(node_line("MPICH", "single", 1.0, turn=turn) for turn in (0, 1))]
    lines.append({"kind": "nodes overlap", "ranks": "2x1", "mbit": 200, "round": 0})
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    counted = bench["bench_nodes"].rounds_of(path)
    assert counted == {("nodes point", "2x4", 0): 2, ("nodes overlap", "2x1", 200): 1}


def test_the_floor_is_that_of_the_same_round(report: Any) -> None:
    lines = [
        node_line(who, variant, us, turn=turn, ranks="2x1", op=op, bytes=size)
        for turn, slow in enumerate((1.0, 2.0))
        for who, variant, op, size, us in (
            ("plain TCP", "-", "round trip", 8, 10.0 * slow), ("plain TCP", "-", "exchange", 1 << 20, 90.0 * slow),
            ("pmrun", "tcp", "allreduce", 8, 12.0 * slow), ("pmrun", "tcp", "allreduce", 1 << 20, 100.0 * slow),
        )
    ]  # fmt: skip
    assert report.floor_rows(lines) == [
        ["tcp: rate each way of an allreduce of 1 MiB over plain TCP's", "0.90 (0.90–0.90)", "at least 0.8"],
        ["tcp: time of an allreduce of 8 B over plain TCP's there and back", "1.20 (1.20–1.20)", "at most 1.5"],
    ]


# ---- strangers --------------------------------------------------------------------------------------------------


def test_strangers_are_compared_within_a_turn(report: Any) -> None:
    lines = [
        {"kind": "nodes strangers", "round": 0, "turn": turn, "sort": sort, "step_us": us, "rate": 50.0, "ports": 3}
        | ({} if sort == "nobody" else {"accepted": 0, "refused": 1000})
        for turn, slow in enumerate((1, 3))
        for sort, us in (("nobody", 1000.0 * slow), ("strangers", 1020.0 * slow), ("elsewhere", 1010.0 * slow))
    ]
    assert [row[1] for row in report.strangers_rows(lines)] == [
        "2,000", "0", "2,000", "1.020 (1.020–1.020)", "1.010 (1.010–1.010)", "1.010 (1.010–1.010)",
    ]  # fmt: skip


def test_who_is_told_more_than_everybody_is_was_let_in(bench: dict[str, Any]) -> None:
    stranger = bench["stranger"]
    greeting = stranger.greeting(b"CURVE")
    for refused in (b"", greeting[:10], greeting, greeting + b"\x04\x0d\x05ERROR\x06no key"):
        assert not stranger.let_in(refused)
    for accepted in (bytes(64), greeting + b"\x04\x99\x07WELCOME"):
        assert stranger.let_in(accepted)
