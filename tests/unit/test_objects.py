# SPDX-License-Identifier: Apache-2.0
"""Frames of pickled objects: whatever goes in comes out, failures too, and foreign bytes are refused."""

from __future__ import annotations

import threading
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from pmrun import objects

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.binary(max_size=5000) | st.floats(allow_nan=False),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=12,
)


@given(VALUES)
def test_any_value_comes_back(value: Any) -> None:
    frame = objects.pack(value, "test")
    assert len(frame) % 64 == 0
    assert objects.unpack(frame, 0) == value


@given(st.lists(st.integers(0, 3000), max_size=5), st.sampled_from(["C", "F"]))
def test_arrays_come_back_writable_and_aligned(lengths: list[int], order: Any) -> None:
    value = [np.asarray(np.arange(2 * length).reshape(2, length), order=order) for length in lengths]
    back = objects.unpack(objects.pack(value, "test"), 0)
    for one, other in zip(value, back, strict=True):
        assert np.array_equal(one, other)
        assert one.dtype == other.dtype
        assert other.flags.writeable
        assert other.flags.aligned


def test_large_arrays_lie_in_the_frame() -> None:
    frame = objects.pack({"a": np.ones(100000), "b": np.zeros(3)}, "test")
    back = objects.unpack(frame, 0)
    whole = np.frombuffer(frame, np.uint8)
    assert np.shares_memory(back["a"], whole)
    assert not np.shares_memory(back["b"], whole)


def test_arrays_that_are_not_contiguous() -> None:
    value = np.arange(40000)[::2]
    assert np.array_equal(objects.unpack(objects.pack(value, "test"), 0), value)


def test_what_cannot_be_pickled_becomes_a_failure() -> None:
    frame = objects.pack([threading.Lock()], "gather_object")
    with pytest.raises(TypeError, match=r"^gather_object: this list cannot be pickled \(TypeError: .*lock"):
        objects.raise_failure(frame)
    with pytest.raises(TypeError, match=r"^rank 3 sent no object: gather_object: this list cannot be pickled"):
        objects.unpack(frame, 3)


class Explodes:
    def __reduce__(self) -> Any:
        raise RuntimeError("two\nlines")


def test_a_reduce_that_raises_becomes_a_failure() -> None:
    with pytest.raises(TypeError, match=r"Explodes cannot be pickled \(RuntimeError: two lines\)"):
        objects.raise_failure(objects.pack(Explodes(), "test"))


@pytest.mark.parametrize("size", [0, 1, 23, 24, 64, 1000])
def test_bytes_that_are_no_frame(size: int) -> None:
    with pytest.raises(ValueError, match="sent as a buffer"):
        objects.unpack(bytearray(size), 0)


def test_a_frame_that_was_cut_is_refused() -> None:
    frame = objects.pack("x" * 1000, "test")
    with pytest.raises(ValueError, match="sent as a buffer"):
        objects.unpack(frame[:500], 0)
