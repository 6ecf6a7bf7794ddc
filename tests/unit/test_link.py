# SPDX-License-Identifier: Apache-2.0
"""Frames over a socket pair: whole, in order, bounded, and the peer's end is noticed after its last message."""

import random
import struct

import pytest

from pmrun import wire
from pmrun.launcher.link import LinkLost, SocketLink, socket_pair


@pytest.fixture
def pair():
    left, right = socket_pair()
    yield SocketLink(left), right
    left.close()
    right.close()


def test_messages_arrive_whole_and_in_order():
    seed = 5
    print("seed", seed)
    chance = random.Random(seed)
    a, b = (SocketLink(sock) for sock in socket_pair())
    sent = [wire.Output(i, 1, chance.randbytes(chance.choice([0, 1, 100, 65536]))) for i in range(300)]
    got, at = [], 0
    while len(got) < len(sent):
        for _ in range(chance.randint(0, 20)):
            if at < len(sent):
                a.send(sent[at])
                at += 1
        if a.wants_write():
            a.on_writable()
        got += b.receive()
    assert got == sent
    assert a.backlog_bytes == 0 and not a.wants_write()
    a.close()
    with pytest.raises(LinkLost):
        b.receive()
    b.close()


def test_backlog_counts_what_waits(pair):
    link, _ = pair
    for _ in range(40):
        link.send(wire.Output(0, 1, bytes(65536)))
    assert link.wants_write()
    assert 0 < link.backlog_bytes < 41 * 65600


def test_last_messages_before_the_end(pair):
    link, raw = pair
    data = wire.encode(wire.Leave())
    raw.sendall(struct.pack("<I", len(data)) + data)
    raw.close()
    assert link.receive() == [wire.Leave()]
    with pytest.raises(LinkLost):
        link.receive()


@pytest.mark.parametrize("data", [struct.pack("<I", wire.MAX_MESSAGE_BYTES + 1), struct.pack("<I", 3) + b"abc"])
def test_nonsense_ends_the_link(pair, data):
    link, raw = pair
    raw.sendall(data)
    with pytest.raises(LinkLost):
        link.receive()


def test_sending_to_nobody_is_silent(pair):
    link, raw = pair
    raw.close()
    for _ in range(3):
        link.send(wire.Leave())
    assert not link.wants_write()
    with pytest.raises(LinkLost):
        link.receive()
