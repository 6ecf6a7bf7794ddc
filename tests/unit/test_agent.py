# SPDX-License-Identifier: Apache-2.0
"""The agent's machine, with scripted events."""

import msgspec
import pytest

from pmrun import window, wire
from pmrun.launcher import agent

START = wire.Start(
    job_id="j", attempt=0, node_rank=0, node_name="n", peers=("127.0.0.1",), main_port=1, first_rank=4,
    local_world_size=2, world_size=8, command=(b"p",), cwd=None, env=(), bind_to_core=False, stdin_ranks=(),
    credit_bytes=1,
    layout=(4, 2, 2), data_address="127.0.0.1",
)  # fmt: skip
HELLO = wire.Hello(wire.VERSION, 0, 99)
STOP = wire.Stop(0.1, 0.2, window.ABORT_RANK_FAILED, 1, "other", "exit code 3", True)


def exited(rank, status, sent_signal=0, oom=False):
    return wire.RankExited(rank, 100 + rank, status, sent_signal, oom, 0, -1, "", b"", b"", "")


def running():
    machine = agent.Agent(HELLO)
    assert machine.on_connected() == [agent.Send(HELLO)]
    assert machine.on_message(START, 0.0) == [agent.Launch(START)]
    assert machine.on_started((104, 105), 0.0) == [agent.Send(wire.Started((104, 105)))]
    return machine


def test_clean_life():
    machine = running()
    first = exited(5, 0)
    assert machine.on_rank_exited(first, 1.0) == [agent.Depart(5, False), agent.Send(first)]
    assert machine.deadline() is None
    last = exited(4, 0)
    assert machine.on_rank_exited(last, 2.0) == [agent.Depart(4, False), agent.Send(last), agent.KillAll()]
    assert machine.on_no_process(2.0) == [agent.DrainOutput()]
    assert machine.on_drained(()) == [agent.Send(wire.NodeDone(()))]
    assert machine.on_message(wire.Leave(), 3.0) == [agent.Exit()]


@pytest.mark.parametrize(
    ("status", "oom", "text"),
    [(3, False, "exit code 3"), (-9, True, "killed by SIGKILL (out of memory)"), (-11, False, "killed by SIGSEGV")],
)
def test_bad_end_is_told_before_it_is_sent(status, oom, text):
    bad = exited(5, status, oom=oom)
    actions = running().on_rank_exited(bad, 1.0)
    told = agent.Tell(window.ABORT_RANK_FAILED, 5, "n", text)
    assert actions == [told, agent.Depart(5, True), agent.Send(bad)]


def test_a_rank_that_ends_as_agreed_is_no_failure():
    agreed = msgspec.structs.replace(exited(5, 75), resumable=True)
    assert running().on_rank_exited(agreed, 1.0) == [agent.Depart(5, False), agent.Send(agreed)]


def test_a_request_to_stop_is_not_for_the_whole_process_group():
    machine = running()
    assert machine.on_message(wire.Signal(15), 0.0) == [agent.AskToStop()]
    machine.on_link_lost(0.0)
    assert machine.on_message(wire.Signal(15), 0.0) == []


def test_stop_settles_then_terminates_then_kills():
    machine = running()
    told = agent.Tell(window.ABORT_RANK_FAILED, 1, "other", "exit code 3")
    assert machine.on_message(STOP, 1.0) == [told]
    assert machine.deadline() == pytest.approx(1.1)
    assert machine.on_tick(1.05) == []
    assert machine.on_tick(1.1) == [told, agent.SignalRanks(15)]
    assert machine.deadline() == pytest.approx(1.3)
    assert machine.on_tick(1.31) == [agent.KillAll()]
    assert machine.on_tick(1.4) == [agent.KillAll()], "again, for what was forked meanwhile"
    assert machine.on_no_process(1.5) == [agent.DrainOutput()]


def test_a_rank_that_ends_during_a_stop_is_not_blamed():
    machine = running()
    machine.on_message(STOP, 1.0)
    bad = exited(5, 1)
    told = agent.Tell(window.ABORT_RANK_FAILED, 1, "other", "exit code 3")
    assert machine.on_rank_exited(bad, 1.01) == [told, agent.Depart(5, True), agent.Send(bad)]


def test_later_stop_can_only_hurry():
    machine = running()
    machine.on_message(STOP, 1.0)
    machine.on_message(wire.Stop(60, 60, 4, -1, "", "x", True), 1.01)
    assert machine.on_tick(1.31)[-1] == agent.KillAll()
    machine = running()
    machine.on_message(wire.Stop(60, 60, 4, -1, "", "x", False), 1.0)
    assert machine.on_message(wire.Stop(0, 0, 4, -1, "", "x", True), 2.0)[-1] == agent.KillAll()


def test_quiet_stop_tells_only_with_sigterm():
    machine = running()
    stop = wire.Stop(5.0, 0.1, window.ABORT_STOPPED, -1, "", "stopped by SIGINT", False)
    assert machine.on_message(stop, 0.0) == []
    told = agent.Tell(window.ABORT_STOPPED, -1, "", "stopped by SIGINT")
    assert machine.on_tick(5.0) == [told, agent.SignalRanks(15)]


def test_failed_start_kills_and_ends():
    machine = agent.Agent(HELLO)
    machine.on_message(START, 0.0)
    assert machine.on_start_failed(5, "why", 127, 0.0) == [
        agent.Send(wire.StartFailed(5, "why", 127)),
        agent.KillAll(),
    ]
    assert machine.on_started((104, 105), 0.0) == []
    assert machine.on_no_process(0.1) == [agent.DrainOutput()]


def test_stop_before_start():
    machine = agent.Agent(HELLO)
    assert machine.on_message(STOP, 0.0) == [agent.DrainOutput()]
    assert machine.on_message(START, 0.0) == []
    assert machine.on_drained(()) == [agent.Send(wire.NodeDone(()))]


def test_lost_link_kills_and_leaves_without_a_word():
    machine = running()
    assert machine.on_link_lost(1.0) == [agent.KillAll()]
    told = agent.Tell(window.ABORT_RANK_FAILED, 5, "n", "killed by SIGKILL")
    assert machine.on_rank_exited(exited(5, -9, 9), 1.0) == [told, agent.Depart(5, True)]
    machine.on_rank_exited(exited(4, -9, 9), 1.0)
    assert machine.on_no_process(1.0) == [agent.Exit()]


@pytest.mark.parametrize("phase", ["waiting", "done"])
def test_lost_link_without_ranks(phase):
    machine = agent.Agent(HELLO)
    if phase == "done":
        machine.on_message(STOP, 0.0)
        machine.on_drained(())
    assert machine.on_link_lost(1.0) == [agent.Exit()]


def test_gives_up_on_what_hangs_in_the_kernel():
    machine = running()
    machine.on_link_lost(0.0)
    machine = running()
    machine.on_message(wire.Stop(0, 0, 4, -1, "", "x", True), 1.0)
    assert machine.on_tick(1.0 + agent.KILL_PATIENCE_S - 0.1) == [agent.KillAll()]
    assert machine.on_tick(1.0 + agent.KILL_PATIENCE_S) == [agent.DrainOutput()]
    assert machine.on_drained((104,)) == [agent.Send(wire.NodeDone((104,)))]
    assert machine.deadline() is None


def test_credit_and_input_pass_through():
    machine = running()
    assert machine.on_message(wire.Credit(4, 1, 10), 0.0) == [agent.AddCredit(4, 1, 10)]
    assert machine.on_message(wire.Stdin(b"x"), 0.0) == [agent.FeedStdin(b"x")]
    assert machine.on_message(wire.Signal(2), 0.0) == [agent.SignalRanks(2)]
    machine.on_link_lost(0.0)
    assert machine.on_message(wire.Stdin(b"x"), 0.0) == []
    assert machine.on_message(wire.Signal(2), 0.0) == []
