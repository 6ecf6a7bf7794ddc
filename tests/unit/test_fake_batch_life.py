# SPDX-License-Identifier: Apache-2.0
"""The fake Batch without processes: lives of jobs under random events, retry rules, definitions and overrides."""

from __future__ import annotations

import copy
import random
from typing import Any

import pytest
from hypothesis import given, strategies as st

from pmrun.testing.fake_batch import definitions
from pmrun.testing.fake_batch.errors import Refused
from pmrun.testing.fake_batch.lifecycle import EXITED, FINAL, TIMED_OUT, Action, Delays, Lifecycle, Stop
from pmrun.testing.fake_batch.rules import EvaluateOnExit, Outcome, retries

CONTAINER = {
    "image": "i",
    "command": ["run"],
    "resourceRequirements": [{"type": "VCPU", "value": "1"}, {"type": "MEMORY", "value": "512"}],
}


class Play:
    """A job's life on a clock of its own; containers run as long as the test wants."""

    def __init__(self, num_nodes: int = 3, attempts: int = 1, timeout_s: float | None = None, seed: int = 0) -> None:
        self.now = 0.0
        self.life = Lifecycle(num_nodes, 0, attempts, (), timeout_s, Delays(), random.Random(seed), 0.0)
        self.running: set[int] = set()
        self.started: list[int] = []  # in this attempt
        self.attempt = 1

    def do(self, actions: list[Action]) -> None:
        for action in actions:
            if isinstance(action, Stop):
                assert action.node in self.running
                continue
            assert self.life.status not in FINAL
            if self.life.attempt != self.attempt:
                assert not self.running, "nodes of an earlier attempt still run"
                self.attempt, self.started = self.life.attempt, []
            assert action.node not in self.started
            assert self.started or action.node == self.life.main
            self.started.append(action.node)
            self.running.add(action.node)
            self.life.node_started(action.node, f"10.0.0.{action.node}", f"stream-{action.node}", self.now)

    def pass_time(self, seconds: float = 60.0) -> None:
        end = self.now + seconds
        while (due := self.life.due_s()) is not None and due <= end:
            self.now = max(self.now, due)
            self.do(self.life.tick(self.now))
        self.now = end

    def end(self, node: int, code: int = 0) -> None:
        self.running.discard(node)
        self.do(self.life.node_ended(node, code, EXITED, "", self.now))


def test_main_first_then_children_in_random_order() -> None:
    orders = set()
    for seed in range(20):
        play = Play(4, seed=seed)
        play.pass_time()
        assert play.life.status == "RUNNING" and play.started[0] == 0
        orders.add(tuple(play.started))
    assert len(orders) > 3


def test_a_childs_end_means_nothing_and_mains_is_the_jobs() -> None:
    play = Play()
    play.pass_time()
    play.end(1, 7)
    play.pass_time()
    assert play.life.status == "RUNNING" and play.life.nodes[1].status == "FAILED"
    assert play.life.node_ended(0, 0, EXITED, "", play.now) == [Stop(2)]
    assert play.life.status == "SUCCEEDED" and not play.life.over
    play.end(2, 143)
    assert play.life.over


def test_a_retry_waits_for_the_last_node_and_runs_all_anew() -> None:
    play = Play(attempts=2)
    play.pass_time()
    play.end(0, 1)
    play.pass_time()
    assert (play.life.status, play.attempt) == ("RUNNABLE", 1) and play.running == {1, 2}
    play.end(1, 143)
    play.end(2, 143)
    play.pass_time()
    assert (play.life.status, play.attempt, play.running) == ("RUNNING", 2, {0, 1, 2})
    play.end(0, 1)
    assert play.life.status == "FAILED"


def test_timeouts_and_terminations_are_not_retried() -> None:
    play = Play(attempts=3, timeout_s=100)
    play.pass_time(99)
    assert play.life.status == "RUNNING"
    play.pass_time(10)
    assert (play.life.status, play.life.status_reason) == ("FAILED", TIMED_OUT)
    play = Play(attempts=3)
    play.pass_time()
    play.life.cancel("too late")
    assert play.life.status == "RUNNING" and not play.life.cancelled
    assert play.life.terminate("enough") == [Stop(0), Stop(1), Stop(2)]
    assert (play.life.status, play.life.status_reason, play.life.terminated) == ("FAILED", "enough", True)


def test_a_job_without_capacity_stays_runnable() -> None:
    play = Play()
    play.life.block("CAPACITY:none")
    play.pass_time()
    assert (play.life.status, play.life.status_reason) == ("RUNNABLE", "CAPACITY:none")
    play.life.unblock(play.now)
    play.pass_time()
    assert play.life.status == "RUNNING" and play.life.status_reason == ""
    waiting = Play()
    waiting.life.block("CAPACITY:none")
    waiting.pass_time()
    waiting.life.cancel("enough")
    assert waiting.life.status == "FAILED" and waiting.life.cancelled and waiting.life.over


@given(st.integers(1, 5), st.integers(1, 3), st.integers(0, 2**32), st.data())
def test_any_order_of_events(num_nodes: int, attempts: int, seed: int, data: st.DataObject) -> None:
    """`Play` checks each action; in the end all has ended."""
    play = Play(num_nodes, attempts, timeout_s=200, seed=seed)
    for _ in range(data.draw(st.integers(0, 30))):
        event = data.draw(st.sampled_from(["time", "end", "end", "terminate", "cancel", "block", "unblock"]))
        if event == "time":
            play.pass_time(data.draw(st.floats(0, 1)))
        elif event == "end" and play.running:
            play.end(data.draw(st.sampled_from(sorted(play.running))), data.draw(st.integers(0, 2)))
        elif event == "terminate":
            play.do(play.life.terminate("enough"))
        elif event == "cancel":
            play.life.cancel("enough")
        elif event == "block":
            play.life.block("CAPACITY:none")
        elif event == "unblock":
            play.life.unblock(play.now)
    for _ in range(10 * num_nodes * attempts):
        play.life.unblock(play.now)
        play.pass_time()
        for node in sorted(play.running):
            play.end(node, 1)
    assert play.life.over and not play.running


@pytest.mark.parametrize(
    ("rules", "outcome", "again"),
    [
        ((), Outcome(1, EXITED, ""), True),
        ((EvaluateOnExit("EXIT", "1"),), Outcome(1, EXITED, ""), False),
        ((EvaluateOnExit("exit", "1*"),), Outcome(137, EXITED, ""), False),
        ((EvaluateOnExit("EXIT", "1"),), Outcome(137, EXITED, ""), True),  # none fits
        ((EvaluateOnExit("RETRY", on_status_reason="Host EC2*"), EvaluateOnExit("EXIT", on_reason="*")),
         Outcome(None, "Host EC2 (instance i-1) terminated.", ""), True),
        ((EvaluateOnExit("RETRY", on_status_reason="Host EC2*"), EvaluateOnExit("EXIT", on_reason="*")),
         Outcome(1, EXITED, ""), False),
        ((EvaluateOnExit("EXIT", "1", on_reason="OutOfMemory*"),), Outcome(1, EXITED, "else"), True),
    ],
)  # fmt: skip
def test_rules_of_retries(rules: tuple[EvaluateOnExit, ...], outcome: Outcome, again: bool) -> None:
    assert retries(outcome, 1, 3, rules) is again
    assert not retries(outcome, 3, 3, rules)


def definition(*groups: dict[str, Any], num_nodes: int = 2, main: int = 0, **more: Any) -> dict[str, Any]:
    ranges = list(groups) or [{"targetNodes": "0:", "container": CONTAINER}]
    nodes = {"numNodes": num_nodes, "mainNode": main, "nodeRangeProperties": ranges}
    return {"jobDefinitionName": "d", "type": "multinode", "nodeProperties": nodes, **more}


def group(target: str, **more: Any) -> dict[str, Any]:
    return {"targetNodes": target, "container": {**copy.deepcopy(CONTAINER), **more}}


@pytest.mark.parametrize(
    ("request_", "told"),
    [
        (definition(num_nodes=0), "numNodes"),
        (definition(main=2), "mainNode"),
        (definition(*[group(str(node)) for node in range(6)], num_nodes=6), "1 to 5 node groups"),
        (definition(group("0")), "cover every node"),
        (definition(group("0:5")), "not valid for 2 nodes"),
        (definition(group("x")), "Node range 'x'"),
        (definition(group("0:", image="")), "image"),
        (definition(group("0:", resourceRequirements=[])), "vCPU is not provided."),
        (definition(group("0:", environment=[{"name": "AWS_BATCH_X", "value": "1"}])), "must not start with AWS_BATCH"),
        (definition(group("0:", secrets=[{"name": "S", "valueFrom": "/s"}])), "executionRoleArn"),
        (definition(group("0:", linuxParameters={"devices": [{"hostPath": "/dev/infiniband/uverbs0"}]})), "MKNOD"),
        (definition(group("0", instanceType="m5.large"), group("1", instanceType="c5.large")), "same instance type"),
        (definition(platformCapabilities=["FARGATE"]), "Fargate"),
        (definition(retryStrategy={"attempts": 11}), "between 1 and 10"),
        (definition(retryStrategy={"evaluateOnExit": [{"action": "EXIT", "onExitCode": "1"}]}), "attempts is required"),
        (definition(timeout={"attemptDurationSeconds": 59}), "at least 60"),
        (definition() | {"jobDefinitionName": "a b"}, "valid pattern"),
        (definition() | {"type": "container"}, "multinode jobs only"),
    ],
)  # fmt: skip
def test_definitions_that_are_refused(request_: dict[str, Any], told: str) -> None:
    with pytest.raises(Refused, match=told):
        definitions.check(request_)


def test_ranges_and_overrides() -> None:
    request = definition(group("0:"), group("1", image="j"))
    definitions.check(request)
    override = {"command": ["other"], "environment": [{"name": "A", "value": "1"}],
                "resourceRequirements": [{"type": "VCPU", "value": "8"}]}  # fmt: skip
    nodes = definitions.overridden(
        request["nodeProperties"],
        {"numNodes": 4, "nodePropertyOverrides": [{"targetNodes": "0:", "containerOverrides": override}]},
    )
    first, inner, last = (definitions.container_of(nodes, node) for node in (0, 1, 3))
    assert (first["command"], inner["command"], last["image"], inner["image"]) == (["other"], ["run"], "i", "j")
    assert {item["type"]: item["value"] for item in last["resourceRequirements"]} == {"VCPU": "8", "MEMORY": "512"}
    assert request["nodeProperties"]["numNodes"] == 2 and CONTAINER["command"] == ["run"]
    with pytest.raises(Refused, match=r"Non matching targets - 0:0"):
        definitions.overridden(request["nodeProperties"], {"nodePropertyOverrides": [{"targetNodes": "0:0"}]})
    with pytest.raises(Refused, match="no upper boundary"):
        definitions.overridden(definition(group("0:1"))["nodeProperties"], {"numNodes": 4})
    with pytest.raises(Refused, match="lower boundary"):
        definitions.overridden(request["nodeProperties"], {"numNodes": 1})
