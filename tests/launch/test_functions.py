# SPDX-License-Identifier: Apache-2.0
"""`pm.parallel`: what a user's script sees of arguments, results, failures and mistakes, and what Ctrl-C and kill leave."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

HEAD = """
import json, os, signal, sys, time
import numpy as np
import pmrun as pm

def told(call):
    try:
        return call()
    except (pm.PmrunError, TypeError) as error:
        return [type(error).__name__, str(error), str(error.__cause__ or "")]
"""


def start(folder: Path, body: str, **more: object) -> subprocess.Popen[str]:
    script = folder / "script.py"
    script.write_text(HEAD + body)
    return subprocess.Popen(
        [sys.executable, script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=folder, **more
    )


def last_line(folder: Path, body: str) -> tuple[list, str]:
    """What a script printed last, as JSON, and what it wrote on standard error."""
    out, err = start(folder, body).communicate(timeout=60)
    assert out, err
    return json.loads(out.splitlines()[-1]), err


def test_arguments_and_results_of_all_ranks(tmp_path):
    got, err = last_line(
        tmp_path,
        """
scale = 10  # a global of the script travels too

@pm.parallel(ranks_per_node=3)
def work(array, add=0):
    "What it does."
    array[0] = pm.rank()  # its own copy
    print("hello from", pm.rank())
    return {"sum": float(array.sum()), "scaled": pm.rank() * scale + add}

array = np.zeros(200_000)
big = pm.parallel(ranks_per_node=2)(lambda: np.full(1 << 18, pm.rank(), np.float64))()
print(json.dumps([
    work(array, add=1), float(array[0]), work.__doc__, work.function.__name__,
    [(value.nbytes, float(value[-1]), value.flags.writeable) for value in big],
    work.dry_run(array)["world_size"], pm.parallel(lambda: None)(),
]))
""",
    )
    assert got[0] == [{"sum": float(rank), "scaled": 10 * rank + 1} for rank in range(3)]
    assert got[1:4] == [0.0, "What it does.", "work"]
    assert got[4] == [[1 << 21, 0.0, True], [1 << 21, 1.0, True]]
    assert got[5:] == [3, [None]] and err == ""


def test_nodes_are_played_here_and_restarts_count(tmp_path):
    got, _ = last_line(
        tmp_path,
        """
@pm.parallel(num_nodes=2, ranks_per_node=2, max_restarts=1)
def work():
    place, attempt = pm.current.parallel, int(os.environ["PMRUN_ATTEMPT"])
    if attempt == 0:
        pm.Barrier("all are there").wait()
        if pm.rank() == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        signal.pause()
    return place.num_nodes, place.node_index, pm.init().size, attempt

print(json.dumps(work()))
""",
    )
    assert got == [[2, 0, 4, 1], [2, 0, 4, 1], [2, 1, 4, 1], [2, 1, 4, 1]]


def test_the_rank_that_failed_is_named_with_its_traceback(tmp_path):
    got, err = last_line(
        tmp_path,
        """
@pm.parallel(ranks_per_node=3)
def work():
    if pm.rank() == 1:
        raise ValueError("no luck")
    pm.init().barrier()

@pm.parallel(ranks_per_node=2)
def dies():
    if pm.rank():
        os.kill(os.getpid(), signal.SIGSEGV)
    pm.init().barrier()

print(json.dumps([told(work), told(dies)]))
""",
    )
    kind, text, cause = got[0]
    assert kind == "RankFailed" and text.startswith("rank 1 on ") and "ValueError: no luck" in text
    assert 'script.py", line' in cause and 'raise ValueError("no luck")' in cause and "function_call" not in cause
    assert got[1][0] == "RankFailed" and "rank 1" in got[1][1] and "SIGSEGV" in got[1][1] and got[1][2] == ""
    assert "pmrun: rank 1 failed first" in err and "function_call" not in err


def test_mistakes_are_one_line_and_start_nothing(tmp_path):
    got, _ = last_line(
        tmp_path,
        """
@pm.parallel(ranks_per_node=2)
def work(x=None):
    return x

@pm.parallel(ranks_per_node=2)
def large():
    return bytes(40 << 20)

@pm.parallel
def nested():
    return told(work)

print(json.dumps([
    told(lambda: work((n for n in ()))),
    told(lambda: work.run(options={"nosuch": 1})),
    told(lambda: work.run(ranks_per_node=0)),
    told(lambda: work.run(on="slurm")),
    told(lambda: work.run(num_nodes=300)),
    told(large),
    nested(),
]))
""",
    )
    pickled, option, count, engine, nodes, large, nested = got
    assert pickled[0] == "UsageError" and pickled[1].startswith("work or its arguments cannot be pickled (TypeError: ")
    assert option == ["UsageError", "work: unknown option --nosuch (did you mean --nodes?); see pmrun --help", ""]
    assert count == ["UsageError", "ranks_per_node=0: it is a whole number from 1 on", ""]
    assert engine[1] == "on='slurm': a function runs on this machine or by ssh; for slurm submit its script"
    assert nodes[1] == "num_nodes=300: this machine can play 254 nodes; name hosts for more"
    assert large[0] == "RankFailed" and "all ranks' results together may have 64 MiB: save it" in large[1]
    assert nested[0][1] == "work() starts a gang, and this is a rank of one: call work.function() here"


WAITING = """
@pm.parallel(ranks_per_node=2)
def work():
    print("pid", os.getpid(), flush=True)
    signal.pause()

try:
    work()
except KeyboardInterrupt:
    print(json.dumps("interrupted"))
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_nothing_is_left_of_a_call_that_is_interrupted(tmp_path, number):
    script = start(tmp_path, WAITING)
    pids = [int(script.stdout.readline().split()[-1]) for _ in range(2)]
    ranks = [psutil.Process(pid) for pid in pids]
    os.kill(script.pid, number)
    out, _ = script.communicate(timeout=30)
    assert script.returncode == (0 if number == signal.SIGINT else -signal.SIGKILL)
    assert out == ('"interrupted"\n' if number == signal.SIGINT else "")
    gone, alive = psutil.wait_procs(ranks, timeout=10)
    assert not alive
