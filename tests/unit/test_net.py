# SPDX-License-Identifier: Apache-2.0
"""The network between nodes as the bootstrap uses it: opened, connected, tried, closed."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

import pmrun
from pmrun import _native, libzmq

KEY = bytes(range(32))


def open_one(transport: str, rank: int, layout: list[int], key: bytes = KEY, host: str = "127.0.0.1") -> _native.Net:
    """`transport` may be "zmq encrypted"."""
    name, _, encrypted = transport.partition(" ")
    library = libzmq.find() if name == "zmq" else None
    return _native.open_net(name, host, rank, layout, key, encrypt=bool(encrypted), library=library)


def open_all(stack: ExitStack, transport: str, keys: list[bytes], layout: list[int], host: str) -> list[_native.Net]:
    nets = [open_one(transport, rank, layout, keys[rank], host) for rank in range(sum(layout))]
    for net in nets:
        stack.callback(net.close, 0.2)  # some are never polled, and so do not read what others send
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


@pytest.fixture(params=["tcp", "zmq", "zmq encrypted"])
def transport(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_all_pairs_of_nodes_are_tried(stack: ExitStack, transport: str, host: str) -> None:
    nets = open_all(stack, transport, [KEY] * 6, [2, 1, 3], host)
    shown = f"[{host}]" if ":" in host else host
    assert all(net.address.startswith(f"{transport[:3]} {shown}:") for net in nets)
    assert len({net.address for net in nets}) == 6
    assert probe_all(nets, 30) == [None] * 6


def test_a_rank_with_another_key_is_refused(stack: ExitStack, transport: str) -> None:
    nets = open_all(stack, transport, [KEY, bytes(32)], [1, 1], "127.0.0.1")
    outcomes = probe_all(nets, 30)  # each dials for 4.5 s before it gives up
    assert all(isinstance(outcome, (pmrun.RankFailed, pmrun.CollectiveTimeout)) for outcome in outcomes), outcomes
    assert any("is the secret the same there?" in str(outcome) for outcome in outcomes)


def test_a_node_that_does_not_answer_is_named(stack: ExitStack, transport: str) -> None:
    nets = open_all(stack, transport, [KEY] * 3, [1, 1, 1], "127.0.0.1")
    outcomes = probe_all(nets[:2], 0.5)
    assert all(isinstance(outcome, pmrun.CollectiveTimeout) for outcome in outcomes), outcomes
    pair = [f"node {node} ({nets[node].address})" for node in (0, 2)]
    assert f"no data came to {pair[0]} from {pair[1]} within 0.5 s: does a firewall" in str(outcomes[0])


def test_a_node_that_is_gone_is_named(stack: ExitStack, transport: str) -> None:
    nets = open_all(stack, transport, [KEY] * 2, [1, 1], "127.0.0.1")
    nets[1].close(0.2)
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
    nets = open_all(stack, "tcp", [KEY] * 2, [1, 1], "127.0.0.1")
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
    assert _native.transport_names() == ["tcp", "zmq"]


@pytest.mark.parametrize(
    ("library", "words"),
    [
        (None, "the zmq transport needs libzmq: 'pip install pyzmq', or use --transport tcp"),
        ("/nonexistent.so", "cannot load libzmq: /nonexistent.so"),
        ("libm.so.6", "libm.so.6 has no zmq_version: it is no libzmq, or too old"),
    ],
)
def test_a_library_that_is_none(library: str | None, words: str) -> None:
    with pytest.raises(TypeError) as caught:
        _native.open_net("zmq", "127.0.0.1", 0, [1, 1], KEY, library=library)
    assert words in str(caught.value)


def test_libzmq_is_found_without_importing_pyzmq() -> None:
    code = "import sys; from pmrun import libzmq; print(libzmq.find(), 'zmq' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], text=True, capture_output=True, check=True)
    path, loaded = run.stdout.split()
    assert Path(path).is_file()
    assert loaded == "False"


def test_no_pyzmq_no_libzmq(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pmrun.libzmq.find_spec", lambda name: None)
    assert libzmq.find() is None
