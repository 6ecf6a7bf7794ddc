# SPDX-License-Identifier: Apache-2.0
"""What the user asked for: a `Job`, checked once, then never changed.

The command line (and later the decorators) build a Job; a backend turns it into running ranks. Invariant: a
Job that exists is valid; everything a backend needs is in it.
"""

from __future__ import annotations

import enum

import msgspec


class Stream(enum.Enum):
    """Whom the launcher's standard input goes to, when not to one rank."""

    NONE = "none"
    ALL = "all"


class BindTo(enum.Enum):
    """CPUs of a rank: its own core(s), or wherever the kernel puts it."""

    NONE = "none"
    CORE = "core"


class Output(msgspec.Struct, frozen=True):
    """How the ranks' output is shown and kept."""

    tag: bool = True  # "[3] " before each line
    timestamp: bool = False
    only_ranks: frozenset[int] | None = None  # None: all are shown
    directory: str | None = None  # a file per rank: rank-3.out, rank-3.err


class Nodes(msgspec.Struct, frozen=True):
    """Where the ranks run, when it is not this machine alone."""

    hosts: tuple[tuple[str, int], ...] = ()  # names and numbers of ranks, in node order; none has 0
    spares: tuple[tuple[str, int], ...] = ()  # further hosts, and the most ranks that each takes
    least: int | None = None  # an attempt may begin with so few nodes; None: all are needed
    ssh: tuple[str, ...] = ("ssh",)  # the client and its options
    count: int = 1  # of nodes that are started by hand
    rank: int | None = None  # of this one, None: not known
    main: str | None = None  # address of the main node, perhaps with a port
    secret_file: str | None = None
    interface: str | None = None  # a name, an address or a network; None: the way to the main node


class Submission(msgspec.Struct, frozen=True):
    """What a job says to the engine that it is submitted to; what was not said is None, and the engine's to choose."""

    name: str | None = None
    image: str | None = None
    queue: str | None = None
    namespace: str | None = None
    cpu: float | None = None  # this and the next three: of each node
    gpu: int | None = None
    memory_mib: int | None = None
    shared_memory_mib: int | None = None
    gang: str | None = None
    retries: int = 0  # of the whole job, by the engine
    code: str | None = None  # the directory whose files are sent to the nodes
    code_limit_mib: int = 64
    code_store: str | None = None  # where they wait for the nodes
    pip: str | None = None  # what nodes install pmrun from, where their image has none
    settings: tuple[tuple[str, str], ...] = ()  # keys and values that this engine alone knows
    detach: bool = False
    on_interrupt: str = "ask"


class Job(msgspec.Struct, frozen=True):
    """One gang, as asked for. `command` is complete: the interpreter is already in it. Only a job that is submitted has
    the words of the command line there instead, which are completed on its nodes."""

    command: tuple[str, ...]
    world_size: int
    backend: str = "local"
    cwd: str | None = None
    env: tuple[tuple[str, str], ...] = ()  # added to (or replacing) what the launcher inherited
    map_by: BindTo = BindTo.NONE
    bind_to: BindTo = BindTo.NONE
    stdin: int | Stream = 0  # a rank, or ALL/NONE
    output: Output = msgspec.field(default_factory=Output)
    timeout_s: float | None = None
    start_timeout_s: float = 60.0
    grace_s: float = 5.0
    hang_timeout_s: float = 300.0  # 0: none
    hang_ends: bool = True  # the gang, once it was told
    max_restarts: int = 0  # of the whole gang, after it failed
    pdb_on_error: bool = False
    json_events: str | None = None
    transport: str = "auto"  # between nodes
    reproducible: bool = False  # the same bits on any layout
    encrypt: bool = False  # data between nodes
    nodes: Nodes = msgspec.field(default_factory=Nodes)
    results_fd: int | None = None  # for the program that started pmrun (launcher/results.py)
    submission: Submission | None = None  # to an engine; None: pmrun runs the job itself
