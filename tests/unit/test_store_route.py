# SPDX-License-Identifier: Apache-2.0
"""The controller's table: replies go to the right node, wait while its link is full, and go with it when it is lost."""

from __future__ import annotations

import random

from pmrun import store_wire, wire
from pmrun.launcher.store_desk import StoreDesk
from pmrun.launcher.store_route import GangStore
from pmrun.store_wire import Ask, Done, Get, Reply, Set, TimedOut, Values

MIB = 1 << 20


class Links:
    """Links that keep what they are given until it is taken. Nodes 0, 1, 2 are peers 7, 5, 6."""

    def __init__(self) -> None:
        self.queued: dict[int, list[tuple[int, Reply]]] = {7: [], 5: [], 6: []}

    def send(self, peer: int, message: wire.Message) -> None:
        assert isinstance(message, wire.StoreReply)
        self.queued[peer].append((message.rank, store_wire.decode(message.word, store_wire.reply_decoder)))

    def backlog_bytes(self, peer: int) -> int:
        return sum(len(store_wire.encode(reply)) for _, reply in self.queued[peer])

    def take(self, peer: int) -> list[tuple[int, Reply]]:
        taken, self.queued[peer] = self.queued[peer], []
        return taken


def make() -> tuple[GangStore, Links]:
    """Nodes of 2, 3 and 1 ranks."""
    links = Links()
    return GangStore((2, 3, 1), links, [7, 5, 6]), links


def ask(store: GangStore, node: int, rank: int, request: Ask, now: float = 0.0) -> None:
    store.on_message(node, wire.StoreRequest(rank, store_wire.encode(request)), now)


def test_each_reply_goes_to_its_ranks_node() -> None:
    store, links = make()
    for node, rank in ((0, 1), (1, 2), (1, 4), (2, 5)):
        ask(store, node, rank, Get(rank, ("k",), 9.0, True))
    ask(store, 0, 0, Set(1, (("k", b"v"),)))
    assert links.take(7) == [(0, Done(1, True)), (1, Values(1, (b"v",)))]
    assert links.take(5) == [(rank, Values(rank, (b"v",))) for rank in (2, 4)]
    assert links.take(6) == [(5, Values(5, (b"v",)))]


def test_an_agent_speaks_for_its_own_ranks_alone() -> None:
    store, links = make()
    ask(store, 1, 0, Set(1, (("k", b"v"),)))
    store.on_message(2, wire.StoreClosed(3), 0.0)
    ask(store, 0, 1, Get(1, ("k",), 0.0, True))
    assert links.take(7) == [(1, TimedOut(1, ("k",), 1, (0, 2, 3, 4, 5), ()))]
    assert links.take(5) == links.take(6) == []


def test_a_full_link_holds_up_its_node_alone_and_loses_nothing() -> None:
    store, links = make()
    ask(store, 0, 0, Set(0, (("k", bytes(MIB)),)))
    for number in range(1, 9):
        ask(store, 1, 2 + number % 3, Get(number, ("k",), 0.0, True))
        ask(store, 2, 5, Get(number, ("k",), 0.0, False))
    assert len(links.queued[5]) == 1, "one is above BACKLOG_BYTES already"
    assert [reply.number for _, reply in links.take(6)] == list(range(1, 9))
    heard = []
    while links.queued[5]:
        heard += [reply.number for _, reply in links.take(5)]
        store.on_tick(0.0)
    assert heard == list(range(1, 9))


def test_a_rank_that_closed_or_ended_gets_nothing() -> None:
    store, links = make()
    for rank in (2, 3, 4):
        ask(store, 1, rank, Get(1, ("k",), 5.0, True))
    store.on_message(1, wire.StoreClosed(2), 0.0)
    store.on_rank_ended(3)
    assert store.deadline() == 5.0
    store.on_tick(5.0)
    assert links.take(5) == [(4, TimedOut(1, ("k",), 1, (0, 1, 5), (3,)))]


def test_a_lost_node_is_forgotten() -> None:
    store, links = make()
    ask(store, 0, 0, Set(0, (("k", bytes(MIB)),)))
    for number in range(4):
        ask(store, 1, 2, Get(number, ("k",), 0.0, True))
    ask(store, 1, 3, Get(9, ("other",), 5.0, True))
    store.on_node_lost(1)
    links.take(5)
    store.on_tick(9.0)
    ask(store, 0, 0, Get(9, ("none",), 0.0, True))
    assert links.take(5) == []
    assert links.take(7)[-1] == (0, TimedOut(9, ("none",), 1, (1, 5), (2, 3, 4)))


def test_random_links_keep_the_order_of_each_rank(rng: random.Random) -> None:
    store, links = make()
    nodes = {0: 0, 1: 0, 2: 1, 3: 1, 4: 1, 5: 2}
    asked: dict[int, list[int]] = {rank: [] for rank in nodes}
    heard: dict[int, list[int]] = {rank: [] for rank in nodes}
    ask(store, 0, 0, Set(-1, (("k", bytes(300_000)),)))
    for number in range(2000):
        rank = rng.randrange(6)
        ask(store, nodes[rank], rank, Get(number, ("k",), 0.0, rng.random() < 0.1))
        asked[rank].append(number)
        if rng.random() < 0.2 or number == 1999:
            for peer in (7, 5, 6):
                for who, reply in links.take(peer):
                    heard[who].append(reply.number)
            store.on_tick(0.0)
    while any(links.queued.values()):
        for peer in (7, 5, 6):
            for who, reply in links.take(peer):
                heard[who].append(reply.number)
        store.on_tick(0.0)
    heard[0].remove(-1)
    assert heard == asked


def test_attempts_hand_lasting_keys_on_and_nothing_else() -> None:
    links, desk = Links(), StoreDesk()
    desk.begin((2, 3, 1), links, [7, 5, 6])
    desk.on_rank_ended(4)
    items = Set(1, (("lasting/k", b"v"),)), Set(2, (("k", b"v"),))
    for request in items:
        desk.on_message(0, wire.StoreRequest(0, store_wire.encode(request)), 0.0)
    desk.on_message(1, wire.StoreRequest(2, store_wire.encode(Get(1, ("none",), 9.0, True))), 0.0)
    assert desk.deadline() == 9.0 and desk.waits(1.0) == {2: ("none", 1.0)}
    desk.end()
    desk.on_message(0, wire.StoreRequest(0, store_wire.encode(items[1])), 0.0)  # on its way when the attempt ended
    assert desk.deadline() is None and desk.waits(1.0) == {}
    links.take(7)
    desk.begin((2, 1), links, [5, 6])
    desk.on_node_lost(1)
    desk.on_message(0, wire.StoreRequest(0, store_wire.encode(Get(1, ("lasting/k",), 0.0, True))), 0.0)
    desk.on_message(0, wire.StoreRequest(1, store_wire.encode(Get(1, ("k",), 0.0, True))), 0.0)
    assert links.take(5) == [(0, Values(1, (b"v",))), (1, TimedOut(1, ("k",), 1, (), (2,)))]
