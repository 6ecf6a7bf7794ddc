# SPDX-License-Identifier: Apache-2.0
"""What Python takes apart that came from elsewhere: a sound message cut and changed, or any bytes, give what was meant or
one refusal, of the kind that the callers know, and never more memory than the message itself could need.

Files that a seal protects (manifests) are sealed anew after the change, as a careless or hostile writer would.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tracemalloc
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import example, given

from pmrun import meeting, store_wire, window, wire
from pmrun.checkpoint import shard, versions
from pmrun.errors import CheckpointError, LaunchError
from pmrun.launcher import bootstrap, last_failure, rendezvous, roll_call, stacks

KINDS = wire.Message.__args__  # type: ignore[attr-defined]  # a union
TOLD = bootstrap.Bootstrap(wire.VERSION, "1.0", b"s" * 32, 3, (("::1", 7),), 60.0, None, ((b"A", b"\xff\n"),))

requests = st.one_of(
    st.builds(store_wire.Open, st.integers(0, 2**63), st.integers(0, 99)),
    st.builds(store_wire.Set, st.integers(0, 2**63), st.lists(st.tuples(st.text(), st.binary())).map(tuple)),
)
st.register_type_strategy(int, st.integers(-(2**63), 2**63 - 1))  # what MessagePack holds
messages = st.one_of([st.from_type(kind) for kind in KINDS])
changes = st.lists(st.tuples(st.integers(0, 200), st.integers(0, 255)), max_size=4)
streams = st.binary(max_size=400)
words = st.sampled_from(
    [store_wire.request_decoder, store_wire.ask_decoder, store_wire.reply_decoder, meeting.join_decoder]
)
MEMORY_BYTES = 8 << 20  # more than any of these may take for a few hundred bytes


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


@given(st.one_of(streams, st.builds(changed, st.just(bootstrap.pack(TOLD)), changes, st.integers(0, 9))))
@example(bootstrap.pack(TOLD))
@example(b"\xff\xff\xff\x7f" + b"\x91" * 300)
def test_a_changed_bootstrap(data: bytes) -> None:
    read_fd, write_fd = os.pipe()
    try:
        os.write(write_fd, data)
        os.close(write_fd)
        with contextlib.suppress(LaunchError):
            assert isinstance(bootstrap.read(read_fd), bootstrap.Bootstrap)
    finally:
        os.close(read_fd)


@given(streams)
@example(b"\x91" * 100_000)
def test_any_bytes_are_no_message(data: bytes) -> None:
    with contextlib.suppress(wire.WireError):
        assert isinstance(wire.decode(data), KINDS)
    wire.spoken_version(data)


@given(streams, words, st.integers(0, 400))
@example(b"\xff\xff\xff\xff", store_wire.reply_decoder, 2)
@example((70_000).to_bytes(4, "little") + b"\x91" * 70_000, store_wire.request_decoder, 9)
def test_any_bytes_on_a_line_of_the_store(data: bytes, decoder: Any, middle: int) -> None:
    frames = store_wire.Frames()
    with contextlib.suppress(store_wire.StoreWireError):
        frames.feed(data[:middle], decoder)
        frames.feed(data[middle:], decoder)


# ---- checkpoints --------------------------------------------------------------------------------------------

VERSION = versions.Version(3, 7)
PIECES = tuple(versions.Piece(versions.shard_name(rank), 1, "00") for rank in range(2))
SOUND = versions.Manifest(versions.FORMAT, 3, 7, True, 2, "j", "now", "1", PIECES)


def sealed(line: bytes) -> bytes:
    return line + b"\n" + hashlib.sha256(line).hexdigest().encode() + b"\n"


def unseal(data: bytes) -> None:
    with contextlib.suppress(shard.Damaged, CheckpointError):
        assert isinstance(versions.unseal(data, VERSION), versions.Manifest)


@given(st.one_of(streams, st.builds(changed, st.just(versions.seal(SOUND)[:-66]), changes, st.integers(0, 9))))
def test_a_changed_manifest(line: bytes) -> None:
    unseal(line)
    unseal(sealed(line))


@pytest.mark.parametrize(
    "line",
    [
        versions.seal(SOUND).replace(b'"world_size":2', b'"world_size":200000000')[:-66],
        b'{"format":1,"number":' + b"[" * 100_000,
        b'{"format":"\xff"}',
        b'{"format":[1]}',
    ],
    ids=["too many ranks", "deep", "no text", "odd format"],
)
def test_a_manifest_of_a_careless_writer(line: bytes) -> None:
    tracemalloc.start()
    try:
        unseal(sealed(line.rstrip(b"\n")))
        assert tracemalloc.get_traced_memory()[1] < MEMORY_BYTES
    finally:
        tracemalloc.stop()


STATE = {"w": np.arange(6.0).reshape(2, 3), "step": 7, "name": ("a", b"bytes", {1, 2}), "big": 1 << 70}
FILE = b"".join(bytes(block) for block in shard.Shard(STATE).blocks())
HEAD = json.loads(FILE[8 : 8 + int.from_bytes(FILE[:8], "little")])
plain = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), st.sampled_from(["w", "<f8"])
)
names = st.sampled_from(
    ["dict", "items", "tuple", "set", "bytes", "int", "float", "complex", "array", "scalar", "dtype", "shape", "w"]
)
trees = st.recursive(
    plain, lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(names, inner, max_size=3)), max_leaves=8
)


def take(data: bytes) -> None:
    """Read a shard of whatever length it has."""
    reader = shard.Reader(len(data))
    with contextlib.suppress(shard.Damaged, CheckpointError):
        for start in range(0, len(data), 100):
            reader.write(data[start : start + 100])
        reader.check()
        reader.finish()


def shard_of(head: Any, arrays: bytes) -> bytes:
    text = json.dumps(head).encode()
    return len(text).to_bytes(8, "little") + text + arrays


@given(st.one_of(streams, st.builds(changed, st.just(FILE), changes, st.integers(0, 9))))
@example(FILE)
def test_a_changed_shard(data: bytes) -> None:
    take(data)


@given(
    trees, st.lists(st.one_of(st.integers(-1, 60), st.floats()), max_size=2), st.sampled_from(["tree", "place", "all"])
)
@example({"w": {"data_offsets": [float("inf"), 0]}}, [], "all")
@example({}, [float("inf"), 1], "place")
@example({"array": "w", "dtype": "<f8", "shape": [2, 1 << 62]}, [], "tree")
@example({"array": "w", "dtype": "[" * 5000, "shape": [3]}, [], "tree")
@example({"array": "w", "dtype": "V0", "shape": [1 << 62]}, [], "tree")
@example({}, [], "tree")
def test_a_shard_with_an_odd_header(tree: Any, place: list[Any], where: str) -> None:
    head = {**HEAD, "__metadata__": {**HEAD["__metadata__"]}}
    if where == "tree":
        head["__metadata__"]["tree"] = json.dumps(tree)
    elif where == "place":
        head["w"] = {**head["w"], "data_offsets": place}
    else:
        head = tree
    take(shard_of(head, FILE[-(len(FILE) - 8 - int.from_bytes(FILE[:8], "little")) :]))


# ---- what other processes of this machine leave -------------------------------------------------------------


@given(st.binary(max_size=600), st.integers(0, 65536 - 600))
def test_a_recorder_that_a_rank_has_overwritten(data: bytes, at: int) -> None:
    """The window is the ranks' to write: what the agent reads there is what they left, whatever that is."""
    held = window.Window(2, 2, 0, 2, 2 << 20)
    try:
        os.pwrite(held.fd, b"\xff" * 8, window.HEADER_BYTES)
        os.pwrite(held.fd, data, window.HEADER_BYTES + at)
        os.pwrite(held.fd, data, window.ABORT_OFFSET)
        held.read_abort()
        for look in (
            held.last_call,
            held.open_call,
            held.waiting,
            held.newest_calls,
            held.memberships,
            held.pace,
            held.pid,
        ):
            look(0)
    finally:
        held.close()


@given(st.one_of(streams, st.builds(bytes.__add__, st.just(b"warning\n[\n"), streams)))
@example(b"[" * 100_000)
def test_what_py_spy_wrote(data: bytes) -> None:
    found = stacks.read_dump(data, "/")
    assert found is None or isinstance(found, stacks.Stack)


@given(streams)
def test_a_report_that_was_kept(data: bytes) -> None:
    os.makedirs(last_failure.folder(), exist_ok=True)
    path = os.path.join(last_failure.folder(), "last-failure.txt")
    with open(path, "wb") as file:
        file.write(data)
    assert last_failure.read() == data.decode("utf-8", "replace")


# ---- sound messages that make no sense ----------------------------------------------------------------------

hellos = st.builds(
    wire.Hello,
    st.integers(-(2**63), 2**63 - 1),
    *[st.one_of(st.integers(-2, 9), st.integers(-(2**63), 2**63 - 1))] * 2,
    host=st.text(max_size=9),
    address=st.text(max_size=9),
    release=st.sampled_from(["", "1"]),
    num_nodes=st.integers(-1, 4),
    world_size=st.sampled_from([0, 4, 2**63 - 1]),
    first_rank=st.one_of(st.integers(-2, 5), st.integers(-(2**63), 2**63 - 1)),
    local_world_size=st.one_of(st.integers(-2, 5), st.integers(-(2**63), 2**63 - 1)),
)


@given(st.lists(hellos, max_size=6))
def test_agents_that_say_odd_things(said: list[wire.Hello]) -> None:
    meeting_of_two = rendezvous.Rendezvous((rendezvous.Seat("a"), rendezvous.Seat("b")), 4, "1", 60.0, 0.0)
    roll = roll_call.RollCall(4, "1")
    for peer, hello in enumerate(said):
        meeting_of_two.on_hello(peer, hello, 1.0)
        roll.on_hello(peer, hello)
    assert roll.missing() or roll.whole
    assert len(meeting_of_two.guests()) <= 2
    meeting_of_two.on_tick(61.0)
