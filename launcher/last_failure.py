# SPDX-License-Identifier: Apache-2.0
"""The report of the last job that failed, kept for `pmrun explain-last`.

One file for each user, `$XDG_STATE_HOME/pmrun/last-failure.txt` (else below ~/.local/state): when, where, which command,
then the report. It is replaced whole, so that a reader finds the one before or this one, and only its owner may read it,
as a command line may hold a secret. Invariant: that it cannot be kept never changes how a job ends.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import time
from collections.abc import Sequence
from typing import Final

_NAME: Final = "last-failure.txt"
_BYTES_MAX: Final = 4 << 20


def folder() -> str:
    """Where it is kept; "" where this user has no place for it."""
    base = os.environ.get("XDG_STATE_HOME", "")
    if not os.path.isabs(base):  # unset, or what the standard says is to be ignored
        base = os.path.expanduser("~/.local/state")
    return os.path.join(base, "pmrun") if os.path.isabs(base) else ""


def keep(report: str, command: Sequence[str], outcome: str) -> None:
    """Keep a report, silently not where that cannot be done.

    Parameters
    ----------
    report : str
    command : sequence of str
        What the ranks ran.
    outcome : str
        How the job ended: "exit code 1".
    """
    when = time.strftime("%Y-%m-%d %H:%M:%S %z")
    text = f"{when}, in {_here()}, {outcome}:\n  {shlex.join(command)}\n{report}"
    with contextlib.suppress(OSError):
        os.makedirs(folder(), mode=0o700, exist_ok=True)
        _replace(os.path.join(folder(), _NAME), text.encode("utf-8", "replace")[:_BYTES_MAX])


def read() -> str | None:
    """What was kept, or None where nothing was.

    Raises
    ------
    OSError
        It is there and cannot be read.
    """
    try:
        with open(os.path.join(folder(), _NAME), "rb") as file:
            return file.read(_BYTES_MAX).decode("utf-8", "replace")
    except (FileNotFoundError, NotADirectoryError):
        return None


def obstacle() -> str:
    """Why no report can be kept here, in a line; "" where one can."""
    place = folder()
    if not place:
        return "this user has no home directory; set XDG_STATE_HOME to a directory of your own"
    existing = place
    while not os.path.lexists(existing):
        existing = os.path.dirname(existing)
    if not os.path.isdir(existing):
        return f"{existing} is not a directory; set XDG_STATE_HOME to one that you may write to"
    if not os.access(existing, os.W_OK | os.X_OK):
        return f"{existing} may not be written to; set XDG_STATE_HOME to a directory of your own"
    return ""


def _replace(path: str, data: bytes) -> None:
    fresh = f"{path}.{os.getpid()}"
    fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        with open(fd, "wb") as file:
            file.write(data)
        os.replace(fresh, path)
    except OSError:
        os.unlink(fresh)
        raise


def _here() -> str:
    try:
        return os.getcwd()
    except FileNotFoundError:
        return "a directory that is gone"
