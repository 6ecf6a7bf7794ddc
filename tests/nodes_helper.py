# SPDX-License-Identifier: Apache-2.0
"""Runs a piece of Python on several "nodes" of this machine, each with a window of its own, without a launcher.

    results = nodes_run([2, 1], body, directory=tmp_path)

The ranks find each other through files. `gang_report` has `report(value)`, as for gangs, and `init(timeout=...)`, which
stands for `pm.init`. Invariant: no process is left when it returns or raises.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from pmrun import env, window

_REPORT = """\
import os, pathlib, pickle, time
from pmrun import context, env

HERE = pathlib.Path(__file__).parent

class Files:
    def key(self):
        return bytes(range(32))

    def publish(self, rank, address):
        (HERE / f"address-{rank}.new").write_text(address)
        (HERE / f"address-{rank}.new").rename(HERE / f"address-{rank}")

    def collect(self, ranks, timeout_s):
        paths = [HERE / f"address-{rank}" for rank in range(ranks)]
        end = time.monotonic() + timeout_s
        while not all(path.exists() for path in paths):
            assert time.monotonic() < end, "not all ranks came"
            os.sched_yield()
        return [path.read_text() for path in paths]

    def tell(self, name, text):
        place = HERE / name.replace("/", "-")
        place.with_suffix(".new").write_text(text)
        place.with_suffix(".new").rename(place)

    def hear(self, name, timeout_s):
        place, end = HERE / name.replace("/", "-"), time.monotonic() + timeout_s
        while not place.exists():
            assert time.monotonic() < end, f"nobody told {name}"
            os.sched_yield()
        return place.read_text()

def init(timeout=None):
    return context.join(timeout, Files())

def report(value):
    (HERE / f"result-{os.environ[env.RANK]}.pickle").write_bytes(pickle.dumps(value))
"""


def nodes_run(
    layout: list[int],
    body: str | Path,
    *args: str,
    directory: Path,
    extra: Mapping[str, str] | None = None,
    timeout: float = 60.0,
) -> list[Any]:
    """Run `body` on all ranks and return what each gave to report().

    Parameters
    ----------
    layout : list of int
        Ranks of each node.
    body : str or Path
        Source text (indented as you like), or a script's path.
    args : str
        Arguments of the script.
    directory : Path
        Where all files go; the test's own.
    extra : mapping, optional
        Further variables.
    """
    work = directory / f"nodes-{sum(1 for _ in directory.glob('nodes-*'))}"
    work.mkdir()
    (work / "gang_report.py").write_text(_REPORT)
    script = work / "body.py"
    script.write_text(body.read_text() if isinstance(body, Path) else textwrap.dedent(body))
    processes: list[subprocess.Popen[str]] = []
    try:
        for node in range(len(layout)):
            processes += _start_node(layout, node, [sys.executable, str(script), *args], extra or {})
        outputs = [process.communicate(timeout=timeout)[0] for process in processes]
    except subprocess.TimeoutExpired:
        pytest.fail(f"no end within {timeout} s", pytrace=False)
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    if any(process.returncode for process in processes):
        pytest.fail("\n".join(f"--- rank {rank}\n{text}" for rank, text in enumerate(outputs)), pytrace=False)
    return [pickle.loads((work / f"result-{rank}.pickle").read_bytes()) for rank in range(sum(layout))]


def _start_node(
    layout: list[int], node: int, command: list[str], extra: Mapping[str, str]
) -> list[subprocess.Popen[str]]:
    first = sum(layout[:node])
    held = window.Window(sum(layout), layout[node], first, os.cpu_count() or 1, 1 << 30)
    try:
        return [
            subprocess.Popen(
                command,
                env={**os.environ, **_environment(layout, node, local_rank, held.fd), **extra},
                pass_fds=[held.fd],
                text=True,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
            )
            for local_rank in range(layout[node])
        ]
    finally:
        held.close()


def _environment(layout: list[int], node: int, local_rank: int, window_fd: int) -> dict[str, str]:
    values = {
        env.RANK: sum(layout[:node]) + local_rank,
        env.WORLD_SIZE: sum(layout),
        env.LOCAL_RANK: local_rank,
        env.LOCAL_WORLD_SIZE: layout[node],
        env.NODE_RANK: node,
        env.NUM_NODES: len(layout),
        env.NODE_NAME: f"node{node}",
        env.LAYOUT: ",".join(map(str, layout)),
        env.DATA_ADDRESS: "127.0.0.1",
        env.WINDOW_FD: window_fd,
    }
    return {name: str(value) for name, value in values.items()}
