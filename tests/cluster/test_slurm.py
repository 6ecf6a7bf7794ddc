# SPDX-License-Identifier: Apache-2.0
"""Jobs on a real Slurm of three machines: the same program, the same ends, as on one."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import slurm_cluster

import gang_helper
import machines

pytestmark = pytest.mark.skipif(bool(slurm_cluster.why_not()), reason=slurm_cluster.why_not() or "it is there")


@pytest.fixture(scope="module")
def slurm(machines_of_the_session: machines.Cluster) -> Iterator[slurm_cluster.Slurm]:
    slurm = slurm_cluster.Slurm(machines_of_the_session, machines_of_the_session.folder / "slurm")
    yield slurm
    slurm.close()


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where jobs are submitted from, and write their logs."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def login(slurm: slurm_cluster.Slurm, pmrun: Callable[..., tuple[int, str, str]]):
    """Run pmrun where jobs are submitted."""

    def go(*words: str, **environ: str) -> tuple[int, str, str]:
        return pmrun("d", *words, env={**slurm.environ, **environ})

    return go


TRAIN = """
import hashlib, sys
import numpy as np
import pmrun as pm
world = pm.init()
rng = np.random.default_rng(world.rank)
x, y, weights = rng.standard_normal((64, 8)), rng.standard_normal(64), np.zeros(8)
for step in range(20):
    weights -= 0.1 * world.allreduce(x.T @ (x @ weights - y)) / (64 * world.size)
print("weights", hashlib.sha256(weights.tobytes()).hexdigest()[:16], flush=True)
"""
WAIT = "import os, signal; print('ready', os.getpid(), flush=True); signal.pause()"
SAVE = """
import os, time
import pmrun as pm
world = pm.init()
pm.should_stop()  # from here on SIGTERM ends nobody
print("ready" if os.environ.get("SLURM_RESTART_COUNT", "0") == "0" else "resumed", flush=True)
while "SLURM_RESTART_COUNT" not in os.environ:
    if pm.should_stop():
        raise SystemExit(pm.RESUMABLE)
    world.barrier()
"""


@pytest.fixture
def program(tmp_path: Path) -> Callable[[str], str]:
    def write(text: str) -> str:
        path = tmp_path / "program.py"
        path.write_text(text)
        return str(path)

    return write


def weights(output: str) -> set[str]:
    return set(re.findall(r"weights (\w{16})", output))


def test_the_same_weights_as_on_one_machine(login, program, pmrun) -> None:
    words = ["-n", "4", program(TRAIN)]
    code, out, err = login("--on", "slurm", "--nodes", "2", "--job-name", "train", *words)
    assert code == 0, out + err
    assert out.count("weights") == 4 and re.search(r"\[3 b\] weights", out), out
    alone = pmrun("a", *words)
    assert len(weights(out)) == 1 and weights(out) == weights(alone[1]), alone

    job = re.search(r"slurm/\d+", err)[0]
    status = json.loads(login("status", job, "--json")[1])
    assert (status["state"], status["exit_code"], status["title"]) == ("succeeded", 0, "train")
    assert [node["where"] for node in status["nodes"]] == ["a", "b"]
    assert login("logs", job)[1] == out
    assert set(login("logs", job, "--rank", "3")[1].splitlines()) == {
        line for line in out.splitlines() if line.startswith("[3 b]")
    }
    assert login("list", "--on", "slurm")[1].splitlines()[0] == f"{job}  succeeded  train"


def test_a_killed_rank_ends_the_job_and_is_named(start, slurm, cluster) -> None:
    words = ["--on", "slurm", "-n", "3", "--nodes", "3", "--", "python3", "-c", WAIT]
    job = start("d", *words, env=slurm.environ)
    job.read_until(3)
    victim = next(
        pid for pid, words in cluster["c"].processes().items() if "signal.pause" in words and "pmrun" not in words
    )
    os.kill(victim, signal.SIGKILL)
    for name in slurm_cluster.NODES:
        cluster[name].until_quiet()
    code, out, err = job.finish()
    assert code == 137 and "rank 2 failed first: killed by SIGKILL (node c" in out, out + err
    assert "has failed" in err


def test_notice_and_retry(start, slurm, program) -> None:
    words = ["--on", "slurm", "-n", "2", "--nodes", "2", "--retries", "1", "--grace", "20", program(SAVE)]
    job = start("d", *words, env=slurm.environ)
    job.read_until(2)
    number = slurm.says("squeue", "-h", "-o", "%i", "-t", "RUNNING")
    slurm.says("scancel", "--signal=TERM", number)
    slurm.until(lambda: "BeginTime" in slurm.says("squeue", "-h", "-o", "%r"), "the job in the queue again")
    slurm.says("scontrol", "update", f"JobId={number}", "StartTime=now")  # Slurm would wait for two minutes
    code, out, err = job.finish()
    assert code == 0, out + err
    assert "pmrun: exit code 75; retry 1 of 1 goes into the queue" in out and out.count("] resumed") == 2
    assert f"slurm/{number} is queued" in err


def test_inside_an_allocation(slurm, cluster, program) -> None:
    words = ["salloc", "--quiet", "--nodes=2", "--cpus-per-task=2", "--ntasks-per-node=1"]
    command = [str(gang_helper.COMMAND), "-n", "4", "--on", "slurm", program(TRAIN)]
    done = cluster["d"].run(*words, *command, env=slurm.environ)
    assert done.returncode == 0 and done.stdout.count("weights") == 4, done
    assert "is node 1 of 2 (srun " in done.stderr


def test_init_under_srun_itself(slurm, cluster, program, tmp_path: Path, pmrun) -> None:
    key = str(tmp_path / "key")
    assert pmrun("d", "secret", key)[0] == 0
    words = ["srun", "--nodes=2", "--ntasks=4", "--ntasks-per-node=2", sys.executable, program(TRAIN)]
    done = cluster["d"].run(*words, env={**slurm.environ, "PMRUN_SECRET_FILE": key})
    assert done.returncode == 0 and len(weights(done.stdout)) == 1 and done.stdout.count("weights") == 4, done


def test_a_job_that_waits(login, slurm) -> None:
    code, job, err = login("--on", "slurm", "-n", "2", "--with", "begin=now+1hour", "--detach", "--", "true")
    assert code == 0, err
    job = job.strip()
    assert login("status", job)[1].startswith(f"{job}  queued  true\n")
    assert login("why", job)[1].startswith("its time to begin has not come")
    assert login("cancel", job) == (0, f"{job} is being cancelled\n", "")
    assert json.loads(login("status", job, "--json")[1])["state"] == "cancelled"
    assert login("cancel", job) == (0, f"{job} is over: cancelled\n", "")


@pytest.mark.parametrize(
    ("words", "code", "line"),
    [
        (["--queue", "night", "--", "true"], 69, "sbatch: invalid partition specified: night"),
        (["nothing.py"], 2, "cannot find script 'nothing.py'"),
        (["--image", "i", "--", "true"], 2, "--image has no meaning with --on slurm"),
        (["--with", "patition=x", "--", "true"], 2, "--with patition: slurm has no such key"),
    ],
)
def test_what_is_refused(login, words: list[str], code: int, line: str) -> None:
    said = login("--on", "slurm", "-n", "2", *words)
    assert said[0] == code and said[2].startswith(f"pmrun: {line}") and said[2].count("\n") == 1, said


def test_a_job_that_slurm_does_not_know(login) -> None:
    code, _, err = login("status", "slurm/424242")
    assert code == 69 and err.startswith("pmrun: Slurm knows no job slurm/424242: ") and err.count("\n") == 1
