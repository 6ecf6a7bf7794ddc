# SPDX-License-Identifier: Apache-2.0
"""Following a job on an engine: every line once, few calls, and what happens when the engine or the machine fails."""

from __future__ import annotations

import random

import pytest
from engine_in_memory import NAME, Engine, World
from hypothesis import given, settings, strategies as st

from pmrun.errors import EngineError
from pmrun.launcher.submission.contract import JobStatus, LogLine, NoSuchJob, NotSignedIn, State, Transient
from pmrun.launcher.submission.follow import Follower, exit_code

QUEUED = JobStatus(NAME, State.QUEUED, "(Resources)")
RUNNING = JobStatus(NAME, State.RUNNING)
DONE = JobStatus(NAME, State.SUCCEEDED, exit_code=0)


def line(number: int, node: int = 0) -> LogLine:
    return LogLine(node, None, b"line %d" % number)


def a_job(world: World, *, queued_s: float = 3.0, runs_s: float = 30.0, lines: list[float] | None = None) -> Engine:
    states = [(0.0, QUEUED), (queued_s, RUNNING), (queued_s + runs_s, DONE)]
    times = [queued_s + at for at in (lines if lines is not None else [1.0, 2.0, 20.0, runs_s])]
    return Engine(world, states, [(at, line(number)) for number, at in enumerate(times)])


def test_a_job_from_the_queue_to_its_end() -> None:
    world = World()
    engine = a_job(world)
    status = Follower(engine, NAME, world, submitted=True).run()
    assert exit_code(status) == 0
    assert [one.text for one in world.shown] == [b"line %d" % number for number in range(4)]
    assert world.told == ["toy/1 is queued: (Resources)"]


def most_in_a_minute(engine: Engine) -> int:
    """Calls that brought nothing, in the worst 60 seconds."""
    paid = [at for at, _, lines in engine.calls if not lines]
    return max(sum(at <= other < at + 60 for other in paid) for at in paid)


@settings(deadline=None, max_examples=100)
@given(st.data())
def test_lines_are_shown_once_and_calls_are_few(data: st.DataObject) -> None:
    """Whatever fails, however lines come, wherever Ctrl-C strikes."""
    rng = random.Random(data.draw(st.integers(0, 2**32)))
    world = World()
    times = sorted(rng.uniform(0, 200) for _ in range(rng.randrange(300)))
    engine = a_job(world, queued_s=rng.uniform(0, 100), runs_s=200.0, lines=times)
    engine.page_lines = rng.choice([1, 7, 1000])
    trouble = rng.choice([0.0, 0.1, 0.5])

    def errors(call: str) -> EngineError | None:
        if rng.random() >= trouble:
            return None
        return rng.choice([Transient("429", rng.choice([None, 5.0])), Transient("500"), NotSignedIn("expired")])

    def interrupt(seconds: float) -> None:
        if rng.random() < 0.02:
            raise KeyboardInterrupt
        if rng.random() < 0.01:
            world.time_s += 3600.0  # asleep

    engine.errors = errors
    world.on_wait = interrupt
    follower = Follower(engine, NAME, world, submitted=True)
    while True:
        try:
            status = follower.run()
            break
        except KeyboardInterrupt:
            continue
    assert status == DONE
    assert world.shown == [one for _, one in engine.lines]
    assert most_in_a_minute(engine) <= engine.calls_per_minute


def test_a_silent_job_costs_twelve_calls_a_minute() -> None:
    world = World()
    engine = a_job(world, runs_s=1200.0, lines=[])
    Follower(engine, NAME, world).run()
    assert most_in_a_minute(engine) <= 12
    assert len(engine.calls) <= 12 + 12 * 1203 / 60


def test_the_first_line_and_the_end_come_soon() -> None:
    world = World()
    engine = a_job(world, queued_s=0.5, runs_s=1.0, lines=[0.2, 0.9])
    engine.calls_per_minute = 120  # type: ignore[misc]  # a stand-in on this machine
    Follower(engine, NAME, world, submitted=True).run()
    assert world.now() - engine.begin < 3.0


def test_a_full_log_is_read_without_pauses() -> None:
    world = World()
    engine = a_job(world, queued_s=0.0, runs_s=1.0, lines=[0.0] * 64_000)
    Follower(engine, NAME, world).run()
    assert len(world.shown) == 64_000
    assert world.now() - engine.begin < 60


def test_an_engine_that_stays_away_is_told_once_and_so_is_its_return() -> None:
    world = World()
    engine = a_job(world, runs_s=100.0)
    engine.errors = lambda call: Transient("503 Service Unavailable") if 10 < world.time_s - engine.begin < 60 else None
    Follower(engine, NAME, world).run()
    assert world.told == [
        "toy/1 is queued: (Resources)",
        "toy does not answer: 503 Service Unavailable; toy/1 goes on, and is asked for again",
        "toy answers again",
    ]


def test_expired_credentials_are_told_at_once_and_may_be_renewed() -> None:
    world = World()
    engine = a_job(world, runs_s=100.0)
    engine.errors = lambda call: NotSignedIn("the token has expired; sign in again") if world.time_s < 1050 else None
    assert Follower(engine, NAME, world).run() == DONE
    assert "the token has expired; sign in again" in world.told[0]
    assert len([call for call in engine.calls if call[0] < 1050]) <= 4


def test_a_job_may_be_unknown_right_after_it_was_submitted_and_not_later() -> None:
    world = World()
    engine = a_job(world)
    engine.states = [(5.0, QUEUED), *engine.states[1:]]
    assert Follower(engine, NAME, world, submitted=True).run() == DONE
    engine = Engine(world, [], [])
    with pytest.raises(NoSuchJob):
        Follower(engine, NAME, world).run()


def test_what_the_engine_refuses_ends_the_following() -> None:
    world = World()
    engine = a_job(world)
    engine.errors = lambda call: EngineError("you may not see this job")
    with pytest.raises(EngineError, match="may not"):
        Follower(engine, NAME, world).run()


def test_lines_that_come_after_the_end_are_waited_for() -> None:
    world = World()
    engine = a_job(world, runs_s=10.0, lines=[1.0, 14.0])
    engine.settle_s = 8.0  # type: ignore[misc]  # as an engine whose log lags behind
    Follower(engine, NAME, world).run()
    assert len(world.shown) == 2


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (JobStatus(NAME, State.FAILED, exit_code=3), 3),
        (JobStatus(NAME, State.FAILED), 69),
        (JobStatus(NAME, State.CANCELLED), 143),
        (JobStatus(NAME, State.SUCCEEDED), 0),
    ],
)
def test_exit_codes(status: JobStatus, code: int) -> None:
    assert exit_code(status) == code
