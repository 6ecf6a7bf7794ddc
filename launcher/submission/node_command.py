# SPDX-License-Identifier: Apache-2.0
"""The command that every node of a submitted job runs: `pmrun agent`, the options that matter there, the program.

It is the same for all nodes; who a node is, it finds out from the engine's variables (launcher/standing.py). The
user's variables are not in it but in the environment that the engine gives the nodes, as a command line is read by
others. Invariant: an option that has its default is not written, so equal jobs have equal commands.
"""

from __future__ import annotations

from typing import Any, Final

from pmrun.launcher import options as opt
from pmrun.launcher.job import Job
from pmrun.launcher.option import Option
from pmrun.launcher.submission import choices
from pmrun.version import RELEASE

SUBMITTED_BY: Final = "--submitted-by"  # then a release; read before any option, which another release may not have


def node_words(job: Job, code: dict[str, Any] | None) -> list[str]:
    """The whole command, for nodes whose image and files are not this machine's: `pmrun` is what their PATH has, or what
    pip installs there; `code` is what `describe_code` told."""
    assert job.submission is not None
    words = ["agent", SUBMITTED_BY, RELEASE, *agent_words(job, code)[1:]]
    if job.submission.pip is None:
        return ["pmrun", *words]
    from pmrun.launcher.code_package import stock_image

    return stock_image.words(job.submission.pip, None if code is None else code["address"], words)


def agent_words(job: Job, code: dict[str, Any] | None = None) -> list[str]:
    """What follows the word for pmrun itself (`pmrun`, `python3 -m pmrun`)."""
    words = ["agent", *_spelled(opt.RANKS, job.world_size), *_spelled(opt.NNODES, job.nodes.count)]
    for option, value in [*_of_code(job, code), *_settings(job, code)]:
        if value != option.default:
            words += _spelled(option, value)
    return [*words, *job.command]


def _of_code(job: Job, code: dict[str, Any] | None) -> list[tuple[Option[Any], Any]]:
    if code is None or job.submission is None:
        return []
    return [(choices.CODE, code["address"]), (choices.CODE_LIMIT, job.submission.code_limit_mib)]


def _settings(job: Job, code: dict[str, Any] | None) -> list[tuple[Option[Any], Any]]:
    ranks = job.output.only_ranks
    return [
        (opt.CWD, job.cwd if code is None else code["cwd"]),
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
    if option is choices.CODE_LIMIT:
        return [option.spelling, f"{value}M"]
    return [option.spelling, f"{value:.15g}" if isinstance(value, float) else str(value)]
