# SPDX-License-Identifier: Apache-2.0
"""What Python takes apart that came from elsewhere: a sound message cut and changed gives a message or one refusal."""

from __future__ import annotations

import contextlib
import os

import hypothesis.strategies as st
from hypothesis import example, given

from pmrun import store_wire, wire
from pmrun.errors import LaunchError
from pmrun.launcher import bootstrap

KINDS = wire.Message.__args__  # type: ignore[attr-defined]  # a union
TOLD = bootstrap.Bootstrap(wire.VERSION, "1.0", b"s" * 32, 3, (("::1", 7),), 60.0, None, ((b"A", b"\xff\n"),))

requests = st.one_of(
    st.builds(store_wire.Open, st.integers(0, 2**63), st.integers(0, 99)),
    st.builds(store_wire.Set, st.integers(0, 2**63), st.lists(st.tuples(st.text(), st.binary())).map(tuple)),
)
st.register_type_strategy(int, st.integers(-(2**63), 2**63 - 1))  # what MessagePack holds
messages = st.one_of([st.from_type(kind) for kind in KINDS])
changes = st.lists(st.tuples(st.integers(0, 200), st.integers(0, 255)), max_size=4)


def changed(data: bytes, edits: list[tuple[int, int]], cut: int) -> bytes:
    """Some bytes others, and the last `cut` gone."""
    result = bytearray(data)
    for at, value in edits:
        if result:
            result[at % len(result)] = value
    return bytes(result[: len(result) - min(cut, len(result))])


@given(messages, changes, st.integers(0, 9))
def test_a_changed_message_is_one_or_is_refused(message: wire.Message, edits: list[tuple[int, int]], cut: int) -> None:
    with contextlib.suppress(wire.WireError):
        assert isinstance(wire.decode(changed(wire.encode(message), edits, cut)), KINDS)


@given(requests, changes, st.integers(0, 9), st.integers(0, 60))
def test_changed_requests_to_the_store(request, edits, cut, middle) -> None:  # type: ignore[no-untyped-def]
    """However the stream is cut in two."""
    data = changed(store_wire.frame(request), edits, cut)
    frames = store_wire.Frames()
    with contextlib.suppress(store_wire.StoreWireError):
        words = frames.feed(data[:middle], store_wire.ask_decoder) + frames.feed(data[middle:], store_wire.ask_decoder)
        assert len(words) <= 1


@given(changes, st.integers(0, 9))
@example([], 0)
def test_a_changed_bootstrap(edits: list[tuple[int, int]], cut: int) -> None:
    read_fd, write_fd = os.pipe()
    try:
        os.write(write_fd, changed(bootstrap.pack(TOLD), edits, cut))
        os.close(write_fd)
        with contextlib.suppress(LaunchError):
            assert isinstance(bootstrap.read(read_fd), bootstrap.Bootstrap)
    finally:
        os.close(read_fd)
