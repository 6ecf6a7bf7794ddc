# SPDX-License-Identifier: Apache-2.0
"""The store's machine: scripted, and against a plain dictionary under random requests."""

from __future__ import annotations

import math

import hypothesis.strategies as st
import pytest
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from pmrun import store_wire
from pmrun.store_server import StoreServer
from pmrun.store_wire import (
    Add,
    Cancel,
    CompareAndSet,
    Delete,
    Done,
    Get,
    Keys,
    Names,
    Pace,
    Refused,
    Set,
    Sum,
    TimedOut,
    Values,
)

NEVER = math.inf
MIB = 1 << 20


def put(server: StoreServer, key: str, value: bytes) -> list:
    return server.on_request(0, Set(0, ((key, value),)), 0.0)


def test_a_get_waits_for_all_its_keys() -> None:
    server = StoreServer(2)
    assert server.on_request(1, Get(7, ("a", "b", "a"), NEVER, True), 0.0) == []
    assert put(server, "a", b"1") == [(0, Done(0, True))]
    assert put(server, "b", b"2") == [(0, Done(0, True)), (1, Values(7, (b"1", b"2", b"1")))]
    assert server.on_request(1, Get(8, ("b",), 0.0, False), 0.0) == [(1, Done(8, True))]


def test_a_key_that_is_deleted_meanwhile_is_waited_for_again() -> None:
    server = StoreServer(1)
    server.on_request(0, Get(7, ("a", "b"), NEVER, True), 0.0)
    put(server, "a", b"1")
    assert server.on_request(0, Delete(1, "a"), 0.0) == [(0, Done(1, True))]
    assert put(server, "b", b"2") == [(0, Done(0, True))]
    assert put(server, "a", b"3") == [(0, Done(0, True)), (0, Values(7, (b"3", b"2")))]


def test_one_set_wakes_all_in_order_of_coming() -> None:
    server = StoreServer(4)
    for rank in (2, 0, 3):
        server.on_request(rank, Get(1, ("a",), NEVER, False), 0.0)
    assert [rank for rank, _ in put(server, "a", b"")] == [0, 2, 0, 3]


def test_a_timeout_names_keys_and_ranks() -> None:
    server = StoreServer(5)
    put(server, "a", b"")
    server.on_rank_ended(2)
    assert server.on_request(1, Get(7, ("a", "b", "c"), 5.0, True), 1.0) == []
    assert server.deadline() == 6.0
    assert server.on_tick(5.9) == []
    assert server.on_tick(6.0) == [(1, TimedOut(7, ("b", "c"), 2, (3, 4), (2,)))]
    assert server.deadline() is None
    assert put(server, "b", b"") == [(0, Done(0, True))]


@pytest.mark.parametrize("timeout_s", [0.0, -1.0, math.nan])
def test_no_time_to_wait(timeout_s: float) -> None:
    assert StoreServer(1).on_request(0, Get(7, ("b",), timeout_s, True), 1.0) == [(0, TimedOut(7, ("b",), 1, (), ()))]


def test_a_long_list_of_missing_keys_is_cut() -> None:
    ((_, reply),) = StoreServer(100).on_request(50, Get(7, tuple(map(str, range(30))), 0.0, True), 0.0)
    assert reply == TimedOut(7, tuple(map(str, range(16))), 30, tuple(range(16)), ())


def test_waits_of_a_rank_that_closed_vanish() -> None:
    server = StoreServer(2)
    server.on_request(1, Get(7, ("a",), 5.0, True), 0.0)
    server.on_request(0, Get(7, ("a",), 9.0, True), 0.0)
    server.on_closed(1)
    assert put(server, "a", b"x") == [(0, Done(0, True)), (0, Values(7, (b"x",)))]
    assert server.on_tick(10.0) == []


def test_cancelled_waits_vanish() -> None:
    server = StoreServer(1)
    server.on_request(0, Get(7, ("a",), 5.0, True), 0.0)
    assert server.on_request(0, Cancel(7), 0.0) == server.on_request(0, Cancel(99), 0.0) == []
    assert put(server, "a", b"x") == [(0, Done(0, True))]


def test_sums() -> None:
    server = StoreServer(1)
    assert server.on_request(0, Add(1, "n", 5), 0.0) == [(0, Sum(1, 5))]
    assert server.on_request(0, Add(2, "n", -7), 0.0) == [(0, Sum(2, -2))]
    assert server.on_request(0, Get(3, ("n",), 0.0, True), 0.0) == [(0, Values(3, (b"-2",)))]
    ((_, reply),) = server.on_request(0, Add(4, "n", -(1 << 63)), 0.0)
    assert isinstance(reply, Refused) and "64 bits" in reply.text
    put(server, "n", b"one")
    ((_, reply),) = server.on_request(0, Add(5, "n", 1), 0.0)
    assert isinstance(reply, Refused) and "b'one', which is no number" in reply.text
    assert server.on_request(0, Add(6, "waited", 0), 0.0) == [(0, Sum(6, 0))]


def test_compare_and_set() -> None:
    server = StoreServer(2)
    server.on_request(1, Get(9, ("a",), NEVER, True), 0.0)
    assert server.on_request(0, CompareAndSet(1, "a", b"x", b"y"), 0.0) == [(0, Done(1, False, None))]
    won = server.on_request(0, CompareAndSet(2, "a", None, b"y"), 0.0)
    assert won == [(0, Done(2, True, b"y")), (1, Values(9, (b"y",)))]
    assert server.on_request(0, CompareAndSet(3, "a", None, b"z"), 0.0) == [(0, Done(3, False, b"y"))]
    assert server.on_request(0, CompareAndSet(4, "a", b"y", None), 0.0) == [(0, Done(4, True, None))]
    assert server.on_request(0, Delete(5, "a"), 0.0) == [(0, Done(5, False))]


def test_lasting_keys_are_what_the_next_attempt_begins_with() -> None:
    server = StoreServer(1)
    put(server, "lasting/a", b"1")
    put(server, "b", b"2")
    assert server.on_request(0, Keys(1, "", ""), 0.0) == [(0, Names(1, ("b",), False))]
    after = StoreServer(2, server.lasting())
    assert after.on_request(0, Keys(1, "lasting/", ""), 0.0) == [(0, Names(1, ("lasting/a",), False))]
    assert after.on_request(1, Get(2, ("lasting/a",), 0.0, True), 0.0) == [(1, Values(2, (b"1",)))]
    assert after.used_bytes == len("lasting/a") + 1 + store_wire.ENTRY_BYTES


def test_no_request_mixes_lasting_keys_and_others() -> None:
    server = StoreServer(1)
    for request in (Set(1, (("lasting/a", b""), ("b", b""))), Get(1, ("b", "lasting/a"), 0.0, True)):
        ((rank, reply),) = server.on_request(0, request, 0.0)
        assert isinstance(reply, Refused) and reply.usage and "make a call for each" in reply.text
    assert server.used_bytes == 0


def test_turns_are_spaced_and_idle_time_gives_credit() -> None:
    server = StoreServer(1)
    second, never = 10**9, 10**15

    def pace(now: float, most_ns: int = never) -> float:
        ((_, reply),) = server.on_request(0, Pace(1, "p", second, 2 * second, most_ns), now)
        assert isinstance(reply, Sum)
        return reply.value / second

    assert [pace(100.0) for _ in range(5)] == [-2, -1, 0, 1, 2]  # three at once, then one a second
    assert pace(100.0, second) == 3 and pace(100.0) == 3  # the first of them took no turn
    assert pace(200.0) == -2
    put(server, "p", b"x")
    ((_, reply),) = server.on_request(0, Pace(1, "p", 1, 0, 0), 0.0)
    assert isinstance(reply, Refused) and "which is no time" in reply.text


def test_names_come_in_pages() -> None:
    server = StoreServer(1)
    names = [f"{i:06}" + "x" * 900 for i in range(1500)]
    for name in reversed(names):
        put(server, name, b"")
    put(server, "other", b"")
    ((_, first),) = server.on_request(0, Keys(1, "0", ""), 0.0)
    ((_, second),) = server.on_request(0, Keys(2, "0", first.names[-1]), 0.0)
    assert first.more and second == Names(2, tuple(names[len(first.names) :]), False)
    assert list(first.names + second.names) == names
    assert len(store_wire.frame(first)) <= store_wire.MAX_FRAME_BYTES


def test_values_come_as_many_as_fit() -> None:
    server = StoreServer(1)
    put(server, "small", b"s")
    put(server, "large", bytes(MIB))
    get = server.on_request(0, Get(1, ("small", "large", "small"), 0.0, True), 0.0)
    assert get == [(0, Values(1, (b"s",)))]
    assert server.on_request(0, Get(2, ("large", "small"), 0.0, True), 0.0) == [(0, Values(2, (bytes(MIB),)))]


def test_limits() -> None:
    server = StoreServer(1)
    for key, value, words in (
        ("", b"", "a key of 0 bytes"), ("ä" * 513, b"", "a key of 1026 bytes"), ("k", bytes(MIB + 1), "1048577 bytes"),
    ):  # fmt: skip
        ((_, reply),) = put(server, key, value)
        assert isinstance(reply, Refused) and reply.usage and words in reply.text
        assert server.on_request(0, Keys(1, "", ""), 0.0) == [(0, Names(1, (), False))]
    ((_, reply),) = server.on_request(0, Get(1, ("x" * 1025,), 1.0, True), 0.0)
    assert isinstance(reply, Refused)
    count = 0
    while isinstance(put(server, f"{count:04}", bytes(MIB))[0][1], Done):
        count += 1
    assert count == 63
    refused = server.on_request(0, Set(2, (("new", b""), ("more", bytes(MIB)))), 0.0)[0][1]
    assert isinstance(refused, Refused) and not refused.usage and "the store is full" in refused.text
    assert server.on_request(0, Get(3, ("new",), 0.0, False), 0.0)[0][1] == TimedOut(3, ("new",), 1, (), ())
    put(server, "0000", b"")
    assert isinstance(put(server, "more", bytes(MIB))[0][1], Done)


def test_the_same_key_twice_in_one_set_counts_once() -> None:
    server = StoreServer(1)
    for i in range(63):
        put(server, str(i), bytes(MIB))
    assert put(server, "0", b"")[0][1] == Done(0, True)
    for _ in range(3):
        request = Set(1, (("0", bytes(MIB)), ("0", b""), ("0", bytes(MIB))))
        assert server.on_request(0, request, 0.0) == [(0, Done(1, True))]
    assert isinstance(put(server, "y", bytes(MIB))[0][1], Refused)


KEYS = st.sampled_from(["a", "b", "c", "ab"])
RANKS = st.integers(0, 2)
VALUES = st.sampled_from([b"", b"1", b"2", b"-5", b"x"])


class Against(RuleBasedStateMachine):
    """The server beside a dictionary and a list of who waits."""

    def __init__(self) -> None:
        super().__init__()
        self.server = StoreServer(3)
        self.table: dict[str, bytes] = {}
        self.waits: dict[tuple[int, int], tuple[tuple[str, ...], float]] = {}
        self.now = 0.0
        self.number = 0

    def ask(self, rank: int, request: object) -> list:
        return self.server.on_request(rank, request, self.now)

    def next(self) -> int:
        self.number += 1
        return self.number

    def expect_woken(self, replies: list) -> None:
        """Exactly those whose keys are all set now are answered, with what the keys hold."""
        due = {who: keys for who, (keys, _) in self.waits.items() if all(key in self.table for key in keys)}
        assert {(rank, reply.number): reply.values for rank, reply in replies} == {
            who: tuple(self.table[key] for key in keys) for who, keys in due.items()
        }
        for who in due:
            del self.waits[who]

    @rule(rank=RANKS, items=st.lists(st.tuples(KEYS, VALUES), min_size=1, max_size=3))
    def set(self, rank: int, items: list) -> None:
        number = self.next()
        first, *woken = self.ask(rank, Set(number, tuple(items)))
        self.table.update(items)
        assert first == (rank, Done(number, True))
        self.expect_woken(woken)

    @rule(rank=RANKS, keys=st.lists(KEYS, min_size=1, max_size=3), timeout_s=st.sampled_from([0.0, 1.0, 5.0, NEVER]))
    def get(self, rank: int, keys: list, timeout_s: float) -> None:
        number = self.next()
        replies = self.ask(rank, Get(number, tuple(keys), timeout_s, True))
        missing = [key for key in dict.fromkeys(keys) if key not in self.table]
        if not missing:
            assert replies == [(rank, Values(number, tuple(self.table[key] for key in keys)))]
        elif timeout_s == 0:
            assert replies[0][1].keys == tuple(missing)
        else:
            assert replies == []
            self.waits[rank, number] = (tuple(keys), self.now + timeout_s)

    @rule(rank=RANKS, key=KEYS, amount=st.integers(-3, 3))
    def add(self, rank: int, key: str, amount: int) -> None:
        number = self.next()
        first, *woken = self.ask(rank, Add(number, key, amount))
        try:
            total = int(self.table.get(key, b"0")) + amount
        except ValueError:
            assert isinstance(first[1], Refused) and not woken
            return
        self.table[key] = str(total).encode()
        assert first == (rank, Sum(number, total))
        self.expect_woken(woken)

    @rule(rank=RANKS, key=KEYS, expected=st.none() | VALUES, desired=st.none() | VALUES)
    def compare_and_set(self, rank: int, key: str, expected: bytes | None, desired: bytes | None) -> None:
        number = self.next()
        first, *woken = self.ask(rank, CompareAndSet(number, key, expected, desired))
        swapped = self.table.get(key) == expected
        if swapped and desired is None:
            self.table.pop(key, None)
        elif swapped:
            self.table[key] = desired
        assert first == (rank, Done(number, swapped, self.table.get(key)))
        self.expect_woken(woken)

    @rule(rank=RANKS, key=KEYS)
    def delete(self, rank: int, key: str) -> None:
        number = self.next()
        assert self.ask(rank, Delete(number, key)) == [(rank, Done(number, self.table.pop(key, None) is not None))]

    @rule(rank=RANKS)
    def close(self, rank: int) -> None:
        self.server.on_closed(rank)
        self.waits = {who: wait for who, wait in self.waits.items() if who[0] != rank}

    @precondition(lambda self: self.waits)
    @rule(pick=st.randoms(use_true_random=False))
    def cancel(self, pick: object) -> None:
        rank, number = pick.choice(sorted(self.waits))
        assert self.ask(rank, Cancel(number)) == []
        del self.waits[rank, number]

    @rule(step=st.sampled_from([0.5, 1.0, 4.0]))
    def time(self, step: float) -> None:
        self.now += step
        late = {who: keys for who, (keys, by) in self.waits.items() if by <= self.now}
        replies = self.server.on_tick(self.now)
        assert {(rank, reply.number) for rank, reply in replies} == set(late)
        for rank, reply in replies:
            assert set(reply.keys) <= set(late[rank, reply.number]) - set(self.table)
            del self.waits[rank, reply.number]

    @invariant()
    def it_wakes_in_time(self) -> None:
        first = min((by for _, by in self.waits.values()), default=NEVER)
        assert (self.server.deadline() or NEVER) <= first

    @invariant()
    def it_counts_its_bytes(self) -> None:
        assert self.server.used_bytes == sum(len(k) + len(v) + store_wire.ENTRY_BYTES for k, v in self.table.items())
        assert self.ask(0, Keys(0, "a", "")) == [
            (0, Names(0, tuple(sorted(k for k in self.table if k[0] == "a")), False))
        ]


TestAgainstADictionary = Against.TestCase
