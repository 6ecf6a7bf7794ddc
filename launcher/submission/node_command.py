# SPDX-License-Identifier: Apache-2.0
"""The command that every node of a submitted job runs: `pmrun agent`, the options that matter there, the program.

It is the same for all nodes; who a node is, it finds out from the engine's variables (launcher/standing.py). The
user's variables are not in it but in the environment that the engine gives the nodes, as a command line is read by
others. Invariant: an option that has its default is not written, so equal jobs have equal commands.
"""

from __future__ import annotations

from typing import Any

from pmrun.launcher import options as opt
from pmrun.launcher.job import Job
from pmrun.launcher.option import Option


def agent_words(job: Job) -> list[str]:
    """What follows the word for pmrun itself (`pmrun`, `python3 -m pmrun`)."""
    words = ["agent", *_spelled(opt.RANKS, job.world_size), *_spelled(opt.NNODES, job.nodes.count)]
    for option, value in _settings(job):
        if value != option.default:
            words += _spelled(option, value)
    return [*words, *job.command]


def _settings(job: Job) -> list[tuple[Option[Any], Any]]:
    ranks = job.output.only_ranks
    return [
        (opt.CWD, job.cwd),
        (opt.MAP_BY, job.map_by.value),
        (opt.BIND_TO, None if job.bind_to == job.map_by else job.bind_to.value),
        (opt.TIMEOUT, job.timeout_s),
        (opt.START_TIMEOUT, job.start_timeout_s),
        (opt.GRACE, job.grace_s),
        (opt.HANG_TIMEOUT, job.hang_timeout_s),
        (opt.ON_HANG, "end" if job.hang_ends else "report"),
        (opt.MAX_RESTARTS, job.max_restarts),
        (opt.PDB_ON_ERROR, job.pdb_on_error),
        (opt.TAG, job.output.tag),
        (opt.TIMESTAMP, job.output.timestamp),
        (opt.ONLY_RANKS, None if ranks is None else ",".join(map(str, sorted(ranks)))),
        (opt.OUTPUT_DIR, job.output.directory),
        (opt.TRANSPORT, job.transport),
        (opt.REPRODUCIBLE, job.reproducible),
        (opt.ENCRYPT, job.encrypt),
        (opt.INTERFACE, job.nodes.interface),
    ]


def _spelled(option: Option[Any], value: Any) -> list[str]:
    if option.flag:
        return [f"--{option.name}" if value else f"--no-{option.name}"]
    return [option.spelling, f"{value:.15g}" if isinstance(value, float) else str(value)]
