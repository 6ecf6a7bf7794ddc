# SPDX-License-Identifier: Apache-2.0
"""Readings of clocks that nobody has set, compared by what their messages tell."""

import pytest

from pmrun.launcher.clocks import PERIOD_S, Clocks


@pytest.mark.parametrize("offset", [0.0, -7e5, 3e6])
def test_a_reading_is_late_by_the_fastest_way_of_a_message(offset):
    clocks = Clocks(2)
    for sent, way in ((10.0, 0.5), (11.0, 0.002), (12.0, 0.3)):
        clocks.heard(1, sent + offset, sent + way)
    assert clocks.here(1, 12.5 + offset) == pytest.approx(12.502)


def test_a_clock_that_runs_at_its_own_rate_is_known_lately():
    clocks, rate, day = Clocks(1), 1.0 + 1e-4, 86_400
    for now in range(day):
        clocks.heard(0, now * rate, now + 0.001)
    assert clocks.here(0, day * rate) == pytest.approx(day + 0.001, abs=2.1 * PERIOD_S * 1e-4)


def test_what_was_heard_before_a_long_silence_does_not_count():
    clocks = Clocks(1)
    clocks.heard(0, 0.0, 1.0)
    clocks.heard(0, 1003.0, 1000.0)  # the clock ran on while the controller's machine slept, or was set in motion later
    clocks.heard(0, 1004.0, 1001.5)
    assert clocks.here(0, 1005.0) == 1002.0
