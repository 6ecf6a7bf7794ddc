# SPDX-License-Identifier: Apache-2.0
"""What the user reads at the end."""

import subprocess
import traceback

import pytest

from pmrun import wire
from pmrun.errors import CollectiveMismatch, CollectiveTimeout, GangStopped, RankFailed
from pmrun.launcher import report
from pmrun.launcher.describe import ended, exit_code, rank_list, signal_name
from pmrun.launcher.gang import Cause, Kind, Outcome


def exited(rank, status, err=b"", out=b"", sent_signal=0, oom=False, last_call="", standing=None):
    return wire.RankExited(rank, 100 + rank, status, sent_signal, oom, 0, -1, "", out, err, last_call, standing)


def stopped(rank, call, inside):
    return exited(rank, -15, sent_signal=15, standing=wire.Standing(call, inside))


def outcome(cause, *exits, survivors=()):
    names = ("alpha", "beta")
    return Outcome(1, cause, {item.rank: item for item in exits}, names, (0, 2), survivors)


def raised(call):
    try:
        call()
    except Exception:  # noqa: BLE001 - its text is wanted
        return traceback.format_exc()
    raise AssertionError


def test_nothing_to_say():
    assert report.compose(outcome(None, exited(0, 0))) == ""
    assert report.compose(outcome(Cause(Kind.OUTPUT, "closed", 141))) == ""


def test_failed_rank():
    cause = Cause(Kind.RANK, "exit code 1", 1, rank=2, witness=2)
    error = b"starting\n" + raised(lambda: 1 / 0).encode()
    text = report.compose(
        outcome(cause, exited(2, 1, err=error, last_call="barrier #1"), exited(0, 1), exited(1, -15, sent_signal=15))
    )
    lines = text.splitlines()
    assert lines[0] == "pmrun: rank 2 failed first: exit code 1 (node beta, pid 102)"
    assert lines[1:3] == ["  traceback of rank 2 (node beta):", "    Traceback (most recent call last):"]
    assert "    ZeroDivisionError: division by zero" in lines
    assert lines[-2] == "  last call of rank 2 (node beta): barrier #1"
    assert lines[-1] == "  rank 0 failed too; rank 1 stopped by pmrun"


@pytest.mark.parametrize("kind", [CollectiveMismatch, CollectiveTimeout, GangStopped, RankFailed])
@pytest.mark.parametrize("chained", [False, True])
def test_who_failed_because_of_it_says_so(kind, chained):
    def follow():
        error = kind(1, "alpha", "exit code 7") if kind is RankFailed else kind("calls differ\n  here and there")
        if not chained:
            raise error
        try:
            raise error
        except kind as cause:
            raise SystemError("cannot go on") from cause

    cause = Cause(Kind.RANK, "exit code 7", 7, rank=1, witness=1)
    own = raised(lambda: 1 / 0)
    follower = (own + raised(follow) + "bye\n").encode()
    text = report.compose(
        outcome(cause, exited(1, 7), exited(0, 1, err=follower), exited(2, 7), exited(3, 1, err=own.encode()))
    )
    assert text.splitlines()[-1] == "  rank 0 failed because of it; ranks 2-3 failed too"


def test_a_traceback_from_before_does_not_make_a_follower():
    cause = Cause(Kind.RANK, "exit code 7", 7, rank=1, witness=1)
    handled = "Traceback (most recent call last):\n  File\npmrun.errors.RankFailed: rank 1 failed\n"
    text = report.compose(outcome(cause, exited(1, 7), exited(0, 1, err=(handled + raised(lambda: 1 / 0)).encode())))
    assert text.splitlines()[-1] == "  rank 0 failed too"


def test_out_of_memory_is_told_apart():
    cause = Cause(Kind.RANK, "x", 137, rank=0, witness=0)
    text = report.compose(outcome(cause, exited(0, -9, oom=True, out=b"a\n\nb\n")))
    assert "killed by SIGKILL (out of memory) (node alpha, pid 100)" in text
    assert text.endswith("  last lines of rank 0 (node alpha):\n    a\n    b\n")


@pytest.mark.parametrize(("status", "how"), [(-13, "killed by SIGPIPE"), (141, "exit code 141")])
def test_a_rank_that_a_closed_pipe_ended_is_named(status, how):
    text = report.compose(outcome(Cause(Kind.RANK, how, 141, rank=1, witness=1), exited(1, status)))
    assert text == f"pmrun: rank 1 failed first: {how} (node alpha, pid 101)\n"


def test_evidence_of_another_rank_than_the_culprit_says_whose_it_is():
    cause = Cause(Kind.MISMATCH, "calls differ", 1, rank=0, witness=3)
    error = raised(lambda: 1 / 0).encode()
    lines = report.compose(outcome(cause, exited(0, 1), exited(3, 1, err=error, last_call="barrier #1"))).splitlines()
    assert lines[:2] == ["pmrun: calls differ", "  traceback of rank 3 (node beta):"]
    assert "  last call of rank 3 (node beta): barrier #1" in lines


def test_a_timeout_tells_who_waits_where():
    waiting = [stopped(rank, "allreduce #12 at train.py:44 in step", True) for rank in (0, 1, 2, 4, 5, 6, 7)]
    late = stopped(3, "barrier #11 at train.py:40 in step", False)
    cause = Cause(Kind.TIMEOUT, "--timeout of 1 s ran out", 124)
    text = report.compose(outcome(cause, late, *waiting, exited(8, 0), stopped(9, "", False)))
    assert text == (
        "pmrun: --timeout of 1 s ran out\n"
        "  ranks 0-2, 4-7 wait in allreduce #12 at train.py:44 in step\n"
        "  rank 3 is in no call; its last was barrier #11 at train.py:40 in step\n"
        "  rank 9 has made no call\n"
    )


def test_many_places_are_cut():
    cause = Cause(Kind.SIGNAL, "stopped by SIGINT", 130)
    lines = report.compose(outcome(cause, *(stopped(rank, f"recv #{rank}", True) for rank in range(20)))).splitlines()
    assert len(lines) == 2 + report.STANDING_LINES
    assert lines[-1] == "  ranks 8-19 elsewhere"


@pytest.mark.parametrize(
    ("kind", "call", "lines"), [(Kind.SIGNAL, "barrier #1", 1), (Kind.TIMEOUT, "barrier #1", 2), (Kind.TIMEOUT, "", 1)]
)
def test_where_nobody_waits_only_a_timeout_tells_of_calls(kind, call, lines):
    text = report.compose(outcome(Cause(kind, "x", 1), stopped(0, call, False), stopped(1, call, False)))
    assert len(text.splitlines()) == lines


def test_survivors_are_named():
    text = report.compose(outcome(Cause(Kind.TIMEOUT, "--timeout of 1 s ran out", 124), survivors=(("beta", 5),)))
    assert text == (
        "pmrun: --timeout of 1 s ran out\n"
        "pmrun: process 5 on beta hangs in the kernel and did not end; look at it with ps\n"
    )


def test_last_traceback_with_its_chain():
    def chain():
        try:
            raise KeyError("inner")
        except KeyError as error:
            raise ValueError("outer") from error

    text = raised(lambda: 1 / 0) + "noise\n" + raised(chain) + "\n"
    lines = report.traceback_of(text)
    assert sum(line.startswith("Traceback") for line in lines) == 2
    assert "KeyError: 'inner'" in lines and lines[-1] == "ValueError: outer"
    assert "ZeroDivisionError" not in "".join(lines)


def test_long_tracebacks_are_cut_in_the_middle():
    frames = "".join(f'  File "f.py", line {i}, in f{i}\n    call()\n' for i in range(200))
    lines = report.traceback_of("Traceback (most recent call last):\n" + frames + "ValueError: x\n")
    assert len(lines) == report.TRACEBACK_LINES
    assert lines[0].startswith("Traceback") and lines[-1] == "ValueError: x"
    assert any("lines left out" in line for line in lines)


def test_control_characters_and_long_lines_do_no_harm():
    cause = Cause(Kind.RANK, "x", 1, rank=0, witness=0)
    text = report.compose(outcome(cause, exited(0, 1, err=b"\x1b[2J" + b"y" * 5000 + b"\xff\n")))
    assert "\x1b" not in text
    assert max(map(len, text.splitlines())) < 450


@pytest.mark.parametrize(
    ("ranks", "text"), [([3], "rank 3"), ([0, 1, 2, 4, 7, 6], "ranks 0-2, 4, 6-7"), (range(64), "ranks 0-63")]
)
def test_rank_list(ranks, text):
    assert rank_list(ranks) == text


@pytest.mark.parametrize(
    ("status", "text", "code"),
    [(0, "exit code 0", 0), (-15, "killed by SIGTERM", 143), (-40, "killed by SIGRTMIN+6", 168)],
)
def test_statuses(status, text, code):
    assert (ended(status, False), exit_code(status)) == (text, code)


def test_every_signal_has_the_shells_name():
    shell = subprocess.run(["bash", "-c", "kill -l {1..31} {34..64}"], capture_output=True, text=True, check=True)
    names = [f"SIG{name}" for name in shell.stdout.split()]
    assert [signal_name(number) for number in (*range(1, 32), *range(34, 65))] == names
    assert signal_name(32) == "signal 32"
