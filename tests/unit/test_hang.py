# SPDX-License-Identifier: Apache-2.0
"""When a gang hangs: the decision over all nodes, with scripted events."""

import random

import pytest

from pmrun import wire
from pmrun.launcher import hang

LOOKED = wire.Looked(1, ())


def waits(age_s, number=1):
    """A node's answer, one of whose ranks has waited so long."""
    return wire.Looked(number, (wire.Sight(0, 1, "sleeping", waits=wire.Pending("barrier #1", age_s)),))


def asked(actions):
    return [(action.nodes, action.look.number) for action in actions if isinstance(action, hang.Ask)]


def test_a_wait_that_lasts_makes_all_nodes_look_and_their_answers_are_told():
    watch = hang.HangWatch(2, 300.0)
    assert watch.deadline(0.0) is None, "nobody waits"
    watch.on_waits(1, wire.Waits(75.0), 100.0)
    assert watch.deadline(100.0) == 325.0
    assert watch.on_tick(324.9) == []
    assert asked(watch.on_tick(325.0)) == [((0, 1), 1)]
    assert watch.on_looked(0, LOOKED, 325.1) == []
    assert watch.on_looked(1, waits(300.0, 7), 325.1) == [], "an answer to something else"
    assert watch.on_looked(1, waits(300.0), 325.2) == [hang.Found(False, {0: LOOKED, 1: waits(300.0)}, ())]


def test_who_was_waited_for_may_come_at_the_last_moment():
    watch = hang.HangWatch(2, 10.0)
    watch.on_waits(0, wire.Waits(10.0), 10.0)
    assert asked(watch.on_tick(10.0)) == [((0, 1), 1)]
    watch.on_looked(0, waits(0.5), 10.5)
    assert watch.on_looked(1, LOOKED, 10.5) == []
    assert watch.deadline(10.5) == 20.0, "what they wait in since then"


def test_a_wait_that_ends_in_time_is_no_hang():
    watch = hang.HangWatch(1, 10.0)
    watch.on_waits(0, wire.Waits(3.0), 3.0)
    watch.on_waits(0, wire.Waits(-1.0), 9.0)
    assert watch.deadline(9.0) is None
    watch.on_waits(0, wire.Waits(2.5), 12.0)
    assert watch.deadline(12.0) == 19.5


def test_the_oldest_wait_of_all_nodes_counts():
    watch = hang.HangWatch(3, 10.0)
    watch.on_waits(0, wire.Waits(3.0), 5.0)
    watch.on_waits(2, wire.Waits(3.0), 4.0)
    assert watch.deadline(5.0) == 11.0
    watch.on_node_over(2, 6.0)
    assert watch.deadline(6.0) == 12.0


def test_a_node_that_does_not_answer_is_told():
    watch = hang.HangWatch(3, 10.0)
    watch.on_waits(0, wire.Waits(10.0), 10.0)
    watch.on_tick(10.0)
    watch.on_looked(0, LOOKED, 10.1)
    assert watch.on_node_over(1, 10.2) == [], "one that is gone is waited for no more"
    assert watch.deadline(10.2) == 10.0 + hang.LOOK_S
    assert watch.on_tick(10.0 + hang.LOOK_S) == [hang.Found(False, {0: LOOKED}, (2,))]


def test_a_hang_that_goes_on_is_told_again_after_another_timeout():
    watch = hang.HangWatch(1, 10.0)
    watch.on_waits(0, wire.Waits(10.0), 10.0)
    watch.on_tick(10.0)
    assert len(watch.on_looked(0, waits(10.0), 10.5)) == 1
    assert watch.deadline(10.5) == 20.5
    assert asked(watch.on_tick(20.5)) == [((0,), 2)]


def test_the_clock_stands_still_while_a_rank_anywhere_is_in_a_debugger():
    watch = hang.HangWatch(2, 10.0)
    watch.on_waits(0, wire.Waits(4.0), 4.0)
    watch.on_waits(1, wire.Waits(-1.0, (3,)), 6.0)
    assert watch.deadline(50.0) is None and watch.on_tick(50.0) == []
    watch.on_waits(1, wire.Waits(-1.0), 106.0)
    assert watch.deadline(106.0) == 110.0
    watch.on_waits(1, wire.Waits(-1.0, (3,)), 107.0)
    watch.on_node_over(1, 117.0)
    assert watch.deadline(117.0) == 120.0


def test_a_wait_that_is_told_of_later_has_the_pauses_left_out_too():
    watch = hang.HangWatch(2, 10.0)
    watch.on_waits(1, wire.Waits(-1.0, (3,)), 5.0)
    watch.on_waits(1, wire.Waits(-1.0), 8.0)
    watch.on_waits(0, wire.Waits(7.0), 10.0)  # since 3, of which three seconds do not count
    assert watch.deadline(10.0) == 16.0


def test_time_in_which_pmrun_was_suspended_does_not_count():
    watch = hang.HangWatch(1, 10.0)
    watch.on_waits(0, wire.Waits(3.0), 3.0)
    watch.on_suspend(True, 4.0)
    watch.on_suspend(False, 1004.0)
    assert watch.deadline(1004.0) == 1010.0


def test_sigquit_looks_at_any_time_and_changes_no_clock():
    watch = hang.HangWatch(1, 0.0)
    watch.on_waits(0, wire.Waits(1e6), 1.0)
    assert watch.deadline(1.0) is None, "switched off"
    assert asked(watch.on_quit(1.0)) == [((0,), 1)]
    assert watch.on_quit(1.1) == [], "one look at a time"
    assert watch.on_looked(0, LOOKED, 1.2) == [hang.Found(True, {0: LOOKED}, ())]
    assert asked(watch.on_quit(2.0)) == [((0,), 2)]


def test_a_gang_that_is_being_ended_is_not_looked_at():
    watch = hang.HangWatch(1, 1.0)
    watch.on_waits(0, wire.Waits(1.0), 1.0)
    watch.on_tick(1.0)
    watch.stop()
    assert watch.deadline(1.0) is None
    assert watch.on_looked(0, LOOKED, 1.1) == watch.on_quit(2.0) == watch.on_tick(99.0) == []


@pytest.mark.parametrize("trial", range(20))
def test_any_order_of_events_leads_back_to_watching(trial, rng: random.Random):
    watch = hang.HangWatch(3, 5.0)
    now, looks, found, number = 0.0, 0, 0, 0
    for _ in range(400):
        now += rng.random()
        node = rng.randrange(3)
        event = rng.randrange(6)
        actions: list[hang.Action] = []
        if event == 0:
            watch.on_waits(node, wire.Waits(rng.choice([-1.0, 1.3, 4.0]), rng.choice([(), (), (1,)])), now)
        elif event == 1:
            age_s = rng.choice([0.1, 5.0])
            actions = watch.on_looked(node, waits(age_s, rng.choice([number, number, number - 1])), now)
        elif event == 2:
            actions = watch.on_quit(now)
        else:
            actions = watch.on_tick(now)
        for action in actions:
            if isinstance(action, hang.Ask):
                looks, number = looks + 1, action.look.number
            else:
                found += 1
        assert found <= looks
    assert looks > 10 and found > 5
    for node in range(3):
        watch.on_waits(node, wire.Waits(-1.0), now)
    now += hang.LOOK_S
    watch.on_tick(now)
    assert len(asked(watch.on_quit(now))) == 1, "no look is under way"
