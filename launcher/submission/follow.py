# SPDX-License-Identifier: Apache-2.0
"""Follows a job to its end: shows its log and what becomes of it.

While nothing of it runs only the state is asked for; then the log, and in turn with it the state while the log is
silent; after the end the log, until it has no more. What an engine fails to answer is asked again from the same place,
and told in one line when it lasts. Clock, client and terminal are given. Invariant: each line of the log is shown once,
in the order of its node, however often an answer was lost or Ctrl-C came.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Final, Protocol, TypeVar

from pmrun.errors import ExitCode
from pmrun.launcher.submission.contract import (
    Client,
    Cursor,
    JobStatus,
    LogLine,
    NoSuchJob,
    NotSignedIn,
    State,
    Transient,
)
from pmrun.launcher.submission.pace import Pace

T = TypeVar("T")

_FULL_PAGE: Final = 100  # lines, after which more is likely to be there already
_STRANGE_S: Final = 60.0  # so long after its submission an engine may not know a job yet
_PATIENCE_S: Final = 10.0  # an engine that does not answer for so long is told
_RENEW_S: Final = 15.0  # between tries with credentials that were refused
_SLEPT_S: Final = 30.0  # a pause that took so much longer: this machine was asleep
_LAST_LINES_S: Final = 300.0  # once the job is over, a log that cannot be read for so long is given up


class Surroundings(Protocol):
    """What the follower has of the world."""

    def now(self) -> float:
        """A clock that also counts while the machine sleeps."""

    def wait(self, seconds: float) -> None:
        """Let time pass."""

    def held(self) -> AbstractContextManager[None]:
        """Ctrl-C waits until its end."""

    def show(self, lines: list[LogLine]) -> None:
        """Write lines of the log."""

    def tell(self, text: str) -> None:
        """Write one line of pmrun's own."""


class Follower:
    """One job that is followed. `submitted` says that it was submitted just now."""

    def __init__(self, client: Client, name: str, around: Surroundings, *, submitted: bool = False) -> None:
        self._client = client
        self._name = name
        self._around = around
        now = around.now()
        self._pace = Pace(client.calls_per_minute, now)
        self._strange_until = now + _STRANGE_S if submitted else now
        self._cursor = Cursor()
        self._status: JobStatus | None = None
        self._asks_log = False  # next
        self._over_at: float | None = None
        self._silent_at: float | None = None  # when the log was last asked for, if it had nothing new then
        self._failing_since: float | None = None
        self._complained = False

    def run(self) -> JobStatus:
        """Follow the job until it is over and its log is complete; called again, it goes on where it was.

        Raises
        ------
        EngineError
            The engine refuses, or does not know the job.
        """
        while True:
            if self._status is not None and self._over_at is not None and self._complete(self._over_at):
                return self._status
            self._pause()
            if self._asks_log:
                self._look_at_log()
            else:
                self._look_at_state()

    # ---- what is asked ------------------------------------------------------------------------------------

    def _complete(self, over_at: float) -> bool:
        if self._silent_at is not None and self._silent_at >= over_at + self._client.settle_s:
            return True
        if self._failing_since is not None and self._around.now() > self._failing_since + _LAST_LINES_S:
            self._around.tell(f"the end of the log of {self._name} cannot be read; try later: pmrun logs {self._name}")
            return True
        return False

    def _look_at_state(self) -> None:
        answer = self._ask(lambda: self._client.status(self._name))
        if answer is None:
            return
        before, self._status = self._status, answer
        changed = before is None or (before.state, before.reason) != (answer.state, answer.reason)
        if changed and answer.state in (State.QUEUED, State.STARTING):
            self._around.tell(f"{self._name} is {answer.state.value}" + (f": {answer.reason}" if answer.reason else ""))
        self._asks_log = answer.state is State.RUNNING or answer.state.over
        if answer.state.over:
            self._over_at = self._around.now()
        self._pace.went_well(self._around.now(), news=changed)

    def _look_at_log(self) -> None:
        asked_at = self._around.now()
        answer = self._ask(lambda: self._client.read_logs(self._name, self._cursor))
        if answer is None:
            return
        lines, cursor = answer
        with self._around.held():
            self._cursor = cursor
            if lines:
                self._around.show(lines)
        self._silent_at = None if lines else asked_at
        self._asks_log = bool(lines) or self._over_at is not None
        if lines:
            self._pace.give_back()
        self._pace.went_well(self._around.now(), news=bool(lines), more=len(lines) >= _FULL_PAGE)

    # ---- pauses and errors --------------------------------------------------------------------------------

    def _pause(self) -> None:
        begin = self._around.now()
        seconds = self._pace.wait_s(begin)
        if seconds > 0:
            self._around.wait(seconds)
        now = self._around.now()
        if now - begin > seconds + _SLEPT_S:
            self._pace.forget_errors(now)
            self._failing_since = None

    def _ask(self, call: Callable[[], T]) -> T | None:
        """The answer, or None where there was none: then the same is asked again."""
        now = self._around.now()
        self._pace.pay(now)
        try:
            answer = call()
        except Transient as error:
            self._on_failure(str(error), error.after_s, _PATIENCE_S)
            return None
        except NotSignedIn as error:
            self._on_failure(str(error), _RENEW_S, 0.0)
            return None
        except NoSuchJob as error:
            if self._status is not None or now > self._strange_until:
                raise
            self._on_failure(str(error), None, _STRANGE_S)
            return None
        if self._complained:
            self._around.tell(f"{self._engine} answers again")
        self._failing_since = None
        self._complained = False
        return answer

    def _on_failure(self, text: str, after_s: float | None, patience_s: float) -> None:
        now = self._around.now()
        if self._failing_since is None:
            self._failing_since = now
        if not self._complained and now - self._failing_since >= patience_s:
            self._complained = True
            self._around.tell(f"{self._engine} does not answer: {text}; {self._name} goes on, and is asked for again")
        self._pace.went_wrong(now, after_s)

    @property
    def _engine(self) -> str:
        return self._name.partition("/")[0]


def exit_code(status: JobStatus) -> int:
    """What `pmrun` ends with, when the job that it followed is over."""
    if status.exit_code is not None:
        return status.exit_code
    known = {State.SUCCEEDED: ExitCode.OK, State.CANCELLED: ExitCode.TERMINATED}
    return known.get(status.state, ExitCode.ENGINE_FAILED)
