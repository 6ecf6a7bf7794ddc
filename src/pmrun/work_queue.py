# SPDX-License-Identifier: Apache-2.0
"""`pm.WorkQueue`: items that the ranks take as they become free, and one result for each, in the items' order.

    queue = pm.WorkQueue(files)
    for task in queue:                       # on every rank
        task.result = count_words(task.item)
    counts = queue.results()                 # on every rank that wants them

Nouns: the *plan* says which items are left to do, as runs of neighbours; a *lease* is a run that a rank has taken. How it
goes: the first rank that comes writes the plan into the store, all others read it. A rank takes its next lease by adding to
a counter, a few milliseconds of work at a time and ever less towards the end, and posts the results of a lease as one
value. A lease is its rank's until the gang ends, which it does when a rank dies. A queue that has a name keeps its results in
lasting keys, so the plan of the next attempt is what is left. Per lease: three requests and the results, pickled.

Invariants: an item is leased to one rank of an attempt, and what an earlier attempt posted is not leased again, so exactly
one result of each is kept; a result is posted before its item counts as done.
"""

from __future__ import annotations

import bisect
import itertools
import json
import pickle
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Final, Generic, NamedTuple, TypeVar

from pmrun import current, store
from pmrun.errors import StoreTimeout, UsageError
from pmrun.store_wire import LASTING, MAX_VALUE_BYTES

T = TypeVar("T")

_LEASE_S: Final = 0.02  # of work: long beside a request, short beside a job
_GROWTH: Final = 4  # of a lease over the one before
_END_SHARE: Final = 2  # a lease is at most one part in so many times the ranks of what is left

_names: set[str] = set()
_serial = itertools.count()


class Task(Generic[T]):
    """One item, while a rank works on it.

    Attributes
    ----------
    index : int
        The item's place.
    item : object
    result : object
        To be set; anything that can be pickled. None if it is not.
    """

    __slots__ = ("index", "item", "result")

    def __init__(self, index: int, item: T) -> None:
        self.index = index
        self.item = item
        self.result: Any = None


class _Plan(NamedTuple):
    """What is left to do."""

    items: int  # in all
    runs: list[list[int]]  # [begin, end), in order

    @property
    def left(self) -> int:
        return sum(end - begin for begin, end in self.runs)


class WorkQueue(Generic[T]):
    """Deals items out to ranks as they become free.

    Parameters
    ----------
    items : iterable
        The same on every rank. (What is large is better named than carried: paths, ranges, seeds.)
    name : str, optional
        With a name, which is its own, results outlive the attempt: after a restart only what is not done is dealt out, in the
        same program or in one that gives the same items. Without one a restart begins anew, and all ranks have to create
        their queues in the same order.
    lease : int, optional
        So many items at a time. Default: as many as take about 20 ms, by what the last ones took.

    Raises
    ------
    UsageError
        The name was used before by this process, or with another number of items.
    """

    def __init__(self, items: Iterable[T], name: str | None = None, *, lease: int | None = None) -> None:
        self._items: Sequence[T] = items if isinstance(items, Sequence) else list(items)
        if lease is not None and lease < 1:
            raise UsageError(f"WorkQueue: lease={lease}: it must be at least 1")
        if name in _names:
            raise UsageError(f"WorkQueue: this rank has had a queue named {name!r}: give each a name of its own")
        if name is not None:
            _names.add(name)
        self._label = f"queue {name!r}" if name is not None else "the queue"
        self._base = f"pmrun/queue/{f'-{name}' if name is not None else next(_serial)}/"
        self._kept = (LASTING if name is not None else "") + self._base
        self._lease = lease
        self._plan = self._agree()
        self._firsts = list(itertools.accumulate((end - begin for begin, end in self._plan.runs), initial=0))
        self._size = current.world_size()

    def __len__(self) -> int:
        """How many items there are."""
        return len(self._items)

    def __iter__(self) -> Iterator[Task[T]]:
        """Take items until none is left to take. Leaving the loop early gives back what was not done."""
        count, position = self._lease or 1, 0
        while True:
            begin, end, position = self._take(count)
            if begin == end:
                return
            results: list[Any] = []
            started = time.perf_counter()
            try:
                for place in range(begin, end):
                    task = Task(place, self._items[place])
                    yield task
                    results.append(task.result)
            finally:
                if len(results) < end - begin:
                    self._give_back(begin + len(results), end)
                self._post(begin, results)
            if self._lease is None:
                count = self._next_lease(end - begin, time.perf_counter() - started, position)

    def run(self, work: Callable[[T], Any], timeout: float | None = None) -> list[Any]:
        """Do ``work(item)`` for whatever items this rank gets, then return all results, as `results` does."""
        for task in self:
            task.result = work(task.item)
        return self.results(timeout)

    def results(self, timeout: float | None = None) -> list[Any]:
        """Return the results of all items, in their order; wait until all are done.

        Parameters
        ----------
        timeout : float, optional
            Seconds. Default: as for `pm.store.get`.

        Raises
        ------
        StoreTimeout
            Some are not done; the text says which, and who has them.
        """
        if self._plan.left:
            try:
                store.wait(f"{self._base}complete", timeout)
            except StoreTimeout as error:
                raise StoreTimeout(self._unfinished(), error.keys, error.absent, error.ended) from None
        keys = store.keys(f"{self._kept}done/")
        values = store.get_many(keys, timeout=0)
        results: list[Any] = [None] * len(self._items)
        for key, value in zip(keys, values, strict=True):
            begin, end = _run_of(key)
            results[begin:end] = pickle.loads(value)
        return results

    # ---- the plan -------------------------------------------------------------------------------------------

    def _agree(self) -> _Plan:
        """Write the plan, or read it where another rank was first."""
        held = store.compare_and_set(f"{self._base}plan", None, None).current
        if held is None:
            drafted = json.dumps(self._draft(), separators=(",", ":"))
            held = store.compare_and_set(f"{self._base}plan", None, drafted).current
        assert held is not None
        plan = _Plan(*json.loads(held))
        if plan.items != len(self._items):
            text = f"{self._label}: {len(self._items)} items here, {plan.items} on the rank that came first"
            raise UsageError(f"{text}: every rank has to give the same")
        return plan

    def _draft(self) -> _Plan:
        """From what earlier attempts have done."""
        count = len(self._items)
        if not self._kept.startswith(LASTING):
            return _Plan(count, [[0, count]] if count else [])
        before = store.compare_and_set(f"{self._kept}items", None, str(count))
        if not before.swapped and int(before.current or b"0") != count:
            text = f"{self._label} had {int(before.current or b'0')} items in an earlier attempt, and now {count}"
            raise UsageError(f"{text}: give another name to another queue")
        runs, at = [], 0
        for begin, end in [*sorted(_run_of(key) for key in store.keys(f"{self._kept}done/")), (count, count)]:
            if at < begin:
                runs.append([at, begin])
            at = end
        return _Plan(count, runs)

    # ---- leases ---------------------------------------------------------------------------------------------

    def _take(self, count: int) -> tuple[int, int, int]:
        """Lease up to `count` neighbouring items: begin, end, and the place in the plan. None is left: an empty run."""
        left = self._plan.left
        last = store.add(f"{self._base}taken", count) if left else 0
        position = last - count
        if not left or position >= left:
            return *self._take_returned(), left
        run = bisect.bisect_right(self._firsts, position) - 1
        begin = self._plan.runs[run][0] + position - self._firsts[run]
        end = min(begin + count, self._plan.runs[run][1])
        rest = min(last, left) - position - (end - begin)
        while rest > 0:  # the lease goes on in the next run, whose items are somebody's own lease then
            run += 1
            first, after = self._plan.runs[run]
            part = min(rest, after - first)
            self._give_back(first, first + part)
            rest -= part
        self._claim(begin, end)
        return begin, end, position

    def _take_returned(self) -> tuple[int, int]:
        """Lease what another rank gave back."""
        for key in store.keys(f"{self._base}back/"):
            if store.delete(key):
                begin, end = _run_of(key)
                self._claim(begin, end)
                return begin, end
        return 0, 0

    def _claim(self, begin: int, end: int) -> None:
        """So that others can tell who has them."""
        store.set(f"{self._base}with/{begin}-{end}", str(current.rank()))

    def _give_back(self, begin: int, end: int) -> None:
        store.set(f"{self._base}back/{begin}-{end}", b"")

    def _next_lease(self, count: int, took_s: float, position: int) -> int:
        per_item_s = max(took_s / count, 1e-7)
        wanted = min(int(_LEASE_S / per_item_s), count * _GROWTH)
        left = self._plan.left - position
        return max(1, min(wanted, left // (_END_SHARE * self._size)))

    # ---- results --------------------------------------------------------------------------------------------

    def _post(self, begin: int, results: list[Any]) -> None:
        """Keep the results of some neighbouring items, and count them."""
        if not results:
            return
        value = pickle.dumps(results, protocol=pickle.HIGHEST_PROTOCOL)
        if len(value) > MAX_VALUE_BYTES:
            if len(results) == 1:
                text = (
                    f"{self._label}: the result of item {begin} has {len(value)} bytes, the limit is {MAX_VALUE_BYTES}"
                )
                raise UsageError(f"{text}: save it in a file and return its name")
            half = len(results) // 2
            self._post(begin, results[:half])
            self._post(begin + half, results[half:])
            return
        store.set(f"{self._kept}done/{begin}-{begin + len(results)}", value)
        if store.add(f"{self._base}done", len(results)) == self._plan.left:
            store.set(f"{self._base}complete", b"")

    def _unfinished(self) -> str:
        done = [_run_of(key) for key in store.keys(f"{self._kept}done/")]
        covered = {place for begin, end in done for place in range(begin, end)}
        returned = [
            f"items {key.rpartition('/')[2]} given back, and nobody takes them"
            for key in store.keys(f"{self._base}back/")
        ]
        parts = returned
        for key in store.keys(f"{self._base}with/"):
            begin, end = _run_of(key)
            lacking = [place for place in range(begin, end) if place not in covered]
            if lacking and not returned:
                rank = int(store.get(key, timeout=0))
                parts.append(f"item{'s' * (len(lacking) > 1)} {_span(lacking)} with rank {rank}")
        missing = len(self._items) - len(covered)
        shown = "; ".join(parts[:8]) or "nobody has taken them"
        return f"{self._label}: {missing} of {len(self._items)} items are not done: {shown}"


def _run_of(key: str) -> tuple[int, int]:
    """Begin and end in the last part of a key."""
    begin, _, end = key.rpartition("/")[2].partition("-")
    return int(begin), int(end)


def _span(places: list[int]) -> str:
    return str(places[0]) if len(places) == 1 else f"{places[0]}-{places[-1]}"
