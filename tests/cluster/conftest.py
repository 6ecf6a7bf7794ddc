# SPDX-License-Identifier: Apache-2.0
"""The real command on the machines of the `cluster` fixture."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import gang_helper
import machines

COMMAND = str(gang_helper.COMMAND)


class Running:
    """A pmrun under test on one machine; its ranks said what they had to."""

    def __init__(self, machine: machines.Machine, words: tuple[str, ...], **named: Any) -> None:
        self.machine = machine
        self.process = machine.popen(
            [COMMAND, *words], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **named
        )
        self.seen = b""

    def read_until(self, count: int, word: bytes = b"ready") -> None:
        """Read its output until a word came so often."""
        assert self.process.stdout is not None and self.process.stderr is not None
        while self.seen.count(word) < count:
            data = os.read(self.process.stdout.fileno(), 65536)
            assert data, f"the output ended: {self.seen!r} {self.process.stderr.read()!r}"
            self.seen += data

    def pid(self) -> int:
        """Of pmrun itself, seen from outside: `nsenter` forked it."""
        return next(pid for pid, words in self.machine.processes().items() if COMMAND in words)

    def signal(self, number: int) -> None:
        os.kill(self.pid(), number)
        if number == signal.SIGCONT:
            self.process.send_signal(number)  # `nsenter` stops with its child

    def finish(self, timeout_s: float = machines.DEADLINE_S) -> tuple[int, str, str]:
        """Exit code, output and errors."""
        out, err = self.process.communicate(timeout=timeout_s)
        return self.process.returncode, (self.seen + out).decode(), err.decode()


@pytest.fixture
def start(cluster: machines.Cluster) -> Iterator[Callable[..., Running]]:
    """Start pmrun: `start("a", "--hosts", "a:1,b:2", "--", ...)`."""
    started: list[Running] = []

    def go(name: str, *words: str, **named: Any) -> Running:
        started.append(Running(cluster[name], words, **named))
        return started[-1]

    yield go
    for running in started:
        if running.process.poll() is None:
            running.process.send_signal(signal.SIGCONT)
            for machine in cluster.machines.values():
                for pid in machine.processes():
                    os.kill(pid, signal.SIGKILL)
        running.process.communicate()


@pytest.fixture
def pmrun(cluster: machines.Cluster) -> Callable[..., tuple[int, str, str]]:
    """Run pmrun on a machine to its end: exit code, output, errors."""

    def go(name: str, *words: str, **named: Any) -> tuple[int, str, str]:
        done = cluster[name].run(COMMAND, *words, **named)
        return done.returncode, done.stdout, done.stderr

    return go
