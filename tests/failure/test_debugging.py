# SPDX-License-Identifier: Apache-2.0
"""pdb in a rank: in pmrun's own terminal, and by `pmrun attach` from another one; the others wait meanwhile."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import select
import signal
import socket
import struct
import sys
import termios
import time

import pytest

from pmrun import meeting
from pmrun.launcher import attach_line

PYTHON = sys.executable
BREAKPOINT = """
import pmrun as pm
world = pm.init()
x = 41 + world.rank
if world.rank == 1:
    breakpoint()
world.barrier()
print("after", x, flush=True)
"""
ERROR = """
import pmrun as pm
world = pm.init()
def work(x):
    if world.rank == 1:
        raise ValueError("bad")
    world.barrier()
work(41 + world.rank)
"""
RUNNING = """
import pmrun as pm
world = pm.init()
print("ready", flush=True)
world.barrier() if world.rank else world.recv(source=1)
"""


class Terminal:
    """A command in a terminal of its own."""

    def __init__(self, command):
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.execv(PYTHON, [PYTHON, *command])
        self.seen = b""
        self.status = None

    def until(self, text, timeout_s=30.0):
        """Read until `text` has come since the last time."""
        end = time.monotonic() + timeout_s
        while text not in self.seen:
            readable, _, _ = select.select([self.fd], [], [], max(0.0, end - time.monotonic()))
            assert readable, f"no {text!r} in {self.seen!r}"
            self.seen += self._read() or pytest.fail(f"it ended without {text!r}: {self.seen!r}")
        at = self.seen.index(text) + len(text)
        before, self.seen = self.seen[:at], self.seen[at:]
        return before

    def answer(self, prompt, keys):
        """Type once it asks; returns what came before."""
        before = self.until(prompt)
        os.write(self.fd, keys)
        return before

    def finish(self):
        """Read to the end; returns the exit code and what came since the last time."""
        while data := self._read():
            self.seen += data
        self.status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self.status, self.seen

    def destroy(self):
        """Whatever a failed test left."""
        os.close(self.fd)
        if self.status is None:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)

    def _read(self):
        try:
            return os.read(self.fd, 65536)
        except OSError:  # EIO: nobody has the other end
            return b""


def mode(fd):
    """A terminal's flags."""
    return termios.tcgetattr(fd)[:4]


@pytest.fixture
def terminal():
    """Starts Python with these words in a terminal, and ends it after the test."""
    started = []

    def start(*words):
        started.append(Terminal(words))
        return started[-1]

    yield start
    for one in started:
        one.destroy()


@pytest.fixture
def attach(terminal):
    return lambda *words: terminal("-m", "pmrun", "attach", *words)


def job_id(job):
    """Its name, once it listens."""
    for pid in job.everything():
        try:
            with open(f"/proc/{pid}/environ", "rb") as file:
                for pair in file.read().split(b"\0"):
                    if pair.startswith(b"PMRUN_JOB_ID="):
                        return os.fsdecode(pair.partition(b"=")[2])
        except OSError:
            continue
    raise AssertionError("no rank runs")


def said(job, words):
    """What pmrun said up to a line with these words."""
    text = b""
    while words not in text:
        line = job.process.stderr.readline()
        assert line, f"no {words!r} in {text!r}"
        text += line
    return text


def test_an_exception_leads_into_pdb_in_pmruns_own_terminal(launched, terminal):
    job = {"command": [PYTHON, "-c", ERROR], "world_size": 3, "pdb_on_error": True}
    here = terminal(str(launched.DRIVE), json.dumps(job))
    untouched = mode(here.fd)
    before = here.answer(b"(Pdb) ", b"p x + 1\r")
    assert b"pmrun: rank 1 waits in pdb: ValueError: bad" in before and b"(6)work()" in before
    assert b"RankFailed" not in before, "the others wait"
    assert b"43" in here.answer(b"(Pdb) ", b"q\r")
    code, after = here.finish()
    assert code == 1
    assert mode(here.fd) == untouched, "the terminal is as it was"
    assert b"rank 1 failed first: exit code 1" in after and b"ranks 0, 2 failed because of it" in after


def test_ranks_ask_one_after_another_and_may_be_left(launched, terminal, attach):
    body = BREAKPOINT.replace("if world.rank == 1:", "if True:")
    here = terminal(str(launched.DRIVE), json.dumps({"command": [PYTHON, "-c", body], "world_size": 2}))
    here.answer(b"(Pdb) ", b"\x1d")
    here.until(b"waits on; to talk to it: pmrun attach ")  # and not what was said of the other rank meanwhile
    name, _, rank = here.until(b"\r\n").split()
    there = attach(name.decode(), "--rank", rank.decode())
    there.answer(b"waits in pdb", b"c\r")
    here.answer(b"(Pdb) ", b"c\r")
    assert here.finish()[0] == there.finish()[0] == 0


SIZE = b"import os, sys; os.get_terminal_size(sys.stdin.fileno())\r"


def resize(window, rows, asks=50):
    """Give a terminal's window other rows, and let the rank in pdb say how many it has until they are these."""
    fcntl.ioctl(window.fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, 99, 0, 0))
    for _ in range(asks):
        if b"columns=99, lines=%d)" % rows in window.answer(b"(Pdb) ", SIZE):
            return
    raise AssertionError(f"the rank has not heard of {rows} rows")


def test_the_rank_knows_the_size_of_the_window_also_when_that_changes(launched, terminal, attach):
    here = terminal(str(launched.DRIVE), json.dumps({"command": [PYTHON, "-c", BREAKPOINT], "world_size": 2}))
    resize(here, 33)
    here.answer(b"(Pdb) ", b"\x1d")
    here.until(b"waits on; to talk to it: pmrun attach ")
    there = attach(here.until(b" --rank ").split()[0].decode(), "--rank", "1")
    there.answer(b"waits in pdb", SIZE)
    resize(there, 44)
    there.answer(b"(Pdb) ", b"c\r")
    there.answer(b"rank 1 runs", b"\x1d")
    assert there.finish()[0] == here.finish()[0] == 0


def test_attach_to_a_breakpoint_leave_it_and_come_back(launch, attach):
    job = launch([PYTHON, "-c", BREAKPOINT], 2)
    line = said(job, b"pmrun attach ").decode()
    assert re.search("rank 1 waits in pdb: <string>:[67] in <module>", line)  # from Python 3.13 on at the call itself
    name = line.split("pmrun attach ")[1].split()[0]
    assert name == job_id(job) and name in attach_line.jobs()
    first = attach(name, "--rank", "1")
    first.answer(b"(Pdb) ", b"p x + 1\r")
    assert b"43" in first.answer(b"(Pdb) ", b"\x1d")
    assert first.finish() == (0, b"pmrun: left rank 1\r\n")
    second = attach(name)
    second.answer(b"waits in pdb", b"p x + 2\r")
    assert b"44" in second.answer(b"(Pdb) ", b"c\r")
    code, after = second.finish()
    assert code == 0 and b"rank 1 runs" in after and b"after 42" in after and b"rank 1 has ended" in after
    code, out, _ = job.finish()
    assert code == 0 and sorted(out.splitlines()) == [b"[0] after 41", b"[1] after 42"]
    assert name not in attach_line.jobs()


def test_ctrl_c_interrupts_a_rank_that_waits_in_a_call(launch, attach):
    job = launch([PYTHON, "-c", RUNNING], 2)
    job.read_until(2)
    there = attach(job_id(job), "--rank=1")
    there.answer(b"rank 1 runs", b"\x03")
    assert b"(5)<module>()" in there.answer(b"(Pdb) ", b"p world.rank + 6\r")
    assert b"7" in there.answer(b"(Pdb) ", b"q\r")
    code, after = there.finish()
    assert code == 0 and b"rank 1 has ended" in after
    code, _, err = job.finish()
    assert code == 1 and b"rank 1 failed first: exit code 1" in err and b"BdbQuit" in err


def as_nobody(act):
    """Another user's process that does this; its exit code is what `act` returns."""
    pid = os.fork()
    if pid == 0:
        code = 99
        try:
            os.setuid(65534)
            code = act()
        finally:
            os._exit(code)
    return pid


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")
def test_nothing_is_said_to_another_user_and_nothing_is_left(launch):
    job = launch([PYTHON, "-c", RUNNING], 2)
    job.read_until(2)
    name = job_id(job)

    def knock():
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(address)
            return len(sock.recv(99))

    address = f"\0pmrun/{os.geteuid()}/{name}"
    assert os.waitstatus_to_exitcode(os.waitpid(as_nobody(knock), 0)[1]) == 0, "the end, without a word"
    job.signal(signal.SIGKILL)
    job.finish()
    job.assert_nothing_left()
    assert name not in attach_line.jobs()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")
def test_another_users_socket_is_not_believed():
    def listen():
        with socket.socket(socket.AF_UNIX) as sock:
            sock.bind(f"\0pmrun/{owner}/{name}")
            sock.listen()
            os.write(told, b"!")
            signal.pause()

    name, owner = f"job-{os.getpid()}", os.geteuid()
    heard, told = os.pipe()
    pid = as_nobody(listen)
    try:
        os.read(heard, 1)
        with pytest.raises(PermissionError):
            attach_line.dial(name)
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(heard)
        os.close(told)


def test_where_nothing_runs(attach):
    code, text = attach("no-such-job").finish()
    assert code == 2 and b"no job no-such-job of yours runs on this machine" in text


def test_ranks_of_another_launcher_are_not_taken_for_a_job(attach):
    with socket.socket(socket.AF_UNIX) as steward:
        steward.bind(f"\0{meeting.name_prefix()}of-this-test")
        steward.listen()
        assert "of-this-test" not in attach_line.jobs()
        code, text = attach("no-such-job").finish()
    assert code == 2 and b"start them with pmrun" in text, text
