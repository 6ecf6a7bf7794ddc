# SPDX-License-Identifier: Apache-2.0
"""What ranks share and take turns at: `pm.Counter`, `pm.Semaphore`, `pm.Lock`, `pm.RateLimit`, `pm.Barrier`.

    with pm.Lock("download"):                      # one rank at a time
        ...
    limit = pm.RateLimit("api", per_second=50)     # all ranks together
    limit.acquire()
    pm.Barrier("loaded").wait(timeout=60)          # with a deadline, and without `pm.init()`

All of it lives in the gang's store under the name it is given, so that whoever uses the same name means the same thing; it
begins anew with each attempt, so nothing is left locked by a rank that died. Invariants: who asks first is served
first; every wait has a deadline, and the error at its end names who it waited for.
"""

from __future__ import annotations

import threading
import time
from types import TracebackType
from typing import Final

from pmrun import current, store
from pmrun.errors import StoreError, StoreTimeout, UsageError

_GO: Final = b"go"
_GONE: Final = b"gone"


class Counter:
    """A number that all ranks share. It starts at 0."""

    def __init__(self, name: str) -> None:
        self._key = f"pmrun/counter/{name}"

    def add(self, amount: int = 1) -> int:
        """Add, and return the sum, which no other call has returned if all amounts are positive."""
        return store.add(self._key, amount)

    @property
    def value(self) -> int:
        """What it is now."""
        return store.add(self._key, 0)


class Semaphore:
    """At most `count` holders at a time, among all ranks and threads that use this name.

    A ticket is drawn; the first `count` may go at once, and each release lets the next ticket go. Who gives up waiting leaves
    a mark on its ticket, so that the next release passes it over.

    Parameters
    ----------
    name : str
        The same, with the same `count`, wherever it is used.
    count : int
    """

    def __init__(self, name: str, count: int) -> None:
        if count < 1:
            raise UsageError(f"Semaphore({name!r}, {count}): the count must be at least 1")
        self._name = name
        self._count = count
        self._base = f"pmrun/semaphore/{name}/"
        self._tickets: list[int] = []  # held by this object
        self._guard = threading.Lock()

    def acquire(self, timeout: float | None = None) -> None:
        """Wait for one's turn.

        Parameters
        ----------
        timeout : float, optional
            Seconds. Default: as for `pm.store.get`.

        Raises
        ------
        StoreTimeout
            Its text names the ranks that hold it.
        """
        ticket = store.add(f"{self._base}tickets")
        if ticket > self._count:
            self._wait_for(f"{self._base}turn/{ticket}", timeout)
        store.set(f"{self._base}held/{ticket}", str(current.rank()))
        with self._guard:
            self._tickets.append(ticket)

    def release(self) -> None:
        """Let the next one go.

        Raises
        ------
        UsageError
            This object does not hold it.
        """
        with self._guard:
            if not self._tickets:
                raise UsageError(f"release of {self._name!r}, which this rank does not hold")
            ticket = self._tickets.pop()
        store.delete(f"{self._base}held/{ticket}")
        self._pass_on()

    def __enter__(self) -> Semaphore:
        self.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def _wait_for(self, turn: str, timeout: float | None) -> None:
        try:
            store.wait(turn, timeout)
        except (StoreTimeout, KeyboardInterrupt) as error:  # the ticket must not stay in the line
            given_up = store.compare_and_set(turn, None, _GONE).swapped
            if given_up and isinstance(error, StoreTimeout):
                raise self._explained(error) from None
            if not given_up and isinstance(error, KeyboardInterrupt):  # its turn came meanwhile
                store.delete(turn)
                self._pass_on()
            if isinstance(error, KeyboardInterrupt):
                raise
        store.delete(turn)

    def _pass_on(self) -> None:
        """Let the next ticket go that somebody still waits for, or will draw."""
        while True:
            key = f"{self._base}turn/{self._count + store.add(f'{self._base}released')}"
            if store.compare_and_set(key, None, _GO).swapped:
                return
            store.delete(key)  # given up

    def _explained(self, error: StoreTimeout) -> StoreTimeout:
        held = store.keys(f"{self._base}held/")
        ranks = sorted({int(value) for value in _present(held)})
        holders = f"rank{'s' * (len(ranks) > 1)} {', '.join(map(str, ranks))}" if ranks else "nobody any more"
        text = f"{self._name!r} did not become free in time: held by {holders}"
        return StoreTimeout(text, error.keys, error.absent, error.ended)


class Lock(Semaphore):
    """One holder at a time, among all ranks and threads that use this name. It cannot be taken twice by its holder."""

    def __init__(self, name: str) -> None:
        super().__init__(name, 1)


class RateLimit:
    """So many permits per second for all ranks together, evenly spaced.

    The generic cell rate algorithm (ITU-T I.371), kept in the store by its own clock, so that clocks which disagree do no harm.

    Parameters
    ----------
    name : str
        The same, with the same numbers, wherever it is used.
    per_second : float
    burst : int
        So many may be taken at once after a time in which none was.
    """

    def __init__(self, name: str, per_second: float, burst: int = 1) -> None:
        if not per_second > 0 or burst < 1:
            raise UsageError(f"RateLimit({name!r}, {per_second}, {burst}): rate and burst must be above 0")
        self._name = name
        self._key = f"pmrun/rate/{name}"
        self._spacing_s = 1 / per_second
        self._burst = burst

    def acquire(self, count: int = 1, timeout: float | None = None) -> float:
        """Take `count` permits, sleep until they are due, and return how many seconds that was.

        Raises
        ------
        StoreTimeout
            They are due later than `timeout` seconds from now; none was taken.
        """
        if count < 1:
            raise UsageError(f"acquire({count}): the count must be at least 1")
        most_s = store.patience_s(timeout)
        due_s = store.pace(self._key, count * self._spacing_s, (self._burst - 1) * self._spacing_s, most_s)
        if due_s > most_s:
            text = f"{self._name!r}: the next permit is due in {due_s:.3g} s, which is more than {most_s:g} s"
            raise StoreTimeout(text, (self._key,), (), ())
        if due_s > 0:
            time.sleep(due_s)
        return max(0.0, due_s)


class Barrier:
    """Waits until `parties` calls have come; then it begins anew. Unlike `pm.barrier` it has a deadline of its own.

    Parameters
    ----------
    name : str
        The same, with the same `parties`, wherever it is used.
    parties : int, optional
        Default: all ranks.
    """

    def __init__(self, name: str, parties: int | None = None) -> None:
        self._name = name
        self._all = parties is None
        self._parties = current.world_size() if parties is None else parties
        self._base = f"pmrun/barrier/{name}/"
        if self._parties < 1:
            raise UsageError(f"Barrier({name!r}, {parties}): it needs at least one party")

    def wait(self, timeout: float | None = None) -> int:
        """Come to the barrier; return how many came before, from 0.

        Raises
        ------
        StoreTimeout
            Not all came in time; the text says who did not.
        StoreError
            Another rank gave up waiting for this round.
        """
        number = store.add(f"{self._base}arrivals") - 1
        turn, place = divmod(number, self._parties)
        here, gate = f"{self._base}{turn}/here/", f"{self._base}{turn}/gate"
        if place == self._parties - 1:
            self._forget(turn - 2)
            opened = store.compare_and_set(gate, None, _GO)
            self._check(opened.current or b"")
            return place
        store.set(f"{here}{number}", str(current.rank()))
        try:
            self._check(store.get(gate, timeout))
        except StoreTimeout as error:
            text = self._absent(here)
            given_up = store.compare_and_set(gate, None, f"rank {current.rank()} gave up waiting: {text}")
            if given_up.swapped:
                raise StoreTimeout(f"barrier {self._name!r}: {text}", error.keys, error.absent, error.ended) from None
            self._check(given_up.current or b"")
        return place

    def _check(self, gate: bytes) -> None:
        if gate != _GO:
            raise StoreError(f"barrier {self._name!r}: {gate.decode()}")

    def _absent(self, here: str) -> str:
        came = sorted({int(value) for value in _present(store.keys(here))})
        if self._all:
            absent = [rank for rank in range(self._parties) if rank not in came]
            return f"rank{'s' * (len(absent) > 1)} {', '.join(map(str, absent))} did not come in time"
        return f"{len(came)} of {self._parties} came in time: ranks {', '.join(map(str, came))}"

    def _forget(self, turn: int) -> None:
        """Drop a round that nobody looks at any more."""
        if turn >= 0:
            for key in store.keys(f"{self._base}{turn}/"):
                store.delete(key)


def _present(keys: list[str]) -> list[bytes]:
    """Values of those keys that are still set."""
    values = []
    for key in keys:
        try:
            values.append(store.get(key, timeout=0))
        except StoreTimeout:
            continue
    return values
