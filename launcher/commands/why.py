# SPDX-License-Identifier: Apache-2.0
"""`pmrun why JOB [--json]`: why a job on an engine does not start, or how it died.

Invariant: it changes nothing.
"""

from __future__ import annotations

import sys

from pmrun.errors import ExitCode
from pmrun.launcher.submission.asked import Asked, print_json
from pmrun.launcher.submission.backend import client_of, explained

_PAGE = """\
pmrun why JOB [--json]: why a job on an engine does not start, or how it died

JOB is the name that pmrun printed, such as slurm/1234.
"""


def run(argv: list[str]) -> int:
    """Ask and print."""
    asked = Asked(argv, _PAGE)
    if asked.help:
        sys.stdout.write(asked.help)
        return ExitCode.OK
    name = asked.job()
    findings = client_of(name).why(name)
    if asked.json:
        print_json(findings)
    else:
        print("\n".join(map(explained, findings)) or f"nothing stands in the way of {name}")
    return ExitCode.OK
