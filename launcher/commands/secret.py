# SPDX-License-Identifier: Apache-2.0
"""`pmrun secret FILE`: makes a secret file for nodes that are started by hand.

The same file goes to every node, by whatever way the user trusts. Invariant: the file is new, and only its owner can
read it from the moment it exists.
"""

from __future__ import annotations

import sys

from pmrun.errors import ExitCode, UsageError
from pmrun.launcher.keys import write_secret

_HELP = """\
pmrun secret FILE: make a secret for nodes that are started by hand

Copy FILE to every node, readable by you alone, and start on each:
  pmrun -n 8 --nnodes 2 --node-rank R --main ADDRESS --secret-file FILE train.py
"""


def run(argv: list[str]) -> int:
    """Make the file named."""
    if argv in (["-h"], ["--help"]):
        sys.stdout.write(_HELP)
        return ExitCode.OK
    if len(argv) != 1 or argv[0].startswith("-"):
        raise UsageError("write: pmrun secret FILE")
    write_secret(argv[0])
    return ExitCode.OK
