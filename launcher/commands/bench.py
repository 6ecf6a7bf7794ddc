# SPDX-License-Identifier: Apache-2.0
"""`pmrun bench [operations]`: measures what connects the ranks, here or between machines.

All of pmrun's options say where the ranks run, as for a program. The gang is started by the `pmrun` command itself, with
`-m pmrun.bench`; rank 0 writes a line for each point, from which table, file and plot are made here. Invariant: what is
wrong with the command line is one line and exit code 2, before a rank exists.
"""

from __future__ import annotations

import sys
from typing import Any

from pmrun.bench import points
from pmrun.errors import ExitCode, UsageError
from pmrun.launcher import cli
from pmrun.launcher.bench import choices as opt, record
from pmrun.launcher.bench.gangs import Contender, Line, parse, pmrun_contender, running
from pmrun.launcher.bench.table import Table
from pmrun.launcher.command_line import CommandLine, Kind, Setting
from pmrun.launcher.job import Job
from pmrun.launcher.options import DRY_RUN, HELP, TAG

_LOOPS = 5


def run(argv: list[str]) -> int:
    """Measure, and return the gang's exit code."""
    choices = opt.read(argv)
    asked = {setting.option for setting in choices.settings}
    if HELP in asked:
        sys.stdout.write(opt.help_text())
        return ExitCode.OK
    if choices.values.get(opt.INSTALL):
        return _install(choices)
    opt.check_files(choices.values)
    plan = make_plan(choices)
    asked_for = [setting for setting in choices.settings if setting.option is not DRY_RUN]
    job = cli.build_job(CommandLine(asked_for, Kind.MODULE, ("pmrun.bench",)))
    if job.world_size < 2:
        raise UsageError("pmrun bench measures between ranks, and this gang has one: give at least -n 2")
    words = [*spelled(choices.settings), f"--no-{TAG.name}"]
    nodes = max(len(job.nodes.hosts), job.nodes.count)
    contender = pmrun_contender(words, choices.values.get(opt.MEMORY), nodes)
    if DRY_RUN in asked:
        return cli.main(contender.measuring(plan)[3:])
    settings = settings_of(choices, job)
    old_name = choices.values.get(opt.COMPARE)
    old = record.read(old_name, settings) if old_name is not None else None
    if choices.values.get(opt.AGAINST):
        return _beside(choices, job, contender, settings)
    table = Table(sys.stdout, job.world_size, settings["dtype"], old)
    lines, code = _follow(contender.measuring(plan), table, settings)
    if lines:  # on the main node alone, where each node is started by hand
        table.end()
        keep(choices, settings, lines, complete=code == ExitCode.OK)
    return code


def _beside(choices: opt.Choices, job: Job, contender: Contender, settings: dict[str, Any]) -> int:
    """Measure peers too, in the same places, and show all beside each other."""
    from pmrun.launcher.bench import across, beside

    names = choices.values.get(opt.AGAINST)
    if job.backend == "by_hand":
        raise UsageError("--peers starts all contenders from here: give --hosts A:8,B:8 instead of --nnodes")
    if choices.values.get(opt.COMPARE) is not None:
        raise UsageError("--compare compares pmrun with itself: leave out --peers, which compares it with others")
    if points.PAIRS in choices.operations:
        choices.operations.remove(points.PAIRS)
    environments = opt.environments(choices.values)
    environments.require(names)
    if job.nodes.hosts:
        place = across.place_of(job.nodes, contender.command, record.cores(), names)
        peers = across.contenders(environments, names, place)
        settings["nodes"] = [name for name, _ in job.nodes.hosts]
    else:
        peers = environments.contenders(names, job.world_size, record.cores())
        settings["nodes"] = [settings["host"]]
    print(title(settings), flush=True)
    lines, failed = beside.rounds(
        [contender, *peers], make_plan(choices), job.world_size, choices.values.get(opt.ROUNDS)
    )
    beside.show(lines, contender.variant, sys.stdout)
    keep(choices, {**settings, "versions": environments.versions()}, lines, complete=not failed)
    return 1 if failed else ExitCode.OK


def make_plan(choices: opt.Choices) -> dict[str, Any]:
    """What the ranks are told."""
    values = choices.values
    return {
        "operations": choices.operations,
        "sizes": choices.sizes,
        "dtype": values.get(opt.DTYPE),
        "op": values.get(opt.OP),
        "loops": _LOOPS,
        "loop_s": values.get(opt.TIME) / _LOOPS,
        "warm_up": values.get(opt.WARM_UP),
        "check": values.get(opt.CHECK),
    }


def settings_of(choices: opt.Choices, job: Job) -> dict[str, Any]:
    """What the file says of a run."""
    plan = make_plan(choices)
    kept = {name: plan[name] for name in ("dtype", "op", "loops", "loop_s", "warm_up", "check")}
    where = {"ranks": job.world_size, "backend": job.backend, "transport": job.transport, "encrypt": job.encrypt}
    return {**record.machine(), **where, **kept}


def spelled(settings: list[Setting]) -> list[str]:
    """pmrun's own options, as words again."""
    words = []
    for setting in settings:
        option = setting.option
        if option.flag:
            words.append(f"--{option.name}" if setting.text == "true" else f"--no-{option.name}")
        else:
            words += [option.spelling, setting.text]
    return words


def _follow(command: list[str], table: Table, settings: dict[str, Any]) -> tuple[list[Line], int]:
    """Show the gang's lines as they come; return them and its exit code."""
    lines: list[Line] = []
    with running(command, {}, errors=None) as process:
        assert process.stdout is not None
        for text in process.stdout:
            line = parse(text)
            if line is None:
                sys.stderr.write(text)
            elif line["kind"] == "world":
                settings["nodes"] = [name for name, _ in line["nodes"]]
                settings["transport_used"] = line["transport"]
                print(title(settings), flush=True)
            else:
                line = {**line, "contender": "pmrun", "variant": command[-2], "round": 0, "ranks": settings["ranks"]}
                lines.append(line)
                table.add(line)
    return lines, process.returncode if process.returncode >= 0 else 128 - process.returncode


def title(settings: dict[str, Any]) -> str:
    """What stands above the table."""
    nodes = settings["nodes"]
    where = (
        f"{len(nodes)} nodes ({', '.join(nodes[:4])}{', ...' if len(nodes) > 4 else ''})"
        if len(nodes) > 1
        else nodes[0]
    )
    checked = ", every result checked" if settings["check"] else ""
    used = settings.get("transport_used", "")
    between = f"between nodes: {used}\n" if used else ""
    return (
        f"pmrun bench: {settings['ranks']} ranks on {where}, {settings['dtype']}, {settings['op']}{checked}\n{between}"
    )


def keep(choices: opt.Choices, settings: dict[str, Any], lines: list[Line], *, complete: bool) -> None:
    """Write the file and draw the plot that were asked for."""
    name = choices.values.get(opt.JSON)
    if name is not None:
        record.write(name, settings, lines, complete=complete)
    plot = choices.values.get(opt.PLOT)
    if plot is not None:
        from pmrun.launcher.bench.plot import draw_lines

        draw_lines(lines, plot)


def _install(choices: opt.Choices) -> int:
    """Make the peers' environments."""
    from pmrun.launcher.bench.peers import PEERS

    names: tuple[str, ...] = choices.values.get(opt.INSTALL)
    environments = opt.environments(choices.values)
    failed = environments.install(names)
    if failed:
        shown = ", ".join(PEERS[name].shown for name in failed)
        raise UsageError(f"--install-peers: {shown} could not be installed; see the lines above")
    print(f"ready in {environments.home}: {', '.join(environments.available())}")
    return ExitCode.OK
