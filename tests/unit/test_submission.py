# SPDX-License-Identifier: Apache-2.0
"""Jobs for an engine: their options, the nodes' command, and the commands that ask about them.

The engine is one in memory, found as another distribution's backend is: through an entry point.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import engine_in_memory
import pytest
from engine_in_memory import NAME, Engine, World

from pmrun.errors import UsageError
from pmrun.launcher import cli
from pmrun.launcher.command_line import split
from pmrun.launcher.job import Job, Submission
from pmrun.launcher.submission import read
from pmrun.launcher.submission.contract import JobStatus, LogLine, NodeStatus, State
from pmrun.launcher.submission.node_command import agent_words

_BACKEND = """\
import engine_in_memory
from pmrun.launcher.submission.backend import EngineBackend

class Backend(EngineBackend):
    def client(self):
        return engine_in_memory.current
"""


@pytest.fixture(autouse=True)
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Engine:
    """The backend `toy`, installed; its job is over."""
    (tmp_path / "toy_backend.py").write_text(_BACKEND)
    info = tmp_path / "toy_backend-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toy-backend\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[pmrun.backends]\ntoy = toy_backend\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "toy_backend", raising=False)
    monkeypatch.chdir(tmp_path)
    nodes = (NodeStatus(0, State.FAILED, "n0", "exit code 3"), NodeStatus(1, State.SUCCEEDED, "n1"))
    status = JobStatus(NAME, State.FAILED, "exit code 3", exit_code=3, nodes=nodes, title="train")
    lines = [
        LogLine(0, 1000.0, b"[ 0 a] zero"), LogLine(0, 2000.0, b"[11 b] eleven"), LogLine(1, 2000.0, b"pmrun: a word"),
    ]  # fmt: skip
    engine = Engine(World(), [(0.0, status)], [(0.0, line) for line in lines])
    monkeypatch.setattr(engine_in_memory, "current", engine, raising=False)
    return engine


def job(arguments: str) -> Job:
    return cli.build_job(split(arguments.split()))


# ---- options ----------------------------------------------------------------------------------------------


def test_what_a_job_for_an_engine_keeps() -> None:
    found = job(
        "-n 32 --on toy --nodes 4 --image i --queue q --cpu 8 --gpu 1 --memory 16G --shared-memory 512MiB --retries 2 "
        "--with a=1 --with toy:b=2 --with slurm:c=3 --detach --on-interrupt cancel --cwd /app -m pkg.train --lr 0.1"
    )
    assert found.submission == Submission(
        image="i", queue="q", cpu=8.0, gpu=1, memory_mib=16384, shared_memory_mib=512, retries=2,
        settings=(("a", "1"), ("b", "2")), detach=True, on_interrupt="cancel",
    )  # fmt: skip
    assert found.command == ("-m", "pkg.train", "--lr", "0.1")
    assert (found.world_size, found.nodes.count, found.cwd) == (32, 4, "/app")


def test_a_table_of_the_file_is_for_its_engine(tmp_path: Path) -> None:
    (tmp_path / "pmrun.toml").write_text('on = "toy"\n[toy]\nregion = "eu"\nports = [1, 2]\n[local]\nregion = "us"\n')
    found = job("-n 2 x.py").submission
    assert found is not None
    assert found.settings == (("region", "eu"), ("ports", "1"), ("ports", "2"))
    (tmp_path / "pmrun.toml").write_text('[tooy]\nregion = "eu"\n')
    with pytest.raises(UsageError, match="unknown key 'tooy'"):
        job("-n 2 x.py")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ("--on toy x.py", "--on toy: say how many ranks there are on all nodes together: -n N"),
        ("--on toy -n 2 --nodes 3 x.py", "-n 2: that is less than one rank for each of 3 nodes"),
        ("--on toy -n 4 --nodes 2:4 x.py", "--nodes 2:4: a job on toy has all its nodes or none"),
        ("--on toy -n 4 --hosts a:4 x.py", "--hosts has no meaning with --on toy, which finds the nodes itself"),
        ("--on toy -n 4 --json-events e x.py", "--json-events: the job runs elsewhere"),
        ("--on toy -n 4 --stdin all x.py", "--stdin all: nobody can type to a job on toy"),
        ("--on toy -n 4", "nothing to run"),
        ("--on toy -n 4 --memory 16 x.py", "--memory '16': an amount of memory is a whole number with a unit"),
        ("--on toy -n 4 --cpu none x.py", "--cpu 'none': the number of CPUs of each node is above 0"),
        ("--on toy -n 4 --with color x.py", "--with 'color': write KEY=VALUE"),
        ("--on toy -n 4 --on-interrupt stay x.py", "there is no answer 'stay'"),
        ("--image i x.py", "--image is for a job on an engine, and this one has none: give --on"),
    ],
)
def test_options_that_do_not_fit(arguments: str, line: str, tmp_path: Path) -> None:
    (tmp_path / "x.py").touch()
    with pytest.raises(UsageError) as refused:
        job(arguments)
    assert line in str(refused.value)


_KEYS = (
    read.Key("partition", str, "where it waits"),
    read.Key("licenses", int, "how many", many=True),
)


def test_keys_of_an_engine() -> None:
    given = Submission(settings=(("licenses", "1"), ("partition", "p"), ("licenses", "2")))
    assert read.read_keys("toy", given, _KEYS) == {"licenses": (1, 2), "partition": "p"}


@pytest.mark.parametrize(
    ("key", "value", "line"),
    [
        (
            "partitoin",
            "p",
            "--with partitoin: toy has no such key (did you mean partition?); it has: licenses, partition",
        ),
        ("queue", "q", "--with queue: toy has no such key; it is an option: --queue"),
        ("licenses", "many", "--with licenses=many: invalid literal"),
    ],
)
def test_keys_that_it_does_not_have(key: str, value: str, line: str) -> None:
    with pytest.raises(UsageError) as refused:
        read.read_keys("toy", Submission(settings=((key, value),)), _KEYS)
    assert line in str(refused.value)


def test_general_options_that_an_engine_does_not_have() -> None:
    read.check_options("toy", Submission(queue="q"), frozenset({"queue"}))
    with pytest.raises(UsageError, match="--shared-memory has no meaning with --on toy; leave it out"):
        read.check_options("toy", Submission(queue="q", shared_memory_mib=1), frozenset({"queue"}))


@pytest.mark.parametrize(
    ("arguments", "title"),
    [("x/train.py a", "train"), ("-m pkg.train", "pkg.train"), ("-- ./sim 3", "sim"), ("--job-name mine x.py", "mine")],
)
def test_titles(arguments: str, title: str) -> None:
    assert read.title_of(job(f"-n 2 --on toy {arguments}")) == title


# ---- the nodes' command -----------------------------------------------------------------------------------


def test_the_nodes_command_says_only_what_was_said() -> None:
    assert agent_words(job("-n 8 --on toy --nodes 2 -x A=1 train.py --lr 1")) == [
        "agent", "-n", "8", "--nnodes", "2", "train.py", "--lr", "1",
    ]  # fmt: skip


def test_the_nodes_command_means_the_same_job(tmp_path: Path) -> None:
    (tmp_path / "x.py").touch()
    (tmp_path / "key").write_bytes(bytes(32))
    (tmp_path / "key").chmod(0o600)
    options = (
        "--cwd . --map-by core --bind-to none --timeout 1e6 --start-timeout 12.5 --grace 0 --hang-timeout none --on-hang report "
        "--max-restarts 3 --pdb-on-error --no-tag --timestamp --only-ranks 0,2-4 --output-dir out --transport tcp "
        "--reproducible --encrypt --interface eth0"
    )
    there = job(f"-n 8 --on toy --nodes 2 {options} x.py a b")
    words = [word for word in agent_words(there) if word != "agent"]
    here = cli.build_job(split(["--on", "by_hand", "--main", "a", "--secret-file", "key", *words]))
    for field in set(Job.__struct_fields__) - {"backend", "submission", "nodes", "command", "cwd", "output", "stdin"}:
        assert getattr(here, field) == getattr(there, field), field
    assert here.command[1:] == there.command
    assert here.output.only_ranks == there.output.only_ranks and here.output.directory == str(tmp_path / "out")


# ---- commands ---------------------------------------------------------------------------------------------


def said(capfdbinary: pytest.CaptureFixture[bytes], *words: str) -> tuple[int, str, str]:
    code = cli.main(list(words))
    out, err = capfdbinary.readouterr()
    return code, out.decode(), err.decode()


def test_submit_and_follow(capfdbinary: Any, engine: Engine) -> None:
    code, out, err = said(capfdbinary, "-n", "2", "--on", "toy", "x.py")
    assert code == 3
    assert out == "[ 0 a] zero\n[11 b] eleven\n[node 1] pmrun: a word\n"
    assert err == "pmrun: submitted toy/1\npmrun: toy/1 has failed: exit code 3\n"
    assert engine.calls[0][1] == "submit"


def test_detach_and_dry_run(capfdbinary: Any, engine: Engine) -> None:
    assert said(capfdbinary, "-n", "2", "--on", "toy", "--detach", "x.py") == (0, "toy/1\n", "")
    engine.calls.clear()
    code, out, _ = said(capfdbinary, "-n", "2", "--on", "toy", "--dry-run", "x.py")
    assert (code, json.loads(out), engine.calls) == (0, {"command": ["x.py"]}, [])


def test_status_and_why(capfdbinary: Any) -> None:
    code, out, _ = said(capfdbinary, "status", NAME)
    assert code == 0 and out.splitlines() == [
        "toy/1  failed (exit code 3)  train", "  reason   exit code 3", "  node 0  failed  n0: exit code 3",
        "  node 1  succeeded  n1",
    ]  # fmt: skip
    found = json.loads(said(capfdbinary, "status", "--json", NAME)[1])
    assert (found["state"], found["exit_code"], found["nodes"][0]["where"]) == ("failed", 3, "n0")
    assert said(capfdbinary, "why", NAME) == (0, "no node is free; wait, or ask for less\n", "")
    assert json.loads(said(capfdbinary, "why", NAME, "--json")[1])[0]["what"] == "no node is free"


def test_list_and_cancel(capfdbinary: Any, engine: Engine) -> None:
    assert said(capfdbinary, "list", "--on", "toy") == (0, "toy/1  failed     train\n", "")
    assert json.loads(said(capfdbinary, "list", "--on", "toy", "--json")[1])[0]["name"] == NAME
    assert said(capfdbinary, "cancel", NAME) == (0, "toy/1 is over: failed\n", "")
    engine.states = [(0.0, JobStatus(NAME, State.RUNNING))]
    assert said(capfdbinary, "cancel", NAME) == (0, "toy/1 is being cancelled\n", "")
    assert engine.cancelled


def test_logs(capfdbinary: Any) -> None:
    assert said(capfdbinary, "logs", NAME)[1].splitlines() == ["[ 0 a] zero", "[11 b] eleven", "[node 1] pmrun: a word"]
    assert said(capfdbinary, "logs", NAME, "--rank", "11") == (0, "[11 b] eleven\n", "")
    assert said(capfdbinary, "logs", "--since", "1970-01-01T00:30:00+00:00", NAME)[1].splitlines()[0] == "[11 b] eleven"
    code, out, _ = said(capfdbinary, "logs", NAME, "--follow", "--rank", "0", "--json")
    assert (code, json.loads(out)) == (3, {"node_rank": 0, "time_s": 1000.0, "text": "[ 0 a] zero"})


@pytest.mark.parametrize("command", ["status", "logs", "cancel", "list", "why"])
def test_help_and_bad_input(command: str, capfdbinary: Any) -> None:
    code, out, _ = said(capfdbinary, command, "--help")
    assert code == 0 and out.startswith(f"pmrun {command} ")
    code, _, err = said(capfdbinary, command, "local/1", "more")
    assert code == 2 and err.startswith(f"pmrun: write: pmrun {command} ") and err.count("\n") == 1
    if command != "list":
        code, _, err = said(capfdbinary, command, "local/1")
        assert code == 2 and "'local/1' is no job of an engine" in err
