# SPDX-License-Identifier: Apache-2.0
"""A checkpoint's shard: any state comes back in equal types and bits, and no bytes do harm."""

from __future__ import annotations

import json
import sys
from typing import Any

import hypothesis.extra.numpy as arrays
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings, strategies as st

from pmrun.checkpoint.shard import BLOCK_BYTES, Damaged, Reader, Shard
from pmrun.errors import CheckpointError, UsageError

DTYPES = st.one_of(
    arrays.scalar_dtypes(),
    arrays.byte_string_dtypes(),
    arrays.unicode_string_dtypes(),
    st.just(np.dtype([("a", ">i4"), ("b", "f8", (2,))])),
)
LEAVES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.complex_numbers(), st.text(), st.binary(),
    st.binary().map(bytearray), arrays.from_dtype(np.dtype("f4")),
    arrays.arrays(DTYPES, arrays.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3)),
)  # fmt: skip
KEYS = st.one_of(st.text(), st.integers(), st.tuples(st.booleans(), st.text()))
STATES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(KEYS, inner, max_size=3),
        st.sets(st.integers() | st.text(), max_size=3),
        st.frozensets(st.integers() | st.text(), max_size=3),
    ),
    max_leaves=8,
)


def written(state: object) -> bytes:
    return b"".join(Shard(state).blocks())


def read(data: bytes, piece: int = BLOCK_BYTES) -> Any:
    reader = Reader(len(data))
    for start in range(0, len(data), piece):
        reader.write(memoryview(data)[start : start + piece])
    reader.check()
    return reader.finish()


def assert_same(a: Any, b: Any) -> None:
    assert type(a) is type(b)
    if isinstance(a, (np.ndarray, np.generic)):
        assert a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    elif isinstance(a, dict):
        assert list(a) == list(b)
        for key, item in a.items():
            assert_same(item, b[key])
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b)
        for one, other in zip(a, b, strict=True):
            assert_same(one, other)
    else:
        assert a == b or repr(a) == repr(b)  # nan


@settings(max_examples=40)
@given(STATES, st.integers(1, 40))
def test_a_state_comes_back(state: object, piece: int) -> None:
    data = written(state)
    assert len(data) == Shard(state).size
    assert_same(read(data, piece), state)


@settings(max_examples=20)
@given(STATES)
def test_a_snapshot_is_the_state_of_that_moment(state: object) -> None:
    memory: list[Any] = [np.empty(5, np.uint8)]
    shard = Shard(state)
    shard.snapshot(memory)
    assert b"".join(shard.blocks()) == written(state)
    again = Shard(state)
    again.snapshot(memory)
    assert b"".join(again.blocks()) == written(state)


def test_a_snapshot_does_not_see_later_changes_and_takes_its_memory_again() -> None:
    array = np.arange(6).reshape(2, 3)
    memory: list[Any] = []
    shard = Shard({"a": array[:, ::-1]})
    shard.snapshot(memory)
    before, kept = array.copy(), memory[0]
    array[:] = -1
    assert (read(b"".join(shard.blocks()))["a"] == before[:, ::-1]).all()
    Shard({"a": array}).snapshot(memory)
    assert memory[0] is kept


def test_other_tools_read_it() -> None:
    state = {"layers": [{"w": np.eye(3, dtype=np.float32)}], "t": np.array(["2020"], "M8[D]"), "w.0": np.int8(-1)}
    found = safetensors.numpy.load(written(state))
    assert sorted(found) == ["layers.0.w", "t", "w.0"]
    assert (found["layers.0.w"] == np.eye(3)).all()


def test_bits_of_types_that_numpy_does_not_know() -> None:
    array = np.arange(7).astype(ml_dtypes.bfloat16)
    assert_same(read(written([array, array[1]])), [array, array[1]])
    torch = pytest.importorskip("torch", reason="torch is not installed")
    for dtype in (torch.bfloat16, torch.float32, torch.bool, torch.float8_e4m3fn, torch.complex64):
        tensor = torch.arange(6).reshape(2, 3).T.to(dtype).requires_grad_(dtype.is_floating_point)
        back = read(written({"p": tensor}))["p"]
        assert back.dtype == dtype and back.shape == tensor.shape and not back.requires_grad
        assert torch.equal(back.view(torch.uint8), tensor.detach().contiguous().view(torch.uint8))


@pytest.mark.parametrize(
    ("state", "told"),
    [
        ({"model": {"f": len}}, "cannot save state['model']['f'], which is a builtin_function_or_method: save arrays"),
        ([1, np.array([None])], "cannot save state[1], an array of object: save arrays"),
        (np.ma.masked_array([1]), "cannot save state, which is a MaskedArray: save arrays"),
        ({(1, object()): 1}, "cannot save state['key 0'][1], which is a object: save arrays"),
    ],
)
def test_what_cannot_be_saved_is_named(state: object, told: str) -> None:
    with pytest.raises(UsageError) as caught:
        Shard(state)
    assert str(caught.value).startswith(told)


def test_a_state_that_has_no_end() -> None:
    state: dict[str, Any] = {}
    state["self"] = [state]
    with pytest.raises(UsageError, match=r"cannot save state\['self'\]\[0\]: it contains itself"):
        Shard(state)
    deep: list[Any] = []
    for _ in range(sys.getrecursionlimit()):
        deep = [deep]
    with pytest.raises(UsageError, match="nested too deeply"):
        Shard(deep)


@given(st.data())
def test_damaged_bytes_do_no_harm(data: st.DataObject) -> None:
    good = written({"a": np.arange(4), "b": [b"xyz", 1 << 70], "c": {1: (2.5, None)}})
    bad = bytearray(good)
    for _ in range(data.draw(st.integers(1, 3))):
        bad[data.draw(st.integers(0, len(bad) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(bad)))
    for piece in (bytes(bad), bytes(bad[:cut]), bytes(bad) + b"x"):
        reader = Reader(len(good))
        try:
            reader.write(piece)
            reader.check()
            reader.finish()
        except (Damaged, CheckpointError):
            pass
        assert sum(len(buffer) for buffer in reader.buffers) <= len(good)


def test_a_newer_format_is_told() -> None:
    head = json.dumps({"__metadata__": {"format": "pmrun-9", "tree": "null"}}).encode()
    data = len(head).to_bytes(8, "little") + head
    with pytest.raises(CheckpointError, match=r"format 'pmrun-9'.*update pmrun"):
        read(data)
