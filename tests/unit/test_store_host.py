# SPDX-License-Identifier: Apache-2.0
"""The host's ends of the store sockets, over real ones: what is passed on, what is bounded, what garbage does."""

from __future__ import annotations

import random
import select
import socket
import struct
from collections.abc import Iterator

import msgspec
import pytest

from pmrun import store_wire
from pmrun.store_host import CALLS_MAX, Line, StoreHost
from pmrun.store_wire import Cancel, Done, Frames, GangEnded, Get, Open, Opened, Refused, Set, Values

KEY = b"k" * 32


class Side:
    """A host with two ranks, the ranks' ends, and what the host asked of its driver and its route."""

    def __init__(self) -> None:
        self.complaints: list[str] = []
        self.watched: dict[int, tuple[bool, bool]] = {}
        self.lines: dict[int, Line] = {}
        self.passed: list[tuple[int, store_wire.Ask]] = []
        self.over: list[int] = []
        self.host = StoreHost(KEY, self.watch, self.complaints.append)
        self.host.route = self
        self.ranks: list[socket.socket] = []
        self.frames = [Frames(), Frames()]
        for rank in range(2):
            ours, theirs = socket.socketpair()
            theirs.setblocking(False)
            self.ranks.append(theirs)
            self.host.add(rank, ours)

    def watch(self, line: Line, read: bool, write: bool) -> None:
        self.lines[line.rank] = line
        self.watched[line.rank] = (read, write)

    def request(self, rank: int, request: store_wire.Ask) -> None:
        self.passed.append((rank, request))

    def closed(self, rank: int) -> None:
        self.over.append(rank)

    def send(self, rank: int, *words: store_wire.Request) -> None:
        self.raw(rank, b"".join(map(store_wire.frame, words)))

    def raw(self, rank: int, data: bytes) -> None:
        while data:
            data = data[self.ranks[rank].send(data) :]
            while self.watched[rank][0] and select.select([self.lines[rank].sock], [], [], 0)[0]:
                self.host.on_readable(self.lines[rank])

    def got(self, rank: int) -> list[store_wire.Reply]:
        words: list[store_wire.Reply] = []
        while True:
            try:
                data = self.ranks[rank].recv(1 << 20)
            except BlockingIOError:
                return words
            if not data:
                return words
            words += [word for word, _ in self.frames[rank].feed(data, store_wire.reply_decoder)]
            if self.watched[rank][1]:
                self.host.on_writable(self.lines[rank])


@pytest.fixture
def side() -> Iterator[Side]:
    item = Side()
    yield item
    item.host.close_all()
    for sock in item.ranks:
        sock.close()


def get(number: int) -> Get:
    return Get(number, ("a",), 1.0, True)


def test_opening_gives_the_data_key(side: Side) -> None:
    side.send(1, Open(5, store_wire.VERSION))
    assert side.got(1) == [Opened(5, store_wire.VERSION, KEY)]
    side.send(1, Open(6, store_wire.VERSION + 1))
    (refused,) = side.got(1)
    assert isinstance(refused, Refused) and "install one version" in refused.text


def test_requests_pass_and_replies_come_back(side: Side) -> None:
    side.send(0, get(1), get(2))
    side.send(1, get(1))
    assert side.passed == [(0, get(1)), (0, get(2)), (1, get(1))]
    side.host.reply(0, Values(2, (b"x",)))
    side.host.reply(0, Values(3, (b"nobody asked",)))
    side.host.reply(7, Values(3, (b"no such rank",)))
    assert side.got(0) == [Values(2, (b"x",))] and side.got(1) == []


def test_a_frame_may_come_byte_by_byte(side: Side) -> None:
    for byte in store_wire.frame(get(1)) + store_wire.frame(get(2)):
        side.raw(0, bytes([byte]))
    assert side.passed == [(0, get(1)), (0, get(2))]


def test_what_was_cancelled_is_not_answered(side: Side) -> None:
    side.send(0, get(1), Cancel(1), Cancel(2))
    assert side.passed == [(0, get(1)), (0, Cancel(1))]
    side.host.reply(0, Values(1, (b"x",)))
    assert side.got(0) == []


def test_another_process_of_the_rank_begins_anew(side: Side) -> None:
    side.send(0, get(1), Open(9, store_wire.VERSION))
    assert side.over == [0]
    side.host.reply(0, Values(1, (b"x",)))
    assert side.got(0) == [Opened(9, store_wire.VERSION, KEY)]


def test_calls_at_once_are_bounded(side: Side) -> None:
    for number in range(CALLS_MAX):
        side.send(0, get(number))
    side.send(0, get(CALLS_MAX))
    (refused,) = side.got(0)
    assert refused.number == CALLS_MAX and "too much at once" in refused.text
    side.host.reply(0, Values(0, ()))
    side.send(0, get(CALLS_MAX + 1))
    assert len(side.passed) == CALLS_MAX + 1
    big = Set(0, (("a", bytes(store_wire.MAX_VALUE_BYTES)),))
    for number in range(9):
        side.send(1, msgspec.structs.replace(big, number=number))
    assert [reply.number for reply in side.got(1)] == [7, 8], "eight together are above CALL_BYTES_MAX"


def test_a_rank_that_reads_no_replies_is_not_read(side: Side) -> None:
    big = Values(1, (bytes(store_wire.MAX_VALUE_BYTES),))
    side.send(0, get(1), get(2))
    side.host.reply(0, big)
    assert side.watched[0] == (False, True), "its socket is full"
    side.host.reply(0, msgspec.structs.replace(big, number=2))
    assert side.watched[1] == (True, False), "the other rank goes on"
    assert [(word.number, len(word.values[0])) for word in side.got(0)] == [(1, 1 << 20), (2, 1 << 20)]
    assert side.watched[0] == (True, False)


def test_a_pause_stops_reading_but_not_writing(side: Side) -> None:
    side.send(0, get(1))
    side.host.pause(True)
    assert side.watched == {0: (False, False), 1: (False, False)}
    side.host.reply(0, Values(1, (b"x",)))
    assert side.got(0) == [Values(1, (b"x",))]
    side.host.pause(False)
    assert side.watched == {0: (True, False), 1: (True, False)}


def test_the_end_of_the_gang_answers_all(side: Side) -> None:
    side.send(0, get(1))
    side.host.end_gang(1, 1, "n", "exit code 3")
    side.host.end_gang(4, -1, "", "too late")
    side.send(1, get(5), Cancel(5))
    assert side.got(0) == [GangEnded(1, 1, 1, "n", "exit code 3")]
    assert side.got(1) == [GangEnded(5, 1, 1, "n", "exit code 3")]
    assert set(side.over) == {0, 1} and side.passed == [(0, get(1))]


def test_a_rank_that_is_gone(side: Side) -> None:
    side.send(0, get(1))
    side.ranks[0].close()
    side.host.on_readable(side.lines[0])
    assert side.over == [0] and side.watched[0] == (False, False) and not side.complaints
    side.host.reply(0, Values(1, (b"x",)))
    side.host.close(0)


@pytest.mark.parametrize(
    "data",
    [
        struct.pack("<I", store_wire.MAX_FRAME_BYTES + 1), struct.pack("<I", 3) + b"\xc1\xc1\xc1",
        struct.pack("<I", 0), store_wire.frame(Done(1, True)), b"GET / HTTP/1.0\r\n\r\n",
        store_wire.frame(get(1)) * 2, struct.pack("<I", 60_000) + b"\x91" * 60_000,
    ],
)  # fmt: skip
def test_garbage_closes_that_line_alone(side: Side, data: bytes) -> None:
    side.raw(0, data)
    assert side.over == [0]
    (told,) = side.got(0)[-1:]
    assert isinstance(told, Refused) and told.number == -1
    (complaint,) = side.complaints
    assert complaint.startswith("rank 0 sent bytes to its store that are no request") and complaint == told.text
    side.send(1, get(4))
    assert side.passed[-1] == (1, get(4))


def test_noise_never_raises(rng: random.Random) -> None:
    words = [Open(1, 1), get(2), Set(3, (("k", b"v"),)), Cancel(4)]
    good = b"".join(map(store_wire.frame, words))
    for _ in range(5000):
        data = bytearray(good)
        for _ in range(rng.randint(1, 5)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        frames = Frames()
        try:
            for at in range(0, len(data), 40):
                for word, length in frames.feed(bytes(data[at : at + 40]), store_wire.request_decoder):
                    assert isinstance(word, store_wire.Request) and length <= store_wire.MAX_FRAME_BYTES
        except store_wire.StoreWireError:
            continue
