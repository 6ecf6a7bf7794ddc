# SPDX-License-Identifier: Apache-2.0
"""The network between nodes as the bootstrap uses it: opened, connected, tried, closed."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing

import pytest

import pmrun
from pmrun import _native

KEY = bytes(range(32))


def open_all(
    stack: ExitStack, layout: list[int], keys: list[bytes] | None = None, host: str = "127.0.0.1"
) -> list[_native.Net]:
    nets = [
        stack.enter_context(closing(_native.open_net("tcp", host, rank, layout, (keys or [KEY] * sum(layout))[rank])))
        for rank in range(sum(layout))
    ]
    for net in nets:
        net.connect([net.address for net in nets])
    return nets


def probe_all(nets: list[_native.Net], timeout_s: float) -> list[BaseException | None]:
    """Each in a thread, as ranks would in processes."""
    with ThreadPoolExecutor(len(nets)) as pool:
        return [future.exception() for future in [pool.submit(net.probe, timeout_s) for net in nets]]


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_all_pairs_of_nodes_are_tried(stack: ExitStack, host: str) -> None:
    nets = open_all(stack, [2, 1, 3], host=host)
    assert nets[0].address.startswith("tcp [::1]:" if host == "::1" else "tcp 127.0.0.1:")
    assert len({net.address for net in nets}) == 6
    assert probe_all(nets, 30) == [None] * 6


def test_a_rank_with_another_key_is_named(stack: ExitStack) -> None:
    nets = open_all(stack, [1, 1], keys=[KEY, bytes(32)])
    outcomes = probe_all(nets, 5)
    assert all(isinstance(outcome, (pmrun.RankFailed, pmrun.CollectiveTimeout)) for outcome in outcomes), outcomes
    assert any("is the secret the same there?" in str(outcome) for outcome in outcomes)


def test_a_node_that_does_not_answer_is_named(stack: ExitStack) -> None:
    nets = open_all(stack, [1, 1, 1])
    outcomes = probe_all(nets[:2], 0.3)
    assert all(isinstance(outcome, pmrun.CollectiveTimeout) for outcome in outcomes), outcomes
    assert "no data came to node 0 from node 2 within" in str(outcomes[0])


def test_a_node_that_is_gone_is_named(stack: ExitStack) -> None:
    nets = open_all(stack, [1, 1])
    nets[1].close()
    with pytest.raises(pmrun.RankFailed, match=r"rank 1 \(127\.0\.0\.1:\d+\) is gone: nobody listens"):
        nets[0].probe(30)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"transport": "pigeons"}, "no transport is named 'pigeons': use one of .*tcp"),
        ({"bind_address": "0.0.0.0"}, "would listen on all interfaces"),
        ({"bind_address": "::"}, "would listen on all interfaces"),
        ({"bind_address": "localhost"}, "'localhost' is no numeric IPv4 or IPv6 address"),
        ({"rank": 5}, "rank 5 is not one of 2 ranks"),
        ({"layout": [1, 0]}, "node 1 of 2 has no rank"),
        ({"layout": []}, "0 nodes"),
        ({"key": b"short"}, "a key of 5 bytes: it must have 32"),
        ({"flows": 99}, "99 connections per pair of ranks: at most 15"),
    ],
)
def test_mistakes_have_a_line(change: dict[str, object], words: str) -> None:
    arguments = {"transport": "tcp", "bind_address": "127.0.0.1", "rank": 0, "layout": [1, 1], "key": KEY, **change}
    with pytest.raises(pmrun.UsageError, match=words):
        _native.open_net(**arguments)  # type: ignore[arg-type] # the point


def test_an_address_that_is_not_ours() -> None:
    with pytest.raises(OSError, match=r"cannot listen on 192\.0\.2\.1 \(is it an address of this node\?\)"):
        _native.open_net("tcp", "192.0.2.1", 0, [1, 1], KEY)


def test_encryption_is_refused_where_there_is_none() -> None:
    with pytest.raises(TypeError, match="the tcp transport does not encrypt: use --transport zmq"):
        _native.open_net("tcp", "127.0.0.1", 0, [1, 1], KEY, encrypt=True)


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("zmq 127.0.0.1:80", "rank 1 published 'zmq 127.0.0.1:80', but the transport here is tcp"),
        ("tcp 127.0.0.1", "which is no address"),
        ("tcp 127.0.0.1:0", "which is no address"),
        ("tcp 127.0.0.1:65536", "which is no address"),
        ("tcp 127.0.0.1:80x", "which is no address"),
        ("tcp ::1:80", "which is no address"),
        ("tcp [::1:80", "which is no address"),
        ("tcp [127.0.0.1]:80", "which is no address"),
        ("tcp 0.0.0.0:80", "which is no address"),
        ("tcp " + "1" * 500 + ":80", "which is no address"),
        ("", "the transport here is tcp"),
    ],
)
def test_addresses_that_are_none(stack: ExitStack, address: str, words: str) -> None:
    net = stack.enter_context(closing(_native.open_net("tcp", "127.0.0.1", 0, [1, 1], KEY)))
    with pytest.raises(pmrun.UsageError) as caught:
        net.connect([net.address, address])
    assert words in str(caught.value)


def test_what_may_be_done_once(stack: ExitStack) -> None:
    nets = open_all(stack, [1, 1])
    with pytest.raises(pmrun.UsageError, match="connected already"):
        nets[0].connect([net.address for net in nets])
    with pytest.raises(pmrun.UsageError, match="3 addresses for 2 ranks"):
        nets[0].connect(["x"] * 3)
    nets[0].close()
    nets[0].close()
    with pytest.raises(pmrun.NotInitializedError):
        nets[0].connect([])
    with pytest.raises(TypeError, match="use open_net"):
        _native.Net()


def test_names_of_transports() -> None:
    assert "tcp" in _native.transport_names()
