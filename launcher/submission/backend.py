# SPDX-License-Identifier: Apache-2.0
"""What all backends that submit jobs to an engine do alike, over the engine's Client.

`run` submits, then follows the job to its end and returns its exit code, or with --detach prints its name. Ctrl-C asks
what to do with the job, which does not depend on this process. Invariant: a job that was submitted is named on the
standard error, or, with --detach, on the standard output, before anything else can fail.
"""

from __future__ import annotations

import abc

from pmrun.errors import EngineError, ExitCode
from pmrun.launcher.job import Job
from pmrun.launcher.submission.contract import Client, Finding, JobStatus, State
from pmrun.launcher.submission.follow import Follower, exit_code
from pmrun.launcher.submission.terminal import Terminal


class EngineBackend(abc.ABC):
    """A backend that only has to say who its client is."""

    @abc.abstractmethod
    def client(self) -> Client:
        """One that talks to the engine; it makes connections when it is first asked something."""

    def usual_nodes(self) -> int:
        """How many nodes a job has where nobody said."""
        return 1

    def dry_run(self, job: Job) -> dict[str, object]:
        """The request, which is not sent."""
        return self.client().request(job)

    def run(self, job: Job) -> int:
        """Submit the job, and follow it."""
        assert job.submission is not None
        client = self.client()
        name = client.submit(client.request(job))
        if job.submission.detach:
            print(name, flush=True)
            return ExitCode.OK
        with Terminal() as terminal:
            terminal.tell(f"submitted {name}")
            return watch(client, name, terminal, job.submission.on_interrupt, submitted=True)


def watch(client: Client, name: str, terminal: Terminal, on_interrupt: str, *, submitted: bool = False) -> int:
    """Follow a job until its end, or until the user has seen enough; returns the exit code of `pmrun`."""
    follower = Follower(client, name, terminal, submitted=submitted)
    while True:
        try:
            status = follower.run()
            break
        except KeyboardInterrupt:
            wanted = terminal.choose(name, on_interrupt)
        except BrokenPipeError:
            terminal.tell(f"nobody reads the log any more; {name} goes on")
            return ExitCode.OUTPUT_CLOSED
        if wanted == "detach":
            terminal.tell(f"{name} goes on; see: pmrun logs --follow {name}, or: pmrun cancel {name}")
            return terminal.interrupted
        if wanted == "cancel":
            _cancel(client, name, terminal)
    _tell_end(client, status, terminal)
    return exit_code(status)


def _cancel(client: Client, name: str, terminal: Terminal) -> None:
    try:
        client.cancel(name)
        terminal.tell(f"{name} is being cancelled")
    except EngineError as error:
        terminal.tell(f"{name} could not be cancelled: {error}; Ctrl-C tries again")


def _tell_end(client: Client, status: JobStatus, terminal: Terminal) -> None:
    if status.state is State.SUCCEEDED:
        return
    text = f"{status.name} {'was' if status.state is State.CANCELLED else 'has'} {status.state.value}"
    reason = status.reason or (f"exit code {status.exit_code}" if status.exit_code else "")
    terminal.tell(text + (f": {reason}" if reason else ""))
    if status.state is State.FAILED and status.exit_code is None:
        try:
            findings = client.why(status.name)
        except EngineError:
            return  # the end itself was told
        for finding in findings:
            terminal.tell(explained(finding))


def explained(finding: Finding) -> str:
    """A finding in one line."""
    return finding.what + (f"; {finding.remedy}" if finding.remedy else "")


def client_of(name: str) -> Client:
    """The client of the backend that a job's name begins with.

    Raises
    ------
    UsageError
        No such backend, or not one that keeps jobs.
    """
    from pmrun.errors import UsageError
    from pmrun.launcher import backends

    engine, slash, rest = name.partition("/")
    if not slash or not rest or not backends.submits(engine):
        raise UsageError(f"{name!r} is no job of an engine: its name is what pmrun printed, such as slurm/1234")
    client: Client = backends.load(engine).Backend().client()
    return client
