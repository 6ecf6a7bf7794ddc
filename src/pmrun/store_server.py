# SPDX-License-Identifier: Apache-2.0
"""The store's state machine: one gang's keys and values, and who waits for them.

Sans-I/O: `on_…` methods take one event and the time and return the replies that are due, each with its rank. It
runs in whatever process all requests come to: the agent where the gang is on one node, else the controller, and
the process itself under plain python. A rank's numbers are its own, and none is used for two requests at a time.
Invariant: every request but `Cancel` gets one reply, unless it was cancelled or its rank closed; what the store holds never exceeds MAX_STORE_BYTES, and a refused request has changed nothing.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Final

from pmrun.store_wire import (
    ENTRY_BYTES,
    LASTING,
    MAX_BATCH_BYTES,
    MAX_KEY_BYTES,
    MAX_STORE_BYTES,
    MAX_VALUE_BYTES,
    Add,
    Ask,
    Cancel,
    CompareAndSet,
    Delete,
    Done,
    Get,
    Keys,
    Names,
    Pace,
    Refused,
    Reply,
    Set,
    Sum,
    TimedOut,
    Values,
)

NAMED_MAX: Final = 16  # keys and ranks that an error names
_INT64: Final = range(-(1 << 63), 1 << 63)

NOTHING: Final[Mapping[str, bytes]] = MappingProxyType({})

Replies = list[tuple[int, Reply]]


class _Wait:
    """A `Get` that waits."""

    __slots__ = ("by", "get", "missing", "rank", "since")

    def __init__(self, rank: int, get: Get, missing: dict[str, None], since: float, by: float) -> None:
        self.rank = rank
        self.get = get
        self.missing = missing  # in the request's order
        self.since = since
        self.by = by


class StoreServer:
    """Keys and values of one attempt of a gang; `lasting` is what the one before left."""

    def __init__(self, world_size: int, lasting: Mapping[str, bytes] = NOTHING) -> None:
        self._world_size = world_size
        self._table = dict(lasting)
        self.used_bytes = sum(_entry_bytes(key, value) for key, value in lasting.items())  # of MAX_STORE_BYTES
        self._waits: dict[int, dict[int, _Wait]] = {}  # by rank and number
        self._by_key: dict[str, dict[_Wait, None]] = {}  # who waits for a key, in order of coming
        self._deadlines: list[tuple[float, int, _Wait]] = []  # a heap; answered ones stay until it is rebuilt
        self._waiting = 0
        self._serial = 0
        self._seen: set[int] = set()
        self._ended: set[int] = set()

    # ---- events -------------------------------------------------------------------------------------------

    def on_request(self, rank: int, request: Ask, now: float) -> Replies:
        """A rank asks for something."""
        self._seen.add(rank)
        if isinstance(request, Get):
            return self._get(rank, request, now)
        if isinstance(request, Set):
            return self._set(rank, request)
        if isinstance(request, Add):
            return self._add(rank, request)
        if isinstance(request, CompareAndSet):
            return self._compare_and_set(rank, request)
        if isinstance(request, Delete):
            return [(rank, Done(request.number, self._drop(request.key)))]
        if isinstance(request, Keys):
            return [(rank, self._keys(request))]
        if isinstance(request, Pace):
            return self._pace(rank, request, int(now * 1e9))
        assert isinstance(request, Cancel)
        wait = self._waits.get(rank, {}).get(request.number)
        if wait is not None:
            self._forget(wait)
        return []

    def on_closed(self, rank: int) -> None:
        """Nobody reads this rank's replies any more."""
        for wait in list(self._waits.get(rank, {}).values()):
            self._forget(wait)

    def on_rank_ended(self, rank: int) -> None:
        """The rank's process is gone: it will set nothing more."""
        self._ended.add(rank)
        self.on_closed(rank)

    def deadline(self) -> float | None:
        """When `on_tick` has something to do."""
        return self._deadlines[0][0] if self._deadlines and self._waiting else None

    def on_tick(self, now: float) -> Replies:
        """Time has passed."""
        replies: Replies = []
        while self._deadlines and self._deadlines[0][0] <= now:
            wait = heapq.heappop(self._deadlines)[2]
            if self._waits.get(wait.rank, {}).get(wait.get.number) is wait:
                self._forget(wait)
                replies.append((wait.rank, self._timed_out(wait.get.number, wait.missing)))
        return replies

    def waits(self, now: float) -> dict[int, tuple[str, float]]:
        """Of each rank that waits: the first key that is missing, of its oldest wait, and for how long."""
        oldest = [min(waits.values(), key=lambda wait: wait.since) for waits in self._waits.values() if waits]
        return {wait.rank: (next(iter(wait.missing)), now - wait.since) for wait in oldest}

    def lasting(self) -> dict[str, bytes]:
        """What the next attempt begins with."""
        return {key: value for key, value in self._table.items() if key.startswith(LASTING)}

    # ---- waiting ------------------------------------------------------------------------------------------

    def _get(self, rank: int, get: Get, now: float) -> Replies:
        if is_mixed(get.keys):
            return [(rank, Refused(get.number, _MIXED, True))]
        missing = {key: None for key in get.keys if key not in self._table}
        if not missing:
            return [(rank, self._answer(get))]
        for key in missing:
            problem = _key_problem(key)
            if problem is not None:
                return [(rank, Refused(get.number, problem, True))]
        if not get.timeout_s > 0:  # also what is not a number
            return [(rank, self._timed_out(get.number, missing))]
        wait = _Wait(rank, get, missing, now, now + get.timeout_s)
        self._waits.setdefault(rank, {})[get.number] = wait
        for key in missing:
            self._by_key.setdefault(key, {})[wait] = None
        self._waiting += 1
        self._serial += 1
        if wait.by != math.inf:
            heapq.heappush(self._deadlines, (wait.by, self._serial, wait))
        return []

    def _answer(self, get: Get) -> Reply:
        if not get.values:
            return Done(get.number, True)
        values: list[bytes] = []
        size = 0
        for key in get.keys:
            value = self._table[key]
            size += len(value) + 5  # the frame's own share
            if values and size > MAX_BATCH_BYTES:
                break
            values.append(value)
        return Values(get.number, tuple(values))

    def _wake(self, keys: list[str]) -> Replies:
        """The keys have just been set."""
        replies: Replies = []
        for key in keys:
            for wait in self._by_key.pop(key, {}):
                del wait.missing[key]
                if wait.missing:
                    continue
                again = {other: None for other in wait.get.keys if other not in self._table}  # deleted meanwhile
                if again:
                    wait.missing = again
                    for other in again:
                        self._by_key.setdefault(other, {})[wait] = None
                    continue
                self._forget(wait)
                replies.append((wait.rank, self._answer(wait.get)))
        return replies

    def _forget(self, wait: _Wait) -> None:
        del self._waits[wait.rank][wait.get.number]
        for key in wait.missing:
            waiting = self._by_key[key]
            del waiting[wait]
            if not waiting:
                del self._by_key[key]
        self._waiting -= 1
        if len(self._deadlines) > 2 * self._waiting + 64:
            live = [
                entry for entry in self._deadlines if self._waits[entry[2].rank].get(entry[2].get.number) is entry[2]
            ]
            heapq.heapify(live)
            self._deadlines = live

    def _timed_out(self, number: int, missing: dict[str, None]) -> TimedOut:
        absent = [rank for rank in range(self._world_size) if rank not in self._seen and rank not in self._ended]
        return TimedOut(
            number,
            tuple(missing)[:NAMED_MAX],
            len(missing),
            tuple(absent[:NAMED_MAX]),
            tuple(sorted(self._ended)[:NAMED_MAX]),
        )

    # ---- changing -----------------------------------------------------------------------------------------

    def _set(self, rank: int, request: Set) -> Replies:
        problem = self._problem(request.items)
        if is_mixed(key for key, _ in request.items):
            problem = _MIXED, True
        if problem is not None:
            return [(rank, Refused(request.number, *problem))]
        for key, value in request.items:
            self._put(key, value)
        return [(rank, Done(request.number, True)), *self._wake([key for key, _ in request.items])]

    def _add(self, rank: int, request: Add) -> Replies:
        held = self._table.get(request.key, b"0")
        try:
            total = int(held) + request.amount if len(held) <= 20 else None
        except ValueError:
            total = None
        if total is None:
            text = f"key {request.key!r} holds {held[:40]!r}, which is no number to add to: set it to decimal digits"
            return [(rank, Refused(request.number, text, True))]
        if total not in _INT64:
            return [(rank, Refused(request.number, f"key {request.key!r}: {total} does not fit into 64 bits", True))]
        value = b"%d" % total
        problem = self._problem(((request.key, value),))
        if problem is not None:
            return [(rank, Refused(request.number, *problem))]
        self._put(request.key, value)
        return [(rank, Sum(request.number, total)), *self._wake([request.key])]

    def _compare_and_set(self, rank: int, request: CompareAndSet) -> Replies:
        held = self._table.get(request.key)
        if held != request.expected:
            return [(rank, Done(request.number, False, held))]
        if request.desired is None:
            self._drop(request.key)
            return [(rank, Done(request.number, True, None))]
        problem = self._problem(((request.key, request.desired),))
        if problem is not None:
            return [(rank, Refused(request.number, *problem))]
        self._put(request.key, request.desired)
        return [(rank, Done(request.number, True, request.desired)), *self._wake([request.key])]

    def _pace(self, rank: int, request: Pace, now_ns: int) -> Replies:
        held = self._table.get(request.key, b"0")
        try:
            turn_ns = max(int(held), now_ns - request.credit_ns)
        except ValueError:
            return [(rank, Refused(request.number, f"key {request.key!r} holds {held[:40]!r}, which is no time", True))]
        if turn_ns - now_ns <= request.most_ns:
            value = b"%d" % (turn_ns + request.cost_ns)
            problem = self._problem(((request.key, value),))
            if problem is not None:
                return [(rank, Refused(request.number, *problem))]
            self._put(request.key, value)
        return [(rank, Sum(request.number, turn_ns - now_ns))]

    def _keys(self, request: Keys) -> Names:
        asked = request.prefix.startswith(
            LASTING
        )  # elsewhere they are kept in another table, so they are never among others
        found = [
            key
            for key in self._table
            if key > request.after and key.startswith(request.prefix) and key.startswith(LASTING) == asked
        ]
        found.sort()
        size = 0
        for count, key in enumerate(found):
            size += len(key.encode()) + 5
            if size > MAX_BATCH_BYTES:
                return Names(request.number, tuple(found[:count]), True)
        return Names(request.number, tuple(found), False)

    def _problem(self, items: tuple[tuple[str, bytes], ...]) -> tuple[str, bool] | None:
        """Why these cannot be set, and whether that is the caller's mistake."""
        growth = 0
        for key, value in dict(items).items():  # the last of several for one key stays
            problem = _key_problem(key)
            if problem is not None:
                return problem, True
            if len(value) > MAX_VALUE_BYTES:
                return f"key {key!r}: a value of {len(value)} bytes, the limit is {MAX_VALUE_BYTES}", True
            held = self._table.get(key)
            growth += len(value) - len(held) if held is not None else _entry_bytes(key, value)
        if growth > 0 and self.used_bytes + growth > MAX_STORE_BYTES:
            text = (
                f"the store is full: {self.used_bytes} bytes in {len(self._table)} keys, the limit is {MAX_STORE_BYTES}: "
                "delete what is not needed any more"
            )
            return text, False
        return None

    def _put(self, key: str, value: bytes) -> None:
        held = self._table.get(key)
        self.used_bytes += len(value) - len(held) if held is not None else _entry_bytes(key, value)
        self._table[key] = value

    def _drop(self, key: str) -> bool:
        held = self._table.pop(key, None)
        if held is None:
            return False
        self.used_bytes -= _entry_bytes(key, held)
        return True


_MIXED: Final = f"keys that begin with {LASTING!r} and others in one call: make a call for each"


def is_lasting(request: Ask) -> bool:
    """Whether a request is about keys that outlive the attempt."""
    if isinstance(request, Set):
        return any(key.startswith(LASTING) for key, _ in request.items)
    if isinstance(request, Get):
        return any(key.startswith(LASTING) for key in request.keys)
    if isinstance(request, Keys):
        return request.prefix.startswith(LASTING)
    return not isinstance(request, Cancel) and request.key.startswith(LASTING)


def is_mixed(keys: Iterable[str]) -> bool:
    """Whether some keys outlive the attempt, and some do not."""
    return len({key.startswith(LASTING) for key in keys}) > 1


def _key_problem(key: str) -> str | None:
    size = len(key.encode())
    if 0 < size <= MAX_KEY_BYTES:
        return None
    return f"a key of {size} bytes ({key[:40]!r}): it must have 1 to {MAX_KEY_BYTES}"


def _entry_bytes(key: str, value: bytes) -> int:
    return len(key.encode()) + len(value) + ENTRY_BYTES
