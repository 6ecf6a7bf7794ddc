# SPDX-License-Identifier: Apache-2.0
"""What the tests of the launcher share: a running pmrun, its ranks as the system sees them, and what it left.

Processes of a job are found by the job's name in their environment, wherever they moved to. Every wait is for
a condition and has a deadline.
"""

from __future__ import annotations

import json
import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

DRIVE = Path(__file__).with_name("drive.py")
DEADLINE_S = 30.0  # generous: these machines are shared; the tests of promptness have bounds of their own


def until(condition: Callable[[], object], what: str, timeout_s: float = DEADLINE_S) -> None:
    """Look again and again until `condition()` holds."""
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, f"waited {timeout_s} s for: {what}"
        select.select([], [], [], 0.01)


def ended(pid: int, timeout_s: float) -> bool:
    """Wait for the end of a process that need not be a child."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([fd], [], [], timeout_s)[0])
    finally:
        os.close(fd)


def processes_with(mark: bytes) -> list[int]:
    """Living processes whose initial environment contains `mark`."""
    found = []
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            environment = Path(f"/proc/{name}/environ").read_bytes()
            state = Path(f"/proc/{name}/stat").read_bytes().rpartition(b") ")[2][:1]
        except OSError:
            continue
        if mark in environment and state not in b"ZX":
            found.append(int(name))
    return found


def memory_bytes(pid: int, field: str = "VmRSS") -> int:
    """Resident memory of a process (VmHWM: its peak); 0 when it has ended."""
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    match = re.search(rf"^{field}:\s+(\d+) kB", text, re.M)
    return int(match[1]) << 10 if match is not None else 0


def until_idle(pids: list[int], what: str) -> None:
    """Wait until none of the processes has used the CPU in twenty looks."""
    last, looks = None, 0

    def idle() -> bool:
        nonlocal last, looks
        now = [_cpu_ticks(pid) for pid in pids]
        looks = looks + 1 if now == last else 0
        last = now
        return looks >= 20

    until(idle, what)


def _cpu_ticks(pid: int) -> tuple[bytes, ...]:
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b") ")[2].split()
    except OSError:
        return ()
    return fields[0], fields[11], fields[12]


class Launched:
    """One pmrun under test."""

    def __init__(
        self, command: list[str], world_size: int, *, source: int | None = subprocess.DEVNULL,
        stdout: int | None = subprocess.PIPE, stderr: int | None = subprocess.PIPE,
        preexec: Callable[[], None] | None = None, pass_fds: tuple[int, ...] = (), **job: object,
    ) -> None:  # fmt: skip
        self.cookie = f"t{os.getpid()}x{time.monotonic_ns():x}"
        wanted = {"command": command, "world_size": world_size, **job}
        self.process = subprocess.Popen(
            [sys.executable, str(DRIVE), json.dumps(wanted)],
            stdin=source, stdout=stdout, stderr=stderr, preexec_fn=preexec, start_new_session=True,
            pass_fds=pass_fds, env={**os.environ, "LAUNCH_TEST_COOKIE": self.cookie},
        )  # fmt: skip
        self._seen = b""

    @property
    def pid(self) -> int:
        return self.process.pid

    def everything(self) -> list[int]:
        """pmrun, its agent, the ranks and their descendants, as far as they live."""
        return processes_with(f"LAUNCH_TEST_COOKIE={self.cookie}\0".encode())

    def ranks(self) -> dict[int, int]:
        """Process id by rank, of the ranks' own processes and their children."""
        result: dict[int, int] = {}
        for pid in self.everything():
            try:
                environment = Path(f"/proc/{pid}/environ").read_bytes()
            except OSError:
                continue
            match = re.search(rb"(?:^|\0)PMRUN_RANK=(\d+)\0", environment)
            if match is not None:
                rank = int(match[1])
                result[rank] = min(pid, result.get(rank, pid))
        return result

    def agent(self) -> int:
        """Process id of the agent: pmrun's only child."""
        children = [
            int(name)
            for name in os.listdir("/proc")
            if name.isdigit() and _parent(name) == self.pid
        ]  # fmt: skip
        assert len(children) == 1, children
        return children[0]

    def read_until(self, count: int, line: bytes = b"ready", timeout_s: float = DEADLINE_S) -> bytes:
        """Read pmrun's output until `line` was seen in it `count` times; returns all output so far."""
        assert self.process.stdout is not None
        fd = self.process.stdout.fileno()
        end = time.monotonic() + timeout_s
        while self._seen.count(line) < count:
            readable, _, _ = select.select([fd], [], [], max(0.0, end - time.monotonic()))
            assert readable, f"no {count} x {line!r} in {self._seen!r}"
            data = os.read(fd, 65536)
            if not data:
                rest = self.process.stderr.read() if self.process.stderr is not None else b""
                raise AssertionError(f"output ended without {line!r}: {self._seen!r}; errors: {rest!r}")
            self._seen += data
        return self._seen

    def finish(self, timeout_s: float = DEADLINE_S) -> tuple[int, bytes, bytes]:
        """Wait for the end; returns exit code, whole standard output and error."""
        out, err = self.process.communicate(timeout=timeout_s)
        return self.process.returncode, self._seen + (out or b""), err or b""

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def assert_nothing_left(self, timeout_s: float = 3.0) -> None:
        """No process carries this job's cookie any more."""
        until(lambda: not self.everything(), f"no process left of {self.cookie}: {self.everything()}", timeout_s)

    def destroy(self) -> None:
        """Whatever a failed test left."""
        for pid in self.everything():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self.process.communicate()


def _parent(name: str) -> int:
    try:
        stat = Path(f"/proc/{name}/stat").read_bytes()
    except OSError:
        return -1
    return int(stat.rpartition(b") ")[2].split()[1])


def fixtures() -> Iterator[Callable[..., Launched]]:
    """Body of the `launch` fixture: starts jobs, and ends them after the test."""
    started: list[Launched] = []
    shared_before, temporary_before = set(os.listdir("/dev/shm")), set(os.listdir("/tmp"))

    def launch(command: list[str], world_size: int, **keywords: object) -> Launched:
        launched = Launched(command, world_size, **keywords)  # type: ignore[arg-type]
        started.append(launched)
        return launched

    yield launch
    for launched in started:
        launched.destroy()
    assert not {name for name in set(os.listdir("/dev/shm")) - shared_before if "pmrun" in name}
    assert not {name for name in set(os.listdir("/tmp")) - temporary_before if "pmrun-" in name}
