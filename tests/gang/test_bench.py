# SPDX-License-Identifier: Apache-2.0
"""`pmrun bench` with real ranks: what it prints, writes and refuses."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import gang_helper
from pmrun.bench.points import COLLECTIVES, GROUPS
from pmrun.launcher.bench.record import FORMAT

SHORT = ("--time", "1ms", "--warm-up", "1")
PEERS = Path(__file__).resolve().parents[2] / ".venv-bench"


def bench(*words: str, cwd: Path | None = None, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(gang_helper.COMMAND), "bench", *words], cwd=cwd, env={**os.environ, **env}, stdin=subprocess.DEVNULL,
        text=True, capture_output=True, timeout=60, check=False,
    )  # fmt: skip


def rows(out: str) -> list[list[str]]:
    """Lines of the table, in cells."""
    return [re.split(r"  +", line) for line in out.splitlines() if line]


def test_a_table_of_one_operation(tmp_path: Path) -> None:
    run = bench("-n", "2", *SHORT, "--sizes", "8,64K", "allreduce", cwd=tmp_path)
    assert (run.returncode, run.stderr) == (0, "")
    title, head, *lines = run.stdout.replace("\n\n", "\n").splitlines()
    assert title.startswith("pmrun bench: 2 ranks on ") and title.endswith("float32, sum")
    assert [re.split(r"  +", line)[:2] for line in lines] == [["allreduce", "8 B"], ["allreduce", "64 KiB"]]
    assert len({len(line) for line in (head, *lines)}) == 1, "all lines end in the same column"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("memory", ["private", "library"])
def test_everything_is_measured_and_kept(tmp_path: Path, memory: str) -> None:
    path = tmp_path / "new.json"
    words = ["-n", "3", *SHORT, "--sizes", "8,4K", "--check", "--memory", memory, "--json", str(path)]
    run = bench(*words)
    assert (run.returncode, run.stderr) == (0, "")
    kept = json.loads(path.read_text())
    assert (kept["format"], kept["complete"]) == (FORMAT, True)
    settings = kept["settings"]
    assert (settings["ranks"], settings["dtype"], settings["op"], settings["check"]) == (3, "float32", "sum", True)
    assert {"cpu", "cores", "kernel", "date", "transport", "loop_s", "nodes"} <= set(settings)
    by_kind: dict[str, list[dict[str, object]]] = {}
    for line in kept["lines"]:
        by_kind.setdefault(line["kind"], []).append(line)
        assert (line["contender"], line["variant"], line["ranks"]) == ("pmrun", memory, 3)
    assert {line["op"] for line in by_kind["point"]} == {*GROUPS["p2p"], *COLLECTIVES}
    assert {line["op"] for line in by_kind["overlap"]} == {f"i{op}" for op in COLLECTIVES}
    assert [len(line["names"]) for line in by_kind["pairs"]] == [3]
    assert all(len(line["loops_us"]) == 5 and min(line["loops_us"]) > 0 for line in by_kind["point"])
    assert all(0 <= line[name] <= 100 for line in by_kind["overlap"] for name in ("osu_percent", "imb_percent"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "op"), [("int8", "prod"), ("float64", "max"), ("bfloat16", "sum"), ("complex64", "sum")]
)
def test_results_are_checked_in_every_dtype(dtype: str, op: str) -> None:
    words = ["-n", "4", *SHORT, "--sizes", "24,10000", "--check", "--dtype", dtype, "--op", op, "collectives"]
    run = bench(*words)
    assert (run.returncode, run.stderr) == (0, ""), run.stdout


def test_a_comparison_with_an_earlier_run(tmp_path: Path) -> None:
    path = tmp_path / "old.json"
    words = ["-n", "2", *SHORT, "--sizes", "8,1K", "broadcast", "iallreduce"]
    assert bench(*words, "--json", str(path)).returncode == 0
    old = json.loads(path.read_text())
    points = [line for line in old["lines"] if line["kind"] == "point"]
    points[0]["loops_us"] = [1e-4] * 5  # nothing is that fast
    points[1]["loops_us"] = [1e9] * 5
    path.write_text(json.dumps(old))
    run = bench(*words, "--compare", str(path))
    assert run.returncode == 0, run.stderr
    marks = [cells[-1].split()[-1] for cells in rows(run.stdout) if cells[0] == "broadcast"]
    assert marks == ["slower", "faster"]
    assert "1 of 2 points that both have are slower beyond the spread of both" in run.stdout


@pytest.mark.slow
@pytest.mark.parametrize("name", ["p.png", "p.svg"])
def test_a_plot(tmp_path: Path, name: str) -> None:
    pytest.importorskip("matplotlib")
    run = bench("-n", "2", *SHORT, "--sizes", "8,1K", "--plot", name, "allreduce", "barrier", cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    start = (tmp_path / name).read_bytes()[:200]
    assert start.startswith(b"\x89PNG") or b"<?xml" in start


def test_a_gang_that_fails_keeps_what_it_measured(tmp_path: Path) -> None:
    path = tmp_path / "new.json"
    run = bench(
        "-n", "2", "--time", "20s", "--sizes", "8", "--timeout", "2s", "--json", str(path), "barrier", "allreduce"
    )
    assert run.returncode == 124
    assert "--timeout" in run.stderr or "time" in run.stderr
    assert not path.exists() or json.loads(path.read_text())["complete"] is False


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["-n", "1"], "this gang has one: give at least -n 2"),
        (["-n", "2", "alreduce"], "there is no operation 'alreduce' (did you mean allreduce?)"),
        (["-n", "2", "--sizes", "8,x"], "--sizes '8,x': a size is a number of bytes"),
        (["-n", "2", "--min", "1M", "--max", "1K"], "--min 1048576 is above --max 1024"),
        (["-n", "2", "--dtype", "float31"], "there is no dtype 'float31' (did you mean float32?)"),
        (["-n", "2", "--json", "no/where.json"], "--json no/where.json: there is no directory"),
        (["-n", "2", "--compare", "none.json"], "--compare none.json: No such file"),
        (["-n", "2", "--plot", "x.gif"], "a plot is a .png or an .svg"),
        (["-n", "2", "--peers", "mpich", "--peers-dir", "none"], "MPICH is not installed in "),
        (["-n", "2", "--peers", "nccl"], "there is no peer 'nccl'"),
        (["-n", "2", "--", "true"], "runs no program of yours"),
        (["-n", "2", "--gracee", "5"], "unknown option --gracee (did you mean --grace?); see pmrun bench --help"),
        (["-n", "x"], "-n 'x': the number of ranks is a whole number"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_one_line(tmp_path: Path, words: list[str], text: str) -> None:
    run = bench(*words, cwd=tmp_path)
    assert (run.returncode, run.stdout) == (2, "")
    assert text in run.stderr and run.stderr.count("\n") == 1, run.stderr
    assert list(tmp_path.iterdir()) == []


def test_help_and_dry_run() -> None:
    run = bench("--help")
    assert run.returncode == 0
    assert all(op in run.stdout for op in (*COLLECTIVES, *GROUPS, "--compare", "--peers"))
    run = bench("-n", "2", "--dry-run", "allreduce")
    assert run.returncode == 0 and json.loads(run.stdout)["ranks"][1]["command"][1:3] == ["-m", "pmrun.bench"]


@pytest.mark.slow
@pytest.mark.parametrize("peer", ["mpich", "openmpi", "impi", "gloo"])
def test_peers_take_turns(tmp_path: Path, peer: str) -> None:
    from pmrun.launcher.bench.peers import Environments

    if peer not in Environments(PEERS).available():
        pytest.skip(f"{peer} is not installed: python benchmarks/peers.py does it")
    path = tmp_path / "new.json"
    words = ["-n", "2", *SHORT, "--sizes", "8", "--peers", peer, "--peers-dir", str(PEERS), "--rounds", "2"]
    run = bench(*words, "allreduce", "latency", "iallreduce", "--json", str(path))
    assert run.returncode == 0, run.stderr
    assert [cells[0] for cells in rows(run.stdout)].count("allreduce") == 1
    lines = json.loads(path.read_text())["lines"]
    assert {(line["contender"] == "pmrun", line["round"]) for line in lines} == {
        (who, t) for who in (True, False) for t in (0, 1)
    }
    assert "best peer's time over pmrun's" in run.stdout


def test_the_ranks_part_needs_no_pmrun() -> None:
    code = "import sys, pmrun_bench.points, pmrun_bench.measure, pmrun_bench.bindings; print('pmrun' in sys.modules)"
    folder = Path(os.environ["TMPDIR"]) / "without"
    folder.mkdir()
    (folder / "pmrun_bench").symlink_to(Path(__file__).resolve().parents[2] / "src" / "pmrun" / "bench")
    run = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(folder)},
        text=True,
        capture_output=True,
        check=False,
    )
    assert run.stdout == "False\n", run.stderr
    (folder / "pmrun_bench").unlink()
    folder.rmdir()
