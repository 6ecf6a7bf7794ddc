# SPDX-License-Identifier: Apache-2.0
"""One save: who writes what, and when it counts.

    control rank    claims a version                                              -> Opening
    each rank       writes its shard, if it has one, and says so                  -> Confirmation
    control rank    writes the manifest when all have, or removes what is there   -> Verdict
    each rank       returns, or raises what the verdict says

Invariants: the manifest is written after every rank has confirmed this step; all ranks come to one verdict.
"""

from __future__ import annotations

import errno
import hashlib
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from typing import NamedTuple

from pmrun.checkpoint.agreement import Agreement, Confirmation, Opening, Verdict
from pmrun.checkpoint.shard import Shard
from pmrun.checkpoint.storage import Storage
from pmrun.checkpoint.versions import FORMAT, Manifest, Piece, Version, Writer, shard_name
from pmrun.errors import CheckpointError
from pmrun.version import RELEASE

_INTERRUPTED = "it was interrupted"
_REMEDIES = {
    errno.ENOSPC: "free some space, or keep fewer versions",
    errno.EDQUOT: "free some space, or keep fewer versions",
    errno.EACCES: "see that this user may write there",
    errno.EPERM: "see that this user may write there",
    errno.EROFS: "give a directory that can be written",
    errno.ENOTDIR: "give a directory, not a file",
    errno.ENOENT: "give a directory that every node sees",
}


class Place(NamedTuple):
    """Where a rank saves, and as who."""

    storage: Storage
    shown: str  # as the user wrote it
    writer: Writer | None  # of the control rank
    rank: int
    world_size: int
    job: str
    sharded: bool


class Task(NamedTuple):
    """One save on this rank."""

    place: Place
    agreement: Agreement
    step: int
    shard: Shard | None  # None: this rank has none
    refused: str  # why its state cannot be saved

    def run(self) -> None:
        """Take part until the verdict; CheckpointError if it is a bad one."""
        writer = self.place.writer
        version = None if writer is None else self._claim(writer)
        opening = self.agreement.opening()
        verdict = Verdict(opening.problem)
        if not opening.problem:
            self._write(opening.version)
            if writer is not None and version is not None:
                self._judge(writer, version)
            verdict = self.agreement.verdict()
        self.agreement.leave()
        if verdict.problem:
            raise CheckpointError(f"cannot save step {self.step} to {self.place.shown}: {verdict.problem}")
        if writer is not None and version is not None:
            self._try(lambda: writer.tidy(version), "older versions")

    def _claim(self, writer: Writer) -> Version | None:
        """Make a version and name it; whatever goes wrong, the others learn it, as from all that follows."""
        version, opening = None, Opening("", _INTERRUPTED)
        try:
            version = writer.claim(self.step)
            opening = Opening(version.name, "")
        except (OSError, CheckpointError) as error:
            opening = Opening("", explain(error))
        finally:
            self.agreement.open(opening)
        return version

    def _write(self, version: str) -> None:
        """Write this rank's shard and confirm."""
        piece, problem = None, self.refused or _INTERRUPTED
        try:
            if not self.refused:
                piece = None if self.shard is None else self._put(version, self.shard)
                problem = ""
        except (OSError, MemoryError) as error:
            problem = explain(error)
        finally:
            self.agreement.confirm(Confirmation(self.step, self.place.sharded, piece, problem))

    def _put(self, version: str, shard: Shard) -> Piece:
        name = shard_name(self.place.rank)
        digest = hashlib.sha256()

        def blocks() -> Iterator[memoryview]:
            for block in shard.blocks():
                digest.update(block)
                yield block

        self.place.storage.put(version, name, shard.size, blocks())
        return Piece(name, shard.size, digest.hexdigest())

    def _judge(self, writer: Writer, version: Version) -> None:
        """Make the version count, or go."""
        problem = _INTERRUPTED
        try:
            words = self.agreement.confirmations()
            problem = next((text for rank, word in enumerate(words) if (text := self._objection(rank, word))), "")
            if not problem:
                problem = _INTERRUPTED
                writer.complete(version, self._manifest(version, words))
                problem = ""
        except (OSError, CheckpointError) as error:
            problem = explain(error)
        finally:
            if problem:
                self._try(lambda: writer.abandon(version), f"what was saved of step {self.step}")
            self.agreement.decide(Verdict(problem))

    def _manifest(self, version: Version, words: list[Confirmation]) -> Manifest:
        place = self.place
        pieces = tuple(word.piece for word in words if word.piece is not None)
        now = datetime.now(timezone.utc).isoformat(timespec="seconds")
        return Manifest(FORMAT, *version, place.sharded, place.world_size, place.job, now, RELEASE, pieces)

    def _objection(self, rank: int, word: Confirmation) -> str:
        if word.problem:
            return word.problem if self.place.world_size == 1 else f"rank {rank}: {word.problem}"
        if word.step != self.step:
            return f"rank {rank} saves step {word.step}: all ranks must save the same one"
        if word.sharded != self.place.sharded:
            return f"sharded={word.sharded} on rank {rank}: all ranks must have the same"
        return ""

    def _try(self, work: Callable[[], None], what: str) -> None:
        """Remove something; a failure is told and changes nothing."""
        try:
            work()
        except OSError as error:
            warn(f"{what} in {self.place.shown} cannot be removed: {explain(error)}")


class Save:
    """A save that is under way, or over: what `Checkpoint.isave` returns.

    Attributes
    ----------
    step : int
    """

    def __init__(self, task: Task) -> None:
        self.step = task.step
        self._over = threading.Event()
        self._error: BaseException | None = None
        self._told = False
        # Not a daemon: the interpreter's end waits for it, so the last save of a program is complete.
        self._thread = threading.Thread(target=self._run, args=(task,), name=f"checkpoint-{task.step}")
        self._thread.start()

    def done(self) -> bool:
        """Whether it is over, well or not; `wait` tells."""
        return self._over.is_set()

    def wait(self, timeout: float | None = None) -> None:
        """Return when the version is complete on all ranks; raise if it failed.

        Parameters
        ----------
        timeout : float, optional
            Seconds, after which TimeoutError is raised and the save goes on. Default: until it is over.
        """
        if not self._over.wait(timeout):
            raise TimeoutError(f"the save of step {self.step} is not over after {timeout:g} s; it goes on")
        self._thread.join()
        self._told = True
        if self._error is not None:
            raise self._error

    def failed_untold(self) -> BaseException | None:
        """The error of a save that nobody has waited for."""
        return None if self._told else self._error

    def _run(self, task: Task) -> None:
        try:
            task.run()
        except BaseException as error:  # noqa: BLE001 - whoever waits raises it
            self._error = error
        finally:
            self._over.set()


def explain(error: BaseException) -> str:
    """One line: what failed, on which file, and what to do."""
    if not isinstance(error, OSError) or error.errno is None:
        return str(error) or type(error).__name__
    place = f"{error.filename}: " if isinstance(error.filename, str) else ""
    remedy = _REMEDIES.get(error.errno)
    return f"{place}{error.strerror}" + (f"; {remedy}" if remedy else "")


def warn(text: str) -> None:
    """Tell the user of something that is not right and stops nothing."""
    print(f"pmrun: {text}", file=sys.stderr, flush=True)
