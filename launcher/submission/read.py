# SPDX-License-Identifier: Apache-2.0
"""What the options say about a job for an engine: read by the command line, and by the engine's own backend.

Which general options an engine has, and which keys of its own, its backend says (`check_options`, `read_keys`).
Invariant: an option or a key that nobody would heed is refused, with the nearest one that is known.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from pmrun.errors import UsageError
from pmrun.launcher import options as opt
from pmrun.launcher.command_line import Kind
from pmrun.launcher.job import Nodes, Submission
from pmrun.launcher.option import Option, Values, suggestion
from pmrun.launcher.submission import choices

if TYPE_CHECKING:
    from pmrun.launcher.command_line import CommandLine
    from pmrun.launcher.job import Job

_ELSEWHERE = (opt.HOSTS, opt.HOSTFILE, opt.NODE_RANK, opt.MAIN, opt.SECRET_FILE)
_NEEDS_THE_LAUNCHER = (opt.JSON_EVENTS,)


def read_submission(values: Values, engine: str) -> Submission:
    """The options of a submitted job; keys that are for other engines are left out."""
    wanted = engine.replace("-", "_")
    return Submission(
        name=values.get(choices.JOB_NAME),
        image=values.get(choices.IMAGE),
        queue=values.get(choices.QUEUE),
        namespace=values.get(choices.NAMESPACE),
        cpu=values.get(choices.CPU),
        gpu=values.get(choices.GPU),
        memory_mib=values.get(choices.MEMORY),
        shared_memory_mib=values.get(choices.SHARED_MEMORY),
        gang=values.get(choices.GANG),
        retries=values.get(choices.RETRIES),
        code=values.get(choices.CODE),
        code_limit_mib=values.get(choices.CODE_LIMIT),
        code_store=values.get(choices.CODE_STORE),
        pip=values.get(choices.PIP),
        settings=tuple(
            (key, value) for who, key, value in values.get(choices.WITH) if who.replace("-", "_") in ("", wanted)
        ),
        detach=values.get(choices.DETACH),
        on_interrupt=values.get(choices.ON_INTERRUPT),
    )


def read_nodes(values: Values, line: CommandLine, engine: str, usual: int) -> tuple[Nodes, int]:
    """How many nodes and ranks the job has; options that could not be kept there are refused."""
    for setting in line.settings:
        if setting.option in _ELSEWHERE:
            raise UsageError(
                f"{setting.option.spelling} has no meaning with --on {engine}, which finds the nodes itself"
            )
        if setting.option in _NEEDS_THE_LAUNCHER:
            raise UsageError(f"{setting.option.spelling}: the job runs elsewhere; see: pmrun status JOB --json")
    if values.get(opt.STDIN) not in (0, "none"):
        raise UsageError(f"--stdin {values.get(opt.STDIN)}: nobody can type to a job on {engine}; leave it out")
    least, count = values.get(opt.NODES) or (values.get(opt.NNODES) or usual,) * 2
    if least != count:
        raise UsageError(f"--nodes {least}:{count}: a job on {engine} has all its nodes or none; give one number")
    ranks = values.get(opt.RANKS)
    if ranks is None:
        raise UsageError(f"--on {engine}: say how many ranks there are on all nodes together: -n N")
    if ranks < count:
        raise UsageError(f"-n {ranks}: that is less than one rank for each of {count} nodes")
    return Nodes(count=count, interface=values.get(opt.INTERFACE)), ranks


def program_words(line: CommandLine) -> tuple[str, ...]:
    """The program as the command line has it; what it means is found out on the nodes."""
    start = {Kind.MODULE: ("-m",), Kind.PROGRAM: ("--",)}.get(line.kind, ())
    if not line.words:
        raise UsageError("nothing to run; write: pmrun -n 4 script.py args... (pmrun --help has examples)")
    return (*start, *line.words)


def title_of(job: Job) -> str:
    """What the job is called where the user did not say: as its script or program is."""
    assert job.submission is not None
    words = job.command[1:] if job.command[0] in ("-m", "--") else job.command
    name = words[0].rstrip("/").rpartition("/")[2]
    return job.submission.name or name.removesuffix(".py") or "pmrun"


# ---- for backends -----------------------------------------------------------------------------------------


class Key(NamedTuple):
    """A key of `--with` that one engine has. `parse` raises ValueError with cause and remedy."""

    name: str
    parse: Callable[[str], Any]
    text: str  # what it does, for its documentation
    many: bool = False  # may be given more than once; its value is then a tuple


def read_keys(engine: str, submission: Submission, table: tuple[Key, ...]) -> dict[str, Any]:
    """The values of the keys that were given."""
    known = {key.name: key for key in table}
    values: dict[str, Any] = {}
    for name, text in submission.settings:
        key = known.get(name)
        if key is None:
            raise UsageError(f"--with {name}: {engine} has no such key{_instead(name, list(known))}")
        try:
            value = key.parse(text)
        except ValueError as error:
            raise UsageError(f"--with {name}={text}: {error}") from None
        values[name] = (*values.get(name, ()), value) if key.many else value
    return values


def _instead(name: str, known: list[str]) -> str:
    if any(option.name == name for option in opt.OPTIONS):
        return f"; it is an option: --{name}"
    return f"{suggestion(name, known)}; it has: {', '.join(sorted(known))}"


_GENERAL: Mapping[str, Option[Any]] = {
    "image": choices.IMAGE,
    "queue": choices.QUEUE,
    "namespace": choices.NAMESPACE,
    "cpu": choices.CPU,
    "gpu": choices.GPU,
    "memory_mib": choices.MEMORY,
    "shared_memory_mib": choices.SHARED_MEMORY,
    "gang": choices.GANG,
    "retries": choices.RETRIES,
    "code": choices.CODE,
    "code_store": choices.CODE_STORE,
    "pip": choices.PIP,
}


def check_options(engine: str, submission: Submission, understood: frozenset[str]) -> None:
    """UsageError for a general option that this engine does not have; `understood` are fields of `Submission`."""
    for field, option in _GENERAL.items():
        if field not in understood and getattr(submission, field) != option.default:
            raise UsageError(f"{option.spelling} has no meaning with --on {engine}; leave it out")
