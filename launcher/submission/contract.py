# SPDX-License-Identifier: Apache-2.0
"""What pmrun expects of an engine that jobs are submitted to, and the words in which it hears of them.

A backend for one has a `Client`: it makes a request out of a Job, submits it, and answers what became of it by the
job's name alone, from any machine. The API that it talks to (boto3, kubernetes, Slurm's commands) is given to its
constructor, so that tests and stand-ins run the same code. What goes wrong is one of the errors below: the follower
(launcher/submission/follow.py) tries again or ends by their type, and shows their one line. Invariant: nothing here
knows an engine, and importing it imports no client library.
"""

from __future__ import annotations

import enum
from typing import Any, ClassVar, Protocol

import msgspec

from pmrun.errors import EngineError
from pmrun.launcher.job import Job

Request = dict[str, Any]  # what --dry-run prints as JSON


class State(enum.Enum):
    """Where a job, or one node of it, is."""

    QUEUED = "queued"  # nothing of it runs yet
    STARTING = "starting"  # it has machines: images are pulled, containers made
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def over(self) -> bool:
        """Whether nothing follows it."""
        return self in (State.SUCCEEDED, State.FAILED, State.CANCELLED)


class NodeStatus(msgspec.Struct, frozen=True):
    """One node of a job."""

    node_rank: int
    state: State
    where: str = ""  # its machine or pod
    reason: str = ""


class JobStatus(msgspec.Struct, frozen=True):
    """A job, at one moment. Times are seconds since 1970."""

    name: str  # BACKEND/..., complete
    state: State
    reason: str = ""  # one line, as the engine has it
    attempt: int = 0  # of the engine's own tries
    exit_code: int | None = None  # of the main node, once it is known
    created_s: float | None = None
    started_s: float | None = None
    ended_s: float | None = None
    nodes: tuple[NodeStatus, ...] = ()
    title: str = ""  # what --job-name, or the program, called it


class LogLine(msgspec.Struct, frozen=True):
    """One line that a node wrote, without its end. Node 0's are the output of all ranks and pmrun's own lines."""

    node_rank: int
    time_s: float | None  # None: the engine does not keep it
    text: bytes


class Cursor(msgspec.Struct, frozen=True):
    """How far a job's logs were read; only the Client that made it understands it."""

    positions: tuple[tuple[str, str], ...] = ()  # by stream; none: from the beginning


class Finding(msgspec.Struct, frozen=True):
    """Something that keeps a job from running, or ended it, and what to do about it."""

    what: str
    remedy: str = ""


# ---- errors -----------------------------------------------------------------------------------------------


class Transient(EngineError):
    """The engine did not answer, or not now (429, 5xx, a connection that broke, a timeout); asking again may help.

    Attributes
    ----------
    after_s : float or None
        How long the engine wants to be left alone, where it said so.
    """

    def __init__(self, text: str, after_s: float | None = None) -> None:
        super().__init__(text)
        self.after_s = after_s


class NotSignedIn(EngineError):
    """Credentials are missing, wrong or expired. Who follows a job asks again: they may be renewed meanwhile."""


class NoSuchJob(EngineError):
    """The engine does not know the job: never, not any more, or, right after it was submitted, not yet."""


# ---- the contract -----------------------------------------------------------------------------------------


class Client(Protocol):
    """What one engine can be asked. Each method that asks makes as few calls as it can, and does not try again.

    Attributes
    ----------
    calls_per_minute : int
        What a follower may spend on calls that bring nothing new.
    settle_s : float
        For so long after a job's end lines of its log may still come.
    """

    calls_per_minute: ClassVar[int]
    settle_s: ClassVar[float]

    def request(self, job: Job) -> Request:
        """What `submit` would send, with a mark where secrets go. Pure: no call leaves this machine.

        Raises
        ------
        UsageError
            An option that this engine does not have, or a value that it would not take.
        """

    def submit(self, request: Request) -> str:
        """Check what only the engine can tell, then start the job; returns its name. After an error nothing is left."""

    def status(self, name: str) -> JobStatus:
        """How the job is."""

    def read_logs(self, name: str, cursor: Cursor) -> tuple[list[LogLine], Cursor]:
        """One page of what came after `cursor`, and where it ends. The same cursor gives the same lines, and perhaps more:
        a caller that lost the answer asks again. Lines of one node are in order; an empty page: nothing new by now."""

    def cancel(self, name: str) -> None:
        """End the job, or take it out of the queue. No error where it is over already."""

    def jobs(self) -> list[JobStatus]:
        """The user's jobs that the engine knows, newest first."""

    def why(self, name: str) -> list[Finding]:
        """Why it does not start, or how it died; the likeliest first."""
