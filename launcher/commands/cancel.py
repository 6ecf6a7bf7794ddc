# SPDX-License-Identifier: Apache-2.0
"""`pmrun cancel JOB [--json]`: end a job on an engine, or take it out of the queue.

Invariant: a job that is over is no error, and is left as it is.
"""

from __future__ import annotations

import sys

from pmrun.errors import ExitCode
from pmrun.launcher.submission.asked import Asked, print_json
from pmrun.launcher.submission.backend import client_of

_PAGE = """\
pmrun cancel JOB [--json]: end a job on an engine, or take it out of the queue

Its ranks get SIGTERM, and the engine's time to save. JOB is the name that pmrun printed, such as slurm/1234.
"""


def run(argv: list[str]) -> int:
    """Ask for the job's end."""
    asked = Asked(argv, _PAGE)
    if asked.help:
        sys.stdout.write(asked.help)
        return ExitCode.OK
    name = asked.job()
    client = client_of(name)
    before = client.status(name)
    if not before.state.over:
        client.cancel(name)
    if asked.json:
        print_json({"name": name, "cancelled": not before.state.over})
    elif before.state.over:
        print(f"{name} is over: {before.state.value}")
    else:
        print(f"{name} is being cancelled")
    return ExitCode.OK
