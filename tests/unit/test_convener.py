# SPDX-License-Identifier: Apache-2.0
"""The convener, with links and a clock that the test holds: the start, the first verdict, leases, the end."""

from __future__ import annotations

import pytest

from pmrun import store_wire, window, wire
from pmrun.launcher.convener import Convener
from pmrun.launcher.lease import LEASE_S
from pmrun.launcher.link import Event
from pmrun.launcher.poller import Handler, Poller
from pmrun.version import RELEASE


class Links:
    """A hub without a network: what peers say is put in, what they are told is kept."""

    needs_lease = True

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.told: dict[int, list[wire.Message]] = {}
        self.dropped: list[int] = []

    def watch(self, poller: Poller, handler: Handler) -> None:
        """Nothing wakes anybody here."""

    def pending(self) -> bool:
        return bool(self.events)

    def receive(self) -> list[Event]:
        events, self.events = self.events, []
        return events

    def send(self, peer: int, message: wire.Message) -> None:
        if not isinstance(message, wire.Beat):
            self.told.setdefault(peer, []).append(message)

    def backlog_bytes(self, peer: int) -> int:
        return 0

    def drop(self, poller: Poller, peer: int) -> None:
        self.dropped.append(peer)

    def strangers(self) -> str:
        return "two strangers"

    def close(self) -> None:
        """Nothing is open."""


class Gang:
    """Node 0 is the convener's own, with ranks 0 and 1; peers 0 and 1 of the hub have ranks 2, and 3 and 4."""

    def __init__(self) -> None:
        self.own, self.net = Links(), Links()
        self.convener = Convener(self.net, self.own, 5, 60.0, Poller(), 0.0)

    def say(self, now: float, peer: int, message: wire.Message | None) -> None:
        """The own one is -1."""
        hub = self.own if peer < 0 else self.net
        hub.events.append(Event(max(peer, 0), message, "" if message else "cut"))
        self.convener.work(now)
        self.convener.on_tick(now)

    def arrive(self, now: float, peer: int, first_rank: int, count: int) -> None:
        for first in (-1, first_rank):
            hello = wire.Hello(
                wire.VERSION, -1, 1, "abc"[peer + 1], f"10.0.0.{peer + 1}", release=RELEASE, world_size=5, first_rank=first,
                local_world_size=count,
            )  # fmt: skip
            self.say(now, peer, hello)

    def heard(self, peer: int) -> list[wire.Message]:
        return self.own.told.pop(0, []) if peer < 0 else self.net.told.pop(peer, [])

    def begin(self) -> None:
        self.arrive(0.1, 1, 3, 2)
        self.arrive(0.2, -1, 0, 2)
        self.arrive(0.3, 0, 2, 1)
        for node, peer in enumerate((-1, 0, 1)):
            assert self.heard(peer) == [wire.Gathered(node, (2, 1, 2), ("10.0.0.0", "10.0.0.1", "10.0.0.2"))]


@pytest.fixture
def gang() -> Gang:
    return Gang()


def test_the_store_is_one_for_all(gang: Gang) -> None:
    gang.begin()
    gang.say(1.0, 1, wire.StoreRequest(4, store_wire.encode(store_wire.Get(7, ("k",), 5.0, True))))
    gang.say(1.1, -1, wire.StoreRequest(0, store_wire.encode(store_wire.Set(1, (("k", b"v"),)))))
    (reply,) = gang.heard(1)
    assert isinstance(reply, wire.StoreReply) and reply.rank == 4
    assert store_wire.decode(reply.word, store_wire.reply_decoder) == store_wire.Values(7, (b"v",))
    gang.say(1.2, 0, wire.StoreRequest(4, store_wire.encode(store_wire.Get(8, ("k",), 5.0, True))))
    assert not gang.heard(0) and not gang.heard(1), "a node speaks for its own ranks alone"


def test_the_first_verdict_goes_to_all_others(gang: Gang) -> None:
    gang.begin()
    first = wire.Verdict(window.ABORT_RANK_FAILED, 4, "c", "killed")
    gang.say(1.0, 1, first)
    gang.say(1.1, 0, wire.Verdict(window.ABORT_RANK_FAILED, 2, "b", "because of it"))
    assert (gang.heard(-1), gang.heard(0), gang.heard(1)) == ([first], [first], [])


@pytest.mark.parametrize("how", ["lease", "connection"])
def test_a_node_that_is_lost_fails_the_others(gang: Gang, how: str) -> None:
    gang.begin()
    now = 0.3
    if how == "connection":
        gang.say(now, 1, None)
    while now < LEASE_S + 1.0:
        now += 0.5
        gang.say(now, 0, wire.Beat())
    text = "c is lost (cut)" if how == "connection" else f"c is lost (no sign of life for {LEASE_S:g} s)"
    verdict = wire.Verdict(window.ABORT_RANK_FAILED, 3, "c", text)
    assert (gang.heard(-1), gang.heard(0)) == ([verdict], [verdict]) and gang.net.dropped == [1]


def test_it_ends_with_the_last_node(gang: Gang) -> None:
    gang.begin()
    for peer in (-1, 1):
        gang.say(1.0, peer, wire.NodeDone(()))
        assert not gang.convener.over
    gang.say(1.0, 0, None)
    assert gang.convener.over


def test_who_does_not_come_is_named(gang: Gang) -> None:
    gang.arrive(0.1, -1, 0, 2)
    gang.say(1.0, 1, wire.Hello(wire.VERSION, -1, 1, "c", "x", release=RELEASE, world_size=5, local_world_size=2))
    for now in range(2, 61):
        gang.say(float(now), 1, wire.Beat())
    text = "not all ranks called pm.init() within 60 s: waited for ranks 2-4 of 5 (there are 0-1 on a; not all have come on c)"
    (refused,) = gang.heard(-1)
    assert isinstance(refused, wire.Refused) and refused.text == text + "; two strangers"
    assert gang.heard(1) == [refused] and gang.convener.over


def test_whoever_comes_after_a_start_that_failed_hears_why(gang: Gang) -> None:
    gang.arrive(0.1, -1, 0, 2)
    gang.say(0.2, 1, wire.StartFailed(-1, "no luck", 75))
    refused = wire.Refused("no luck", 75)
    assert (gang.heard(-1), gang.heard(1), gang.convener.over) == ([refused], [refused], False)
    gang.arrive(0.3, 0, 2, 1)
    assert gang.heard(0) == [refused] * 2
    gang.convener.on_tick(3.2)
    assert gang.convener.over


def test_a_node_that_leaves_before_the_start_fails_it(gang: Gang) -> None:
    gang.arrive(0.1, 1, 3, 2)
    gang.say(0.2, 1, None)
    (refused,) = gang.heard(-1)
    assert isinstance(refused, wire.Refused) and refused.text.startswith("the ranks on c left before all ranks had")


def test_a_node_too_many(gang: Gang) -> None:
    gang.begin()
    hello = wire.Hello(wire.VERSION, -1, 1, "z", "10.0.0.9", release=RELEASE, world_size=5, local_world_size=1)
    gang.say(1.0, 7, hello)
    (refused,) = gang.heard(7)
    assert isinstance(refused, wire.Refused) and "z (10.0.0.9) came when the gang was whole" in refused.text
