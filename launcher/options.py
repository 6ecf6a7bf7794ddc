# SPDX-License-Identifier: Apache-2.0
"""The options of the `pmrun` command: each one once, with its text, type, default and help.

The command line, the environment (PMRUN_<NAME>), the configuration file, the help page and the shell completions
are all made from the table at the end, so an option cannot be known to one and not to another. Those of jobs that an
engine runs are in launcher/submission/choices.py. Invariant: nothing here looks at the machine or at other options.
"""

from __future__ import annotations

from typing import Any

from pmrun.launcher.option import (
    RANKS_MAX,
    TIME,
    WHOLE,
    EnvPairs,
    Hosts,
    NodeRange,
    Option,
    Ranks,
    one_of,
    parse_count,
    parse_duration,
    parse_duration_above_zero,
    parse_env,
    parse_flag,
    parse_host_list,
    parse_limit,
    parse_node_range,
    parse_on_hang,
    parse_rank_set,
    parse_stdin,
    parse_text,
    whole_number,
)
from pmrun.launcher.submission.choices import SUBMISSION

TRANSPORTS = ("auto", "tcp", "zmq")
BINDINGS = ("core", "none")

START = "Ranks and where they run"
MACHINES = "Several machines"
RUNNING = "Environment and time limits"
OUTPUT = "Input and output"
OTHER = "Other"

RANKS: Option[int | None] = Option(
    "n", parse_count, None, short="n", metavar="N", group=START, complete="auto", kinds=WHOLE,
    text="how many ranks; 'auto' (default): the CPUs of the affinity mask and cgroup quota",
)  # fmt: skip
BACKEND: Option[str | None] = Option(
    "on", parse_text, None, metavar="BACKEND", group=START, complete="local ssh by_hand slurm",
    text="where the job runs: local (this machine; default), ssh (with --hosts), by_hand (with --nnodes), an engine",
)  # fmt: skip
HOSTS: Option[Hosts | None] = Option(
    "hosts", parse_host_list, None, metavar="A:8,B:8", group=MACHINES, kinds=(str, list),
    text="run on these hosts by ssh, with so many ranks on each at most; those without a number share the rest",
)  # fmt: skip
HOSTFILE: Option[str | None] = Option(
    "hostfile", parse_text, None, metavar="FILE", group=MACHINES, complete="file",
    text="hosts from a file, a line for each: 'name slots=8' or 'name:8'",
)  # fmt: skip
SSH = Option(
    "ssh", parse_text, "ssh", metavar="COMMAND", group=MACHINES,
    text="the ssh client and options for it, as in 'ssh -p 2222'; default: ssh",
)  # fmt: skip
NNODES: Option[int | None] = Option(
    "nnodes", whole_number(1, RANKS_MAX, "the number of nodes"), None, metavar="N", group=MACHINES, kinds=WHOLE,
    text="the job has so many nodes, and this command is given on each of them; -n is for all together",
)  # fmt: skip
NODES: Option[NodeRange | None] = Option(
    "nodes", parse_node_range, None, metavar="MIN:MAX", group=MACHINES, kinds=WHOLE,
    text="an attempt begins with as many nodes as there are, MIN at least and MAX at most; default: with all",
)  # fmt: skip
NODE_RANK: Option[int | None] = Option(
    "node-rank", whole_number(0, RANKS_MAX - 1, "a node's number"), None, metavar="R", group=MACHINES, settable=False,
    text="number of this node, 0 for the main node; default: by natural order of the machines' names",
)  # fmt: skip
MAIN: Option[str | None] = Option(
    "main", parse_text, None, metavar="ADDR[:PORT]", group=MACHINES,
    text="where the main node listens; default of the port: one that follows from the secret",
)  # fmt: skip
SECRET_FILE: Option[str | None] = Option(
    "secret-file", parse_text, None, metavar="FILE", group=MACHINES, complete="file",
    text="the job's secret, the same on every node, at least 32 bytes, mode 0600; 'pmrun secret FILE' makes one",
)  # fmt: skip
INTERFACE: Option[str | None] = Option(
    "interface", parse_text, None, metavar="NAME|NET", group=MACHINES,
    text="interface, address or network (10.0.0.0/8) to use on each node; default: the way to the main node",
)  # fmt: skip
TRANSPORT = Option(
    "transport", one_of(TRANSPORTS, "transport"), "auto", metavar="auto|tcp|zmq", group=MACHINES,
    complete=" ".join(TRANSPORTS),
    text="what carries data between nodes; default: auto, the faster one",
)  # fmt: skip
REPRODUCIBLE = Option(
    "reproducible", parse_flag, False, flag=True, negatable=True, group=MACHINES,
    text="sums have the same bits on any layout of nodes, at the price of more traffic; default: no",
)  # fmt: skip
ENCRYPT = Option(
    "encrypt", parse_flag, False, flag=True, negatable=True, group=MACHINES,
    text="encrypt the data between nodes (what controls the job always is); default: no",
)  # fmt: skip
MAP_BY = Option(
    "map-by", one_of(BINDINGS, "binding"), "none", metavar="core|none", group=START, complete=" ".join(BINDINGS),
    text="core: give each rank cores of its own, in rank order (round robin where there are fewer cores than "
    "ranks), and bind it to them unless --bind-to none; default: none",
)  # fmt: skip
BIND_TO: Option[str | None] = Option(
    "bind-to", one_of(BINDINGS, "binding"), None, metavar="core|none", group=START, complete=" ".join(BINDINGS),
    text="core: keep each rank on cores of its own; default: what --map-by says",
)  # fmt: skip
ENV: Option[EnvPairs] = Option(
    "env", parse_env, (), short="x", metavar="NAME[=VALUE]", group=RUNNING, repeatable=True, kinds=(str, list, dict),
    text="set a variable for the ranks, or hand on the one that is set here; may be repeated",
)  # fmt: skip
CWD: Option[str | None] = Option(
    "cwd", parse_text, None, metavar="DIR", group=RUNNING, complete="dir",
    text="run in this directory; the script is looked up there too",
)  # fmt: skip
TIMEOUT: Option[float | None] = Option(
    "timeout", parse_duration_above_zero, None, metavar="TIME", group=RUNNING, kinds=TIME,
    text="stop the job after this long, exit code 124; default: no limit",
)  # fmt: skip
START_TIMEOUT = Option(
    "start-timeout", parse_duration_above_zero, 60.0, metavar="TIME", group=RUNNING, kinds=TIME,
    text="how long starting all ranks may take; default: 60s",
)  # fmt: skip
GRACE = Option(
    "grace", parse_duration, 5.0, metavar="TIME", group=RUNNING, kinds=TIME,
    text="how long ranks may take to end after they were asked to; default: 5s",
)  # fmt: skip
HANG_TIMEOUT = Option(
    "hang-timeout", parse_limit, 300.0, metavar="TIME|none", group=RUNNING, complete="none",
    text="how long a rank may wait in one call before it is a hang, which is told with all ranks' stacks; default: 300s",
)  # fmt: skip
ON_HANG = Option(
    "on-hang", parse_on_hang, "end", metavar="end|report", group=RUNNING, complete="end report",
    text="what follows a hang: end the job, exit code 79, or only report it; default: end",
)  # fmt: skip
MAX_RESTARTS = Option(
    "max-restarts", whole_number(0, RANKS_MAX, "the number of restarts"), 0, metavar="N", group=RUNNING, kinds=WHOLE,
    text="start the whole gang again, at most so often, after a rank failed or a node was lost; default: 0",
)  # fmt: skip
PDB_ON_ERROR = Option(
    "pdb-on-error", parse_flag, False, flag=True, negatable=True, group=RUNNING,
    text="an exception that a rank does not catch leads into pdb, here or by 'pmrun attach'; the others wait; default: no",
)  # fmt: skip
TAG = Option(
    "tag", parse_flag, True, flag=True, negatable=True, group=OUTPUT,
    text="begin each line with its rank; default: yes",
)  # fmt: skip
TIMESTAMP = Option(
    "timestamp", parse_flag, False, flag=True, negatable=True, group=OUTPUT,
    text="begin each line with the time; default: no",
)  # fmt: skip
ONLY_RANKS: Option[Ranks | None] = Option(
    "only-ranks", parse_rank_set, None, metavar="0,2-4", group=OUTPUT, kinds=(int, str, list),
    text="show the output of these ranks only; default: all",
)  # fmt: skip
OUTPUT_DIR: Option[str | None] = Option(
    "output-dir", parse_text, None, metavar="DIR", group=OUTPUT, complete="dir",
    text="also write each rank's output to files in this directory",
)  # fmt: skip
STDIN: Option[int | str] = Option(
    "stdin", parse_stdin, 0, metavar="RANK|all|none", group=OUTPUT, complete="0 all none", kinds=WHOLE,
    text="who reads what you type or pipe in; default: rank 0",
)  # fmt: skip
JSON_EVENTS: Option[str | None] = Option(
    "json-events", parse_text, None, metavar="FILE", group=OUTPUT, complete="file",
    text="write what happens to the job to FILE, one JSON object a line",
)  # fmt: skip
DRY_RUN = Option(
    "dry-run", parse_flag, False, flag=True, settable=False, group=OTHER,
    text="start nothing; print what would be started, as JSON",
)  # fmt: skip
COMPLETION: Option[str | None] = Option(
    "completion", parse_text, None, metavar="SHELL", settable=False, group=OTHER, complete="bash zsh fish",
    text="print the completion script for bash, zsh or fish",
)  # fmt: skip
VERSION = Option(
    "version", parse_flag, False, short="V", flag=True, settable=False, group=OTHER,
    text="print the version",
)  # fmt: skip
HELP = Option(
    "help", parse_flag, False, short="h", flag=True, settable=False, group=OTHER,
    text="print this page",
)  # fmt: skip

OPTIONS: tuple[Option[Any], ...] = (
    RANKS, BACKEND, MAP_BY, BIND_TO,
    HOSTS, HOSTFILE, SSH, NODES, NNODES, NODE_RANK, MAIN, SECRET_FILE, INTERFACE, TRANSPORT, REPRODUCIBLE, ENCRYPT,
    ENV, CWD, TIMEOUT, START_TIMEOUT, GRACE, HANG_TIMEOUT, ON_HANG, MAX_RESTARTS, PDB_ON_ERROR,
    TAG, TIMESTAMP, ONLY_RANKS, OUTPUT_DIR, STDIN, JSON_EVENTS,
    *SUBMISSION,
    DRY_RUN, COMPLETION, VERSION, HELP,
)  # fmt: skip
