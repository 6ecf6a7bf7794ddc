# SPDX-License-Identifier: Apache-2.0
"""Jobs on Slurm: a batch script that starts one `pmrun agent` on each node with srun, or srun at once inside an
allocation (salloc).

Machines of the cluster share the files and the Python environment that the job names, as is usual there. Invariant: what
can be wrong with the program's name is found out here, before the job waits in a queue.
"""

from __future__ import annotations

import os
import sys
from typing import NoReturn

from pmrun.errors import UsageError
from pmrun.launcher.backends.slurm import request
from pmrun.launcher.backends.slurm.client import SlurmClient
from pmrun.launcher.backends.slurm.commands import ask, own_environment
from pmrun.launcher.job import Job
from pmrun.launcher.submission.backend import EngineBackend


class Backend(EngineBackend):
    """Slurm, as its commands on this machine reach it."""

    def client(self) -> SlurmClient:
        return SlurmClient(ask)

    def usual_nodes(self) -> int:
        """All of the allocation, inside one."""
        return request.allocated_nodes(os.environ) or 1

    def dry_run(self, job: Job) -> dict[str, object]:
        request.check_program(job, os.environ)
        if request.allocated_nodes(os.environ):
            return request.step(job)
        return super().dry_run(job)

    def run(self, job: Job) -> int:
        request.check_program(job, os.environ)
        nodes = request.allocated_nodes(os.environ)
        if not nodes:
            return super().run(job)
        if job.nodes.count > nodes:
            raise UsageError(f"--nodes {job.nodes.count}: this allocation has {nodes}; ask for fewer, or leave it out")
        return _become_srun(job)


def _become_srun(job: Job) -> NoReturn:
    """In an allocation srun's own handling of signals, input and output is what its user expects."""
    words = request.step(job)["command"]
    sys.stdout.flush()
    sys.stderr.flush()
    try:
        os.execvpe(words[0], words, {**own_environment(os.environ), **dict(job.env), **request.secret()})
    except OSError as error:
        raise UsageError(f"cannot start srun: {error.strerror}; load Slurm's commands first") from None
