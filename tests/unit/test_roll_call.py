# SPDX-License-Identifier: Apache-2.0
"""Ranks of several nodes are called until all are there; who does not fit is told why, and who is missing is named."""

from __future__ import annotations

import random

import pytest

from pmrun import wire
from pmrun.launcher.roll_call import RollCall, spans


def hello(host: str, first_rank: int, count: int, world_size: int = 8, **changes: object) -> wire.Hello:
    fields = {"version": wire.VERSION, "release": "1.0", "world_size": world_size, **changes}
    return wire.Hello(
        node_rank=-1, pid=1, host=host, address=f"10.0.0.{ord(host)}", first_rank=first_rank, local_world_size=count,
        **fields,  # type: ignore[arg-type]
    )  # fmt: skip


def test_any_order_of_coming_gives_the_order_of_ranks(rng: random.Random) -> None:
    nodes = [hello("c", 0, 3), hello("a", 3, 1), hello("b", 4, 4)]
    for _ in range(20):
        roll = RollCall(8, "1.0")
        for peer in rng.sample(range(3), 3):
            assert not roll.whole
            arriving = hello(nodes[peer].host, -1, nodes[peer].local_world_size)
            assert roll.on_hello(peer, arriving) == "" and not roll.whole
            assert roll.on_hello(peer, nodes[peer]) == ""
        assert roll.whole and [node.peer for node in roll.in_order()] == [0, 1, 2]
        assert [node.ranks for node in roll.in_order()] == [range(3), range(3, 4), range(4, 8)]


def test_who_is_missing() -> None:
    roll = RollCall(8, "1.0")
    assert roll.missing() == "ranks 0-7 of 8"
    roll.on_hello(0, hello("a", 0, 3))
    roll.on_hello(1, hello("c", 4, 1))
    roll.on_hello(2, hello("b", -1, 1))
    assert roll.missing() == "ranks 3, 5-7 of 8 (there are 0-2 on a, 4 on c; not all have come on b)"
    assert not roll.all_heard
    roll.on_hello(3, hello("d", -1, 3))
    assert roll.all_heard and not roll.whole
    roll.on_hello(4, hello("e", 0, 1))
    assert roll.missing().endswith("; e (10.0.0.101) has ranks 0, which are there already, on a (10.0.0.97))")


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (hello("b", 4, 4, version=wire.VERSION + 1), "b (10.0.0.98) runs pmrun 1.0, rank 0's node 1.0"),
        (hello("b", 4, 4, release="0.9"), "runs pmrun 0.9, rank 0's node 1.0: install one version on all nodes"),
        (hello("b", 4, 4, world_size=9), "was told of 9 ranks, rank 0's node of 8"),
        (hello("b", 5, 4), "says it has 4 ranks from 5 of 8"),
        (hello("b", 5, 0), "says it has 0 ranks from 5 of 8"),
        (hello("b", 3, 5), "has ranks 3, which are there already, on a (10.0.0.97)"),
    ],
)
def test_who_does_not_fit(wrong: wire.Hello, words: str) -> None:
    roll = RollCall(8, "1.0")
    assert roll.on_hello(0, hello("a", 0, 4)) == ""
    assert words in roll.on_hello(1, wrong)
    assert roll.on_hello(2, hello("b", 4, 4)) == "" and roll.whole, "a refusal takes no place"


def test_long_lists_are_cut() -> None:
    assert spans([0, 1, 2, 5, 7, 8]) == "0-2, 5, 7-8"
    assert spans(list(range(0, 40, 2))) == "0, 2, 4, 6, 8, 10, 12, 14, ..."
