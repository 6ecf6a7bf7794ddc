# SPDX-License-Identifier: Apache-2.0
"""The meeting's machine: scripted, and under random arrivals."""

import random

import msgspec
import pytest

from pmrun import wire
from pmrun.launcher import rendezvous
from pmrun.launcher.rendezvous import Fail, Meet, Phase, Refuse, Rendezvous, Say, Seat


def hello(node, host="", **changes):
    fields = {"host": host or f"node{node}", "address": f"10.0.0.{node + 1}", "release": "1.0", "free_port": 5}
    return wire.Hello(wire.VERSION, node, 99, **{**fields, **changes})


def meeting(count, names=True, start_timeout_s=60.0):
    seats = tuple(Seat(f"h{n}" if names else "", f"h{n} dialled, no answer" if names else "") for n in range(count))
    return Rendezvous(seats, 8, "1.0", start_timeout_s, 0.0)


def test_all_meet_in_node_order_whatever_the_order_they_come_in():
    machine = meeting(3)
    assert machine.on_hello(10, hello(2), 0.0) == []
    assert machine.on_hello(11, hello(0), 0.0) == []
    (met,) = machine.on_hello(12, hello(1), 0.0)
    assert isinstance(met, Meet) and [guest.peer for guest in met.guests] == [11, 12, 10]
    assert machine.deadline() is None and machine.phase is Phase.MET


def test_those_without_a_number_sit_in_natural_order():
    machine = meeting(4, names=False)
    machine.on_hello(1, hello(-1, "node10"), 0.0)
    machine.on_hello(2, hello(0, "zeta"), 0.0)
    machine.on_hello(3, hello(-1, "node9"), 0.0)
    (met,) = machine.on_hello(4, hello(-1, "node100"), 0.0)
    assert [guest.hello.host for guest in met.guests] == ["zeta", "node9", "node10", "node100"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"release": "2.0"},
            "runs pmrun 2.0 (protocol {v}), the main node pmrun 1.0 (protocol {v}): install one version",
        ),
        ({"version": wire.VERSION + 7}, "(protocol {o}), the main node pmrun 1.0 (protocol {v})"),
        ({"num_nodes": 3}, "--nnodes 3, the main node with 2"),
        ({"world_size": 9}, "-n 9, the main node with -n 8"),
        ({"node_rank": 2}, "says it is node 2: nodes are 0 to 1"),
    ],
)
def test_who_does_not_fit_is_refused_with_the_reason(changes, said):
    machine = meeting(2)
    refused, told = machine.on_hello(5, msgspec.structs.replace(hello(1), **changes), 0.0)
    expected = said.format(v=wire.VERSION, o=wire.VERSION + 7)
    assert isinstance(refused, Refuse) and refused.peer == 5 and expected in refused.text
    assert "node1 (10.0.0.2)" in refused.text and isinstance(told, Say) and refused.text in told.text
    again = machine.on_hello(6, msgspec.structs.replace(hello(1), **changes), 0.0)
    assert [type(action) for action in again] == [Refuse], "the user is told once"
    machine.on_hello(7, hello(0), 0.0)
    assert isinstance(machine.on_hello(8, hello(1), 0.0)[0], Meet), "the right one may still come"


def test_a_number_that_is_there_twice():
    machine = meeting(2)
    machine.on_hello(1, hello(1, "first"), 0.0)
    refused, _ = machine.on_hello(2, hello(1, "second", address="10.0.0.9"), 0.0)
    assert refused.text == "node 1 is there already (first (10.0.0.2)); second (10.0.0.9) has the same number"
    assert isinstance(machine.on_hello(3, hello(0), 0.0)[0], Meet)


def test_too_late():
    machine = meeting(1)
    machine.on_hello(1, hello(0), 0.0)
    (refused,) = machine.on_hello(2, hello(0, "late"), 1.0)
    assert "came after the gang had started with 1 node" in refused.text and refused.late
    (refused,) = machine.on_hello(3, hello(0, "late", release="2.0"), 1.0)
    assert not refused.late, "another version is of no use later either"


def test_more_than_there_are_places():
    machine = meeting(2, names=False)
    machine.on_hello(1, hello(-1), 0.0)
    machine.on_hello(2, hello(1), 0.0)
    assert machine.phase is Phase.MET
    machine = meeting(3, names=False)
    machine.on_hello(1, hello(-1, "a"), 0.0)
    machine.on_hello(2, hello(-1, "b"), 0.0)
    machine.on_hello(3, hello(2), 0.0)
    assert machine.phase is Phase.MET


def test_who_left_may_come_again():
    machine = meeting(2)
    machine.on_hello(1, hello(1), 0.0)
    machine.on_gone(1)
    machine.on_gone(99)
    assert machine.on_hello(2, hello(0), 0.0) == []
    assert "node1 (10.0.0.2) was there and left" in machine.missing()
    assert isinstance(machine.on_hello(3, hello(1), 0.0)[0], Meet)


def test_the_line_names_who_is_missing():
    machine = meeting(4)
    machine.on_hello(1, hello(0), 0.0)
    machine.on_hello(2, hello(1), 0.0)
    machine.on_note(3, "its agent runs")
    line = "waiting for nodes 2, 3 of 4: h2 dialled, no answer; h3: its agent runs"
    assert machine.missing() == line
    assert machine.deadline() == rendezvous.TELL_AFTER_S
    assert machine.on_tick(rendezvous.TELL_AFTER_S) == [Say(line)]
    (failed,) = machine.on_tick(60.0)
    assert failed == Fail(f"not all nodes came within --start-timeout 60 s: {line}")
    assert machine.deadline() is None and machine.on_tick(61.0) == []
    assert isinstance(machine.on_hello(4, hello(2), 61.0)[0], Refuse)


def test_the_line_without_names_and_numbers():
    machine = meeting(4, names=False)
    assert machine.missing() == "waiting for nodes 0, 1, 2, 3 of 4"
    machine.on_hello(1, hello(-1), 0.0)
    assert machine.missing() == "waiting for 3 more of 4 nodes"
    machine = meeting(2, names=False)
    machine.on_hello(1, hello(0), 0.0)
    assert machine.missing() == "waiting for node 1 of 2"


def test_an_agent_that_ended_fails_the_start_at_once():
    machine = meeting(2)
    assert machine.on_ended(1, "cannot reach b: ssh said no") == [Fail("cannot reach b: ssh said no")]
    assert machine.on_ended(0, "another") == []


# ---- fewer than all ---------------------------------------------------------------------------------------


def elastic(count, least, patience_s=5.0, hosts=()):
    seats = tuple(Seat(f"h{n}", "", hosts[n] if hosts else "") for n in range(count))
    return Rendezvous(seats, 8, "1.0", 60.0, 0.0, rendezvous.Enough(least, patience_s))


def test_after_some_patience_fewer_are_enough():
    machine = elastic(3, 2)
    machine.on_hello(1, hello(2), 0.0)
    assert machine.on_tick(5.0) and machine.deadline() > 5.0, "one is too few, and a line says who is missing"
    told, met = machine.on_hello(2, hello(0), 20.0)
    assert told == Say("going on without node 1 of 3: h1")
    assert [guest.peer for guest in met.guests] == [2, 1] and met.seats == (0, 2)
    machine = elastic(3, 2)
    machine.on_hello(1, hello(2), 0.0)
    machine.on_hello(2, hello(0), 0.0)
    assert machine.deadline() == 5.0 and machine.on_tick(4.9) == []
    assert machine.on_tick(5.0)[-1].seats == (0, 2)


def test_all_are_not_waited_for_longer_than_they_need():
    machine = elastic(2, 1)
    machine.on_hello(1, hello(0), 0.0)
    (met,) = machine.on_hello(2, hello(1), 0.1)
    assert met.seats == (0, 1)


def test_those_who_cannot_come_are_given_up_while_enough_are_left():
    machine = elastic(3, 2)
    assert machine.on_ended(1, "cannot reach h1") == [Say("cannot reach h1; going on without it")]
    machine.on_hello(1, hello(0), 0.0)
    (refused, _) = machine.on_hello(9, hello(1), 0.0)
    assert "came after node 1 had been given up" in refused.text
    (met,) = machine.on_hello(2, hello(2), 0.0)
    assert met.seats == (0, 2), "nobody else can come"
    machine = elastic(3, 2)
    machine.on_ended(1, "cannot reach h1")
    assert machine.on_ended(0, "cannot reach h0")[0] == Fail("cannot reach h0")


def test_another_machine_that_was_called_gets_time_of_its_own():
    machine = elastic(2, 1)
    machine.on_hello(1, hello(0), 0.0)
    machine.on_called(1, 4.0)
    assert machine.deadline() == rendezvous.TELL_AFTER_S and machine.on_tick(8.0) == [Say(machine.missing())]
    assert machine.on_tick(9.0)[-1].seats == (0,)


def test_those_without_a_number_get_the_seats_that_they_had():
    machine = elastic(3, 3, hosts=("m", "z", "b"))
    for peer, host in enumerate(["b", "a", "m"]):
        actions = machine.on_hello(peer, hello(-1, host), 0.0)
    assert [guest.hello.host for guest in actions[-1].guests] == ["m", "a", "b"], "a is in z's place"


@pytest.mark.parametrize(
    ("names", "ordered"),
    [
        (["node66", "node7"], ["node7", "node66"]),
        (["b", "a10", "a9", "a9b"], ["a9", "a9b", "a10", "b"]),
        (["10.0.0.10", "10.0.0.9"], ["10.0.0.9", "10.0.0.10"]),
        (["n1", "1n", ""], ["", "1n", "n1"]),
    ],
)
def test_natural_order(names, ordered):
    assert sorted(names, key=rendezvous.natural_key) == ordered


def test_random_meetings(rng: random.Random):
    """Whatever comes in whatever order: one end, never an agent twice, and the same agents give the same table."""
    tables = {}
    for _ in range(2000):
        count = rng.randint(1, 5)
        machine = meeting(count, names=False)
        here, ends, peer = {}, [], 0
        for _ in range(60):
            if rng.random() < 0.25 and here:
                gone = rng.choice(sorted(here))
                machine.on_gone(gone)
                del here[gone]
                actions = []
            elif rng.random() < 0.02:
                actions = machine.on_tick(70.0)
            else:
                peer += 1
                node = rng.choice([-1, *range(count)])
                said = hello(node, f"n{rng.randint(1, 12)}", release=rng.choice(["1.0", "1.0", "1.0", "0.9"]))
                actions = machine.on_hello(peer, said, 0.0)
                if not any(isinstance(action, Refuse) for action in actions):
                    here[peer] = said
            ends += [action for action in actions if isinstance(action, (Meet, Fail))]
        assert len(ends) <= 1
        if ends and isinstance(ends[0], Meet):
            guests = ends[0].guests
            assert len({guest.peer for guest in guests}) == len(guests) == count
            for seat, guest in enumerate(guests):
                assert guest.hello.node_rank in (-1, seat) and guest.hello.release == "1.0"
            key = frozenset((guest.hello.node_rank, guest.hello.host) for guest in guests)
            if len(key) == count:
                table = [guest.hello.host for guest in guests]
                assert tables.setdefault((count, key), table) == table
