# SPDX-License-Identifier: Apache-2.0
"""The loop over attempts: after a gang has ended, whether the whole of it is started again, when, and what is said.

Sans-I/O: `on_end` takes the outcome of one attempt and returns what follows; the driver is launcher/controller.py,
and launcher/gang.py knows of one attempt only. What another attempt could change is restarted: a rank that failed, a
lost node, a collective whose time ran out, and a start that failed after the gang had once stood. What it could not
(the ranks' calls differ), or what was wanted (a signal, --timeout, nobody reads the output, a rank that saved its work
and said so with exit code 75), ends the job. Invariant: at most `max_restarts` times the answer is `Again`, and
attempts that end at once follow each other ever more slowly.
"""

from __future__ import annotations

from typing import Final

import msgspec

from pmrun import window
from pmrun.errors import ExitCode
from pmrun.launcher.gang import Kind, Outcome

QUICK_S: Final = 1.0  # an attempt that did not last longer ended at once
_QUICK_FREE: Final = 2  # so many of those in a row are followed without a pause
_DELAY_S: Final = 0.5  # after one more, doubled each time
_DELAY_MOST_S: Final = 30.0
_SHOWN_FIRST: Final = 5  # of a long list of attempts
_SHOWN_LAST: Final = 10


class Again(msgspec.Struct, frozen=True):
    """Start the whole gang again."""

    attempt: int
    delay_s: float  # before it


class Over(msgspec.Struct, frozen=True):
    """The job ends as its last attempt did."""


class Attempts:
    """State of a job.

    Attributes
    ----------
    number : int
        Of the attempt that runs, or ran last.
    """

    def __init__(self, max_restarts: int) -> None:
        self.number = 0
        self._max = max_restarts
        self._quick = 0  # attempts in a row that ended at once
        self._ends: list[str] = []
        self._why = ""  # it is not started again, where that needs a word
        self._spent = False  # only for want of restarts

    def on_end(self, outcome: Outcome, text: str, lived_s: float, silent_s: float) -> Again | Over:
        """An attempt is over.

        Parameters
        ----------
        outcome
            How it ended.
        text
            The same in one line.
        lived_s
            How long its gang was there; 0 if it never was.
        silent_s
            How long ranks may still run on a node that fell silent: the next attempt must not meet them.
        """
        if outcome.cause is None:
            return Over()
        self._ends.append(text)
        self._why = self._final(outcome) if self._max else ""
        if self._why or not _restartable(outcome):
            return Over()
        if self.number >= self._max:
            self._spent = True
            return Over()
        self._quick = self._quick + 1 if lived_s <= QUICK_S else 0
        extra = self._quick - _QUICK_FREE - 1
        delay_s = 0.0 if extra < 0 else min(_DELAY_MOST_S, _DELAY_S * 2.0 ** min(extra, 16))
        self.number += 1
        return Again(self.number, max(delay_s, silent_s))

    def on_interrupted(self) -> None:
        """The job was ended while it waited for its next attempt, which therefore never was."""
        self.number -= 1

    def announcement(self, again: Again) -> str:
        """One line: what ended, and what comes."""
        pause = f" in {again.delay_s:.2g} s" if again.delay_s else ""
        restart = f"restart {again.attempt} of {self._max}"
        return (
            f"attempt {again.attempt - 1} ended: {self._ends[-1]}; starting attempt {again.attempt}{pause} ({restart})"
        )

    def summary(self, well: bool) -> list[str]:
        """What the job's last words say of its attempts; the first line is a sentence, the rest is indented."""
        lines = [f"not started again: {self._why}"] if self._why else []
        if not self.number:
            return lines
        restarts = "1 restart" if self.number == 1 else f"{self.number} restarts"
        if well:
            return [f"the job ended well in attempt {self.number}, after {restarts}"]
        spent = f" (--max-restarts {self._max})" if self._spent else ""
        ends = [f"  attempt {number}: {text}" for number, text in enumerate(self._ends)]
        if len(ends) > _SHOWN_FIRST + _SHOWN_LAST + 1:
            left_out = len(ends) - _SHOWN_FIRST - _SHOWN_LAST
            ends[_SHOWN_FIRST:-_SHOWN_LAST] = [f"  ... {left_out} more ..."]
        return [*lines, f"the job ended after {restarts}{spent}:", *ends]

    # ---- details --------------------------------------------------------------------------------------

    def _final(self, outcome: Outcome) -> str:
        """Why another attempt would not help, where the user may wonder; "" where it might, or nobody does."""
        assert outcome.cause is not None
        if outcome.survivors:
            return "a process of this attempt is still there, and the next one must not meet it"
        if outcome.cause.kind is Kind.MISMATCH and not _stalled(outcome):
            return "the ranks' calls differ, as they would again"
        if outcome.cause.kind is Kind.START and self.number == 0:
            return "the gang never stood; --max-restarts is for one that did"
        if outcome.cause.kind in (Kind.RANK, Kind.RESUMABLE) and outcome.code == ExitCode.RESUMABLE:
            return f"exit code {ExitCode.RESUMABLE} says that it saved its work and wants to be resumed later"
        return ""


def _restartable(outcome: Outcome) -> bool:
    assert outcome.cause is not None
    return outcome.cause.kind not in (Kind.SIGNAL, Kind.TIMEOUT, Kind.OUTPUT)


def _stalled(outcome: Outcome) -> bool:
    """Whether a collective's own time ran out, which the same calls need not do again."""
    assert outcome.cause is not None
    witness = outcome.exits.get(outcome.cause.witness)
    return witness is not None and witness.abort_state == window.ABORT_STALLED
