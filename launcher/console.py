# SPDX-License-Identifier: Apache-2.0
"""The terminal of a process as a rank's debugger needs it: every key goes to the rank as it is typed, Ctrl-] leaves.

What is shown keeps its line endings, because other ranks' lines may come between. Invariant: `release` gives the
terminal back as it was, and changes nothing where it was not taken.
"""

from __future__ import annotations

import os
import signal
import termios
from typing import Any, Final

LEAVE_KEY: Final = b"\x1d"  # Ctrl-]


class Console:
    """The terminal on descriptor 0."""

    def __init__(self) -> None:
        self._before: list[Any] | None = None

    @property
    def taken(self) -> bool:
        """Whether keys go to a rank."""
        return self._before is not None

    def take(self) -> bool:
        """Have each key by itself; False where there is no terminal, or another job has it at the moment."""
        try:
            if not os.isatty(2) or os.tcgetpgrp(0) != os.getpgrp():
                return False
            mode = termios.tcgetattr(0)
        except (OSError, termios.error):
            return False
        self._before = [*mode[:6], list(mode[6])]
        mode[0] &= ~(termios.ICRNL | termios.IXON)
        mode[3] &= ~(termios.ECHO | termios.ICANON | termios.ISIG | termios.IEXTEN)
        _set(mode)
        return True

    def release(self) -> None:
        """Give the terminal back."""
        if self._before is not None:
            _set(self._before)
            self._before = None

    def size(self) -> tuple[int, int]:
        """Rows and columns; zeros where that is not known."""
        try:
            columns, rows = os.get_terminal_size(0)
        except OSError:
            return 0, 0
        return rows, columns


def _set(mode: list[Any]) -> None:
    """Also from the background, where the kernel would stop the process."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTTOU,))
    try:
        termios.tcsetattr(0, termios.TCSADRAIN, mode)
    except termios.error:
        return  # the terminal is gone
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
