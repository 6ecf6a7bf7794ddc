# SPDX-License-Identifier: Apache-2.0
"""Gangs that are struck, on machines of their own: what is read of them, when each process ends, and what is left.

The machines are namespaces, one or several (nodes.py), so everything that runs, listens or has a name there is the gang's,
whatever became of its parent, its session or its environment. Every rank says who it is by `HELLO`. All moments are of
one clock, that of this machine. Invariant: what is told as left was not there before the gang, and when a `Gang` is
closed nothing of it runs.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import selectors
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import nodes
from nodes import NAMES, Cluster, Layout, Machine
from peers import PMRUN

PATIENCE_S = 30.0
NEVER = float("inf")
SETTLE_S = 5.0  # how long what pmrun leaves on other machines may take to go before it counts as left
# Of every program that is struck, which has `os` and `world`. A line is one write: not every launcher keeps lines whole.
HELLO = """
def say(*words):
    os.write(1, (" ".join(map(str, words)) + chr(10)).encode())
say("rank", world.rank, os.getpid(), os.uname().nodename)
"""
Line = dict[str, Any]


class Field:
    """The machines, and a folder that all of them see."""

    def __init__(self, cluster: Cluster, layout: Layout | None, folder: Path) -> None:
        self.cluster, self.layout, self.folder = cluster, layout, folder
        self.temporary = folder / "tmp"  # TMPDIR of every gang
        self.temporary.mkdir()
        self.fifo = folder / "go"  # a rank that reads from it waits for Gang.go
        os.mkfifo(self.fifo)

    @property
    def name(self) -> str:
        return str(self.layout) if self.layout else "1"

    def machines(self) -> list[Machine]:
        return list(self.cluster.machines.values())

    def command(self, ranks: int, *options: str, several: bool = True) -> list[str]:
        """The words of pmrun up to the script: over all machines that there are, or on the first alone."""
        where = self.layout.place.pmrun if self.layout and several else (str(PMRUN), "--no-tag")
        return [*where, "-n", str(ranks), *options]

    def script(self, text: str, words: Mapping[str, object] = {}) -> str:
        """Write a program, with capitals replaced; where it is."""
        for word, value in words.items():
            text = text.replace(word, str(value))
        path = self.folder / "program.py"
        path.write_text(text)
        return str(path)

    def census(self) -> set[str]:
        """All that a gang could leave: processes, names in /dev/shm and /run, files in TMPDIR, listening ports."""
        found = {f"file {path.name}" for path in self.temporary.iterdir()}
        for name, machine in self.cluster.machines.items():
            running = {**machine.processes(), **machine.sessions()}
            found |= {f"process {pid} on {name}: {words}" for pid, words in running.items()}
            found |= {f"port {ip}:{port} on {name}" for ip, port in machine.listening()}
            for folder in ("dev/shm", "run"):
                found |= {f"/{folder}/{item} on {name}" for item in os.listdir(f"/proc/{machine.pid}/root/{folder}")}
        return found


@contextlib.contextmanager
def opened(layout: Layout | None) -> Iterator[Field]:
    """Machines a, b, ... of a layout, or machine a alone; asserts that their namespaces go with them."""
    with tempfile.TemporaryDirectory(prefix="struck-") as name:
        folder = Path(name)
        (folder / "cluster").mkdir()
        with nodes.opened_cluster(folder / "cluster", layout.nodes if layout else 1) as cluster:
            spaces = {space for machine in cluster.machines.values() for space in spaces_of(machine.pid)}
            yield Field(cluster, layout, folder)
        pids = [int(entry) for entry in os.listdir("/proc") if entry.isdigit()]
        left = spaces & {space for pid in pids for space in spaces_of(pid)}
        assert not left, f"namespaces are left: {left}"


def spaces_of(pid: int) -> list[str]:
    """The namespaces of a machine in which a process is; none of one that has ended."""
    try:
        return [os.readlink(f"/proc/{pid}/ns/{kind}") for kind in ("net", "mnt", "pid", "uts", "ipc")]
    except OSError:
        return []


# ---- one gang ---------------------------------------------------------------------------------------------


class Gang:
    """A command on the first machine, read and watched as things happen."""

    def __init__(self, field: Field, words: Sequence[str], added: Mapping[str, str] = {}) -> None:
        self.field = field
        self.before = field.census()
        self.out, self.err, self._rest = bytearray(), bytearray(), b""
        self.ended: dict[int, float] = {}  # process ids, as seen from outside
        self.said: list[tuple[float, str]] = []  # lines of standard error
        state = str(field.folder / "state")
        environment = {**os.environ, "TMPDIR": str(field.temporary), "XDG_STATE_HOME": state, **added}
        self.process = field.cluster[NAMES[0]].popen(
            words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
        )
        self._waiting = selectors.DefaultSelector()
        self._waiting.register(self.process.stdout, selectors.EVENT_READ, "out")  # type: ignore[arg-type]  # both are pipes
        self._waiting.register(self.process.stderr, selectors.EVENT_READ, "err")  # type: ignore[arg-type]
        self.watch([self.process.pid])
        self._go_fd = os.open(field.fifo, os.O_RDWR)  # for both, so that neither waits for the other to open it

    def watch(self, pids: Sequence[int]) -> None:
        """Note when these processes end; those that have ended count as of now."""
        for pid in pids:
            try:
                self._waiting.register(os.pidfd_open(pid), selectors.EVENT_READ, pid)
            except ProcessLookupError:
                self.ended[pid] = time.time()

    def wait(self, condition: Callable[[], object], patience_s: float = PATIENCE_S) -> bool:
        """Read and watch until something holds, or patience ends."""
        until = time.monotonic() + patience_s
        while not condition():
            ready = self._waiting.select(max(0.0, until - time.monotonic()))
            if not ready:
                return False
            for key, _ in ready:
                self._take(key)
        return True

    def _take(self, key: selectors.SelectorKey) -> None:
        if isinstance(key.data, int):
            self.ended[key.data] = time.time()
            self._waiting.unregister(key.fileobj)
            os.close(key.fd)
            return
        data = os.read(key.fd, 1 << 16)
        if not data:
            self._waiting.unregister(key.fileobj)
        elif key.data == "out":
            self.out += data
        else:
            self.err += data
            whole, _, self._rest = (self._rest + data).rpartition(b"\n")
            self.said += [(time.time(), line) for line in whole.decode(errors="replace").splitlines()]

    def go(self) -> float:
        """Let the rank that waits for it die, which says "dies" and when; that moment."""
        os.write(self._go_fd, b"!")
        self.wait(lambda: self.lines("dies"))
        return float(self.lines("dies")[0][0])

    def lines(self, word: str) -> list[list[str]]:
        """What follows a word in whole lines of the output."""
        whole = self.out.decode(errors="replace").rpartition("\n")[0].splitlines()
        return [line.split()[1:] for line in whole if line.split()[:1] == [word]]

    def ranks(self) -> dict[int, int]:
        """The ranks that said who they are and still run: process ids as seen from outside."""
        found = {}
        for rank, pid, host in self.lines("rank"):
            with contextlib.suppress(ProcessLookupError):
                found[int(rank)] = self.field.cluster[host].outside(int(pid))
        return found

    def all_processes(self) -> list[int]:
        """Everything that runs on all machines for this gang, sshd's part too."""
        machines = self.field.cluster.machines.values()
        return [pid for machine in machines for pid in (*machine.processes(), *machine.sessions())]

    def launcher(self) -> int:
        """The command itself: `nsenter` forked it."""
        return int(Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()[0])

    def has_ended(self) -> bool:
        """The command, with all its output."""
        return self.process.pid in self.ended and not {"out", "err"} & {
            key.data for key in self._waiting.get_map().values()
        }

    def all_ended(self) -> bool:
        """Everything that is watched, and the command's output."""
        return not self._waiting.get_map()

    def times(self, at: float, ranks: Iterable[int], named: str) -> dict[str, float]:
        """From a moment on until the ranks had ended, a line was said, the command and everything watched had ended."""
        told = [when for when, line in self.said if named in line]
        moments = {
            "gone_s": max(self.ended.get(pid, NEVER) for pid in ranks),
            "told_s": min(told, default=NEVER),
            "ended_s": self.ended.get(self.process.pid, NEVER),
            "clean_s": max(self.ended.values()) if self.all_ended() else NEVER,
        }
        return {name: max(0.0, moment - at) for name, moment in moments.items()}

    def left(self) -> list[str]:
        """What it left, once it has had its time to go."""
        until = time.monotonic() + SETTLE_S
        while (found := self.field.census() - self.before) and time.monotonic() < until:
            self.wait(lambda: False, 0.02)
        return sorted(found)

    def close(self) -> None:
        """End whatever is still there."""
        nodes.end_all(self.field.cluster)
        for session in (pid for machine in self.field.cluster.machines.values() for pid in machine.sessions()):
            with contextlib.suppress(ProcessLookupError):  # it ended with what it served
                os.kill(session, 9)
        self.process.kill()
        self.process.wait()
        for key in list(self._waiting.get_map().values()):
            if isinstance(key.data, int):
                os.close(key.fd)
        self._waiting.close()
        os.close(self._go_fd)
        for stream in (self.process.stdout, self.process.stderr):
            assert stream is not None
            stream.close()


@contextlib.contextmanager
def started(field: Field, words: Sequence[str], added: Mapping[str, str] = {}) -> Iterator[Gang]:
    """A gang, ended with the block."""
    gang = Gang(field, words, added)
    try:
        yield gang
    finally:
        gang.close()


# ---- what is kept of many ---------------------------------------------------------------------------------


def add_arguments(parser: argparse.ArgumentParser, out: Path, count: int) -> None:
    """What every script that strikes takes."""
    parser.add_argument("--layout", type=Layout.parse, metavar="NODESxRANKS", help="default: one machine")
    parser.add_argument("--count", type=int, default=count)
    parser.add_argument("--seed", type=int, default=1, help="the first one")
    parser.add_argument("--out", type=Path, default=out)
    parser.add_argument("--append", action="store_true", help="keep what --out holds, and leave out what it has")
    parser.add_argument("--budget-s", type=float, default=NEVER, help="begin no gang after so long")


def in_slices(
    asked: argparse.Namespace, kind: str, field: Field, plan: Iterable[tuple[str, int]], play: Callable[..., Line]
) -> list[Line]:
    """Play (how, seed) by (how, seed) as far as time allows; all there are by now, earlier slices too, as --out has them.

    `how` is "" where it follows from the seed.
    """
    if not asked.append:
        asked.out.unlink(missing_ok=True)
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    kept = asked.out.read_text(encoding="utf-8").splitlines() if asked.out.exists() else []
    lines: list[Line] = [line for line in map(json.loads, kept) if (line["kind"], line["where"]) == (kind, field.name)]
    known = {(line["how"], line["seed"]) for line in lines} | {("", line["seed"]) for line in lines}
    until = time.monotonic() + asked.budget_s
    with asked.out.open("a", encoding="utf-8") as file:
        for how, seed in plan:
            if (how, seed) in known or time.monotonic() >= until:
                continue
            lines.append(play(field, how, seed))
            print(json.dumps(lines[-1]), file=file, flush=True)
            if wrong(lines[-1]):
                print(f"{lines[-1]['how']}, seed {seed}: {wrong(lines[-1])}", flush=True)
    return lines


def wrong(line: Line) -> str:
    """What is to be held against pmrun."""
    return ", ".join([word for word in (line["problem"], *(line["left"] or ())) if word])


def spread(values: Sequence[float]) -> str:
    """Median, 99 % and most, as a column of a table; all, where that is more than one."""
    late = statistics.quantiles(values, n=100, method="inclusive")[98] if len(values) > 1 else values[0]
    return f"{statistics.median(values):.3f}, {late:.3f}, {max(values):.3f} s"
