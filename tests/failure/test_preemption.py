# SPDX-License-Identifier: Apache-2.0
"""`pm.should_stop()`: SIGTERM, a file, a signal to one rank become a step that all agree on; children are shielded."""

import os
import signal
import subprocess
import sys

import pytest

# Saves when told to stop, goes on from there when started again; each rank has a child that SIGTERM would end.
TRAINING = """
import os, signal, sys
import numpy as np
import pmrun as pm
world = pm.init()
worker = os.fork()
if worker == 0:
    signal.pause()
checkpoint = pm.Checkpoint(sys.argv[1])
start, state = checkpoint.load(np.zeros(4))
assert not pm.should_stop()
print('from', start, flush=True)
for step in range(start, start + int(sys.argv[2])):
    state += 1
    if world.rank == 1 and sys.argv[3:] == ['suicide']:
        os.kill(os.getpid(), signal.SIGTERM)
    if pm.should_stop():
        checkpoint.save(step + 1, state)
        print('saved', step + 1, 'worker', os.waitpid(worker, os.WNOHANG)[0], flush=True)
        os.kill(worker, signal.SIGKILL)
        pm.exit_resumable()
os.kill(worker, signal.SIGTERM)
print('done', (state == step + 1).all(), os.WTERMSIG(os.waitpid(worker, 0)[1]), flush=True)
"""
ENDLESS = 1 << 60


def train(launch, tmp_path, steps, *arguments):
    script = tmp_path / "train.py"
    script.write_text(TRAINING)
    return launch([sys.executable, str(script), str(tmp_path / "runs"), str(steps), *arguments], 3)


def stopped_at(out):
    """The step of all ranks, whose children were alive then."""
    saved = [line.split() for line in out.decode().splitlines() if "saved" in line]
    assert len(saved) == 3 and len({tuple(words[-4:]) for words in saved}) == 1, out
    assert saved[0][-1] == "0", "the child was ended"
    return int(saved[0][-3])


def test_sigterm_to_pmrun_becomes_one_step_and_the_next_start_goes_on(launch, tmp_path):
    job = train(launch, tmp_path, ENDLESS)
    job.read_until(3, b"from")
    job.signal(signal.SIGTERM)
    rc, out, err = job.finish()
    assert rc == 75
    step = stopped_at(out)
    lines = err.decode().splitlines()
    assert lines[-1] == ("pmrun: stopped by SIGTERM; the job can be resumed: start it again to go on (exit code 75)"), (
        lines
    )
    job.assert_nothing_left(0)
    rc, out, _ = train(launch, tmp_path, 5).finish()
    assert rc == 0
    assert out.count(f"from {step}\n".encode()) == 3 and out.count(b"done True 15\n") == 3, out


@pytest.mark.parametrize("notice", ["signal", "file"])
def test_what_one_rank_hears_all_agree_on(launch, tmp_path, monkeypatch, notice):
    (tmp_path / "notice").mkdir()
    path = tmp_path / "notice" / "spot"
    monkeypatch.setenv("PMRUN_PREEMPT_FILE", str(path))
    job = train(launch, tmp_path, ENDLESS, *["suicide"] * (notice == "signal"))
    if notice == "file":
        job.read_until(3, b"from")
        path.touch()
    rc, out, err = job.finish()
    assert rc == 75
    stopped_at(out)
    assert err.decode().splitlines() == [
        "pmrun: the ranks agreed to stop (pm.should_stop); the job can be resumed: start it again to go on (exit code 75)"
    ]
    job.assert_nothing_left(0)


def test_plain_python(tmp_path):
    script = tmp_path / "train.py"
    script.write_text(TRAINING)
    command = [sys.executable, str(script), str(tmp_path / "runs"), str(ENDLESS)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "from 0\n"
        process.send_signal(signal.SIGTERM)
        out = process.stdout.read()
    assert process.returncode == 75
    assert out.startswith("saved ")


def test_a_late_signal_does_not_kill_what_has_saved_its_work(tmp_path):
    """On its way out Python gives SIGTERM back its default; what is collected then may see one come."""
    (tmp_path / "notice").touch()
    program = """
import os, signal
import pmrun as pm

class Late:
    def __del__(self, kill=os.kill, pid=os.getpid(), number=signal.SIGTERM):
        kill(pid, number)

late = Late()
assert pm.should_stop()
pm.exit_resumable()
"""
    environ = {**os.environ, "PMRUN_PREEMPT_FILE": str(tmp_path / "notice")}
    assert subprocess.run([sys.executable, "-c", program], env=environ, check=False).returncode == 75
