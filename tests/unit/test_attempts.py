# SPDX-License-Identifier: Apache-2.0
"""Which ends are followed by another attempt, after how long, and what is said."""

import pytest

from pmrun import window, wire
from pmrun.errors import ExitCode
from pmrun.launcher.attempts import QUICK_S, Again, Attempts, Over
from pmrun.launcher.gang import Cause, Kind, Outcome
from pmrun.launcher.report import headline

LONG_S = 60.0


def outcome(kind=Kind.RANK, code=137, status=-9, abort_state=0, survivors=(), sent_signal=0, err=b""):
    cause = None if kind is None else Cause(kind, "it broke", code, rank=1, witness=1)
    exited = wire.RankExited(1, 99, status, sent_signal, False, abort_state, -1, "", b"", err, "")
    return Outcome(0 if kind is None else code, cause, {1: exited}, ("a", "b"), (0, 1), survivors)


def end(attempts, what, lived_s=LONG_S, silent_s=0.0):
    return attempts.on_end(what, headline(what), lived_s, silent_s)


@pytest.mark.parametrize("kind", [Kind.RANK, Kind.AGENT])
def test_a_failure_is_followed_by_as_many_attempts_as_are_allowed(kind):
    attempts = Attempts(2)
    assert end(attempts, outcome(kind)) == Again(1, 0.0)
    assert end(attempts, outcome(kind)) == Again(2, 0.0)
    assert end(attempts, outcome(kind)) == Over() and attempts.number == 2


@pytest.mark.parametrize("kind", [None, Kind.SIGNAL, Kind.TIMEOUT, Kind.OUTPUT])
def test_what_was_wanted_ends_the_job(kind):
    attempts = Attempts(5)
    assert end(attempts, outcome(kind)) == Over()
    assert attempts.summary(kind is None) == []


@pytest.mark.parametrize(
    ("what", "why"),
    [
        (outcome(Kind.MISMATCH, abort_state=window.ABORT_MISMATCH), "the ranks' calls differ"),
        (outcome(Kind.START, 75), "the gang never stood"),
        (outcome(Kind.RANK, ExitCode.RESUMABLE, status=75), "exit code 75 says that it saved its work"),
        (outcome(survivors=(("a", 7),)), "a process of this attempt is still there"),
    ],
)
def test_what_another_attempt_would_not_change_ends_the_job_with_a_word(what, why):
    attempts = Attempts(5)
    assert end(attempts, what) == Over()
    (line,) = attempts.summary(False)
    assert line.startswith("not started again: ") and why in line
    silent = Attempts(0)
    assert end(silent, what) == Over() and silent.summary(False) == [], "nobody asked for restarts"


def test_a_collective_that_took_too_long_is_tried_again():
    assert end(Attempts(1), outcome(Kind.MISMATCH, abort_state=window.ABORT_STALLED)) == Again(1, 0.0)


def test_a_start_that_fails_later_is_one_more_failure():
    attempts = Attempts(2)
    assert end(attempts, outcome(Kind.AGENT)) == Again(1, 0.0)
    assert end(attempts, outcome(Kind.START, 75), 0.0) == Again(2, 0.0)
    assert end(attempts, outcome(Kind.START, 75), 0.0) == Over()


def test_attempts_that_end_at_once_follow_each_other_ever_more_slowly():
    attempts = Attempts(100)
    delays = [end(attempts, outcome(), QUICK_S / 2).delay_s for _ in range(12)]
    assert delays == [0.0, 0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 30.0, 30.0]
    assert end(attempts, outcome(), 2 * QUICK_S).delay_s == 0.0, "one that lasted makes up for all before"
    assert end(attempts, outcome(), 0.0).delay_s == 0.0


def test_ranks_that_may_still_run_on_a_silent_node_are_waited_out():
    assert end(Attempts(1), outcome(Kind.AGENT), silent_s=11.0) == Again(1, 11.0)


def test_what_is_said():
    attempts = Attempts(3)
    err = b"Traceback (most recent call last):\n  File 'x'\nValueError: bad\n"
    again = end(attempts, outcome(code=1, status=1, err=err))
    how = "rank 1 (node b) ended with exit code 1 (ValueError: bad)"
    assert attempts.announcement(again) == f"attempt 0 ended: {how}; starting attempt 1 (restart 1 of 3)"
    again = end(attempts, outcome(), silent_s=11.0)
    assert attempts.announcement(again).endswith("was killed by SIGKILL; starting attempt 2 in 11 s (restart 2 of 3)")
    assert attempts.summary(True) == ["the job ended well in attempt 2, after 2 restarts"]
    assert end(attempts, outcome(Kind.SIGNAL, 130)) == Over()
    assert attempts.summary(False) == [
        "the job ended after 2 restarts:",
        f"  attempt 0: {how}",
        "  attempt 1: rank 1 (node b) was killed by SIGKILL",
        "  attempt 2: it broke",
    ]


def test_a_long_list_of_attempts_is_folded():
    attempts = Attempts(200)
    while isinstance(end(attempts, outcome()), Again):
        continue
    first, *lines = attempts.summary(False)
    assert first == "the job ended after 200 restarts (--max-restarts 200):"
    assert len(lines) == 16 and lines[5] == "  ... 186 more ..." and lines[-1].startswith("  attempt 200: ")


def test_a_job_that_is_ended_between_two_attempts_had_one_less():
    attempts = Attempts(3)
    end(attempts, outcome())
    attempts.on_interrupted()
    assert attempts.number == 0 and attempts.summary(False) == []


@pytest.mark.parametrize(
    ("what", "said"),
    [
        (outcome(None), "all ranks ended well"),
        (outcome(status=0, code=1), "rank 1 (node b) left with exit code 0 while rank 1 still needed it"),
        (outcome(status=-15, sent_signal=15), "rank 1 (node b) failed: it broke"),
        (outcome(Kind.AGENT, 76), "it broke"),
    ],
)
def test_one_line_says_how_an_attempt_ended(what, said):
    assert headline(what) == said


def test_random_jobs_end_and_never_hurry(rng):
    for _ in range(300):
        attempts, restarts, delays = Attempts(rng.randint(0, 30)), 0, []
        while True:
            what = outcome(rng.choice([Kind.RANK, Kind.AGENT, Kind.START, Kind.RANK, Kind.SIGNAL, None]))
            lived_s = rng.choice([0.0, 0.5, 2.0])
            follows = end(attempts, what, lived_s)
            if isinstance(follows, Over):
                break
            restarts += 1
            delays = [*delays, follows.delay_s] if lived_s <= QUICK_S else []
            assert follows.attempt == restarts == attempts.number <= 30
            assert delays == sorted(delays) and (len(delays) < 3) == (follows.delay_s == 0.0)
