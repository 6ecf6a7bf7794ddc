# SPDX-License-Identifier: Apache-2.0
"""`pm.should_stop()`: a request to stop, from wherever, becomes one step at which all ranks know of it.

    for step in range(start, steps):
        ...
        if pm.should_stop():
            checkpoint.save(step + 1, state)
            pm.exit_resumable()

A request is SIGTERM to `pmrun`, which its agents write into each node's window; SIGTERM to a rank itself (another
launcher, or none); or that the file exists that PMRUN_PREEMPT_FILE names, as a watcher of spot notices may make it.
Whoever heard of one tells the others by an allreduce in the next call. Invariants: all ranks get the same answer from
the same call; a child made by fork takes SIGTERM as if nothing were.
"""

from __future__ import annotations

import atexit
import os
import signal
import threading
import time
from typing import TYPE_CHECKING, Final, NoReturn

from pmrun import context, current, env, window
from pmrun.errors import ExitCode

if TYPE_CHECKING:
    from types import FrameType

RESUMABLE: Final = ExitCode.RESUMABLE
_FILE_EVERY_S: Final = 1.0

_watch: Watch | None = None


def should_stop() -> bool:
    """Return whether the gang was asked to stop; True on all ranks after the same call, and from then on.

    Every rank calls it after `pm.init()`, once per step; it is a small allreduce. From the first call on a SIGTERM to `pmrun` does not
    reach this rank, nor its children, before `--grace` is over.
    """
    global _watch
    if _watch is None:
        alone = current.world_size() == 1
        plain = alone and env.WINDOW_FD not in os.environ  # python without pmrun needs no pm.init()
        _watch = Watch(alone, *((-1, 0) if plain else context.window()))
    return _watch.ask()


def exit_resumable() -> NoReturn:
    """End this rank; its exit code, ``pm.RESUMABLE``, says that it saved its work and can go on."""
    raise SystemExit(RESUMABLE)


class Watch:
    """What this rank knows of requests to stop.

    Parameters
    ----------
    alone : bool
        There is no other rank to tell.
    descriptor : int
        Of the node's window; -1 for none.
    local_rank : int
        This rank's place in it.
    """

    def __init__(self, alone: bool, descriptor: int, local_rank: int) -> None:
        self._alone = alone
        self._descriptor = descriptor
        self._local_rank = local_rank
        self._agreed = False
        self._signalled = False
        self._file = os.environ.get(env.PREEMPT_FILE) if current.local_rank() == 0 else None
        self._look_at = 0.0  # when to look for the file again
        self._pid = os.getpid()
        # First the handler, then the word that keeps the agent from sending the signal: no moment is between them.
        if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
            signal.signal(signal.SIGTERM, self._on_signal)
            atexit.register(self._at_exit)
        self._tell(window.HEED_ASKS)

    def ask(self) -> bool:
        """One call of `should_stop`."""
        if not self._agreed:
            heard = self._heard()
            if not self._alone:
                heard = bool(context.world().allreduce(int(heard), op="max"))
            if heard:
                self._agreed = True
                self._tell(window.HEED_AGREED)
        return self._agreed

    def _heard(self) -> bool:
        return self._signalled or self._asked_by_agent() or self._noticed()

    def _asked_by_agent(self) -> bool:
        return self._descriptor >= 0 and os.pread(self._descriptor, 4, window.STOP_ASKED_OFFSET) != b"\0\0\0\0"

    def _noticed(self) -> bool:
        if not self._file or time.monotonic() < self._look_at:
            return False
        self._look_at = time.monotonic() + _FILE_EVERY_S
        return os.path.exists(self._file)

    def _tell(self, heed: int) -> None:
        if self._descriptor >= 0:
            os.pwrite(self._descriptor, bytes((heed,)), window.HEED_OFFSET + self._local_rank)

    def _at_exit(self) -> None:
        """On its way out Python gives the signal back its default, by which a late one would kill what has saved its work."""
        if self._agreed and os.getpid() == self._pid:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() == self._pid:
            self._signalled = True
        else:  # a forked child, say of a data loader, which its parent wants to end
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
