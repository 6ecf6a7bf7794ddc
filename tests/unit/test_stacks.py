# SPDX-License-Identifier: Apache-2.0
"""Stacks from outside: py-spy's answers put into words, and real processes that do not help."""

import json
import os
import signal
import sys
import time

import pytest

from pmrun.launcher import stacks
from pmrun.launcher.poller import Poller


def dump(*threads):
    def frame(place):
        path, line, name = place
        return {"name": name, "filename": path, "module": None, "line": line, "locals": None}

    shown = [
        {"pid": 1, "thread_name": name, "os_thread_id": 1, "frames": [frame(f) for f in frames]}
        for name, frames in threads
    ]
    return json.dumps(shown, indent=2).encode()


def test_frames_are_named_as_the_user_knows_them():
    data = dump(
        ("Thread-1", [("/usr/lib/python3.12/threading.py", 300, "wait")]),
        ("MainThread", [
            ("/venv/lib/python3.12/site-packages/torch/x.py", 1, "forward"), ("/home/u/data.py", 44, "load_batch"),
            ("/elsewhere/train.py", 28, "<module>"),
        ]),
    )  # fmt: skip
    assert stacks.read_dump(b"a warning\n" + data, "/home/u") == stacks.Stack(
        frames=("torch/x.py:1 in forward", "data.py:44 in load_batch", "/elsewhere/train.py:28 in <module>"),
        place="data.py:44 in load_batch",
        threads=("thread Thread-1: /usr/lib/python3.12/threading.py:300 in wait",),
    )


def test_frames_of_pmrun_are_not_the_users():
    own = (stacks._OWN + "communicator.py", 127, "recv_object")
    stack = stacks.read_dump(dump(("MainThread", [own, ("/home/u/train.py", 6, "<module>")])), "/home/u")
    assert stack.frames[0] == "pmrun/communicator.py:127 in recv_object"
    assert stack.place == "train.py:6 in <module>"


def test_long_stacks_and_many_threads_are_cut():
    frames = [("/a.py", line, "f") for line in range(100)]
    stack = stacks.read_dump(dump(*[(f"t{i}", frames[:1]) for i in range(20)], ("MainThread", frames)), None)
    assert len(stack.frames) == 25 and stack.frames[-1] == "76 more frames"
    assert len(stack.threads) == 9 and stack.threads[-1] == "12 more threads"


@pytest.mark.parametrize("data", [b"", b"Error: no", b"[\n{", b"[]", b'[{"frames": 3}]', b"\xff\xfe"])
def test_what_is_no_dump(data):
    assert stacks.read_dump(data, None) is None


def test_why_there_is_none():
    assert "SYS_PTRACE" in stacks.explain("Permission Denied: Try running again with elevated permissions", 3)
    assert "SYS_PTRACE" in stacks.explain("Error: Operation not permitted (os error 1)", 3)
    assert stacks.explain("Error: Failed to find python version\nmore", 3) == (
        "no Python stack of rank 3: py-spy: Failed to find python version"
    )


def survey(pids):
    """Run one to its end; what it found, and why not more."""
    poller, found = Poller(), []
    item = stacks.Survey(poller, pids, None, 2, lambda *answer: found.append(answer))
    item.begin(time.monotonic())
    while not item.over:
        poller.wait(max(0.0, item.deadline() - time.monotonic()))
        item.on_tick(time.monotonic())
    for _ in pids if item._program else ():
        os.wait()
    assert len(found) == 1
    return found[0]


@pytest.fixture
def ranks():
    """One is stopped, one is in C and holds the interpreter's lock."""
    import subprocess

    bodies = [
        "def stopped():\n os.kill(os.getpid(), 19)\nstopped()",
        "def inside():\n ctypes.PyDLL(None).pause()\ninside()",
    ]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", f"import ctypes, os\nprint('ready', flush=True)\n{body}"], stdout=subprocess.PIPE
        )
        for body in bodies
    ]
    for process in processes:
        assert process.stdout.readline() == b"ready\n"
    os.waitid(os.P_PID, processes[0].pid, os.WSTOPPED | os.WNOWAIT)
    yield dict(enumerate(process.pid for process in processes))
    for process in processes:
        process.send_signal(signal.SIGKILL)
        process.communicate()


@pytest.mark.slow
def test_real_processes_that_do_not_help(ranks):
    found, problem = survey(ranks)
    assert problem == ""
    assert found[0].place == "<string>:4 in stopped" and found[1].place.startswith("<string>:")


def test_without_py_spy(monkeypatch):
    monkeypatch.setattr(stacks, "find_program", lambda: "")
    assert survey({0: os.getpid()}) == ({}, "no Python stacks: py-spy is not installed here; pip install py-spy")


def test_one_that_takes_too_long_is_ended(monkeypatch, tmp_path):
    slow = tmp_path / "py-spy"
    slow.write_text("#!/bin/sh\nexec sleep 60\n")
    slow.chmod(0o755)
    monkeypatch.setattr(stacks, "find_program", lambda: str(slow))
    monkeypatch.setattr(stacks, "LIMIT_S", 0.05)
    found, problem = survey({0: os.getpid(), 1: os.getpid()})
    assert found == {} and "took longer than 0.05 s" in problem
