# SPDX-License-Identifier: Apache-2.0
"""What Slurm is asked to run: the words of sbatch or srun, and the batch script. Pure, but for the secret.

The script makes the job's secret on its own node, anew at each try, and hands it to the agents in the environment of
srun: it is on no command line, in no file and not in what sbatch sends. Invariant: text of the user's gets into the
script only as a quoted word.
"""

from __future__ import annotations

import math
import os
import re
import shlex
import sys
from collections.abc import Mapping
from typing import Any, Final

from pmrun import env
from pmrun.errors import UsageError
from pmrun.launcher.command_line import split
from pmrun.launcher.job import Job, Submission
from pmrun.launcher.keys import new_secret
from pmrun.launcher.option import parse_flag, whole_number
from pmrun.launcher.program import complete_command
from pmrun.launcher.submission.contract import Request
from pmrun.launcher.submission.node_command import agent_words
from pmrun.launcher.submission.read import Key, check_options, read_keys, title_of

UNDERSTOOD: Final = frozenset({"queue", "cpu", "gpu", "memory_mib", "retries"})
MARK: Final = "pmrun"  # the comment of jobs that pmrun submitted
_MARGIN_S: Final = 60.0  # of Slurm's time limit beyond all that pmrun's own --timeout may take


def _word(text: str) -> str:
    if not text or not text.isprintable():
        raise ValueError("give one line of text")
    return text


_TEXTS: Final = {
    "account": "whom the time is charged to",
    "begin": "not before this time",
    "constraint": "features that nodes must have",
    "dependency": "jobs that this one waits for: afterok:1234",
    "exclude": "nodes not to use",
    "gres": "generic resources of each node",
    "licenses": "licenses that the job holds",
    "mail-type": "events that are mailed: END,FAIL",
    "mail-user": "who gets the mail",
    "nodelist": "nodes to use",
    "output": "the log's file, on a file system that all machines share; default: slurm-%j.out where pmrun is given",
    "qos": "quality of service",
    "reservation": "the reservation to use",
    "time": "Slurm's time limit: 30 (minutes), 2:00:00, 1-0; default: follows from --timeout, else the partition's",
}
KEYS: Final = (
    *(Key(name, _word, text) for name, text in _TEXTS.items()),
    Key("exclusive", parse_flag, "no other job on the nodes"),
    Key(
        "notice",
        whole_number(1, 65535, "the time of notice"),
        "so many seconds before its time is up the ranks hear of it",
    ),
)


def batch(job: Job) -> Request:
    """The request that is submitted."""
    submission = _checked(job)
    values = read_keys("slurm", submission, KEYS)
    words = ["sbatch", "--parsable", f"--job-name={_job_name(job)}", f"--comment={MARK}", *_resources(job, submission)]
    words += ["--requeue", "--open-mode=append"] if submission.retries else ["--no-requeue"]
    if "time" not in values and job.timeout_s is not None:
        whole = job.timeout_s + job.start_timeout_s + job.grace_s + _MARGIN_S
        words.append(f"--time={math.ceil(whole / 60)}")
    notice = values.pop("notice", None)
    if notice is not None:
        words.append(f"--signal=TERM@{notice}")
    if values.pop("exclusive", False):
        words.append("--exclusive")
    words += [f"--{name}={value}" for name, value in sorted(values.items())]
    return {"command": words, "script": _script(job, submission.retries)}


def step(job: Job) -> Request:
    """What runs at once in an allocation."""
    submission = _checked(job)
    if submission.settings or submission.retries or submission.queue or submission.detach:
        raise UsageError(
            "this is an allocation of Slurm: --queue, --with, --retries and --detach were for whoever made it"
        )
    return {"command": _srun(job, ["--overlap"])}


def secret() -> dict[str, str]:
    """A new one, as an agent finds it in its environment."""
    return {env.SECRET: new_secret().hex()}


def allocated_nodes(environ: Mapping[str, str]) -> int:
    """How many nodes the allocation has that this process is in; 0: it is in none."""
    nodes = environ.get("SLURM_JOB_NUM_NODES", "")
    return int(nodes) if nodes.isascii() and nodes.isdigit() and "SLURM_JOB_ID" in environ else 0


def check_program(job: Job, environ: Mapping[str, str]) -> None:
    """UsageError where the nodes would not find the program; they see the same files."""
    directory = os.path.join(os.getcwd(), job.cwd or "")
    if not os.path.isdir(directory):
        raise UsageError(f"--cwd {job.cwd}: there is no directory {directory}; name another, or create it first")
    complete_command(split(job.command), directory, {**environ, **dict(job.env)})


# ---- details ----------------------------------------------------------------------------------------------


def _checked(job: Job) -> Submission:
    assert job.submission is not None
    check_options("slurm", job.submission, UNDERSTOOD)
    return job.submission


def _job_name(job: Job) -> str:
    return re.sub(r"[^\w.+-]", "-", title_of(job), flags=re.ASCII)[:100]


def _cpus(job: Job) -> int:
    """Of each node; where nobody said, one for each rank."""
    assert job.submission is not None
    return math.ceil(job.submission.cpu or job.world_size / job.nodes.count)


def _resources(job: Job, submission: Submission) -> list[str]:
    words = [f"--nodes={job.nodes.count}", "--ntasks-per-node=1", f"--cpus-per-task={_cpus(job)}"]
    wanted: dict[str, Any] = {
        "partition": submission.queue,
        "gpus-per-node": submission.gpu,
        "mem": None if submission.memory_mib is None else f"{submission.memory_mib}M",
    }
    return words + [f"--{name}={value}" for name, value in wanted.items() if value is not None]


def _srun(job: Job, more: list[str]) -> list[str]:
    """One agent on each node. One that ends badly is no reason to kill the others, who wait for the main node's word."""
    count = job.nodes.count
    return [
        "srun", f"--nodes={count}", f"--ntasks={count}", "--ntasks-per-node=1", f"--cpus-per-task={_cpus(job)}",
        "--kill-on-bad-exit=0", "--wait=0", "--mpi=none", "--input=none", *more, sys.executable, "-m", "pmrun",
        *agent_words(job),
    ]  # fmt: skip


_SECRET: Final = f"""\
{env.SECRET}=$({{python}} -c 'import secrets; print(secrets.token_hex(32))') || exit 1
export {env.SECRET}
"""
_RETRY: Final = """\
tries=${{SLURM_RESTART_COUNT:-0}}
if [ "$code" -ne 0 ] && [ "$tries" -lt {retries} ]; then
    echo "pmrun: exit code $code; retry $((tries + 1)) of {retries} goes into the queue" >&2
    scontrol requeue "$SLURM_JOB_ID"
fi
"""


def _script(job: Job, retries: int) -> str:
    exports = "".join(f"export {name}={shlex.quote(value)}\n" for name, value in job.env)
    run = f"{shlex.join(_srun(job, []))}\ncode=$?\n"
    retry = _RETRY.format(retries=retries) if retries else ""
    made = _SECRET.format(python=shlex.quote(sys.executable))
    return f'#!/bin/sh\n{exports}{made}{run}{retry}exit "$code"\n'
