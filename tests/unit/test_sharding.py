# SPDX-License-Identifier: Apache-2.0
"""`pm.shard`: every item in one part, parts alike in number or in weight."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, strategies as st

import pmrun as pm


@given(count=st.integers(0, 500), size=st.integers(1, 40))
def test_runs_of_neighbours_differ_by_at_most_one(count, size):
    parts = [pm.shard(count, rank=rank, size=size) for rank in range(size)]
    assert list(itertools.chain(*parts)) == list(range(count))
    lengths = [len(part) for part in parts]
    assert max(lengths) - min(lengths) <= 1


@given(weights=st.lists(st.floats(0, 1e6), max_size=60), size=st.integers(1, 9))
def test_weighted_parts_hold_everything_and_graham_s_bound(weights, size):
    parts = [pm.shard(range(len(weights)), weights, rank=rank, size=size) for rank in range(size)]
    assert sorted(itertools.chain(*parts)) == list(range(len(weights)))
    assert all(part == sorted(part) for part in parts)
    heaviest = max(sum(weights[place] for place in part) for part in parts)
    # the best there is costs at least the mean, and at least what the heaviest does
    assert heaviest <= sum(weights) / size + max(weights, default=0.0) + 1e-6


def test_the_kind_of_the_items_is_kept():
    assert pm.shard("abcde", rank=1, size=2) == "cde"
    assert pm.shard(["x", "y", "z"], [1, 5, 1], rank=1, size=2) == ["x", "z"]
    assert pm.shard(7) == range(7)  # a world of one


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: pm.shard(3, [1.0]), "1 weights for 3 items"),
        (lambda: pm.shard(2, [1.0, float("nan")]), "weight 1 is nan"),
        (lambda: pm.shard(2, [-1.0, 1.0]), "weight 0 is -1.0"),
        (lambda: pm.shard(2, rank=2, size=2), "rank 2 of 2"),
    ],
)
def test_what_makes_no_sense_is_refused(call, said):
    with pytest.raises(pm.UsageError, match=said):
        call()
