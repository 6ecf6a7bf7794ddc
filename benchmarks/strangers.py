# SPDX-License-Identifier: Apache-2.0
"""What strangers do to a running job: step times while nobody, strangers, or the same strangers elsewhere knock.

The job runs on machines a and b; the strangers, on c, try the controller's port and the ranks' data ports, which are all
that listen on a and b but sshd. "elsewhere" is an ordinary listener on d: what the same attempts cost where all machines
share this one's cores. The three take turns within one job. Invariant: when a function here ends, nothing of it is left.
"""

from __future__ import annotations

import contextlib
import json
import socket
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nodes
import peers
from nodes import Cluster, Layout

LAYOUT = Layout(2, 1)
ATTEMPTS, QUICK_ATTEMPTS = 10_000, 500
RATE = 100.0  # attempts per second, on all ports together
TURNS = 10  # blocks of each sort
SORTS = ("nobody", "strangers", "elsewhere")
ELSEWHERE_PORT = 7100
SSH_PORT = 22
LISTENING = "0A"  # the state, in /proc/net/tcp
STRANGER = str(peers.HERE / "stranger.py")


def listening(machine: nodes.machines.Machine) -> list[str]:
    """ADDRESS:PORT of what listens on a machine, without sshd."""
    found = []
    for line in Path(f"/proc/{machine.pid}/net/tcp").read_text(encoding="utf-8").splitlines()[1:]:
        _, local, _, state = line.split()[:4]
        address, _, port = local.partition(":")
        if state == LISTENING and int(port, 16) != SSH_PORT:
            found.append(f"{socket.inet_ntoa(bytes.fromhex(address)[::-1])}:{int(port, 16)}")
    return sorted(found)


class Talk:
    """A process on a machine that answers each line with a line."""

    def __init__(self, process: subprocess.Popen[str], what: str) -> None:
        self._process, self._what = process, what

    def say(self, text: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{text}\n")
        self._process.stdin.flush()

    def hear(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise peers.GangFailed(f"{self._what} ended with {self._process.wait()}")
        return line


@contextlib.contextmanager
def talking(machine: nodes.machines.Machine, command: list[str], what: str) -> Iterator[Talk]:
    with machine.popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        try:
            yield Talk(process, what)
            process.stdin.close()  # which ends it
        except BaseException:
            process.kill()
            raise


def measure(cluster: Cluster, attempts: int, rate: float, turns: int) -> list[dict[str, Any]]:
    """A line per block, with its step times; those with strangers have how many were refused and let in."""
    per_block = attempts // turns
    command = [*LAYOUT.place.pmrun, str(peers.HERE / "worker_steps.py")]
    knock = [sys.executable, STRANGER, "try", str(rate)]
    a, b, c, d = (cluster[name] for name in nodes.NAMES)
    try:
        with talking(a, command, "the job") as job, contextlib.ExitStack() as stack:
            job.hear()
            ports = [*listening(a), *listening(b)]
            elsewhere = talking(d, [sys.executable, STRANGER, "listen", str(ELSEWHERE_PORT)], "the listener")
            stack.enter_context(elsewhere).hear()
            targets = {"strangers": ports, "elsewhere": [f"{d.address}:{ELSEWHERE_PORT}"]}
            guests = {
                sort: stack.enter_context(talking(c, [*knock, *where], f"the stranger ({sort})"))
                for sort, where in targets.items()
            }
            return [
                block(job, guests, sort, per_block, rate) | {"turn": turn, "ports": len(ports)}
                for turn in range(turns)
                for sort in SORTS
            ]
    finally:
        nodes.end_all(cluster)


def block(job: Talk, guests: dict[str, Talk], sort: str, attempts: int, rate: float) -> dict[str, Any]:
    """One block of steps, with attempts all along it."""
    if sort in guests:
        guests[sort].say(str(attempts))
    job.say(str(attempts / rate))
    step_us = statistics.fmean(json.loads(job.hear()))  # an attempt disturbs a few steps, which a median would not show
    line = {"sort": sort, "rate": rate, "step_us": step_us}
    return line | json.loads(guests[sort].hear()) if sort in guests else line
