# SPDX-License-Identifier: Apache-2.0
"""`pmrun status JOB [--json]`: how a job on an engine is.

Invariant: it changes nothing.
"""

from __future__ import annotations

import sys

from pmrun.errors import ExitCode
from pmrun.launcher.submission.asked import Asked, described, print_json
from pmrun.launcher.submission.backend import client_of

_PAGE = """\
pmrun status JOB [--json]: how a job on an engine is

JOB is the name that pmrun printed, such as slurm/1234; any machine that reaches the engine will do.
"""


def run(argv: list[str]) -> int:
    """Ask and print."""
    asked = Asked(argv, _PAGE)
    if asked.help:
        sys.stdout.write(asked.help)
        return ExitCode.OK
    name = asked.job()
    status = client_of(name).status(name)
    if asked.json:
        print_json(status)
    else:
        print("\n".join(described(status)))
    return ExitCode.OK
