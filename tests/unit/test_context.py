# SPDX-License-Identifier: Apache-2.0
"""The world of one under plain python, in processes of their own; and the line that tells why a rank fails."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import pytest

from pmrun import env
from pmrun.context import describe


def python(code: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env={**os.environ, **variables}, text=True, capture_output=True, check=False, timeout=60,
    )  # fmt: skip


def test_a_world_of_one() -> None:
    run = python(
        """
        import numpy as np, pmrun as pm
        with pm.init() as w:
            x = np.arange(3.0)
            print(w.size, w.rank, w.allreduce(x) is x, w.allreduce(x).tolist(), w.exscan(x), w.allgather(x).shape)
            print(w.sendrecv(x, 0).tolist(), w.recv(dtype="i8").tolist() if w.isend(np.arange(2), 0) else None)
            print(w.iallreduce(2, "max").wait(), w.broadcast_object([1]), w.split(3).size, pm.shared(2).tolist())
        print(w.barrier())
        pm.shutdown()
        again = pm.init()
        print(again.allreduce(1))
        try:
            w.barrier()
        except pm.NotInitializedError:
            print("the first world stays closed")
        """
    )
    assert run.stderr == ""
    assert run.stdout.splitlines() == [
        "1 0 False [0.0, 1.0, 2.0] None (1, 3)",
        "[0.0, 1.0, 2.0] [0, 1]",
        "2 [1] 1 [0.0, 0.0]",
        "None",
        "1",
        "the first world stays closed",
    ]


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({env.WINDOW_FD: "999"}, "PMRUN_WINDOW_FD=999"),
        ({env.WINDOW_FD: "x"}, "PMRUN_WINDOW_FD='x'"),
        ({env.WORLD_SIZE: "4"}, "PMRUN_WORLD_SIZE"),
        ({env.COLLECTIVE_TIMEOUT: "soon"}, "PMRUN_COLLECTIVE_TIMEOUT='soon'"),
        ({env.COLLECTIVE_TIMEOUT: "-1"}, "timeout=-1"),
    ],
)
def test_an_environment_that_is_wrong(variables: dict[str, str], words: str) -> None:
    run = python("import pmrun as pm; pm.init()", **variables)
    assert run.returncode == 1
    last = run.stderr.splitlines()[-1]
    assert last.startswith("pmrun.errors.UsageError: ")
    assert words in last


def test_after_a_failed_init_another_may_follow() -> None:
    run = python(
        """
        import pmrun as pm
        try:
            pm.init(timeout=-1)
        except pm.UsageError as error:
            print(error)
        print(pm.init(timeout=3).timeout)
        """
    )
    assert run.stdout.splitlines()[-1] == "3.0", run.stderr


def test_the_users_own_excepthook_still_runs() -> None:
    run = python(
        """
        import sys
        import pmrun as pm
        sys.excepthook = lambda kind, error, trace: print("mine:", error)
        pm.init()
        raise ValueError("bad")
        """
    )
    assert (run.stdout, run.stderr) == ("mine: bad\n", "")


def test_the_line_that_tells_why() -> None:
    def fails() -> None:
        raise KeyError("first\nsecond")

    line = fails.__code__.co_firstlineno + 1
    with pytest.raises(KeyError) as caught:
        fails()
    text = describe(caught.value, caught.tb)
    assert text == f"KeyError: 'first\\nsecond' (test_context.py:{line} in fails)"
    assert describe(SystemError(), None) == "SystemError"
    assert describe(ValueError("one\ntwo"), None) == "ValueError: one"
