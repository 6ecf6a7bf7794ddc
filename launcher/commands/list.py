# SPDX-License-Identifier: Apache-2.0
"""`pmrun list --on ENGINE [--json]`: your jobs on an engine.

Invariant: it changes nothing.
"""

from __future__ import annotations

import os
import sys

from pmrun.errors import ExitCode, UsageError
from pmrun.launcher import backends, config
from pmrun.launcher.options import BACKEND
from pmrun.launcher.submission.asked import Asked, print_json

_PAGE = """\
pmrun list --on ENGINE [--json]: your jobs on an engine, newest first

The engine is that of --on, of PMRUN_ON, or of the key 'on' in pmrun.toml.
"""


def run(argv: list[str]) -> int:
    """Ask and print."""
    asked = Asked(argv, _PAGE, BACKEND)
    if asked.help:
        sys.stdout.write(asked.help)
        return ExitCode.OK
    asked.nothing()
    engine = asked.values.get(BACKEND) or _usual()
    if engine is None or not backends.submits(engine):
        raise UsageError(
            f"say on which engine: pmrun list --on {' | '.join(filter(backends.submits, backends.names()))}"
        )
    jobs = backends.load(engine).Backend().client().jobs()
    if asked.json:
        print_json(jobs)
        return ExitCode.OK
    width = max((len(job.name) for job in jobs), default=0)
    for job in jobs:
        print(f"{job.name:<{width}}  {job.state.value:<9}  {job.title}".rstrip())
    return ExitCode.OK


def _usual() -> str | None:
    """What a job of this directory would run on."""
    settings = [*config.from_file(os.getcwd()), *config.from_environment(os.environ)]
    return next((setting.text for setting in reversed(settings) if setting.option is BACKEND), None)
