# SPDX-License-Identifier: Apache-2.0
"""How often an engine is asked: a budget of calls a minute, and longer pauses while nothing happens or calls fail.

Calls are paid from a bucket that holds a third of the minute's budget and fills with the rest, so that the first
answers come at once and no minute costs more than the budget. A call that brought a new page of a log is given back.
Invariant: in any 60 seconds at most `calls_per_minute` calls are made beyond those that were given back.
"""

from __future__ import annotations

from typing import Final

_FIRST_S: Final = 0.25
_IDLE_S: Final = 5.0
_FIRST_AFTER_ERROR_S: Final = 1.0
_LONGEST_S: Final = 60.0
_ASKED_FOR_MOST_S: Final = 600.0


class Pace:
    """The budget of one follower. Times are of one clock, whichever."""

    def __init__(self, calls_per_minute: int, now: float) -> None:
        self._most = max(1.0, calls_per_minute / 3)
        self._a_second = (calls_per_minute - self._most) / 60 or 1 / 60
        self._idle_most_s = max(60 / calls_per_minute, _IDLE_S)
        self._tokens = self._most
        self._at = now
        self._idle_s = self._error_s = 0.0
        self._not_before = now

    def wait_s(self, now: float) -> float:
        """How long from `now` until the next call may be made."""
        self._fill(now)
        missing = max(0.0, 1.0 - self._tokens)
        return max(missing / self._a_second, self._not_before - now, 0.0)

    def pay(self, now: float) -> None:
        """A call is made."""
        self._fill(now)
        self._tokens -= 1.0

    def give_back(self) -> None:
        """It brought a page."""
        self._tokens = min(self._most, self._tokens + 1.0)

    def went_well(self, now: float, *, news: bool, more: bool = False) -> None:
        """It was answered: with something new, and perhaps with more to come at once."""
        self._error_s = 0.0
        self._idle_s = _FIRST_S if news else min(self._idle_most_s, max(_FIRST_S, 2 * self._idle_s))
        self._not_before = now if more else now + self._idle_s

    def went_wrong(self, now: float, after_s: float | None = None) -> None:
        """It was not; `after_s` is what the engine asks for."""
        self._error_s = min(_LONGEST_S, max(_FIRST_AFTER_ERROR_S, 2 * self._error_s))
        self._not_before = now + max(self._error_s, min(after_s or 0.0, _ASKED_FOR_MOST_S))

    def forget_errors(self, now: float) -> None:
        """What failed before says nothing any more."""
        self._error_s = 0.0
        self._not_before = now

    def _fill(self, now: float) -> None:
        self._tokens = min(self._most, self._tokens + max(0.0, now - self._at) * self._a_second)
        self._at = now
