# SPDX-License-Identifier: Apache-2.0
"""`python -m pmrun.launcher` is `pmrun`, for where the command's own path is not known."""

import sys

from pmrun.launcher.cli import main

if __name__ == "__main__":
    sys.exit(main())
