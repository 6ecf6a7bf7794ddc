# SPDX-License-Identifier: Apache-2.0
"""The words of the hang report: who is to blame, who waits, and who is folded with whom."""

from pmrun import wire
from pmrun.launcher import hang, hang_report
from pmrun.window import Pace

WORLD = (0, 77)


def call(name="allreduce", seq=812, room=WORLD, age=300.4, line=30, peer=-1):
    number = f" #{seq}" if seq else f" from rank {peer}"
    other = f" of communicator {room[0]}" if room[0] else ""
    return wire.Pending(f"{name}{number}{other} at train.py:{line} in main", age, *room, 8, seq, peer)


def waiting(rank, pending, *, entered=None, **more):
    entered = entered if entered is not None else ((pending.comm, pending.group, pending.seq),)
    stack = (pending.text.rpartition(" at ")[2], "train.py:60 in <module>")
    return wire.Sight(rank, 100 + rank, "sleeping", waits=pending, entered=entered, stack=stack, **more)


def elsewhere(rank, state="computing", newest=811, **more):
    stack = ("data.py:44 in load_batch", "train.py:28 in main")
    return wire.Sight(
        rank, 100 + rank, state, last=call(seq=811, age=301.0), entered=((*WORLD, newest),), stack=stack,
        place=stack[0], **more,
    )  # fmt: skip


def told(sights, nodes=("a",), split=8, problems=(), silent=()):
    looked = {
        node: wire.Looked(
            1, tuple(s for s in sights if min(s.rank // split, len(nodes) - 1) == node), dict(problems).get(node, "")
        )
        for node in range(len(nodes))
        if node not in silent
    }
    return hang_report.compose(
        hang.Found(False, looked, silent), nodes, lambda rank: nodes[min(rank // split, len(nodes) - 1)]
    )


def test_one_rank_that_never_entered():
    sights = [waiting(rank, call()) if rank != 5 else elsewhere(5) for rank in range(8)]
    report = told(sights, ("a", "b"), split=4)
    assert report.headline == (
        "rank 5 never entered allreduce #812 at train.py:30 in main; it is at data.py:44 in load_batch (node b, "
        "computing); ranks 0-4, 6-7 have waited in it for 300 s"
    )
    assert report.culprits == (5,)
    assert report.lines == (
        "  rank 5 (node b, pid 105), computing, is in no call; its last was allreduce #811 at train.py:30 in main, 301 s ago:",
        "    data.py:44 in load_batch",
        "    train.py:28 in main",
        "  ranks 0-4, 6-7 are in allreduce #812 at train.py:30 in main since 300 s:",
        "    train.py:30 in main",
        "    train.py:60 in <module>",
    )


def test_several_that_never_entered_and_one_that_was_never_there():
    absent = wire.Sight(2, 102, "computing")
    report = told([waiting(0, call()), elsewhere(1), absent, waiting(3, call())])
    assert report.headline.startswith("ranks 1-2 never entered allreduce #812 at train.py:30 in main; rank 1 is at ")
    assert "  rank 2 (pid 102), computing, is in no call and made none before" in report.lines


def test_a_rank_that_is_stopped_is_to_blame_also_inside_the_call():
    sights = [waiting(0, call()), waiting(1, call(), held=True), waiting(2, call())]
    sights[1] = wire.Sight(1, 101, "stopped (SIGSTOP)", True, call(), None, ((*WORLD, 812),))
    report = told(sights)
    assert report.headline == (
        "rank 1 is stopped (SIGSTOP) inside allreduce #812 at train.py:30 in main; ranks 0, 2 have waited in it for 300 s"
    )
    assert (
        report.lines[0]
        == "  rank 1 (pid 101), stopped (SIGSTOP), is in allreduce #812 at train.py:30 in main since 300 s"
    )


def test_collectives_in_different_order():
    one, two = call("barrier", 1, (1, 5), line=9), call("barrier", 1, (2, 5), line=12)
    report = told(
        [waiting(0, one, entered=((1, 5, 1), (2, 5, 0))), waiting(1, two, entered=((1, 5, 0), (2, 5, 1))),
         wire.Sight(2, 102, "computing", entered=((0, 7, 3),))]
    )  # fmt: skip
    assert report.headline == (
        "deadlock: rank 0 waits in barrier #1 of communicator 1 at train.py:9 in main, which rank 1 has not entered; "
        "rank 1 waits in barrier #1 of communicator 2 at train.py:12 in main, which rank 0 has not entered"
    )


def test_communicators_of_one_number_and_other_members_are_not_mixed_up():
    sights = [waiting(0, call("barrier", 4, (1, 5))), waiting(1, call("barrier", 4, (1, 5))),
              elsewhere(2), wire.Sight(3, 103, "computing", entered=((1, 6, 2),))]  # fmt: skip
    assert told(sights).headline == (
        "ranks 0-1 have waited in barrier #4 of communicator 1 at train.py:30 in main for 300 s, and every rank of its "
        "communicator has entered it"
    )


def test_a_chain_of_waits_leads_to_the_one_that_waits_for_nobody():
    receive = call("recv", 0, age=310.0, line=5, peer=1)
    sights = [waiting(0, receive), waiting(1, call(), entered=((*WORLD, 812),)), elsewhere(2)]
    sights[0] = wire.Sight(0, 100, "sleeping", waits=receive, entered=((*WORLD, 812),))
    assert told(sights).headline.startswith("rank 2 never entered allreduce #812")


def test_messages():
    report = told([waiting(0, call("recv", 0, peer=1, line=5)), elsewhere(1)])
    assert report.headline == (
        "rank 0 has waited in recv from rank 1 at train.py:5 in main for 300 s; rank 1 is at data.py:44 in load_batch (computing)"
    )
    both = told([waiting(0, call("recv", 0, peer=1)), waiting(1, call("recv", 0, peer=0))])
    assert both.headline.startswith(
        "deadlock: rank 0 waits in recv from rank 1 at train.py:30 in main, and rank 1 does not"
    )


def test_nobody_waits():
    report = told([elsewhere(0), elsewhere(1), wire.Sight(2, 102, "sleeping in do_poll")])
    assert report.headline == "no rank waits in a call" and report.culprits == ()
    assert report.lines[0].startswith("  ranks 0-1, computing, are in no call; their last was allreduce #811")


def test_a_wait_in_the_store():
    sight = hang.with_store_wait(wire.Sight(0, 100, "sleeping"), {0: ("weights", 12.0)})
    assert told([sight, elsewhere(1)]).headline == "rank 0 has waited in the store for key 'weights' for 12 s"
    chain = told([hang.with_store_wait(wire.Sight(0, 100, "sleeping"), {0: ("weights", 12.0)}), waiting(1, call())])
    assert "; it waits in the store for key 'weights'; rank 1 has waited in it" in chain.headline
    busy = waiting(1, call())
    assert hang.with_store_wait(busy, {1: ("weights", 12.0)}) is busy


def test_what_is_missing_is_told_by_node():
    report = told([waiting(0, call()), elsewhere(1)], ("a", "b"), problems={0: "no Python stacks: x"}, silent=(1,))
    assert "  a: no Python stacks: x" in report.lines
    assert "  b did not tell where its ranks are within 6 s" in report.lines


def test_many_different_places_are_cut():
    sights = [wire.Sight(rank, 100 + rank, "computing", stack=(f"a.py:{rank} in f",)) for rank in range(40)]
    lines = told(sights).lines
    assert len(lines) == 25 and lines[-1] == "  ranks 12-39 elsewhere"


def test_a_straggler_is_named():
    pace = {rank: Pace(100, 0.004, 1.0) for rank in range(4)} | {2: Pace(100, 0.0001, 1.0)}
    sights = [waiting(rank, call(), pace=pace[rank]) for rank in range(4)]
    assert told(sights).lines[-1].startswith("  the others wait for rank 2 most: in the last 100 calls it spent 1%")
