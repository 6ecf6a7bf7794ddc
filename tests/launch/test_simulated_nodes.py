# SPDX-License-Identifier: Apache-2.0
"""Nodes of the fakes: whatever happens to who holds them, nothing of them is left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import machines
from pmrun.testing import simulated_nodes


@pytest.mark.parametrize("isolated", [True, False])
def test_nothing_is_left_when_its_process_is_killed(tmp_path: Path, isolated: bool) -> None:
    if isolated and (reason := simulated_nodes.why_not_isolated()):
        pytest.skip(reason)
    # The program's own child leaves session and group, and would stay for ever.
    program = (
        "import os, signal; os.fork() or os.setsid(); print('pid', os.getpid(), flush=True); "
        "signal.signal(15, signal.SIG_IGN); signal.pause()"
    )
    script = f"""
import sys
from pmrun.testing.simulated_nodes import Network
network = Network({isolated})
node = network.start(network.address(), (sys.executable, "-c", {program!r}), {{}})
import os, select
data = b""
while data.count(b"pid") < 2:
    select.select([node.output], [], [])
    data += os.read(node.output, 999)
print("ready", flush=True)
node.close() if sys.argv[1] == "close" else sys.stdin.read()
"""
    path = tmp_path / "holder.py"
    path.write_text(script)
    for how in ("close", "kill"):
        holder = subprocess.Popen(
            [sys.executable, str(path), how], env={**os.environ, "TMPDIR": str(tmp_path)},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert holder.stdout is not None and holder.stdin is not None
        assert holder.stdout.readline() == "ready\n"
        if how == "kill":
            os.kill(holder.pid, signal.SIGKILL)
        assert holder.wait(20) == (0 if how == "close" else -signal.SIGKILL)
        holder.stdin.close()
        holder.stdout.close()
        machines.until(lambda: os.listdir(tmp_path) == ["holder.py"], "the nodes' folders to go")
        machines.until(lambda: not left(program), "the nodes' processes to end")


def left(program: str) -> list[str]:
    """Processes with this program."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            if program.encode() in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0"):
                found.append(pid)
        except OSError:
            continue
    return found
