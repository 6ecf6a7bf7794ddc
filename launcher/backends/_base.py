# SPDX-License-Identifier: Apache-2.0
"""What every backend offers the command line."""

from __future__ import annotations

from typing import Protocol

from pmrun.launcher.job import Job


class Backend(Protocol):
    """A place where jobs run."""

    def dry_run(self, job: Job) -> dict[str, object]:
        """What `run` would start, ready for JSON. Starts nothing."""

    def run(self, job: Job) -> int:
        """Run the job to its end, show its output and report, return the exit code of `pmrun`."""
