# SPDX-License-Identifier: Apache-2.0
"""Slurm without Slurm: requests, what its commands say, and its log, read while it grows."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from pmrun.errors import EngineError, UsageError
from pmrun.launcher import cli
from pmrun.launcher.backends.slurm import answers, request
from pmrun.launcher.backends.slurm.client import SlurmClient
from pmrun.launcher.backends.slurm.commands import Answer
from pmrun.launcher.backends.slurm.why import explain
from pmrun.launcher.command_line import split
from pmrun.launcher.job import Job
from pmrun.launcher.submission.contract import Cursor, NoSuchJob, NotSignedIn, State, Transient

RUNNING = (
    "JobId=7 JobName=a name UserId=u(1) JobState=RUNNING Reason=None Restarts=1 ExitCode=0:0 SubmitTime=2026-11-24T15:00:00 "
    "StartTime=2026-11-24T15:00:01 EndTime=2026-11-24T15:10:01 NodeList=n[0-1] Comment=pmrun StdOut={log} Power=\n"
)


def job(arguments: str) -> Job:
    return cli.build_job(split(["--on", "slurm", *arguments.split()]))


class Commands:
    """Says what the test wants for each command's name."""

    def __init__(self, **said: Answer) -> None:
        self.said = said
        self.asked: list[Sequence[str]] = []

    def __call__(self, words: Sequence[str], text: str) -> Answer:
        self.asked.append(words)
        if list(words[:3]) == ["scontrol", "show", "hostnames"]:
            return Answer(0, "n0\nn1\n", "")
        return self.said[words[0]]


# ---- requests ---------------------------------------------------------------------------------------------


def test_the_words_of_sbatch() -> None:
    words = request.batch(
        job(
            "-n 6 --nodes 3 --queue day --gpu 2 --memory 2G --timeout 10m --job-name a/b --with account=x --with notice=90 "
            "--with exclusive=yes -- true"
        )
    )["command"]
    assert words == [
        "sbatch", "--parsable", "--job-name=a-b", "--comment=pmrun", "--nodes=3", "--ntasks-per-node=1",
        "--cpus-per-task=2", "--partition=day", "--gpus-per-node=2", "--mem=2048M", "--no-requeue", "--time=13",
        "--signal=TERM@90", "--exclusive", "--account=x",
    ]  # fmt: skip


@pytest.mark.parametrize("retries", ["0", "2"])
def test_the_script_is_one_that_a_shell_takes_and_hides_nothing_badly(retries: str) -> None:
    value = "it's $HOME; `false`"
    found = cli.build_job(
        split(["--on", "slurm", "-n", "2", "--retries", retries, "-x", f"A={value}", "--", "echo", value])
    )
    script = request.batch(found)["script"]
    subprocess.run(["sh", "-n"], input=script, text=True, check=True)
    exports = script.partition("PMRUN_SECRET")[0] + 'printf %s "$A"\n'
    assert subprocess.run(["sh"], input=exports, text=True, capture_output=True, check=True).stdout == value
    assert ("scontrol requeue" in script) == (retries != "0")
    assert script == request.batch(found)["script"], "the secret is made by the script"


def test_inside_an_allocation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    monkeypatch.setenv("SLURM_JOB_NUM_NODES", "3")
    words = request.step(job("-n 6 -- true"))["command"]
    assert words[:4] == ["srun", "--nodes=3", "--ntasks=3", "--ntasks-per-node=1"] and "--overlap" in words
    with pytest.raises(UsageError, match="this is an allocation of Slurm"):
        request.step(job("-n 6 --queue day -- true"))
    with pytest.raises(UsageError, match="--cwd none: there is no directory"):
        request.check_program(job("-n 6 --cwd none -- true"), {})


# ---- answers ----------------------------------------------------------------------------------------------


def test_a_running_job() -> None:
    client = SlurmClient(Commands(scontrol=Answer(0, RUNNING.format(log="/x/slurm-7.out"), "")))
    status = client.status("slurm/7")
    assert (status.name, status.state, status.attempt, status.title) == ("slurm/7", State.RUNNING, 1, "a name")
    assert [node.where for node in status.nodes] == ["n0", "n1"]
    assert status.started_s is not None and status.ended_s is None and status.exit_code is None


@pytest.mark.parametrize(
    ("state", "code", "found"),
    [
        ("COMPLETED", "0:0", (State.SUCCEEDED, 0)),
        ("FAILED", "3:0", (State.FAILED, 3)),
        ("FAILED", "0:9", (State.FAILED, 137)),
        ("TIMEOUT", "0:0", (State.FAILED, 124)),
        ("NODE_FAIL", "1:0", (State.FAILED, 76)),
        ("PREEMPTED", "0:15", (State.FAILED, 75)),
        ("OUT_OF_MEMORY", "0:125", (State.FAILED, 137)),
        ("CANCELLED", "0:15", (State.CANCELLED, None)),
        ("COMPLETING", "0:0", (State.RUNNING, None)),
        ("CONFIGURING", "0:0", (State.STARTING, None)),
        ("PENDING", "0:0", (State.QUEUED, None)),
    ],
)
def test_ends(state: str, code: str, found: tuple[State, int | None]) -> None:
    status = answers.job_status({"JobId": "7", "JobState": state, "ExitCode": code}, ())
    assert (status.state, status.exit_code) == found


def test_an_old_job_is_known_from_the_accounting() -> None:
    line = "7|CANCELLED by 1000|0:15|None|2026-11-24T15:00:00|Unknown|2026-11-24T15:10:01|None assigned|/x|a|b\n"
    gone = Answer(1, "", "slurm_load_jobs error: Invalid job id specified\n")
    client = SlurmClient(Commands(scontrol=gone, sacct=Answer(0, line, "")))
    status = client.status("slurm/7")
    assert (status.state, status.title, status.started_s, status.nodes) == (State.CANCELLED, "a|b", None, ())
    off = Answer(1, "", "Slurm accounting storage is disabled\n")
    with pytest.raises(NoSuchJob, match="Slurm knows no job slurm/7"):
        SlurmClient(Commands(scontrol=gone, sacct=off)).status("slurm/7")


def test_the_list_has_jobs_of_pmrun_newest_first() -> None:
    row = "\x1f".join
    lines = [
        row(["9", "RUNNING", "None", "pmrun", "2026-11-24T15:00:00", "N/A", "N/A", "one"]),
        row(["11", "PENDING", "Priority", "pmrun", "2026-11-24T15:00:00", "N/A", "N/A", "two"]),
        row(["12", "PENDING", "Priority", "(null)", "2026-11-24T15:00:00", "N/A", "N/A", "not ours"]),
    ]
    found = SlurmClient(Commands(squeue=Answer(0, "\n".join(lines), ""))).jobs()
    assert [(one.name, one.state, one.title) for one in found] == [
        ("slurm/11", State.QUEUED, "two"), ("slurm/9", State.RUNNING, "one"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("err", "kind", "text"),
    [
        ("sbatch: error: invalid partition specified: x\n", EngineError, "sbatch: invalid partition specified: x"),
        ("sbatch: error: Unable to contact slurm controller (connect failure)\n", Transient, "Unable to contact"),
        (
            "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation\n",
            Transient,
            "timed out",
        ),
        ("sbatch: error: Munge encode failed: Failed to connect\n", NotSignedIn, "Munge encode failed"),
        ("", EngineError, "sbatch: exit code 1"),
    ],
)
def test_errors(err: str, kind: type[EngineError], text: str) -> None:
    with pytest.raises(EngineError) as raised:
        SlurmClient(Commands(sbatch=Answer(1, "", err))).submit({"command": ["sbatch"], "script": ""})
    assert type(raised.value) is kind and text in str(raised.value) and "\n" not in str(raised.value)


def test_names() -> None:
    for name in ("slurm/", "slurm/x", "slurm/1_2", "slurm/٣"):
        with pytest.raises(UsageError, match="is no job of Slurm"):
            SlurmClient(Commands()).cancel(name)
    assert (
        SlurmClient(Commands(sbatch=Answer(0, "12;cluster\n", ""))).submit({"command": ["sbatch"], "script": ""})
        == "slurm/12"
    )


@pytest.mark.parametrize(
    ("reason", "what"),
    [
        ("Resources", "it is next, and waits until enough nodes are free"),
        ("QOSMaxCpuPerUserLimit", "a limit of your account or quality of service is reached (QOSMaxCpuPerUserLimit)"),
        ("ReqNodeNotAvail,_UnavailableNodes:n1", "nodes that it needs are down, drained or reserved"),
        ("Novelty", "Slurm says: Novelty"),
        ("None", "Slurm has not looked at it yet"),
    ],
)
def test_why_it_waits(reason: str, what: str) -> None:
    fields = {"JobId": "7", "JobState": "PENDING", "Reason": reason, "StartTime": "2026-11-24T18:00:00"}
    first, second = explain(fields)
    assert first.what == what and second.what == "Slurm expects to start it at 2026-11-24T18:00:00"


def test_how_it_died() -> None:
    assert "time limit" in explain({"JobState": "TIMEOUT"})[0].what
    found = explain({"JobId": "7", "JobState": "FAILED", "ExitCode": "3:0"})[0]
    assert (found.what, found.remedy) == ("it ended with exit code 3", "the report is in: pmrun logs slurm/7")
    assert explain({"JobState": "RUNNING"}) == []


# ---- the log ----------------------------------------------------------------------------------------------


def test_a_growing_log(tmp_path: Path) -> None:
    log = tmp_path / "slurm-7.out"
    commands = Commands(scontrol=Answer(0, RUNNING.format(log=log), ""))
    client = SlurmClient(commands)
    cursor = Cursor()

    def more() -> list[bytes]:
        nonlocal cursor
        lines, cursor = client.read_logs("slurm/7", cursor)
        return [line.text for line in lines]

    assert more() == []
    log.write_bytes(b"one\n\ntw")
    assert more() == [b"one", b""]
    log.write_bytes(b"one\n\ntwo")
    assert more() == [], "it grew"
    assert more() == [b"two"], "it did not"
    log.write_bytes(b"one\n\ntwo\nthree\n" + b"x" * (1 << 20) + b"yz\n")
    assert more() == [b"three"]
    assert more() == [b"x" * (1 << 20)] and more() == [b"yz"] and more() == []
    assert len(commands.asked) == 1, "where it is, is asked once"


def test_a_log_on_another_machine(tmp_path: Path) -> None:
    client = SlurmClient(Commands(scontrol=Answer(0, RUNNING.format(log=tmp_path / "there" / "log"), "")))
    with pytest.raises(EngineError, match=r"there is no .*there on this machine: ask on one that has it"):
        client.read_logs("slurm/7", Cursor())
