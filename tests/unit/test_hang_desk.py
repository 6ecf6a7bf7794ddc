# SPDX-License-Identifier: Apache-2.0
"""The controller's part in the hang report: what a gang and its hang watch say to each other."""

from pmrun import wire
from pmrun.launcher import gang, job
from pmrun.launcher.hang_desk import HangDesk
from pmrun.launcher.store_desk import StoreDesk

START = wire.Start(
    job_id="j", attempt=0, node_rank=0, node_name="n0", peers=("127.0.0.1",), main_port=1, first_rank=0,
    local_world_size=2, world_size=2, command=(b"p",), cwd=None, env=(), bind_to_core=False, stdin_ranks=(),
    credit_bytes=1, layout=(2,), data_address="127.0.0.1",
)  # fmt: skip
WAITS = wire.Looked(1, (wire.Sight(0, 1, "sleeping", waits=wire.Pending("barrier #1", 9.0)),))


def looking():
    """A gang that hangs, and its desk, which has asked where the ranks are."""
    machine = gang.Gang([START], gang.Limits(5.0, None, 60.0, 60.0), 0.0)
    machine.begin()
    machine.on_message(0, wire.Started((1, 2)), 0.0)
    desk = HangDesk(job.Job(("p",), 2, hang_timeout_s=5.0), [START], machine, StoreDesk())
    assert desk.on_message(0, wire.Waits(9.0), 9.0) == []
    assert desk.on_tick(9.0) == [gang.SendTo(0, wire.Look(1))]
    return machine, desk


def test_the_answers_end_the_gang():
    machine, desk = looking()
    done = desk.on_message(0, WAITS, 9.1)
    assert isinstance(done[0], gang.Note) and done[0].event == "hang"
    assert machine.cause is not None and machine.cause.kind is gang.Kind.HANG


def test_answers_that_come_with_the_death_of_a_rank_are_no_hang():
    """Both are read in one round, before the desk is asked again."""
    machine, desk = looking()
    machine.on_message(0, wire.RankExited(1, 2, -9, 0, False, 0, -1, "", b"", b"", ""), 9.05)
    assert desk.on_message(0, WAITS, 9.1) == desk.on_quit(9.1) == desk.on_tick(9.1) == []
    assert machine.cause is not None and machine.cause.kind is gang.Kind.RANK
