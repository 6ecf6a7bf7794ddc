# SPDX-License-Identifier: Apache-2.0
"""`pm.store`: keys and values that all ranks of the gang see, for what is small and asked for by name.

    if pm.rank() == 0:
        pm.store.set("address", f"{host}:{port}")
    address = pm.store.get("address", timeout=30).decode()      # waits until it is set
    ticket = pm.store.add("tickets", 1)                          # 1, 2, 3, ...: each number to one rank

It is there before `pm.init()`, and begins empty with each attempt of the gang, but for keys that begin with ``lasting/``:
those stay until the job is over (under another launcher, as long as the gang). Keys are text of 1 to 1024 bytes, values
bytes of at most 1 MiB, all together at most 64 MiB; text is stored as UTF-8. Any thread may use it. Under plain python it
belongs to the process; under another launcher (mpirun, torchrun, ...) the first call waits, as `pm.init()` does, until
all ranks have made one. Keys that begin with ``pmrun/`` are pmrun's own. Invariant: every call has a deadline, and
ends with `RankFailed` or `GangStopped` when the gang is stopped meanwhile.
"""

from __future__ import annotations

import fcntl
import math
import os
import socket
import threading
from collections.abc import Iterable, Mapping
from typing import Any, Final, NamedTuple, NoReturn

from pmrun import env, foreign, store_wire, window
from pmrun.errors import (
    CollectiveMismatch,
    CollectiveTimeout,
    GangStopped,
    RankFailed,
    StoreError,
    StoreTimeout,
    UsageError,
)
from pmrun.store_client import Calls, LineCalls, OwnCalls

Value = bytes | bytearray | memoryview | str

DEFAULT_TIMEOUT_S: Final = 300.0

_calls: Calls | None = None
_opening = threading.Lock()


class Compared(NamedTuple):
    """What `compare_and_set` did: whether the key was set, and what it holds now (None: nothing)."""

    swapped: bool
    current: bytes | None


def set(key: str, value: Value) -> None:
    """Let a key hold a value, in place of what it held.

    Parameters
    ----------
    key : str
    value : bytes, any buffer of bytes, or str
        Text is stored as UTF-8.
    """
    _done(_ask(store_wire.Set, ((_key(key), _bytes(key, value)),)))


def set_many(items: Mapping[str, Value]) -> None:
    """Set several keys; much faster than one by one. Others may see some of them before the rest."""
    batch: list[tuple[str, bytes]] = []
    size = 0
    for key, value in items.items():
        data = _bytes(key, value)
        cost = len(_key(key).encode()) + len(data) + 16
        if batch and size + cost > store_wire.MAX_BATCH_BYTES:
            _done(_ask(store_wire.Set, tuple(batch)))
            batch, size = [], 0
        batch.append((key, data))
        size += cost
    if batch:
        _done(_ask(store_wire.Set, tuple(batch)))


def get(key: str, timeout: float | None = None) -> bytes:
    """Return what a key holds; wait until it is set.

    Parameters
    ----------
    key : str
    timeout : float, optional
        Seconds; 0 does not wait, ``math.inf`` waits for ever. Default: PMRUN_COLLECTIVE_TIMEOUT, or 300.

    Returns
    -------
    bytes

    Raises
    ------
    StoreTimeout
        Nobody set it; the text names the key, the ranks that have not used the store, and those that have ended.
    """
    return get_many((key,), timeout)[0]


def get_many(keys: Iterable[str], timeout: float | None = None) -> list[bytes]:
    """Return what several keys hold, in their order, once all are set. One call is much faster than one per key."""
    wanted = tuple(_key(key) for key in keys)
    limit_s = patience_s(timeout)
    values: list[bytes] = []
    for batch in _batches(wanted):
        left = batch
        while left:
            reply = _ask(store_wire.Get, left, limit_s, True, within_s=limit_s)
            if not isinstance(reply, store_wire.Values):
                _raise(reply, limit_s)
            values += reply.values
            left = left[len(reply.values) :]
    return values


def wait(keys: str | Iterable[str], timeout: float | None = None) -> None:
    """Wait until all of these keys are set. `timeout` and errors as for `get`."""
    wanted = (_key(keys),) if isinstance(keys, str) else tuple(_key(key) for key in keys)
    limit_s = patience_s(timeout)
    for batch in _batches(wanted):
        _done(_ask(store_wire.Get, batch, limit_s, False, within_s=limit_s), limit_s)


def add(key: str, amount: int = 1) -> int:
    """Add to the number that a key holds, and return the sum; a key that is not set counts as 0.

    The number is kept as decimal digits, so that ``int(get(key))`` reads it. It must fit into 64 bits.
    """
    if not -(1 << 63) <= amount < 1 << 63:
        raise UsageError(f"add: {amount} does not fit into 64 bits")
    reply = _ask(store_wire.Add, _key(key), int(amount))
    if not isinstance(reply, store_wire.Sum):
        _raise(reply)
    return reply.value


def compare_and_set(key: str, expected: Value | None, desired: Value | None) -> Compared:
    """Where a key holds `expected`, let it hold `desired`, with nobody in between.

    Parameters
    ----------
    key : str
    expected : bytes or str, optional
        None: the key is not set.
    desired : bytes or str, optional
        None: delete the key.

    Returns
    -------
    Compared
        ``(swapped, current)``; ``current`` is what the key holds now, None where it is not set.
    """
    before = None if expected is None else _bytes(key, expected)
    after = None if desired is None else _bytes(key, desired)
    return Compared(*_done(_ask(store_wire.CompareAndSet, _key(key), before, after)))


def delete(key: str) -> bool:
    """Delete a key; return whether it was set."""
    return _done(_ask(store_wire.Delete, _key(key)))[0]


def keys(prefix: str = "") -> list[str]:
    """Return the keys that begin with `prefix`, in order. Those set or deleted meanwhile may be missing or there."""
    found: list[str] = []
    more = True
    while more:
        reply = _ask(store_wire.Keys, prefix, found[-1] if found else "")
        if not isinstance(reply, store_wire.Names):
            _raise(reply)
        found += reply.names
        more = reply.more
    return found


def pace(key: str, cost_s: float, credit_s: float, most_s: float) -> float:
    """For pmrun itself: seconds until one's turn in a line of evenly spaced ones; above `most_s`, none was taken."""
    most_ns = int(min(most_s, 1e9) * 1e9)
    reply = _ask(store_wire.Pace, _key(key), int(cost_s * 1e9), int(credit_s * 1e9), most_ns)
    if not isinstance(reply, store_wire.Sum):
        _raise(reply)
    return reply.value / 1e9


def data_key() -> bytes:
    """For pmrun itself: what this rank proves to ranks of other nodes; empty where there can be none."""
    return _open().data_key


# ---- asking -------------------------------------------------------------------------------------------------


def _open() -> Calls:
    global _calls
    if _calls is None:
        with _opening:
            if _calls is None:
                _calls = _connect()
    return _calls


def _connect() -> Calls:
    placement = foreign.recognise(os.environ)
    if placement is not None and placement.world_size == 1:
        return OwnCalls()
    if placement is not None:
        from pmrun import meeting  # which other ranks do not need

        return LineCalls(meeting.meet(placement).line)
    text = os.environ.get(env.STORE_FD)
    if text is None:
        if os.environ.get(env.WORLD_SIZE, "1") != "1":
            raise UsageError(
                f"{env.WORLD_SIZE} is set, but no store came with it: start the program with pmrun, or unset PMRUN_*"
            )
        return OwnCalls()
    if not text.isdecimal():
        raise UsageError(f"{env.STORE_FD}={text!r} is not a number: pmrun sets it, so unset it or start with pmrun")
    try:
        flags = fcntl.fcntl(int(text), fcntl.F_GETFD)
        sock = socket.socket(fileno=os.dup(int(text)))
    except OSError:
        raise UsageError(
            f"the store that {env.STORE_FD}={text} names is not open here: only the process that pmrun started is a "
            "rank; a program that it starts in turn must not use pm.store (or unset PMRUN_* for it)"
        ) from None
    fcntl.fcntl(int(text), fcntl.F_SETFD, flags | fcntl.FD_CLOEXEC)
    try:
        return LineCalls(sock)
    except BaseException:
        sock.close()
        raise


def _ask(kind: type[store_wire.Request], *fields: Any, within_s: float = 0.0) -> store_wire.Reply:
    try:
        return _open().ask(kind, *fields, within_s=within_s)
    except store_wire.StoreWireError as error:
        raise UsageError(f"pm.store.{kind.__name__.lower()}: {error}") from None


def _done(reply: store_wire.Reply, limit_s: float = 0.0) -> tuple[bool, bytes | None]:
    if not isinstance(reply, store_wire.Done):
        _raise(reply, limit_s)
    return reply.flag, reply.value


def _raise(reply: store_wire.Reply, limit_s: float = 0.0) -> NoReturn:
    if isinstance(reply, store_wire.TimedOut):
        raise StoreTimeout(_timed_out(reply, limit_s), reply.keys, reply.absent, reply.ended)
    if isinstance(reply, store_wire.Refused):
        raise UsageError(reply.text) if reply.usage else StoreError(reply.text)
    if isinstance(reply, store_wire.GangEnded):
        if reply.state == window.ABORT_MISMATCH:
            raise CollectiveMismatch(reply.text)
        if reply.state == window.ABORT_STALLED:
            raise CollectiveTimeout(reply.text)
        if reply.state == window.ABORT_RANK_FAILED and reply.rank >= 0:
            raise RankFailed(reply.rank, reply.node, reply.text)
        raise GangStopped(reply.text)
    raise StoreError(f"the store gave an answer of the wrong kind ({type(reply).__name__})")


def _timed_out(reply: store_wire.TimedOut, limit_s: float) -> str:
    text = ", ".join(map(repr, reply.keys))
    if reply.count > len(reply.keys):
        text += f" and {reply.count - len(reply.keys)} more"
    text = f"nobody set {text} " + (f"within {limit_s:g} s" if limit_s > 0 else "yet")
    for ranks, fate in ((reply.absent, "not used the store yet"), (reply.ended, "ended")):
        if ranks:
            text += f"; rank{'s' * (len(ranks) > 1)} {', '.join(map(str, ranks))} {'has' if len(ranks) == 1 else 'have'} {fate}"
    return text


# ---- arguments ----------------------------------------------------------------------------------------------


def _key(key: str) -> str:
    if not isinstance(key, str):
        raise TypeError(f"a key of the store is a str, not {type(key).__name__}")
    try:
        size = len(key.encode())
    except UnicodeEncodeError as error:
        raise UsageError(f"key {key!r} is no Unicode text ({error.reason})") from None
    if not 0 < size <= store_wire.MAX_KEY_BYTES:
        raise UsageError(f"a key of {size} bytes ({key[:40]!r}): it must have 1 to {store_wire.MAX_KEY_BYTES}")
    return key


def _bytes(key: str, value: Value) -> bytes:
    if isinstance(value, str):
        data = value.encode()
    else:
        try:
            data = bytes(memoryview(value))
        except TypeError:
            kind = type(value).__name__
            raise TypeError(f"key {key!r}: a value of the store is bytes or str, not {kind}: encode it") from None
    if len(data) > store_wire.MAX_VALUE_BYTES:
        limit = store_wire.MAX_VALUE_BYTES
        raise UsageError(f"key {key!r}: a value of {len(data)} bytes, the limit is {limit}: send it by broadcast")
    return data


def patience_s(timeout: float | None) -> float:
    """For pmrun itself: what a `timeout` means, in seconds."""
    if timeout is None:
        text = os.environ.get(env.COLLECTIVE_TIMEOUT)
        try:
            timeout = DEFAULT_TIMEOUT_S if text is None else float(text)
        except ValueError:
            raise UsageError(f"{env.COLLECTIVE_TIMEOUT}={text!r} is not a number of seconds") from None
    if math.isnan(timeout) or timeout < 0:
        raise UsageError(f"timeout={timeout} is no number of seconds: give 0 or more")
    return float(timeout)


def _batches(keys: tuple[str, ...]) -> Iterable[tuple[str, ...]]:
    """Keys cut so that each part fits into a request."""
    start = size = 0
    for place, key in enumerate(keys):
        cost = len(key.encode()) + 8
        if size + cost > store_wire.MAX_BATCH_BYTES and place > start:
            yield keys[start:place]
            start, size = place, 0
        size += cost
    if start < len(keys):
        yield keys[start:]
