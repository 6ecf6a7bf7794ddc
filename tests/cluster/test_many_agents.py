# SPDX-License-Identifier: Apache-2.0
"""The control plane at size: a thousand nodes meet and leave, and thousands of strangers change nothing."""

from __future__ import annotations

import concurrent.futures
import re
import resource
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import leak_guard
import machines
from pmrun import wire
from pmrun.launcher import keys
from pmrun.launcher.dial import Meeting, dial
from pmrun.launcher.net_link import NetHub
from pmrun.launcher.poller import Poller

AGENTS = Path(__file__).with_name("many_agents.py")
CONTROLLER = """
import resource, subprocess, sys
from pmrun.launcher import keys
from pmrun.launcher.controller import Controller
from pmrun.launcher.events import EventLog
from pmrun.launcher.job import Job
from pmrun.launcher.net_link import NetHub
from pmrun.launcher.rendezvous import Seat

count = int(sys.argv[1])
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
secret = keys.new_secret()


class Fleet:
    release = "1"
    seats = tuple(Seat(f"n{n}") for n in range(count))
    counts = (1,) * count
    least = count

    def __init__(self):
        self.hub = NetHub(secret, count, [("127.0.0.1", 0)])
        words = [sys.executable, sys.argv[2], secret.hex(), str(self.hub.endpoints[0][1]), str(count)]
        self.agents = subprocess.Popen(words)

    def watch(self, poller, note, ended):
        pass

    def replace(self, node):
        return ""

    def sweep(self, node):
        raise AssertionError(f"node {node} was lost")

    def close(self):
        if self.agents.returncode is None:
            self.hub.close()
            self.agents.wait()


code = Controller(Job(command=("p",), world_size=count), Fleet(), EventLog(None)).run()
# Not ru_maxrss: it begins with what the process had been before exec, a copy of the one that runs the tests.
peak_kib = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM:"))
print("code", code, "MiB", peak_kib >> 10)
"""


@pytest.mark.slow
def test_a_thousand_agents_meet_and_leave():
    count = 1000
    if resource.getrlimit(resource.RLIMIT_NOFILE)[1] < 3 * count + 100:
        pytest.skip("the hard limit on open files (ulimit -Hn) is too low for a thousand connections")
    done = subprocess.run(
        [sys.executable, "-c", CONTROLLER, str(count), str(AGENTS)], capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr
    found = re.search(r"joined ([\d.]+) released ([\d.]+)", done.stdout)
    ended = re.search(r"code 0 MiB (\d+)", done.stdout)
    assert found and ended, done.stdout + done.stderr
    print(done.stdout)
    assert float(found[2]) <= 20, "5 s on a quiet machine"
    assert int(ended[1]) <= 200


@pytest.mark.slow
def test_ten_thousand_strangers(rng):
    """None gets in, nothing piles up, and whoever is in is not disturbed."""
    secret = keys.new_secret()
    hub = NetHub(secret, 1, [("127.0.0.1", 0)])
    port = hub.endpoints[0][1]
    poller, events = Poller(), []

    def serve():
        hub.watch(poller, lambda _: None)
        poller.wait(0.0 if hub.pending() else 0.01)
        events.extend(hub.receive())

    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        dialled = pool.submit(dial, Meeting((("127.0.0.1", port),), secret, 0, 20.0), -1, lambda _: None)
        machines.until(lambda: serve() or dialled.done(), "the one agent")
        link, _ = dialled.result()
    descriptors = len(leak_guard.descriptors())
    rubbish = [
        b"",
        b"GET / HTTP/1.1\r\n\r\n",
        b"\xff" + bytes(8) + b"\x7f\x03\x00CURVE" + bytes(48),
        rng.randbytes(700),
    ]
    for number in range(10_000):
        with socket.create_connection(("127.0.0.1", port)) as sock:
            sock.sendall(rubbish[number % 4])
        if number % 100 == 0:
            link.send(wire.Beat())
            serve()
    link.send(wire.Hello(wire.VERSION, 0, 1))
    machines.until(lambda: serve() or (events and isinstance(events[-1].message, wire.Hello)), "the agent's hello")
    assert len(events) == 101 and {event.peer for event in events} == {0}
    machines.until(lambda: serve() or len(leak_guard.descriptors()) <= descriptors + 5, "closed connections")
    link.close()
    hub.close()
