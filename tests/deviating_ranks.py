# SPDX-License-Identifier: Apache-2.0
"""Programs of random collectives in which one rank deviates, played by real processes in a window of their own.

    story = play(Case(...))  # what each rank was told: error's type, text and culprit

The ranks are forks of this process, which keeps what it has imported: a program takes some hundredths of a second, so that a
test can play many, and shrink one that fails. This process does what an agent does: it marks who has left, and how. The
usual ranks run `usual.py`, the one that deviates `deviating.py`, neither of which exists: a line for each call, so that the
text of an error says which call is meant. Invariant: no process and no descriptor is left when `play` returns or raises.
"""

from __future__ import annotations

import array
import os
import pickle
import select
import time
from typing import Any, NamedTuple, NoReturn

import numpy as np

import pmrun
from pmrun import _native, env, window

DEADLINE_S = 20.0
HEAP_BYTES = 64 << 20
SHARED_BY_FORK = (np, _native)  # what every rank would load else, which takes ten times as long as its program
ROOTED = ("broadcast", "reduce", "gather")
REDUCING = ("allreduce", "reduce", "scan", "reduce_scatter")
IN_PARTS = ("alltoall", "reduce_scatter")  # an equal part for each rank
KINDS = ("barrier", "allreduce", "allgather", "alltoall", "reduce_scatter", "scan", *ROOTED)
END_COUNT = 7  # of the meeting that ends every program; no other call has as many


class Call(NamedTuple):
    """One collective, as all ranks call it."""

    kind: str
    dtype: str = "d"
    count: int = 1
    root: int = 0
    op: str = "sum"
    nonblocking: bool = False

    def meaning(self) -> tuple[object, ...]:
        """What ranks must agree on."""
        if self.kind == "barrier":
            return (self.kind,)
        root = self.root if self.kind in ROOTED else -1
        return self.kind, self.dtype, self.count, root, self.op if self.kind in REDUCING else ""

    def line(self, ranks: int) -> str:
        """As Python."""
        words = []
        if self.kind != "barrier":
            words.append(f"block({self.dtype!r}, {self.count * (ranks if self.kind in IN_PARTS else 1)})")
        if self.kind in REDUCING:
            words.append(f"op={self.op!r}")
        if self.kind in ROOTED:
            words.append(f"root={self.root}")
        call = f"{self.kind}({', '.join(words)})"
        return f"w.i{call}.wait()" if self.nonblocking else f"w.{call}"


END = Call("allreduce", count=END_COUNT)


class Case(NamedTuple):
    """What the ranks run. `last` is the deviating rank's end: "" after END, as all; "returns" or "raises" before it."""

    ranks: int
    deviator: int
    usual: tuple[Call, ...]
    deviating: tuple[Call, ...]
    last: str

    def source(self, rank: int) -> tuple[str, str]:
        """A rank's file name and program."""
        deviates = rank == self.deviator
        calls = [call.line(self.ranks) for call in (self.deviating if deviates else self.usual)]
        last = self.last if deviates else ""
        end = {"": END.line(self.ranks), "returns": "", "raises": "raise ValueError('bad shard')"}[last]
        return "deviating.py" if deviates else "usual.py", "\n".join([*calls, end])

    def first_difference(self) -> int:
        """The line of the first call that differs."""
        pairs = zip((*self.usual, END), (*self.deviating, END), strict=False)
        return next(line for line, (one, other) in enumerate(pairs, 1) if one.meaning() != other.meaning())


class Told(NamedTuple):
    """What a rank read: the type of the exception, its text, and the rank that it blames."""

    error: str
    text: str
    rank: int


def play(case: Case) -> list[Told]:
    """Run it on processes; what each rank was told, an empty `error` where it ended well."""
    held = window.Window(case.ranks, case.ranks, 0, 2, HEAP_BYTES)
    children: dict[int, tuple[int, int, int]] = {}  # by the descriptor of its end: rank, process, pipe
    told: dict[int, Told] = {}
    try:
        for rank in range(case.ranks):
            read_fd, write_fd = os.pipe()
            pid = os.fork()
            if pid == 0:
                _be_rank(case, rank, held.fd, write_fd)
            os.close(write_fd)
            children[os.pidfd_open(pid)] = rank, pid, read_fd
        end = time.monotonic() + DEADLINE_S
        while children:
            ready, _, _ = select.select([*children], [], [], max(0.0, end - time.monotonic()))
            assert ready, f"ranks {sorted(rank for rank, _, _ in children.values())} hang; told so far: {told}"
            for fd in ready:
                rank, failed, told[rank] = _reap(fd, *children.pop(fd))
                held.mark_departed(rank, failed)
    finally:
        for fd, (_, pid, read_fd) in children.items():
            os.kill(pid, 9)
            _reap(fd, 0, pid, read_fd)
        held.close()
    return [told[rank] for rank in range(case.ranks)]


def _reap(fd: int, rank: int, pid: int, read_fd: int) -> tuple[int, bool, Told]:
    _, status = os.waitpid(pid, 0)
    with open(read_fd, "rb") as file:
        data = file.read()
    os.close(fd)
    told = pickle.loads(data) if data else Told("nothing", f"it ended with status {status}", -1)
    return rank, status != 0, told


def _be_rank(case: Case, rank: int, window_fd: int, write_fd: int) -> NoReturn:
    """In the child, which ends here, without the parent's handlers of its end."""
    values = {env.RANK: rank, env.WORLD_SIZE: case.ranks, env.LOCAL_RANK: rank, env.LOCAL_WORLD_SIZE: case.ranks,
              env.WINDOW_FD: window_fd, env.LAYOUT: case.ranks}  # fmt: skip
    told = Told("nothing", "it never ran", -1)
    try:
        os.environ.update({name: str(value) for name, value in values.items()})
        world = pmrun.init()
        name, source = case.source(rank)
        exec(compile(source, f"/{name}", "exec"), {"w": world, "block": _block})  # noqa: S102 - it is our own
        told = Told("", "", -1)
        pmrun.shutdown()
    except BaseException as error:  # noqa: BLE001 - whatever it is, the parent is told
        told = Told(type(error).__name__, str(error), getattr(error, "rank", -1))
    finally:
        os.write(write_fd, pickle.dumps(told))
        os._exit(1 if told.error else 0)


def _block(dtype: str, count: int) -> Any:
    return memoryview(array.array(dtype, [1] * count))
