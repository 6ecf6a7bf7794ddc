# SPDX-License-Identifier: Apache-2.0
"""How an end is worded: exit codes, signals, sets of ranks. Pure; used by reports, events and abort records."""

from __future__ import annotations

import signal
from collections.abc import Iterable


def signal_name(number: int) -> str:
    """ "SIGKILL"; a real-time signal counts from the nearer end, as in `kill -l`; "signal 32" has no name."""
    try:
        return signal.Signals(number).name
    except ValueError:
        first, last = int(signal.SIGRTMIN), int(signal.SIGRTMAX)
        if not first < number < last:
            return f"signal {number}"
        above, below = number - first, last - number
        return f"SIGRTMIN+{above}" if above <= below else f"SIGRTMAX-{below}"


def ended(status: int, oom: bool) -> str:
    """ "exit code 3" or "killed by SIGKILL (out of memory)".

    Parameters
    ----------
    status : int
        Exit code, or minus a signal.
    oom : bool
        The kernel's out-of-memory killer was seen at work when the rank was killed.
    """
    if status >= 0:
        return f"exit code {status}"
    text = f"killed by {signal_name(-status)}"
    return text + " (out of memory)" if oom else text


def exit_code(status: int) -> int:
    """The shell's view of a status: 128 + signal."""
    return status if status >= 0 else 128 - status


def rank_list(ranks: Iterable[int]) -> str:
    """ "rank 3", "ranks 0-2, 4-7"."""
    parts: list[str] = []
    ordered = sorted(set(ranks))
    begin = 0
    for at, rank in enumerate(ordered):
        if at + 1 == len(ordered) or ordered[at + 1] != rank + 1:
            first = ordered[begin]
            parts.append(str(first) if first == rank else f"{first}-{rank}")
            begin = at + 1
    return ("rank " if len(ordered) == 1 else "ranks ") + ", ".join(parts)
