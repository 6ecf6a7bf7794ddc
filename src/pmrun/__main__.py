# SPDX-License-Identifier: Apache-2.0
"""`python -m pmrun ARGS` is `pmrun ARGS`, for where the command is not on PATH or of another Python.

Invariant: nothing happens here but the call, and nothing imports this module.
"""

from __future__ import annotations

import sys

from pmrun.launcher.cli import main

if __name__ == "__main__":
    sys.exit(main())
