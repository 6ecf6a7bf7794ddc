# SPDX-License-Identifier: Apache-2.0
"""What the kernel says of a process: computing, asleep, stopped, stuck, or held by a debugger. Reads /proc.

It needs no permission but to see the process, so it tells something also where stacks cannot be taken. Invariant: a
process that ends meanwhile is told as ended, never as an error.
"""

from __future__ import annotations

import os
from typing import Final

import msgspec

_THREADS_MAX: Final = 64  # that are looked at to see whether any of them computes


# The number of read(2).
_READ: Final = {"x86_64": "0", "aarch64": "63"}.get(os.uname().machine, "")


class ProcessState(msgspec.Struct, frozen=True):
    """In words, and what follows from it."""

    text: str
    held: bool = False  # it cannot go on by itself


def with_a_person(pid: int) -> bool:
    """Whether it goes on when somebody says so: a debugger holds it, or it waits for input, as pdb does."""
    return bool(int(_fields(pid).get("TracerPid", "0"))) or _reads_input(pid)


def catches(pid: int, number: int) -> bool:
    """Whether it has a handler for a signal."""
    return bool(int(_fields(pid).get("SigCgt", "0"), 16) >> (number - 1) & 1)


def look_at(pid: int) -> ProcessState:
    """The state of a process now."""
    fields = _fields(pid)
    letter = fields.get("State", "X")[:1]
    tracer = int(fields.get("TracerPid", "0"))
    if tracer:
        return ProcessState(f"in a debugger ({_read(tracer, 'comm') or 'process'} {tracer})", held=True)
    if _reads_input(pid):
        return ProcessState("reading its standard input", held=True)
    if letter in "Tt":
        return ProcessState("stopped (SIGSTOP)", held=True)
    if letter in "ZX":
        return ProcessState("ended")
    if letter == "D":
        return ProcessState(f"uninterruptible{_in_kernel(pid)}", held=True)
    return ProcessState("computing" if letter == "R" or _computes(pid) else f"sleeping{_in_kernel(pid)}")


def _reads_input(pid: int) -> bool:
    """Whether the main thread is in read(0, ...), where that may be seen."""
    return bool(_READ) and _read(pid, "syscall").split(" ")[:2] == [_READ, "0x0"]


def _computes(pid: int) -> bool:
    """Whether a thread beside the main one is running."""
    try:
        threads = os.listdir(f"/proc/{pid}/task")[:_THREADS_MAX]
    except OSError:
        return False
    return any(_read(pid, f"task/{thread}/stat").rpartition(") ")[2].startswith("R") for thread in threads)


def _in_kernel(pid: int) -> str:
    """Where in the kernel it sleeps, as far as that may be seen."""
    place = _read(pid, "wchan")
    if place and place != "0":
        return f" in {place}"
    number = _read(pid, "syscall").split(" ")[0]
    return f" in system call {number}" if number.isdigit() else ""


def _fields(pid: int) -> dict[str, str]:
    pairs = (line.partition(":") for line in _read(pid, "status").splitlines())
    return {name: value.strip() for name, _, value in pairs}


def _read(pid: int, name: str) -> str:
    try:
        with open(f"/proc/{pid}/{name}", encoding="utf-8", errors="replace") as file:
            return file.read().strip()
    except OSError:  # it ended, or may not be looked at
        return ""
