# SPDX-License-Identifier: Apache-2.0
"""The gang's machine, with scripted events; tests/simulation plays it with the others."""

import msgspec
import pytest

from pmrun import window, wire
from pmrun.launcher import gang


def starts(nodes=1, ranks=4):
    return [
        wire.Start(
            job_id="j", attempt=0, node_rank=node, node_name=f"n{node}", peers=("127.0.0.1",) * nodes, main_port=1,
            first_rank=node * ranks, local_world_size=ranks, world_size=nodes * ranks, command=(b"p",), cwd=None,
            env=(), bind_to_core=False, stdin_ranks=(), credit_bytes=1,
            layout=(ranks,) * nodes, data_address="127.0.0.1",
        )
        for node in range(nodes)
    ]  # fmt: skip


def exited(rank, status, sent_signal=0, abort=(0, -1, "")):
    return wire.RankExited(rank, 100 + rank, status, sent_signal, False, *abort, b"", b"", "")


def started(nodes=1, ranks=4, timeout_s=None):
    machine = gang.Gang(starts(nodes, ranks), gang.Limits(5.0, timeout_s, 60.0, 60.0), 0.0)
    assert len(sent(machine.begin(), wire.Start)) == nodes
    for node in range(nodes):
        machine.on_message(node, wire.Started(tuple(range(ranks))), 0.0)
    return machine


def sent(actions, kind):
    return [(action.node, action.message) for action in actions if isinstance(action, gang.SendTo)
            and isinstance(action.message, kind)]  # fmt: skip


def finish(machine, nodes=1):
    actions = []
    for node in range(nodes):
        actions = machine.on_message(node, wire.NodeDone(()), 0.0)
    assert isinstance(actions[-1], gang.Finish)
    return actions[-1].outcome


def test_clean_end():
    machine = started()
    for rank in range(4):
        assert not sent(machine.on_message(0, exited(rank, 0), 0.0), wire.Stop)
    outcome = finish(machine)
    assert (outcome.code, outcome.cause) == (0, None)


def test_first_bad_exit_stops_all_nodes():
    machine = started(nodes=3)
    stops = sent(machine.on_message(1, exited(6, 3), 0.0), wire.Stop)
    assert [node for node, _ in stops] == [0, 1, 2]
    stop = stops[0][1]
    assert (stop.state, stop.rank, stop.node, stop.text) == (window.ABORT_RANK_FAILED, 6, "n1", "exit code 3")
    assert stop.settle_s + stop.term_s <= 0.3
    assert not sent(machine.on_message(0, exited(0, 4), 0.0), wire.Stop), "the second changes nothing"
    outcome = finish(machine, 3)
    assert (outcome.code, outcome.cause.rank, outcome.node_of(6)) == (3, 6, "n1")


def test_every_exit_is_noted_after_the_start_of_its_rank():
    machine = gang.Gang(starts(2, 2), gang.Limits(5.0, None, 60.0, 60.0), 0.0)
    actions = machine.begin()
    actions += machine.on_message(1, exited(3, 0), 0.0)  # it ended before rank 2 had its program
    actions += machine.on_message(1, wire.Started((102, 103)), 0.0)
    actions += machine.on_message(0, wire.StartFailed(1, "no program", 127), 0.0)
    actions += machine.on_message(0, exited(0, 0), 0.0)
    noted = [(a.event, a.fields.get("rank")) for a in actions if isinstance(a, gang.Note) and "rank_" in a.event]
    assert noted == [
        ("rank_started", 3), ("rank_exited", 3), ("rank_started", 2), ("rank_started", 0), ("rank_exited", 0),
    ]  # fmt: skip


@pytest.mark.parametrize(("status", "code"), [(-9, 137), (-11, 139), (1, 1), (255, 255)])
def test_exit_code(status, code):
    machine = started()
    machine.on_message(0, exited(2, status), 0.0)
    assert finish(machine).code == code


def test_rank_that_left_early_is_named_and_the_witness_gives_the_code():
    machine = started()
    machine.on_message(0, exited(2, 0), 0.0)
    machine.on_message(0, exited(0, 7, abort=(window.ABORT_RANK_FAILED, 2, "rank 2 left")), 0.0)
    outcome = finish(machine)
    assert (outcome.code, outcome.cause.rank, outcome.cause.witness) == (7, 2, 0)


@pytest.mark.parametrize(("culprit", "code"), [(exited(3, 5), 5), (exited(3, -15, sent_signal=15), 1)])
def test_culprit_that_unwinds_slowly(culprit, code):
    """It told its peers, they failed first; its own code counts if it came to it by itself."""
    machine = started()
    machine.on_message(0, exited(0, 1, abort=(window.ABORT_RANK_FAILED, 3, "ValueError")), 0.0)
    machine.on_message(0, culprit, 0.0)
    outcome = finish(machine)
    assert (outcome.code, outcome.cause.rank) == (code, 3)


def stamped(message, at_s):
    return msgspec.structs.replace(message, at_s=at_s)


@pytest.mark.parametrize("ahead", [0.0, 1e6, -1e6])
def test_of_two_nodes_ranks_the_one_that_died_first_is_named_though_heard_of_last(ahead):
    machine = started(nodes=3)
    machine.on_message(0, stamped(wire.Beat(), 10.0), 10.0005)
    machine.on_message(1, stamped(wire.Beat(), 10.0 + ahead), 10.001)
    ((_, stop), *_) = sent(machine.on_message(0, stamped(exited(1, 3), 11.002), 11.003), wire.Stop)
    assert stop.rank == 1, "nobody waits for what may come"
    assert not sent(machine.on_message(1, stamped(exited(4, -9), 11.0 + ahead), 11.02), wire.Stop)
    machine.on_message(1, stamped(exited(5, -15, sent_signal=15), 10.9 + ahead), 11.15)
    outcome = finish(machine, 3)
    assert (outcome.cause.rank, outcome.cause.witness, outcome.code) == (4, 4, 137)


def test_who_is_to_blame_is_settled_while_the_clocks_are_known():
    machine = started(nodes=2)
    for node in range(2):
        machine.on_message(node, stamped(wire.Beat(), 9.5), 9.5)
    machine.on_message(0, stamped(exited(1, 3), 10.0), 10.0)
    machine.on_message(1, stamped(exited(4, 4), 9.9), 10.1)
    machine.on_message(0, stamped(wire.Beat(), 10.0 + gang.JUDGE_S), 10.0 + gang.JUDGE_S)
    assert machine.cause.rank == 4
    machine.on_message(0, stamped(exited(0, 5), 9.0), 11.0 + gang.JUDGE_S)
    assert finish(machine, 2).code == 4


def test_whom_the_blamed_rank_itself_blames_is_named():
    machine = started(nodes=3)
    machine.on_message(0, exited(1, 0), 10.0)
    machine.on_message(2, exited(8, 1, abort=(window.ABORT_RANK_FAILED, 4, "gone")), 10.1)
    machine.on_message(1, exited(4, 1, abort=(window.ABORT_RANK_FAILED, 1, "left")), 10.2)
    cause = finish(machine, 3).cause
    assert (cause.rank, cause.witness, cause.text) == (1, 4, "left")


def test_mismatch_is_its_own_kind():
    machine = started()
    machine.on_message(0, exited(1, 1, abort=(window.ABORT_MISMATCH, -1, "calls differ: a, b")), 0.0)
    outcome = finish(machine)
    assert (outcome.cause.kind, outcome.cause.text, outcome.code) == (gang.Kind.MISMATCH, "calls differ: a, b", 1)


def test_interrupt_then_again():
    machine = started()
    actions = machine.on_signal(2)
    assert sent(actions, wire.Signal) == [(0, wire.Signal(2))]
    stop = sent(actions, wire.Stop)[0][1]
    assert (stop.settle_s, stop.tell) == (5.0, False)
    machine.on_message(0, exited(0, -2, sent_signal=2), 0.0)
    again = sent(machine.on_signal(2), wire.Stop)[0][1]
    assert (again.settle_s, again.term_s) == (0.0, 0.0)
    assert finish(machine).code == 130


@pytest.mark.parametrize(("number", "code"), [(15, 143), (1, 129)])
def test_other_signals(number, code):
    machine = started()
    assert sent(machine.on_signal(number), wire.Signal) == [(0, wire.Signal(number))]
    assert finish(machine).code == code


def test_a_node_that_is_asked_to_end_takes_all_with_it_once():
    """An engine asks all nodes at the same time: pmrun's own signal is the same request, and only one after it hurries."""
    machine = started()
    actions = machine.on_message(0, wire.AskedToEnd(), 0.0)
    assert sent(actions, wire.Signal) == [(0, wire.Signal(15))]
    assert machine.on_message(0, wire.AskedToEnd(), 0.0) == machine.on_signal(15) == []
    assert sent(machine.on_signal(15), wire.Stop)[0][1].settle_s == 0.0
    assert finish(machine).code == 143


def agreed(rank):
    return msgspec.structs.replace(exited(rank, 75), resumable=True)


@pytest.mark.parametrize(
    ("last", "code"),
    [(agreed(3), 75), (exited(3, 0), 75), (exited(3, -9, sent_signal=9), 143), (exited(3, 1), 143)],
)
def test_ranks_that_were_told_to_stop_and_can_go_on(last, code):
    machine = started()
    machine.on_signal(15)
    for rank in range(3):
        assert not sent(machine.on_message(0, agreed(rank), 0.0), wire.Stop)
    machine.on_message(0, last, 0.0)
    outcome = finish(machine)
    assert (outcome.code, outcome.cause.kind) == (code, gang.Kind.SIGNAL)


@pytest.mark.parametrize(("last", "code"), [(agreed(3), 75), (exited(3, 0), 75), (exited(3, -9, sent_signal=9), 137)])
def test_ranks_that_agreed_to_stop_by_themselves_have_time_to_end(last, code):
    machine = started()
    ((_, stop),) = sent(machine.on_message(0, agreed(1), 0.0), wire.Stop)
    assert (stop.settle_s, stop.tell) == (5.0, False)
    for exit_ in (agreed(0), agreed(2), last):
        assert not sent(machine.on_message(0, exit_, 0.0), wire.Stop)
    outcome = finish(machine)
    assert (outcome.code, outcome.cause.kind) == (code, gang.Kind.RESUMABLE)


def test_a_rank_that_fails_while_the_others_stop_is_named():
    machine = started()
    machine.on_message(0, agreed(1), 0.0)
    ((_, stop),) = sent(machine.on_message(0, exited(2, 3), 0.0), wire.Stop)
    assert (stop.settle_s, stop.rank) == (gang.SETTLE_S, 2)
    machine.on_message(0, agreed(0), 0.0)
    outcome = finish(machine)
    assert (outcome.code, outcome.cause.kind, outcome.cause.rank) == (3, gang.Kind.RANK, 2)


def test_timeout():
    machine = started(timeout_s=10.0)
    assert machine.deadline() == 10.0
    assert machine.on_tick(9.9) == []
    assert sent(machine.on_tick(10.0), wire.Signal) == [(0, wire.Signal(15))]
    assert machine.deadline() is None
    assert finish(machine).code == 124


def test_start_timeout_names_who_is_late():
    machine = gang.Gang(starts(2), gang.Limits(5.0, None, 60.0, 60.0), 0.0)
    machine.begin()
    machine.on_message(0, wire.Started((1, 2, 3, 4)), 0.0)
    assert len(sent(machine.on_tick(60.0), wire.Stop)) == 2
    outcome = finish(machine, 2)
    assert outcome.code == 75 and "waited for n1; give more time" in outcome.cause.text


def test_failed_start():
    machine = gang.Gang(starts(2), gang.Limits(5.0, None, 60.0, 60.0), 0.0)
    machine.begin()
    assert len(sent(machine.on_message(1, wire.StartFailed(5, "not found", 127), 0.0), wire.Stop)) == 2
    assert finish(machine, 2).code == 127


def test_lost_agent():
    machine = started(nodes=2)
    actions = machine.on_link_lost(0, "closed")
    assert gang.Sweep(0) in actions
    ((node, stop),) = sent(actions, wire.Stop)
    assert (node, stop.state, stop.rank, stop.node) == (1, window.ABORT_RANK_FAILED, 0, "n0"), "RankFailed elsewhere"
    assert stop.settle_s > 0, "the others have time to raise it"
    actions = machine.on_message(1, wire.NodeDone(()), 0.0)
    assert actions[-1].outcome.code == 76
