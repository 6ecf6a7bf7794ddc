# SPDX-License-Identifier: Apache-2.0
"""`pmrun agent [options] script.py ...`: one node of a job, on each node of an engine.

With a program it is the whole node: who it is, where the main node is and the secret come from options, PMRUN_*
variables or the engine's own (launcher/standing.py). Without one it is the agent that a backend starts there: it reads
where to go and the secret from its standard input (launcher/bootstrap.py), which stays open as its lifeline: when it
ends, so do the agent and its ranks; what happens on the way to the meeting is told in lines on standard output that
begin with `MARK`. With `--code` it works in a directory of its own, in which it unpacked what was submitted. Invariant: when this process has ended, nothing that it started is left.
"""

from __future__ import annotations

import os
import sys

from pmrun import wire
from pmrun.errors import ExitCode, UsageError
from pmrun.launcher import bootstrap, options as opt
from pmrun.launcher.command_line import CommandLine, Kind, split
from pmrun.launcher.dial import Meeting
from pmrun.launcher.job import Nodes
from pmrun.launcher.keeper import Summons, keep_agent
from pmrun.launcher.option import Values
from pmrun.launcher.submission.choices import CODE, CODE_LIMIT, SUBMISSION
from pmrun.launcher.submission.node_command import SUBMITTED_BY
from pmrun.version import RELEASE

_HELP = """\
pmrun agent [options] script.py args...: be one node of a job

For schedulers: start the same command once on each node. It takes the options of pmrun; -n is for all nodes together.
The number of nodes, this one's, the main node's address and the secret come from --nnodes, --node-rank, --main and
--secret-file, else from PMRUN_NUM_NODES, PMRUN_NODE_RANK, PMRUN_MAIN and PMRUN_SECRET_FILE or PMRUN_SECRET, else from
what srun, AWS Batch, Kubernetes or mpirun say. Node 0 prints the output of all ranks; all nodes end with the job's code.
--code PLACE/HASH.tar.gz is a package that was submitted: it becomes the working directory, and goes with the job.
"""
_UNFIT = {opt.BACKEND, opt.HOSTS, opt.HOSTFILE, opt.SSH, *SUBMISSION} - {CODE, CODE_LIMIT}


def run(argv: list[str]) -> int:
    """Be the agent until the gang is over."""
    if argv in (["-h"], ["--help"]):
        sys.stdout.write(_HELP)
        return ExitCode.OK
    if argv[:1] == [SUBMITTED_BY]:
        from pmrun.launcher.code_package.stock_image import check_release

        check_release(argv[1] if len(argv) > 1 else "")
        argv = argv[2:]
    if argv:
        return _be_node(split(argv, help_command="pmrun agent --help"))
    if os.isatty(0):
        raise UsageError("say what this node runs; see pmrun agent --help")
    told = bootstrap.read(0)
    for name, value in told.environment:
        os.environb[name] = value
    meeting = Meeting(told.addresses, told.secret, told.node_rank, told.start_timeout_s)
    hello = wire.Hello(wire.VERSION, told.node_rank, 0, release=RELEASE)
    lifeline = os.dup(0)
    _tell("its agent runs")
    return keep_agent(Summons(meeting, hello, told.interface, deaf=told.deaf), lifeline, _tell).code


def _tell(text: str) -> None:
    try:
        os.write(1, bootstrap.MARK + text.encode() + b"\n")
    except OSError:
        return  # whoever would read it is gone, as the lifeline will say


# ---- a whole node -----------------------------------------------------------------------------------------


def _be_node(line: CommandLine) -> int:
    from pmrun.launcher.cli import read_values

    for setting in line.settings:
        if setting.option in _UNFIT or (not setting.option.settable and setting.option is not opt.NODE_RANK):
            raise UsageError(f"pmrun agent: {setting.option.spelling} has no meaning on a node; see pmrun agent --help")
    if line.kind is Kind.NOTHING:
        raise UsageError("say what this node runs; see pmrun agent --help")
    values = read_values(line, file=False)  # of a submitted job it was read where the user is
    # Of the command line alone: a file on the node may say what its owner submits.
    address = next((setting.text for setting in reversed(line.settings) if setting.option is CODE), None)
    if address is None:
        return _start(line, values)
    from pmrun.launcher.code_package.unpack import unpacked

    with unpacked(address, values.get(CODE_LIMIT) << 20) as folder:
        # Not this process's own directory: a module of the user's would be imported there for one of pmrun's.
        values.put(opt.CWD, os.path.join(folder, values.get(opt.CWD) or ""))
        _say(f"{os.uname().nodename} has the code of {address} in {folder}")
        return _start(line, values)


def _start(line: CommandLine, values: Values) -> int:
    from pmrun.launcher import cli
    from pmrun.launcher.one_node import be_node
    from pmrun.launcher.standing import find_place

    place = find_place(values, os.environ)
    ranks = values.get(opt.RANKS)
    if ranks is None or ranks < place.num_nodes:
        raise UsageError(f"say how many ranks there are on all nodes together, {place.num_nodes} at least: -n N")
    nodes = Nodes(count=place.num_nodes, rank=place.standing.node_rank, interface=values.get(opt.INTERFACE))
    job = cli.build_job_here(line, values, nodes, "by_hand", ranks)
    standing = place.standing
    who = f"node {standing.node_rank}" if standing.node_rank >= 0 else "a node"
    by = f" ({place.told_by})" if place.told_by else ""
    where = (
        f"the others dial port {standing.port}" if standing.node_rank == 0 else f"dials {standing.host}:{standing.port}"
    )
    _say(f"{os.uname().nodename} is {who} of {place.num_nodes}{by}, pmrun {RELEASE}; {where}")
    code = be_node(job, standing)
    _say(f"{os.uname().nodename} ends with exit code {code}")
    return code


def _say(text: str) -> None:
    print(f"pmrun: {text}", file=sys.stderr, flush=True)
