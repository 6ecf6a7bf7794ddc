# SPDX-License-Identifier: Apache-2.0
"""Leases: silence is loss, but not the listener's own absence, nor a pause that was asked for."""

import random

import pytest

from pmrun.launcher.lease import BEAT_S, LEASE_S, Leases


def look_until(leases, begin, end):
    """What is found by looking every half second, as a driver that is alive does."""
    found, now = [], begin
    while now <= end:
        found += [(peer, now) for peer in leases.look(now)]
        now += 0.5
    return found


def test_silence_is_loss_told_once():
    leases = Leases(0.0)
    leases.add(1, 0.0)
    leases.add(2, 0.0)
    assert look_until(leases, 0.0, 5.0) == []
    leases.heard(2, 5.0)
    assert look_until(leases, 5.0, 30.0) == [(1, LEASE_S), (2, 5.0 + LEASE_S)]


def test_removed_and_unknown_peers_do_not_matter():
    leases = Leases(0.0)
    leases.add(1, 0.0)
    leases.remove(1)
    leases.remove(7)
    leases.heard(7, 1.0)
    assert look_until(leases, 0.0, 30.0) == []


@pytest.mark.parametrize("away", [5.0, 11.0, 3600.0])
def test_a_listener_that_was_away_loses_nobody(away):
    leases = Leases(0.0)
    leases.add(1, 0.0)
    assert look_until(leases, 0.0, 4.0) == []
    assert leases.look(4.0 + away) == []
    assert look_until(leases, 4.0 + away, 40.0 + away)[0][1] == pytest.approx(away + LEASE_S, abs=1.0)


def test_one_who_spoke_while_the_listener_was_away_gets_no_more_time_than_others():
    leases = Leases(0.0)
    leases.add(1, 0.0)
    leases.heard(1, 3600.0)  # read before the look, as drivers do
    assert look_until(leases, 3600.0, 3700.0) == [(1, 3600.0 + LEASE_S)]


def test_a_pause_ends_with_resume_only():
    leases = Leases(0.0)
    leases.add(1, 0.0)
    leases.pause(1.0)
    assert look_until(leases, 1.0, 100.0) == []
    leases.resume(100.0)
    assert look_until(leases, 100.0, 120.0) == [(1, 100.0 + LEASE_S)]


def test_the_deadline_is_the_first_lease_that_ends():
    leases = Leases(0.0)
    leases.add(1, 0.25)
    leases.add(2, 0.5)
    now, found = 0.0, []
    while leases.deadline() < 20.0:  # a driver that wakes at the deadline alone
        now = leases.deadline()
        found += [(peer, now) for peer in leases.look(now)]
        leases.beat_due(now)
    assert found == [(1, 0.25 + LEASE_S), (2, 0.5 + LEASE_S)]
    leases.add(3, now)
    leases.pause(now)
    leases.beat_due(now + LEASE_S)
    assert leases.deadline() > now + LEASE_S, "nobody's lease ends in a pause"


def test_beats():
    leases = Leases(0.0)
    assert not leases.beat_due(BEAT_S - 0.01)
    assert leases.deadline() == BEAT_S
    assert leases.beat_due(BEAT_S) and not leases.beat_due(BEAT_S)
    assert leases.deadline() == 2 * BEAT_S


def test_who_beats_in_time_is_never_lost(rng: random.Random):
    for _ in range(200):
        leases, now, heard = Leases(0.0), 0.0, 0.0
        leases.add(0, 0.0)
        for _ in range(200):
            now += rng.choice([rng.random(), rng.random() * 30])
            while heard + BEAT_S <= now:  # it beat all the while; what came is read before the look
                heard += BEAT_S
            leases.heard(0, now if rng.random() < 0.9 else heard)
            assert leases.look(now) == []
