# SPDX-License-Identifier: Apache-2.0
"""What both drivers wait with: descriptors with their handlers, and signals as bytes on a descriptor.

`poll` rather than `epoll`, because standard input may be a regular file. Invariant: a handler is called only
while its descriptor is registered, also when an earlier handler of the same round removed it.
"""

from __future__ import annotations

import os
import select
import signal
import types
from collections.abc import Callable, Iterable

READ = select.POLLIN
WRITE = select.POLLOUT
GONE = select.POLLERR | select.POLLHUP | select.POLLNVAL  # always reported, whatever was asked for

Handler = Callable[[int], None]


class Poller:
    """Descriptors, what is wanted of them, and who is called."""

    def __init__(self) -> None:
        self._poll = select.poll()
        self._handlers: dict[int, tuple[int, Handler]] = {}

    def watch(self, fd: int, events: int, handler: Handler) -> None:
        """Call `handler(events)` when one of `events` (or GONE) is there; replaces what was asked before."""
        known = self._handlers.get(fd)
        if known is None or known[0] != events:
            self._poll.register(fd, events)
        self._handlers[fd] = (events, handler)

    def forget(self, fd: int) -> None:
        """Stop watching; unknown descriptors are fine."""
        if self._handlers.pop(fd, None) is not None:
            self._poll.unregister(fd)

    def wait(self, timeout_s: float | None) -> None:
        """Wait for events, at most `timeout_s`, and call their handlers."""
        milliseconds = None if timeout_s is None else max(0, -int(-timeout_s * 1000 // 1))
        for fd, events in self._poll.poll(milliseconds):
            entry = self._handlers.get(fd)
            if entry is not None:
                entry[1](events)


class SignalInbox:
    """Signals of this process, read from a pipe in the main loop instead of handled where they strike."""

    def __init__(self, numbers: Iterable[int]) -> None:
        self.fd, self._write_fd = os.pipe()
        os.set_blocking(self.fd, False)
        os.set_blocking(self._write_fd, False)
        self._before = {number: signal.signal(number, _note) for number in numbers}
        self._wakeup_before = signal.set_wakeup_fd(self._write_fd, warn_on_full_buffer=False)

    def read(self) -> list[int]:
        """Numbers of the signals that came since, in order."""
        try:
            return list(os.read(self.fd, 512))
        except BlockingIOError:
            return []

    def close(self) -> None:
        """Put the former handlers back."""
        signal.set_wakeup_fd(self._wakeup_before)
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        os.close(self.fd)
        os.close(self._write_fd)


def _note(number: int, frame: types.FrameType | None) -> None:
    """The byte in the pipe says it all; a handler must exist for it to be written."""
