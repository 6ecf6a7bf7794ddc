# SPDX-License-Identifier: Apache-2.0
"""`pmrun explain-last`: shows the report of the last job that failed again.

Invariant: it changes nothing.
"""

from __future__ import annotations

import sys

from pmrun.errors import ExitCode, UsageError
from pmrun.launcher import last_failure

_HELP = """\
pmrun explain-last: show the report of your last job that failed again

It is kept in $XDG_STATE_HOME/pmrun, by default ~/.local/state/pmrun, on the machine where the job was started.
"""


def run(argv: list[str]) -> int:
    """Print it."""
    if argv in (["-h"], ["--help"]):
        sys.stdout.write(_HELP)
        return ExitCode.OK
    if argv:
        raise UsageError("write: pmrun explain-last")
    try:
        report = last_failure.read()
    except OSError as error:
        raise UsageError(f"cannot read {error.filename}: {error.strerror}; look at its owner and mode") from None
    if report is None:
        obstacle = last_failure.obstacle()
        raise UsageError(f"no report was kept: {obstacle}" if obstacle else "none of your jobs has failed here yet")
    sys.stdout.write(report)
    return ExitCode.OK
