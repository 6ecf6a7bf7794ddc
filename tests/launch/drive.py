# SPDX-License-Identifier: Apache-2.0
"""Runs one job through the local backend: `python drive.py '{"command": [...], "world_size": 4}'`.

The tests start this instead of the command line, so that they hold the launcher alone.
"""

import json
import sys

from pmrun.launcher import backends
from pmrun.launcher.job import BindTo, Job, Output, Stream


def job_of(wanted: dict) -> Job:
    output = dict(wanted.pop("output", {}))
    if output.get("only_ranks") is not None:
        output["only_ranks"] = frozenset(output["only_ranks"])
    wanted["command"] = tuple(wanted["command"])
    wanted["env"] = tuple((name, value) for name, value in wanted.get("env", ()))
    for name in ("map_by", "bind_to"):
        wanted[name] = BindTo(wanted.get(name, "none"))
    if isinstance(wanted.get("stdin"), str):
        wanted["stdin"] = Stream(wanted["stdin"])
    return Job(output=Output(**output), **wanted)


if __name__ == "__main__":
    sys.exit(backends.load("local").Backend().run(job_of(json.loads(sys.argv[1]))))
