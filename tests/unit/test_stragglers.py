# SPDX-License-Identifier: Apache-2.0
"""Who is waited for, and who is not: balanced gangs name nobody."""

import pytest

from pmrun.launcher import stragglers
from pmrun.window import Pace


def simulate(rng, ranks, step_s, calls=200, slow=None, factor=1.0, talk_s=20e-6):
    """Paces of ranks that work for a random time and then meet."""
    waits = [[] for _ in range(ranks)]
    span = 0.0
    for _ in range(calls):
        work = [step_s() * (factor if rank == slow else 1.0) for rank in range(ranks)]
        last = max(work)
        span += last + talk_s
        for rank in range(ranks):
            waits[rank].append(last - work[rank] + talk_s)
    usual = calls - calls // 10
    return {rank: Pace(calls, sum(sorted(waits[rank])[:usual]) / usual, span) for rank in range(ranks)}


@pytest.mark.parametrize("ranks", [2, 3, 8])
@pytest.mark.parametrize("spread", [0.01, 0.3, 1.0])
def test_balanced_gangs_name_nobody(rng, ranks, spread):
    for _ in range(20):
        for step in (lambda: 1e-3 * (1 + rng.random() * spread), lambda: rng.expovariate(1e3), lambda: 0.0):
            assert stragglers.find(simulate(rng, ranks, step)) is None


@pytest.mark.parametrize("ranks", [2, 4, 16])
def test_a_slow_rank_is_named(rng, ranks):
    found = stragglers.find(simulate(rng, ranks, lambda: 1e-3 * (1 + rng.random() / 5), slow=1, factor=1.5))
    assert found is not None and found.rank == 1 and found.others_share > 4 * found.share


def test_one_hiccup_names_nobody(rng):
    paces = simulate(rng, 2, lambda: 1e-3)
    hiccup = {0: paces[0], 1: Pace(200, paces[1].typical_s, paces[1].span_s + 5.0)}
    assert stragglers.find(hiccup) is None


def test_too_little_is_known():
    assert stragglers.find({}) is None
    assert stragglers.find({0: Pace(8, 0.0, 1.0), 1: Pace(8, 0.1, 1.0)}) is None
    assert stragglers.find({0: Pace(99, 0.0, 1.0), 1: Pace(99, 0.009, 1.0), 2: None}) is None
