# SPDX-License-Identifier: Apache-2.0
"""Slurm's commands, and what their errors mean.

Their plain output is read, which has been the same for many versions; that of --json changes with each. Invariant: a
command that failed is an EngineError of the right type, with Slurm's own words.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable, Mapping, Sequence
from typing import Final, NamedTuple

from pmrun.errors import EngineError
from pmrun.launcher.options import OPTIONS
from pmrun.launcher.submission.contract import NoSuchJob, NotSignedIn, Transient

_ANSWER_S: Final = 60.0
_FORMATS: Final = {"SLURM_TIME_FORMAT": "standard", "LC_ALL": "C.UTF-8"}

_UNKNOWN: Final = re.compile(r"invalid job id|does not exist|accounting storage is disabled", re.IGNORECASE)
_AWAY: Final = re.compile(
    r"unable to contact|timed out|connection refused|connect failure|zero bytes|temporarily unable|try again|"
    r"slurmdbd|resource temporarily",
    re.IGNORECASE,
)
_NOT_ME: Final = re.compile(r"munge|invalid credential|protocol authentication", re.IGNORECASE)


class Answer(NamedTuple):
    """What a command said."""

    code: int
    out: str
    err: str


Ask = Callable[[Sequence[str], str], Answer]


def ask(words: Sequence[str], text: str) -> Answer:
    """Run one of Slurm's commands, with `text` as its input."""
    try:
        done = subprocess.run(
            words, input=text, capture_output=True, text=True, errors="replace", timeout=_ANSWER_S, check=False,
            env={**own_environment(os.environ), **_FORMATS} if words[0] != "sbatch" else own_environment(os.environ),
        )  # fmt: skip
    except FileNotFoundError:
        raise EngineError(f"{words[0]} is not on PATH: log in to the cluster, or load its Slurm") from None
    except subprocess.TimeoutExpired:
        raise Transient(f"{words[0]} has not answered for {_ANSWER_S:g} s") from None
    return Answer(done.returncode, done.stdout, done.stderr)


def checked(answer: Answer, command: str) -> str:
    """Its output, where it went well."""
    if answer.code == 0 and not (not answer.out and _UNKNOWN.search(answer.err)):
        return answer.out
    lines = [re.sub(r"^\w+: (error: )?", "", line.strip()) for line in answer.err.splitlines() if line.strip()]
    text = f"{command}: {'; '.join(lines[:2]) or f'exit code {answer.code}'}"
    if _UNKNOWN.search(answer.err):
        raise NoSuchJob(text)
    if _NOT_ME.search(answer.err):
        raise NotSignedIn(text)
    if _AWAY.search(answer.err):
        raise Transient(text)
    raise EngineError(text)


def own_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Without pmrun's options, which are in the nodes' command."""
    options = {option.variable for option in OPTIONS}
    return {name: value for name, value in environ.items() if name not in options}
