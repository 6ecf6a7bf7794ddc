# SPDX-License-Identifier: Apache-2.0
"""A steward's end of the link to rank 0's node, with a link and a clock that the test holds: how the loss of that node is told."""

from __future__ import annotations

import pytest

from pmrun import window, wire
from pmrun.launcher.lease import LEASE_S
from pmrun.launcher.link import LinkLost
from pmrun.launcher.other_nodes import OtherNodes
from pmrun.launcher.poller import Handler, Poller

HELLO = wire.Hello(wire.VERSION, -1, 1, "b", "10.0.0.2", world_size=4, local_world_size=2)


class Wire:
    """A link without a network."""

    needs_lease = True
    backlog_bytes = 0

    def __init__(self) -> None:
        self.coming: list[wire.Message] = []
        self.sent: list[wire.Message] = []
        self.cut = self.closed = False

    def watch(self, poller: Poller, handler: Handler) -> None:
        """Nothing wakes anybody here."""

    def forget(self, poller: Poller) -> None:
        """Nobody was to be woken."""

    def pending(self) -> bool:
        return bool(self.coming)

    def send(self, message: wire.Message) -> None:
        self.sent.append(message)

    def receive(self) -> list[wire.Message]:
        if self.cut:
            raise LinkLost("the connection was closed")
        coming, self.coming = self.coming, []
        return coming

    def close(self) -> None:
        self.closed = True


class Told:
    """What the steward was told."""

    def __init__(self) -> None:
        self.words: list[wire.Message | str] = []

    def on_gathered(self, word: wire.Gathered) -> None:
        self.words.append(word)

    def on_refused(self, text: str) -> None:
        self.words.append(text)

    def on_verdict(self, word: wire.Verdict) -> None:
        self.words.append(word)

    def on_reply(self, word: wire.StoreReply) -> None:
        self.words.append(word)


@pytest.mark.parametrize("how", ["lease", "connection"])
def test_the_loss_of_rank_0s_node(how: str) -> None:
    link, told = Wire(), Told()
    nodes = OtherNodes(link, None, HELLO, told, Poller(), 0.0)
    nodes.call_roll(2)
    gathered = wire.Gathered(1, (2, 2), ("10.0.0.1", "10.0.0.2"))
    link.coming.append(gathered)
    nodes.on_tick(0.5)
    assert told.words == [gathered]
    link.cut = how == "connection"
    now, told.words = 0.5, []
    while not told.words:
        now += 0.25
        assert now <= nodes.deadline(now) + 0.25
        nodes.on_tick(now)
    why, after_s = ("the connection was closed", 1.5) if link.cut else (f"no sign of life for {LEASE_S:g} s", LEASE_S)
    assert told.words == [wire.Verdict(window.ABORT_RANK_FAILED, 0, "10.0.0.1", f"its node is lost ({why})")]
    assert after_s <= now - 0.5 <= after_s + 1.0 and link.closed
    nodes.ended(2)  # nobody is there to hear it
    nodes.done()
    assert nodes.over and [type(word) for word in link.sent if not isinstance(word, wire.Beat)] == [wire.Hello] * 2


def test_rank_0s_node_leaves_before_all_have_come() -> None:
    link, told = Wire(), Told()
    nodes = OtherNodes(link, None, HELLO, told, Poller(), 0.0)
    link.cut = True
    nodes.on_tick(0.5)
    (text,) = told.words
    assert isinstance(text, str) and text.startswith("the steward of rank 0's node is gone (the connection was closed)")
    assert nodes.over


def test_the_first_verdict_is_sent_once_and_none_is_echoed() -> None:
    link, told = Wire(), Told()
    nodes = OtherNodes(link, None, HELLO, told, Poller(), 0.0)
    own, others = (wire.Verdict(window.ABORT_RANK_FAILED, rank, "x", "y") for rank in (2, 0))
    nodes.judge(own)
    nodes.judge(others)
    assert link.sent[1:] == [own]
    second = OtherNodes(link, None, HELLO, told, Poller(), 0.0)
    link.sent.clear()
    link.coming.append(others)
    second.on_tick(0.5)
    second.judge(own)
    assert told.words == [others] and link.sent == []
