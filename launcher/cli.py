# SPDX-License-Identifier: Apache-2.0
"""The `pmrun` command: from the command line to a Job, and from the backend's result to the exit code.

Reads options (command line over environment over file), checks everything that can be checked before a process
exists, builds the Job and hands it to the backend. A mistake of the user is one line on standard error and exit
code 2. Invariant: until a Job is complete nothing was started and nothing was created.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

from pmrun.env import RESULTS_FD
from pmrun.errors import EngineError, ExitCode, LaunchError, UsageError
from pmrun.launcher import commands, options as opt
from pmrun.launcher.command_line import Kind, split
from pmrun.launcher.option import Values, suggestion
from pmrun.launcher.submission.choices import SUBMISSION
from pmrun.version import RELEASE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pmrun.launcher.command_line import CommandLine
    from pmrun.launcher.job import Job, Nodes


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of the `pmrun` command; returns the exit code.

    Parameters
    ----------
    arguments : sequence of str, optional
        Without the program's name; by default those of this process.
    """
    try:
        return _run(sys.argv[1:] if arguments is None else arguments)
    except UsageError as error:
        return _complain(str(error), ExitCode.USAGE)
    except LaunchError as error:
        return _complain(str(error), ExitCode.START_FAILED)
    except EngineError as error:
        return _complain(str(error), ExitCode.ENGINE_FAILED)
    except KeyboardInterrupt:
        return ExitCode.INTERRUPTED
    except Exception:  # noqa: BLE001 - whatever else is raised is a defect, which has an exit code of its own
        sys.excepthook(*sys.exc_info())
        return _complain("this is a defect of pmrun; please report it with the lines above", ExitCode.INTERNAL)


def _complain(text: str, code: int) -> int:
    print("pmrun: " + " ".join(text.splitlines()), file=sys.stderr)
    return code


def _show(text: str) -> int:
    """Write `text` to the standard output, whose failing is no defect of pmrun; returns the exit code."""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except OSError as error:
        # What the stream still holds would fail once more when the interpreter ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):  # `pmrun --help | head -1`: whoever read has what they wanted
            return ExitCode.OK
        return _complain(f"cannot write the standard output: {error.strerror}", ExitCode.OUTPUT_FAILED)
    return ExitCode.OK


def _run(arguments: Sequence[str]) -> int:
    command = commands.find(arguments[0]) if arguments else None
    if command is not None:
        return command(list(arguments[1:]))
    line = split(arguments)
    asked = Values()
    for setting in line.settings:
        if not setting.option.settable:
            asked.put(setting.option, setting.text)
    page = _page(asked)
    if page:
        return _show(page)
    job = build_job(line)
    return _hand_over(job, dry_run=asked.get(opt.DRY_RUN))


def _page(asked: Values) -> str:
    """Help, version or completion script, where one was asked for."""
    if asked.get(opt.HELP):
        from pmrun.launcher.help_page import help_page

        return help_page(colour=sys.stdout.isatty() and not os.environ.get("NO_COLOR"))
    if asked.get(opt.VERSION):
        return _version()
    shell = asked.get(opt.COMPLETION)
    if shell:
        from pmrun.launcher.completion import completion_script

        return completion_script(shell)
    return ""


def _version() -> str:
    python = ".".join(map(str, sys.version_info[:3]))
    return f"pmrun {RELEASE} (Python {python}, {sys.executable})\n"


def _hand_over(job: Job, *, dry_run: bool) -> int:
    """To the backend."""
    from pmrun.launcher import backends

    backend = backends.load(job.backend).Backend()
    if dry_run:
        import json

        return _show(json.dumps(backend.dry_run(job), indent=2) + "\n")
    if job.output.directory is not None and job.submission is None:
        _make_directory(job.output.directory)
    wanted = os.environ.pop(RESULTS_FD, None)
    if wanted is not None:
        import msgspec

        from pmrun.launcher.results import adopt

        job = msgspec.structs.replace(job, results_fd=adopt(wanted))
    code: int = backend.run(job)
    return code


# ---- the job ----------------------------------------------------------------------------------------------


def read_values(line: CommandLine, *, file: bool = True) -> Values:
    """All options, the stronger source put over the weaker; `file` says whether the configuration file counts."""
    from pmrun.launcher import config

    values = Values()
    settings = [*(config.from_file(_here()) if file else ()), *config.from_environment(os.environ), *line.settings]
    for setting in settings:
        try:
            values.put(setting.option, setting.text)
        except ValueError as error:
            raise UsageError(f"{setting.origin}: {error}") from None
    return values


def build_job(line: CommandLine) -> Job:
    """Check everything that needs no process, and say it all in one Job."""
    if line.kind is Kind.NOTHING and not line.settings:
        raise UsageError("nothing to run; write: pmrun -n 4 script.py args... (pmrun --help has examples)")
    from pmrun.launcher import backends
    from pmrun.launcher.nodes import read_nodes

    values = read_values(line)
    name = values.get(opt.BACKEND)
    if name is not None and backends.submits(name):
        return _submitted_job(line, values, name)
    for setting in line.settings:
        if setting.option in SUBMISSION:
            raise UsageError(f"{setting.option.spelling} is for a job on an engine, and this one has none: give --on")
    nodes, default, world_size = read_nodes(values)
    return build_job_here(line, values, nodes, _backend_name(values, default), world_size)


def build_job_here(line: CommandLine, values: Values, nodes: Nodes, backend: str, ranks: int | None) -> Job:
    """A job whose ranks, or those of this node, start where this is: all that it names is looked for."""
    from pmrun.launcher.cgroup import ControlGroups, usable_cpus
    from pmrun.launcher.program import complete_command

    cwd = _directory(values)
    env = _environment(values)
    command = complete_command(line, cwd or _here(), {**os.environ, **dict(env)})
    return _job(
        values, ranks or usable_cpus(ControlGroups()), _output_directory(values), command=command, backend=backend,
        cwd=cwd, env=env, nodes=nodes,
    )  # fmt: skip


def _submitted_job(line: CommandLine, values: Values, engine: str) -> Job:
    """A job that starts elsewhere: its words are kept, and what they mean is found out there."""
    from pmrun.launcher import backends
    from pmrun.launcher.submission import read

    usual: int = backends.load(engine).Backend().usual_nodes()
    nodes, ranks = read.read_nodes(values, line, engine, usual)
    return _job(
        values, ranks, values.get(opt.OUTPUT_DIR), command=read.program_words(line), backend=engine,
        cwd=values.get(opt.CWD), env=_environment(values), nodes=nodes,
        submission=read.read_submission(values, engine),
    )  # fmt: skip


def _job(values: Values, world_size: int, output_directory: str | None, **where: Any) -> Job:
    """What all jobs have in common, and `where`: the other fields."""
    from pmrun.launcher.job import BindTo, Job, Output, Stream

    stdin = values.get(opt.STDIN)
    if isinstance(stdin, int) and stdin >= world_size:
        raise UsageError(f"--stdin {stdin}: there is no rank {stdin} among {_ranks(world_size)}; choose one of them")
    return Job(
        world_size=world_size,
        map_by=BindTo(values.get(opt.MAP_BY)),
        bind_to=BindTo(values.get(opt.BIND_TO) or values.get(opt.MAP_BY)),  # a map alone would do nothing
        stdin=stdin if isinstance(stdin, int) else Stream(stdin),
        output=Output(
            tag=values.get(opt.TAG),
            timestamp=values.get(opt.TIMESTAMP),
            only_ranks=_only_ranks(values, world_size),
            directory=output_directory,
        ),
        timeout_s=values.get(opt.TIMEOUT),
        start_timeout_s=values.get(opt.START_TIMEOUT),
        grace_s=values.get(opt.GRACE),
        hang_timeout_s=values.get(opt.HANG_TIMEOUT),
        hang_ends=values.get(opt.ON_HANG) == "end",
        max_restarts=values.get(opt.MAX_RESTARTS),
        pdb_on_error=values.get(opt.PDB_ON_ERROR),
        json_events=_events_file(values),
        transport=values.get(opt.TRANSPORT),
        reproducible=values.get(opt.REPRODUCIBLE),
        encrypt=values.get(opt.ENCRYPT),
        **where,
    )


def _ranks(world_size: int) -> str:
    return "1 rank (0)" if world_size == 1 else f"{world_size} ranks (0 to {world_size - 1})"


def _here() -> str:
    try:
        return os.getcwd()
    except FileNotFoundError:
        raise UsageError("the current directory does not exist any more; cd to another one") from None


def _backend_name(values: Values, default: str) -> str:
    """The backend's name, once its module could be loaded; listing all is left for the error."""
    from pmrun.launcher import backends

    name = values.get(opt.BACKEND) or default
    try:
        backends.load(name)
    except UsageError:
        known = backends.names()
        close = suggestion(name, known)
        raise UsageError(
            f"--on {name}: there is no backend '{name}'{close}; choose one of: {', '.join(known)}"
        ) from None
    return name


def _directory(values: Values) -> str | None:
    cwd = values.get(opt.CWD)
    if cwd is None:
        return None
    path = os.path.join(_here(), cwd)
    if not os.path.isdir(path):
        what = "is not a directory" if os.path.exists(path) else "does not exist"
        raise UsageError(f"--cwd {cwd}: {path} {what}; name a directory or create it first")
    if not os.access(path, os.X_OK):
        raise UsageError(f"--cwd {cwd}: {path} may not be entered; try: chmod +x {path}")
    return path


def _environment(values: Values) -> tuple[tuple[str, str], ...]:
    """Pairs in the order given, the last of equal names alone; a bare name is looked up here."""
    pairs: dict[str, str] = {}
    for name, value in values.get(opt.ENV):
        if value is None:
            value = os.environ.get(name)
        if value is None:
            raise UsageError(f"--env {name}: {name} is not set here; give it a value: --env {name}=VALUE")
        pairs[name] = value
    return tuple(pairs.items())


def _only_ranks(values: Values, world_size: int) -> frozenset[int] | None:
    ranks = values.get(opt.ONLY_RANKS)
    if ranks is not None and max(ranks) >= world_size:
        raise UsageError(f"--only-ranks: there is no rank {max(ranks)} among {_ranks(world_size)}; choose from them")
    return ranks


def _output_directory(values: Values) -> str | None:
    """Checked now, created when the backend has the job, so that a refused job leaves no directory behind."""
    directory = values.get(opt.OUTPUT_DIR)
    if directory is None:
        return None
    path = os.path.join(_here(), directory)
    existing = path
    while not os.path.lexists(existing):
        existing = os.path.dirname(existing)
    if not os.path.isdir(existing):
        raise UsageError(f"--output-dir {directory}: {existing} is not a directory; choose another place")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise UsageError(f"--output-dir {directory}: {existing} may not be written to; choose another place")
    return path


def _make_directory(path: str) -> None:
    try:
        os.makedirs(path, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--output-dir: cannot create {path}: {error.strerror}; choose another place") from None


def _events_file(values: Values) -> str | None:
    name = values.get(opt.JSON_EVENTS)
    if name is None:
        return None
    path = os.path.join(_here(), name)
    folder = os.path.dirname(path)
    if os.path.isdir(path):
        raise UsageError(f"--json-events {name}: {path} is a directory; name a file in it")
    if not os.path.isdir(folder):
        raise UsageError(f"--json-events {name}: there is no directory {folder}; create it first")
    if not os.access(path if os.path.exists(path) else folder, os.W_OK):
        raise UsageError(f"--json-events {name}: {path} may not be written; choose another file")
    return path
