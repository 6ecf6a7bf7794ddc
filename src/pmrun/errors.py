# SPDX-License-Identifier: Apache-2.0
"""Every exception that pmrun raises, and every exit code that `pmrun` ends with.

Invariant: this module imports nothing of pmrun, so that the launcher, the rank's side and the tests may all
stand on it.
"""

from __future__ import annotations


class ExitCode:
    """Exit codes of the `pmrun` command, where the culprit's own code does not decide.

    Plain numbers: `enum` takes longer to load than all that a rank needs of pmrun.

    A rank that ended with code n makes `pmrun` end with n; one that was killed by signal s, with 128 + s.
    """

    OK = 0
    ENGINE_FAILED = 69  # the engine that runs the job refused, or could not be asked (EX_UNAVAILABLE)
    INTERNAL = 70  # a defect of pmrun itself
    USAGE = 2  # the command line, the configuration or the script named is wrong; nothing was started
    OUTPUT_FAILED = 74  # the standard output cannot be written: its disk is full
    START_FAILED = 75  # the gang could not be started whole within --start-timeout
    RESUMABLE = 75  # of a rank: it saved its work and wants to be resumed later (EX_TEMPFAIL)
    AGENT_LOST = 76  # the agent died, or was killed; its ranks were stopped
    HANG = 79  # ranks waited in a call for longer than --hang-timeout
    TIMEOUT = 124  # --timeout ran out
    NOT_EXECUTABLE = 126
    NOT_FOUND = 127
    HANGUP = 129  # SIGHUP
    INTERRUPTED = 130  # Ctrl-C
    OUTPUT_CLOSED = 141  # nobody reads the standard output any more (as 128 + SIGPIPE)
    TERMINATED = 143  # SIGTERM


class PmrunError(Exception):
    """Base of all exceptions that pmrun raises on purpose."""


class UsageError(PmrunError, ValueError):
    """An argument is wrong; nothing was started or touched. One line: cause and remedy."""


class NotInitializedError(PmrunError, RuntimeError):
    """A collective before `pm.init()` or after `pm.shutdown()`."""


class AlreadyInitializedError(PmrunError, RuntimeError):
    """`pm.init()` a second time."""


class ForkedError(PmrunError, RuntimeError):
    """A child made by fork after `pm.init()` used its parent's communicator."""


class NativeMissingError(PmrunError, ImportError):
    """The C core is not built or does not fit this Python."""


class CollectiveError(PmrunError):
    """Base of what ends a collective: no further collective of the gang can succeed."""


class RankFailed(CollectiveError):
    """A rank died, failed, or left while others waited for it.

    Attributes
    ----------
    rank : int
        The culprit's world rank, -1 where it is not known.
    node : str
        Name of its node.
    reason : str
        One line: exit code or signal, and what is known about the cause.
    """

    def __init__(self, rank: int, node: str, reason: str) -> None:
        super().__init__(rank, node, reason)
        self.rank = rank
        self.node = node
        self.reason = reason

    def __str__(self) -> str:
        where = f" on {self.node}" if self.node else ""
        return f"rank {self.rank}{where} failed: {self.reason}"


class CollectiveMismatch(CollectiveError):
    """Ranks called different operations (or dtype, count, root, order). Raised on every rank; the text names
    both calls and both call sites. No rank took data from one whose call differs."""


class CollectiveTimeout(CollectiveError, TimeoutError):
    """A blocking collective's deadline passed; the text names the ranks that have not entered it."""


class GangStopped(CollectiveError):
    """The gang is being stopped (Ctrl-C, --timeout, `pmrun cancel`)."""


class RequestTimeout(PmrunError, TimeoutError):
    """`Request.wait(timeout)` ran out. The operation goes on; wait again."""


class MessageTruncated(PmrunError, ValueError):
    """A received message was longer than the buffer given for it."""


class StoreError(PmrunError, RuntimeError):
    """The store is full, refused too much at once, or cannot be reached any more."""


class StoreTimeout(StoreError, TimeoutError):
    """Keys that were waited for are not set.

    Attributes
    ----------
    keys : tuple of str
        The first of them.
    absent : tuple of int
        The first of the ranks that have not used the store yet.
    ended : tuple of int
        The first of the ranks whose process has ended.
    """

    def __init__(self, text: str, keys: tuple[str, ...], absent: tuple[int, ...], ended: tuple[int, ...]) -> None:
        super().__init__(text, keys, absent, ended)
        self.keys = keys
        self.absent = absent
        self.ended = ended

    def __str__(self) -> str:
        return str(self.args[0])


class CheckpointError(PmrunError, RuntimeError):
    """A checkpoint cannot be saved or loaded: a full disk, a directory that may not be written, another job that saves
    there, damage. What was complete before stays. Raised on every rank."""


class LaunchError(PmrunError):
    """The gang could not be started whole."""


class EngineError(PmrunError):
    """The engine that runs a job (Slurm, AWS Batch, Kubernetes) refused something or could not be asked."""
