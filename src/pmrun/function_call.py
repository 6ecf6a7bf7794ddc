# SPDX-License-Identifier: Apache-2.0
"""What each rank of a call runs: takes the function and its arguments, calls it, and leaves what it returned.

    pmrun ... -m pmrun.function_call PID FD     # the caller's memory, on this machine: mapped, not copied
    pmrun ... -m pmrun.function_call -          # rank 0's standard input, which it broadcasts

Started by functions.py, with functions and arguments that its user made. Invariant: a rank that ends well has left its
result whole, for this attempt.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import sys
import traceback
from typing import Any, Final

from pmrun import cargo, current, env, store
from pmrun.errors import PmrunError, StoreError, UsageError
from pmrun.store_wire import MAX_STORE_BYTES, MAX_VALUE_BYTES

_PART_BYTES: Final = MAX_VALUE_BYTES
_TRACE_BYTES: Final = 64 << 10


def main(words: list[str]) -> int:
    """Be one rank of the call."""
    function, arguments, named = cargo.unpack(_received() if words == ["-"] else _mapped(*words))
    try:
        value = function(*arguments, **named)
    except Exception as error:  # noqa: BLE001 - it is the user's; it is shown, and ends the rank
        shown = error.__traceback__.tb_next if error.__traceback__ is not None else None
        error.__traceback__ = shown  # without this file's own frame
        text = "".join(traceback.format_exception(type(error), error, shown))
        with contextlib.suppress(PmrunError):  # the gang ends already
            _leave("raised", [text.encode()[-_TRACE_BYTES:]])
        sys.excepthook(type(error), error, shown)
        return 1
    pieces = cargo.pack(value, f"what {_name(function)} returned on rank {current.rank()}")
    data = b"".join(pieces)
    _leave("value", [data[at : at + _PART_BYTES] for at in range(0, len(data), _PART_BYTES)])
    return 0


def _mapped(pid: str, fd: str) -> memoryview:
    """The caller's memory; what is written to it here, this rank alone sees."""
    file = os.open(f"/proc/{pid}/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        return memoryview(mmap.mmap(file, 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE))
    finally:
        os.close(file)


def _received() -> memoryview:
    """Rank 0's standard input, on all ranks."""
    from pmrun.context import init

    world = init()
    data = bytearray(sys.stdin.buffer.read()) if world.rank == 0 else bytearray()
    size = bytearray(len(data).to_bytes(8, "little"))
    world.broadcast(size)
    if world.rank:
        data = bytearray(int.from_bytes(size, "little"))
    world.broadcast(data)
    return memoryview(data)


def _leave(what: str, parts: list[bytes]) -> None:
    """Into keys that the caller gets: attempt/rank/what/part."""
    base = f"{env.RESULTS}{os.environ.get(env.ATTEMPT, '0')}/{current.rank()}/{what}/"
    try:
        for number, part in enumerate(parts):
            store.set(f"{base}{number}", part)
    except StoreError as error:
        size = sum(map(len, parts))
        limit = f"all ranks' results together may have {MAX_STORE_BYTES >> 20} MiB"
        raise UsageError(
            f"rank {current.rank()} returned {size} bytes; {limit}: save it and return its name"
        ) from error


def _name(function: Any) -> str:
    return str(getattr(function, "__qualname__", function))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
