# SPDX-License-Identifier: Apache-2.0
"""--max-restarts on one machine: the whole gang again, nothing of an attempt in the next, and an end that adds up."""

import json
import os
import select
import signal
import subprocess
import sys

PYTHON = sys.executable
HEAD = "import os, signal, sys; rank, attempt = (int(os.environ['PMRUN_' + name]) for name in ('RANK', 'ATTEMPT'))\n"
GANG = (
    HEAD
    + """
import pmrun as pm
world = pm.init()
seen = pm.store.add('seen')
total = world.allreduce(rank + attempt)
print(f'attempt {attempt} of {os.environ["PMRUN_JOB_ID"]}: {total}, at most {pm.world_size()} >= {seen}', flush=True)
world.barrier()
if attempt < 2 and rank == 1:
    os.write(1, b'unfinished')
    os.kill(os.getpid(), signal.SIGKILL)
world.barrier()
"""
)
READY = HEAD + "print(f'ready {attempt}', flush=True); signal.pause()"
AT_ONCE = ["sh", "-c", "exit 3"]


def until_said(job, word, seen=b""):
    """Read pmrun's own lines until a word came."""
    fd = job.process.stderr.fileno()
    while word not in seen:
        assert select.select([fd], [], [], 30)[0], f"no {word!r} in {seen!r}"
        data = os.read(fd, 65536)
        assert data, f"ended without {word!r}: {seen!r}"
        seen += data
    return seen


def events(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_rank_is_killed_twice_and_the_third_attempt_ends_well(launch, tmp_path):
    job = launch(
        [PYTHON, "-c", GANG],
        3,
        max_restarts=2,
        json_events=str(tmp_path / "events"),
        output={"directory": str(tmp_path)},
    )
    rc, out, err = job.finish()
    assert rc == 0, err
    lines = [line for line in out.decode().splitlines() if "unfinished" not in line]
    said = [line.partition("] attempt ")[2].split(" ", 1) for line in lines]
    assert [attempt for attempt, _ in said] == ["0"] * 3 + ["1"] * 3 + ["2"] * 3, "one attempt after the other"
    assert {text.partition(": ")[2].partition(",")[0] for attempt, text in said if attempt == "2"} == {"9"}
    assert len({text.split()[1] for _, text in said}) == 1, "the job keeps its name"
    assert all(f"at most 3 >= {number}" in out.decode() for number in (1, 2, 3)) and ">= 4" not in out.decode()
    assert out.count(b"unfinished\n") == 2, "a line that nobody ended does not run into the next attempt's"
    own = [line for line in err.decode().splitlines() if line.startswith("pmrun: ")]
    node = os.uname().nodename
    assert own == [
        f"pmrun: attempt 0 ended: rank 1 (node {node}) was killed by SIGKILL; starting attempt 1 (restart 1 of 2)",
        f"pmrun: attempt 1 ended: rank 1 (node {node}) was killed by SIGKILL; starting attempt 2 (restart 2 of 2)",
        "pmrun: the job ended well in attempt 2, after 2 restarts",
    ]
    assert [event["attempt"] for event in events(tmp_path / "events") if event["event"] == "gang_starting"] == [0, 1, 2]
    assert (tmp_path / "rank-1.out").read_text().count("attempt") == 3, "a rank's file has all its attempts"
    job.assert_nothing_left(0)


def test_the_next_attempt_goes_on_with_the_input(launch):
    body = HEAD + "line = sys.stdin.readline(); print(attempt, line, end='', flush=True); sys.exit(attempt == 0)"
    job = launch([PYTHON, "-c", body], 1, max_restarts=1, source=subprocess.PIPE)
    job.process.stdin.write(b"first\n")
    job.process.stdin.flush()
    until_said(job, b"starting attempt 1")
    job.process.stdin.write(b"second\n")
    rc, out, _ = job.finish()
    assert rc == 0 and out == b"[0] 0 first\n[0] 1 second\n"


def test_attempts_run_out(launch):
    job = launch(AT_ONCE, 2, max_restarts=1)
    rc, _, err = job.finish()
    assert rc == 3
    assert "failed first: exit code 3" in err.decode(), "the last attempt is reported in full"
    assert "pmrun: the job ended after 1 restart (--max-restarts 1):\n  attempt 0: rank " in err.decode()
    assert err.decode().rstrip().splitlines()[-1].startswith("  attempt 1: rank ")


def test_a_rank_that_saved_its_work_is_not_started_again(launch):
    rc, _, err = launch(["sh", "-c", "exit 75"], 2, max_restarts=5).finish()
    assert rc == 75 and b"not started again: exit code 75" in err and b"restart 1" not in err


def test_the_agent_is_killed(launch):
    job = launch([PYTHON, "-c", READY], 2, max_restarts=1)
    job.read_until(2, b"ready 0")
    os.kill(job.agent(), signal.SIGKILL)
    job.read_until(2, b"ready 1")
    job.signal(signal.SIGTERM)
    rc, _, err = job.finish()
    assert rc == 143
    assert b"attempt 0 ended: the agent on " in err and b"the job ended after 1 restart:\n" in err
    job.assert_nothing_left(0)


def test_killed_while_the_next_attempt_starts(launch, launched, tmp_path):
    """The agent is killed as soon as it has its order, wherever it is in its start by then."""
    path = tmp_path / "events"
    job = launch([PYTHON, "-c", READY], 4, max_restarts=9, json_events=str(path))
    for attempt in range(2):
        launched.until(lambda n=attempt: path.exists() and f'"attempt":{n}}}' in path.read_text(), "its start")
        os.kill(job.agent(), signal.SIGKILL)
    job.read_until(4, b"ready 2")
    job.signal(signal.SIGINT)
    rc, out, err = job.finish()
    assert rc == 130 and b"the job ended after 2 restarts:\n" in err, err
    order = [line.split()[-1] for line in out.decode().splitlines() if "ready" in line]
    assert order == sorted(order)
    job.assert_nothing_left(0)


def test_ctrl_c_between_two_attempts(launch):
    job = launch(AT_ONCE, 2, max_restarts=50)
    seen = until_said(job, b"starting attempt 3 in 0.5 s")
    job.signal(signal.SIGINT)
    rc, _, err = job.finish(5)
    said = (seen + err).decode()
    assert rc == 130 and "pmrun: stopped by SIGINT between two attempts\n" in said, said
    assert "the job ended after 2 restarts:\n" in said
    job.assert_nothing_left(0)


def test_the_time_limit_is_that_of_the_whole_job(launch):
    rc, _, err = launch(AT_ONCE, 2, max_restarts=50, timeout_s=0.4).finish(5)
    assert rc == 124 and b"--timeout of 0.4 s ran out between two attempts" in err, err


def test_who_reads_the_output_is_gone_between_two_attempts(launch):
    job = launch(AT_ONCE, 2, max_restarts=50)
    seen = until_said(job, b"starting attempt 3 in 0.5 s")
    job.process.stdout.close()
    job.process.stdout = None
    assert job.process.wait(5) == 141, seen
    job.assert_nothing_left(0)
