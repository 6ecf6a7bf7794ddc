# SPDX-License-Identifier: Apache-2.0
"""Python stacks of a node's ranks, taken from outside by py-spy: also of ranks that are stopped or inside C.

One child process for each rank, so many at a time as there are CPUs, all of them within one time limit. They only read
memory (`--nonblocking`): no rank is stopped or signalled. Where py-spy is missing or not permitted, the answer has no
stacks and one line that says why. Invariant: every child is ended, and every descriptor closed, before `done` is
called; nothing here waits.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
from collections.abc import Callable
from typing import Final

import msgspec

from pmrun import errors
from pmrun.launcher.poller import READ, Poller

LIMIT_S: Final = 4.0  # for all ranks of a node
_OUTPUT_MAX: Final = 4 << 20  # of one child
_FRAMES_MAX: Final = 24
_THREADS_MAX: Final = 8
_INSTALLED: Final = ("/site-packages/", "/dist-packages/", "/lib/python", "<frozen")
_OWN: Final = os.path.dirname(os.path.abspath(errors.__file__)) + os.sep  # pmrun's, wherever it is installed


class Stack(msgspec.Struct, frozen=True):
    """Where one rank's threads are."""

    frames: tuple[str, ...] = ()  # of the main thread, innermost first
    place: str = ""  # the innermost of them that is not of an installed package
    threads: tuple[str, ...] = ()


class _Frame(msgspec.Struct):
    name: str
    filename: str
    line: int


class _Thread(msgspec.Struct):
    frames: list[_Frame]
    thread_name: str | None = None
    os_thread_id: int | None = None


class _Child(msgspec.Struct):
    rank: int
    pidfd: int
    output: int  # our end of its output
    data: bytearray


class Survey:
    """Takes the stacks of some processes, once.

    Parameters
    ----------
    poller : Poller
        Of the agent's loop, whose SIGCHLD reaps the children.
    pids : dict
        The processes, by rank.
    cwd : str or None
        Paths below it are shown without it.
    at_once : int
        How many children run at a time.
    done : callable
        Takes the stacks by rank, and a line that says why some are missing, or "".
    """

    def __init__(
        self,
        poller: Poller,
        pids: dict[int, int],
        cwd: str | None,
        at_once: int,
        done: Callable[[dict[int, Stack], str], None],
    ) -> None:
        self._poller = poller
        self._waiting = list(pids.items())[::-1]
        self._cwd = cwd
        self._at_once = at_once
        self._done = done
        self._program = find_program()
        self._children: dict[int, _Child] = {}  # by descriptor
        self._stacks: dict[int, Stack] = {}
        self._problem = ""
        self._end_by = 0.0
        self.over = False

    def begin(self, now: float) -> None:
        """Start; `done` may be called before this returns."""
        self._end_by = now + LIMIT_S
        if not self._program:
            self._waiting.clear()
            self._problem = "no Python stacks: py-spy is not installed here; pip install py-spy"
        self._go_on()

    def deadline(self) -> float | None:
        """When `on_tick` has something to do."""
        return None if self.over else self._end_by

    def on_tick(self, now: float) -> None:
        """Time has passed."""
        if self.over or now < self._end_by:
            return
        self._problem = self._problem or f"some Python stacks are missing: they took longer than {LIMIT_S:g} s"
        self._waiting.clear()
        for child in list(self._children.values()):
            self._end(child)
        self._go_on()

    def _go_on(self) -> None:
        while self._waiting and len(self._children) < self._at_once:
            rank, pid = self._waiting.pop()
            try:
                self._start(rank, pid)
            except OSError as error:
                self._problem = f"no Python stacks: cannot run py-spy: {error.strerror}"
                self._waiting.clear()
        if not self._children and not self.over:
            self.over = True
            self._done(self._stacks, self._problem)

    def _start(self, rank: int, pid: int) -> None:
        ours, theirs = os.pipe()
        try:
            argv = [self._program, "dump", "--nonblocking", "--json", "--full-filenames", "--pid", str(pid)]
            actions = [(os.POSIX_SPAWN_DUP2, theirs, 1), (os.POSIX_SPAWN_DUP2, theirs, 2)]
            child = os.posix_spawn(self._program, argv, os.environ, file_actions=actions, setsigmask=())
            pidfd = os.pidfd_open(child)  # the agent reaps it later, so the number is still its own
        except OSError:
            os.close(ours)
            raise
        finally:
            os.close(theirs)
        os.set_blocking(ours, False)
        self._children[ours] = _Child(rank, pidfd, ours, bytearray())
        self._poller.watch(ours, READ, lambda events: self._on_output(self._children[ours]))

    def _on_output(self, child: _Child) -> None:
        try:
            data = os.read(child.output, 1 << 16)
        except BlockingIOError:
            return
        child.data += data
        if data and len(child.data) <= _OUTPUT_MAX:
            return
        self._end(child)
        self._take(child)
        self._go_on()

    def _end(self, child: _Child) -> None:
        del self._children[child.output]
        self._poller.forget(child.output)
        os.close(child.output)
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(child.pidfd, signal.SIGKILL)
        os.close(child.pidfd)

    def _take(self, child: _Child) -> None:
        stack = read_dump(bytes(child.data), self._cwd)
        if stack is not None:
            self._stacks[child.rank] = stack
        elif not self._problem:
            self._problem = explain(child.data.decode("utf-8", "replace"), child.rank)


def find_program() -> str:
    """py-spy of this Python's environment, else the one on PATH; "" where there is none."""
    beside = os.path.join(os.path.dirname(sys.executable), "py-spy")
    return beside if os.access(beside, os.X_OK) else shutil.which("py-spy") or ""


def read_dump(data: bytes, cwd: str | None) -> Stack | None:
    """What py-spy wrote, or None where it is not a dump."""
    begin = data.find(b"[\n")  # warnings come before it
    try:
        threads = msgspec.json.decode(data[max(begin, 0) :], type=list[_Thread])
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    main = next((thread for thread in threads if thread.thread_name == "MainThread"), threads[-1] if threads else None)
    if main is None:
        return None
    own = next((frame for frame in main.frames if not _installed(frame)), main.frames[0] if main.frames else None)
    others = [thread for thread in threads if thread is not main and thread.frames]
    lines = [f"thread {thread.thread_name or '?'}: {_where(thread.frames[0], cwd)}" for thread in others[:_THREADS_MAX]]
    if len(others) > _THREADS_MAX:
        lines.append(f"{len(others) - _THREADS_MAX} more threads")
    frames = [_where(frame, cwd) for frame in main.frames[:_FRAMES_MAX]]
    if len(main.frames) > _FRAMES_MAX:
        frames.append(f"{len(main.frames) - _FRAMES_MAX} more frames")
    return Stack(tuple(frames), _where(own, cwd) if own else "", tuple(lines))


def explain(text: str, rank: int) -> str:
    """Why there is no dump, in a line, from what py-spy said."""
    if "ermission" in text or "not permitted" in text:
        remedy = "give the container SYS_PTRACE (docker run --cap-add SYS_PTRACE), or see kernel.yama.ptrace_scope"
        return f"no Python stacks: reading other processes is not permitted; {remedy}"
    said = next((line.strip() for line in text.splitlines() if line.strip()), "it ended without a word")
    return f"no Python stack of rank {rank}: py-spy: {said.removeprefix('Error: ')}"


def _installed(frame: _Frame) -> bool:
    return frame.filename.startswith(_OWN) or any(part in frame.filename for part in _INSTALLED)


def _where(frame: _Frame, cwd: str | None) -> str:
    path = frame.filename
    if path.startswith(_OWN):
        path = f"pmrun/{path[len(_OWN) :]}"
    elif cwd and path.startswith(cwd.rstrip("/") + "/"):
        path = path[len(cwd.rstrip("/")) + 1 :]
    elif "/site-packages/" in path:
        path = path.rpartition("/site-packages/")[2]
    return f"{path}:{frame.line} in {frame.name}"
