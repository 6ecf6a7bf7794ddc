# SPDX-License-Identifier: Apache-2.0
"""Which transport all ranks take: the choice by figures, and real pairs that time each other."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest

import pmrun
from pmrun import _native, libzmq, transports
from pmrun.transports import Choice, choose, decide

FAST, SLOW = (20.0, 200.0), (60.0, 500.0)
LAYOUT = [2, 1, 2]


@pytest.mark.parametrize(
    ("figures", "taken"),
    [
        ({"tcp": FAST, "zmq": SLOW}, "tcp"),
        ({"tcp": SLOW, "zmq": FAST}, "zmq"),
        ({"tcp": (20.0, 500.0), "zmq": (60.0, 100.0)}, "zmq"),  # the means decide
        ({"tcp": (20.0, 200.0), "zmq": (18.0, 160.0)}, "tcp"),  # not clearly faster
        ({"tcp": (20.0, 0.0), "zmq": (30.0, 1.0)}, "tcp"),  # only what both were timed for
        ({"zmq": SLOW}, "zmq"),
        ({}, "tcp"),
    ],
)
def test_the_faster_one_is_taken(figures: dict[str, transports.Figures], taken: str) -> None:
    assert decide(figures, {}).transport == taken


def test_the_reason_has_the_figures_and_what_is_missing() -> None:
    choice = decide({"tcp": FAST}, {"zmq": "the zmq transport needs libzmq"})
    assert (
        choice.why == "tcp 20 µs and 200 µs (8 bytes there and back, 256 KiB); not zmq: the zmq transport needs libzmq"
    )
    assert decide({"tcp": (20.0, 0.0)}, {}).why == "tcp 20 µs (8 bytes there and back, 256 KiB)"


class Board:
    """What ranks tell each other, in one process; nothing of transports that are `lost`."""

    def __init__(self, lost: str = "none") -> None:
        self._texts: dict[str, str] = {}
        self._changed = threading.Condition()
        self._lost = lost

    def key(self) -> bytes:
        return bytes(range(32))

    def tell(self, name: str, text: str) -> None:
        kept = [line for line in text.splitlines() if not line.startswith(self._lost)]
        with self._changed:
            self._texts[name] = "\n".join(kept)
            self._changed.notify_all()

    def hear(self, name: str, timeout_s: float) -> str:
        with self._changed:
            assert self._changed.wait_for(lambda: name in self._texts, timeout_s), f"nobody told {name}"
            return self._texts[name]


def choose_all(board: Board) -> list[Choice]:
    """Each rank in a thread."""
    with ThreadPoolExecutor(sum(LAYOUT)) as pool:
        asked = [pool.submit(choose, _native, board, rank, LAYOUT, "127.0.0.1", 30.0) for rank in range(sum(LAYOUT))]
        return [future.result() for future in asked]


@pytest.fixture
def auto(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.delenv("PMRUN_TRANSPORT", raising=False)
    monkeypatch.delenv("PMRUN_ENCRYPT", raising=False)
    return monkeypatch


def test_all_ranks_take_what_the_pair_has_timed(auto: pytest.MonkeyPatch) -> None:
    choices = choose_all(Board())
    assert len(set(choices)) == 1
    assert choices[0].transport in transports.CANDIDATES
    assert choices[0].why.startswith("tcp ")
    assert ", zmq " in choices[0].why


def test_what_one_node_has_not_got_is_not_taken(auto: pytest.MonkeyPatch) -> None:
    choice = choose_all(Board(lost="zmq "))[0]
    assert choice.transport == "tcp"
    assert choice.why.endswith("; not zmq: the other node has not got it")


def test_nothing_is_timed_where_there_is_no_choice(auto: pytest.MonkeyPatch) -> None:
    auto.setenv("PMRUN_TRANSPORT", "zmq")
    assert set(choose_all(Board())) == {Choice("zmq", "asked for")}
    auto.setenv("PMRUN_TRANSPORT", "auto")
    auto.setenv("PMRUN_ENCRYPT", "1")
    assert set(choose_all(Board())) == {Choice("zmq", "the one that encrypts")}


@pytest.mark.parametrize("transport", transports.CANDIDATES)
def test_a_partner_that_says_nothing_ends_the_trial(transport: str) -> None:
    library = libzmq.find() if transport == "zmq" else None
    nets = [_native.open_net(transport, "127.0.0.1", rank, [1, 1], bytes(32), library=library) for rank in (0, 1)]
    with closing(nets[0]), closing(nets[1]):
        with pytest.raises(pmrun.UsageError, match="once it is connected"):
            nets[0].time(0.01, 0.1)
        nets[0].connect([net.address for net in nets])
        start = time.monotonic()
        with pytest.raises(pmrun.CollectiveTimeout, match=rf"no answer from {transport} within 0\.1 s"):
            nets[0].time(0.01, 0.1)
        assert time.monotonic() - start < 5
        nets[1].close(0)
