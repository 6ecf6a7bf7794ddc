# SPDX-License-Identifier: Apache-2.0
"""Hangs of every kind under the real command: named within the timeout and two seconds, with all ranks' stacks."""

import json
import os
import signal
import subprocess
import sys
import textwrap

import pytest

import gang_helper
from pmrun.errors import ExitCode

TIMEOUT_S = 0.5
# Four lines. The ranks meet in the store first, as its waits are no hang: they do not start at the same moment.
HEAD = """import ctypes, os, select, signal
import pmrun as pm; world = pm.init(); pm.store.set(f"here/{world.rank}", b"")
pm.store.wait([f"here/{rank}" for rank in range(pm.world_size())])
world.barrier()
"""
SPINS = """
def load_batch():
    while True: pass
if world.rank == 2:
    load_batch()
world.iallreduce(1.0).wait()
"""
STOPPED = """
if world.rank == 2:
    os.kill(os.getpid(), signal.SIGSTOP)
world.allreduce(1.0)
"""
INSIDE_C = """
def load_batch():
    ctypes.PyDLL(None).pause()
if world.rank == 2:
    load_batch()
world.allreduce(1.0)
"""
CROSSED = """
a, b = world.dup(), world.dup()
first, second = (b, a) if world.rank == 2 else (a, b)
first.barrier()
second.barrier()
"""
MESSAGE = """
if world.rank == 0:
    world.recv_object(source=2)
elif world.rank == 2:
    pm.store.get("never")
"""


def run(tmp_path, body, *options, check=True):
    script = tmp_path / "train.py"
    script.write_text(HEAD + textwrap.dedent(body).lstrip())
    events = tmp_path / "events.json"
    command = [
        str(gang_helper.COMMAND),
        "-n",
        "3",
        "--hang-timeout",
        f"{TIMEOUT_S}",
        "--grace",
        "0",
        "--json-events",
        str(events),
    ]
    done = subprocess.run([*command, *options, str(script)], capture_output=True, text=True, timeout=60, cwd=tmp_path)
    return done, [json.loads(line) for line in events.read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("body", "headline"),
    [
        (SPINS, "rank 2 never entered allreduce #2 at train.py:9 in <module>; it is at train.py:6 in load_batch (computing"),
        (STOPPED, "rank 2 never entered allreduce #2 at train.py:7 in <module>; it is at train.py:6 in <module> (stopped (SIGSTOP"),
        (INSIDE_C, "rank 2 never entered allreduce #2 at train.py:9 in <module>; it is at train.py:6 in load_batch (sleeping in"),
        (CROSSED, "deadlock: rank 0 waits in barrier #1 of communicator 1 at train.py:7 in <module>, which rank 2 has not entered"),
    ],
    ids=["spins", "stopped", "inside_c", "crossed"],
)  # fmt: skip
def test_the_culprit_is_named(tmp_path, body, headline):
    done, events = run(tmp_path, body)
    assert done.returncode == ExitCode.HANG, done
    first, *rest = done.stderr.splitlines()
    assert first.startswith(f"pmrun: hang: {headline}"), done.stderr
    assert rest[-1].startswith(f"pmrun: the job is ended by its --hang-timeout of {TIMEOUT_S:g} s: ")
    assert any(line.startswith("    train.py:") for line in rest), "stacks"
    hang = next(event for event in events if event["event"] == "hang")
    started = next(event for event in events if event["event"] == "gang_started")
    imports_s = 5.0  # of pmrun in three ranks, and the call
    assert hang["time"] - started["time"] < TIMEOUT_S + 2.0 + imports_s
    kept = subprocess.run([str(gang_helper.COMMAND), "explain-last"], capture_output=True, text=True, check=True).stdout
    assert kept.endswith(done.stderr) and f"exit code {ExitCode.HANG}:" in kept


@pytest.mark.slow
def test_a_message_that_never_comes_and_a_key_that_is_never_set(tmp_path):
    done, _ = run(tmp_path, MESSAGE)
    assert done.returncode == ExitCode.HANG, done
    assert done.stderr.startswith("pmrun: hang: rank 0 has waited in recv from rank 2 at train.py:6 in <module> for ")
    assert "  rank 2 (pid " in done.stderr and "is in the store for key 'never' since" in done.stderr


@pytest.mark.slow
def test_the_job_may_go_on(tmp_path):
    done, events = run(
        tmp_path,
        "if world.rank == 1:\n    select.select([], [], [], 0.7)\nworld.barrier()\nprint('well')",
        "--on-hang=report",
    )
    assert done.returncode == 0 and done.stdout.count("well") == 3
    assert "pmrun: hang: rank 1 never entered barrier #2" in done.stderr
    assert "pmrun: the job goes on (--on-hang=report)" in done.stderr
    assert events[-1]["event"] == "gang_ended" and "first_cause" not in [event["event"] for event in events]


@pytest.mark.slow
def test_what_is_no_hang(tmp_path):
    """Ranks that compute while nobody waits for them, and others that wait for one in a debugger."""
    body = """
    select.select([], [], [], 0.5)
    if world.rank == 1:
        ctypes.CDLL(None).ptrace(0, 0, 0, 0)
        select.select([], [], [], 0.6)
    world.barrier()
    """
    done, _ = run(tmp_path, body)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.slow
def test_sigquit_shows_where_all_are_and_the_job_goes_on(launch, tmp_path):
    script = tmp_path / "train.py"
    script.write_text(
        HEAD
        + """
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
print('ready', flush=True)
if world.rank == 1:
    signal.sigwait([signal.SIGUSR1])
world.barrier()
"""
    )
    job = launch([sys.executable, str(script)], 2)
    job.read_until(2)
    job.signal(signal.SIGQUIT)
    seen = b""
    while b"rank 1 (pid %d)" % job.ranks()[1] not in seen:
        data = os.read(job.process.stderr.fileno(), 65536)
        assert data, seen
        seen += data
    os.kill(job.ranks()[1], signal.SIGUSR1)
    rc, _, err = job.finish()
    assert rc == 0
    assert (seen + err).decode().startswith("pmrun: SIGQUIT: ")


RESUMES = """
import sys
attempt, checkpoint = int(os.environ["PMRUN_ATTEMPT"]), pm.Checkpoint(sys.argv[1])
step, total = checkpoint.load(0)
print(f"attempt {attempt} goes on from {step} with {total}", flush=True)
for step in range(step, 6):
    if step == 3 and world.rank == 1 and attempt == 0:
        signal.sigwait([signal.SIGUSR1])
    total = int(world.allreduce(1.0)) + total
    checkpoint.save(step + 1, total)
print(f"total {total}", flush=True)
"""


@pytest.mark.slow
def test_a_gang_that_hung_goes_on_from_its_checkpoint(tmp_path):
    script = tmp_path / "train.py"
    script.write_text(HEAD + RESUMES)
    events = tmp_path / "events.json"
    options = ["--hang-timeout", f"{TIMEOUT_S}", "--grace", "0", "--max-restarts", "1", "--json-events", str(events)]
    done = subprocess.run(
        [str(gang_helper.COMMAND), "-n", "3", *options, str(script), str(tmp_path / "runs")],
        capture_output=True, text=True, timeout=60, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done
    hang = "hang: rank 1 never entered allreduce #"
    assert done.stderr.startswith(f"pmrun: {hang}") and done.stderr.count("pmrun: hang: ") == 1, done.stderr
    assert f"pmrun: attempt 0 ended: {hang}" in done.stderr and "starting attempt 1 (restart 1 of 1)" in done.stderr
    assert done.stderr.endswith("pmrun: the job ended well in attempt 1, after 1 restart\n")
    assert done.stdout.count("attempt 0 goes on from 0 with 0") == done.stdout.count("total 18") == 3
    assert done.stdout.count("attempt 1 goes on from 3 with 9") == 3
    told = [json.loads(line)["event"] for line in events.read_text().splitlines()]
    assert told.count("hang") == told.count("restarting") == 1 and told.count("gang_ended") == 2
