# SPDX-License-Identifier: Apache-2.0
"""The words that controller and agent say to each other: one tagged union of msgspec structs.

A message is `encode`d to MessagePack and travels as one frame of a link (launcher/link.py, launcher/net_link.py). Text that the
operating system gave us (arguments, environment, paths) travels as bytes, because it need not be UTF-8.
Ranks are world ranks everywhere. Invariant: `decode` never takes memory for more than `MAX_MESSAGE_BYTES`
and never returns anything but a `Message`; every other input is a `WireError`.
"""

from __future__ import annotations

from typing import Final

import msgspec

from pmrun.errors import PmrunError
from pmrun.window import Pace

VERSION: Final = 4  # of the protocol; both sides name theirs first and refuse another
MAX_MESSAGE_BYTES: Final = 16 << 20
MAX_DATA_BYTES: Final = 64 << 10  # of the output or input in one message
SHOWN_BYTES: Final = 64 << 10  # what a debugger may show before anybody has read it

OUT: Final = 1  # stream numbers are the rank's descriptor numbers
ERR: Final = 2


class WireError(PmrunError):
    """Bytes that are not a message of this protocol."""


class _Message(msgspec.Struct, frozen=True, array_like=True):
    """Base of all messages. Fields are positional on the wire: only ever append, with a default."""


# ---- controller to agent ---------------------------------------------------------------------------------


class Start(_Message, frozen=True, tag="start"):
    """Start this node's ranks, all or none."""

    job_id: str
    attempt: int
    node_rank: int
    node_name: str
    peers: tuple[str, ...]  # addresses of all nodes, in node order
    main_port: int  # free on the main node
    first_rank: int  # the node's ranks are consecutive
    local_world_size: int
    world_size: int
    command: tuple[bytes, ...]
    cwd: bytes | None
    env: tuple[tuple[bytes, bytes], ...]  # replaces what the agent inherited
    bind_to_core: bool  # each rank is kept on cores of its own
    stdin_ranks: tuple[int, ...]  # ranks of this node that are sent the standard input
    credit_bytes: int  # how much output of each stream may be sent before a Credit comes
    layout: tuple[int, ...]  # ranks of each node, in node order
    data_address: str  # of this node: what its ranks bind to
    transport: str = "auto"
    reproducible: bool = False
    encrypt: bool = False
    start_timeout_s: float = 60.0  # also for the ranks to find each other
    hang_timeout_s: float = 0.0  # the agent tells of ranks that wait for a good part of it; 0: never
    pdb_on_error: bool = False


class Signal(_Message, frozen=True, tag="signal"):
    """Send this signal to the process group of every rank that runs."""

    number: int


class Look(_Message, frozen=True, tag="look"):
    """Tell where every rank of the node is, with stacks; answered by `Looked` with the same number."""

    number: int


class Stop(_Message, frozen=True, tag="stop"):
    """End the node's ranks: after `settle_s` SIGTERM, `term_s` later SIGKILL to everything they started.

    A later Stop can only shorten the times. `state` and the rest go into the window's abort record, unless
    one is there: at once when `tell` is true, else together with the SIGTERM.
    """

    settle_s: float
    term_s: float
    state: int
    rank: int
    node: str
    text: str
    tell: bool


class Credit(_Message, frozen=True, tag="credit"):
    """So many bytes of this stream were written out: as many more may be sent."""

    rank: int
    stream: int
    count: int


class Stdin(_Message, frozen=True, tag="stdin"):
    """Standard input for every rank of the node that takes it; empty `data` is its end."""

    data: bytes


class Typed(_Message, frozen=True, tag="typed"):
    """For the terminal of a rank that is in its debugger."""

    rank: int
    data: bytes = b""
    credit: int = 0  # so many bytes that it showed were written: as many more may be sent
    rows: int = 0  # of the window that shows it; 0: as before
    columns: int = 0


class Interrupt(_Message, frozen=True, tag="interrupt"):
    """Let a rank enter its debugger where it is; answered by `Debugging`, or `Shown` with why it cannot."""

    rank: int


class Leave(_Message, frozen=True, tag="leave"):
    """The gang is over: the agent ends. `code` is the exit code of the whole.

    A node that was started by hand comes again after `again_s`, where that is not negative: there is another attempt.
    """

    code: int = 0
    again_s: float = -1.0


class Refused(_Message, frozen=True, tag="refused"):
    """This agent cannot take part; it says so and ends. `again_s` as in `Leave`: it may be needed later."""

    text: str  # one line: what, why, remedy
    code: int
    again_s: float = -1.0


class Gathered(_Message, frozen=True, tag="gathered"):
    """To a steward: the ranks of all nodes have come, and this is everybody's place."""

    node_rank: int
    layout: tuple[int, ...]  # ranks of each node, in node order
    peers: tuple[str, ...]  # addresses of all nodes, in node order


# ---- `pmrun attach` to controller; it is answered with `Debugging`, `Shown`, and `Refused` or `Leave` ------------


class Attach(_Message, frozen=True, tag="attach"):
    """Show me a rank, and take what I type for it: `Typed`."""

    rank: int  # -1: the one that waits in its debugger
    rows: int = 0
    columns: int = 0


# ---- both ways -------------------------------------------------------------------------------------------


class Beat(_Message, frozen=True, tag="beat"):
    """A sign of life, for when there is nothing else to say."""

    at_s: float = 0.0  # of an agent: about when it was sent, by its monotonic clock


class Verdict(_Message, frozen=True, tag="verdict"):
    """Why the gang ends, as a node's abort record has it: from the steward that saw it, and to all others."""

    state: int
    rank: int
    node: str
    text: str


class StoreReply(_Message, frozen=True, tag="store_reply"):
    """To a rank's request, where the controller holds the store; a word of store_wire.py."""

    rank: int
    word: bytes


# ---- agent to controller ---------------------------------------------------------------------------------


class Hello(_Message, frozen=True, tag="hello"):
    """An agent's first message: who it is, and what the others need to know of its node."""

    version: int
    node_rank: int  # -1: it does not know its place
    pid: int
    host: str = ""  # the machine's own name
    address: str = ""  # where its ranks can be reached
    free_port: int = 0  # for those who meet on the main node
    release: str = ""  # of pmrun, "" on one machine
    num_nodes: int = 0  # what it was told, 0: nothing
    world_size: int = 0
    first_rank: int = -1  # of a steward: its ranks are there already
    local_world_size: int = 0


class Started(_Message, frozen=True, tag="started"):
    """Every rank of the node runs its program; process ids by local rank."""

    pids: tuple[int, ...]
    at_s: float = 0.0  # by the agent's monotonic clock


class StartFailed(_Message, frozen=True, tag="start_failed"):
    """A rank of the node could not be started; whatever had been started is being stopped."""

    rank: int  # -1: none in particular
    text: str  # one line: what, why, remedy
    code: int  # proposed exit code


class Standing(msgspec.Struct, frozen=True, array_like=True):
    """Where a rank stood in pmrun's calls when it was about to be stopped."""

    call: str  # "allreduce #812 at train.py:44", or "" if it never made one
    inside: bool  # else that is the last one it came out of


class RankExited(_Message, frozen=True, tag="exited"):
    """A rank's process ended. What the report may need comes along, because the culprit is decided later."""

    rank: int
    pid: int
    status: int  # exit code, or minus the signal that ended it
    sent_signal: int  # the last signal that the agent had sent to it, 0: none
    oom: bool
    abort_state: int  # the window's abort record as found when this rank ended
    abort_rank: int
    abort_text: str
    out_tail: bytes
    err_tail: bytes
    last_call: str  # "allreduce #812 at train.py:44 (still inside)", or ""
    standing: Standing | None = None  # None: it ended before it was sent a signal
    resumable: bool = False  # with this exit code it says that it did what `pm.should_stop()` told it
    pace: Pace | None = None  # None: it met the others too seldom to tell
    at_s: float = 0.0  # when the agent saw its end, by the agent's monotonic clock


class Waits(_Message, frozen=True, tag="waits"):
    """How long the node's ranks have been waiting, when that has become long, or is over, or begins anew."""

    age_s: float  # of the oldest call that a rank waits in, by the agent's clock; negative: none is old
    debugged: tuple[int, ...] = ()  # ranks that a debugger holds, or that wait for somebody's input


class Pending(msgspec.Struct, frozen=True, array_like=True):
    """A call that a rank is, or was, in."""

    text: str  # "allreduce #812 at train.py:44 in main"
    age_s: float  # since it was entered
    comm: int = 0
    group: int = 0  # tells apart communicators of one number
    size: int = 0  # members; 0: not known
    seq: int = 0  # 0: a message
    peer: int = -1  # the world rank that it comes from or goes to, -1: not known


class Sight(msgspec.Struct, frozen=True, array_like=True):
    """Where a rank is."""

    rank: int
    pid: int
    state: str  # "computing", "stopped (SIGSTOP)", ...
    held: bool = False  # it cannot go on by itself: stopped, in a debugger, or stuck in the kernel
    waits: Pending | None = None
    last: Pending | None = None  # its last call, where it waits in none
    entered: tuple[tuple[int, int, int], ...] = ()  # of its communicators: number, group, the newest call it entered
    stack: tuple[str, ...] = ()  # of the main thread, innermost first: "train.py:44 in main"
    place: str = ""  # of these the one that is most likely the user's own
    threads: tuple[str, ...] = ()  # a line for each other thread
    pace: Pace | None = None


class Looked(_Message, frozen=True, tag="looked"):
    """Where the node's ranks are. One that has ended is left out."""

    number: int
    sights: tuple[Sight, ...]
    problem: str = ""  # why stacks are missing


class Debugging(_Message, frozen=True, tag="debugging"):
    """A rank waits in its debugger, or goes on. The rank itself says so to its agent, with its terminal at first."""

    rank: int
    text: str  # where, or why; "": it goes on


class Shown(_Message, frozen=True, tag="shown"):
    """Bytes that a rank's debugger wrote to its terminal, as many as there is credit for."""

    rank: int
    data: bytes


class Output(_Message, frozen=True, tag="out"):
    """Bytes that a rank wrote, unchanged; empty `data` is the end of the stream."""

    rank: int
    stream: int
    data: bytes


class StdinCredit(_Message, frozen=True, tag="stdin_credit"):
    """All ranks of the node took this much input; -1: none of them wants any more."""

    count: int


class NodeDone(_Message, frozen=True, tag="done"):
    """No process of the node's ranks is left, and all their output has been sent."""

    survivors: tuple[int, ...]  # process ids that not even SIGKILL ended


class RankLeft(_Message, frozen=True, tag="rank_left"):
    """From a steward: a rank's process is gone."""

    rank: int


class StoreRequest(_Message, frozen=True, tag="store_request"):
    """A rank asks something of the store, in a word of store_wire.py, which the agent has checked.

    Where the gang is on one node, its agent answers that itself.
    """

    rank: int
    word: bytes


class StoreClosed(_Message, frozen=True, tag="store_closed"):
    """Nobody waits any more for replies to what this rank asked before."""

    rank: int


class AskedToEnd(_Message, frozen=True, tag="asked_to_end"):
    """From an agent: whoever started its node wants it to end, as engines do before they take a machine away."""


class Notice(_Message, frozen=True, tag="notice"):
    """One line that the user should read."""

    text: str


Message = (
    Start | Signal | Look | Stop | Credit | Stdin | Leave | Refused | Gathered | Beat | Verdict | StoreReply
    | Hello | Started | StartFailed | RankExited | Output | StdinCredit | NodeDone | RankLeft | StoreRequest | StoreClosed
    | Notice | AskedToEnd | Waits | Looked | Typed | Interrupt | Attach | Debugging | Shown
)  # fmt: skip

_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[Message] = msgspec.msgpack.Decoder(Message)


def encode(message: Message) -> bytes:
    """Return the bytes of one message.

    Raises
    ------
    WireError
        The message is longer than a peer would accept.
    """
    data = _encoder.encode(message)
    if len(data) > MAX_MESSAGE_BYTES:
        name = type(message).__name__
        raise WireError(f"message {name} has {len(data)} bytes, the limit is {MAX_MESSAGE_BYTES}")
    return data


def spoken_version(data: bytes | bytearray | memoryview) -> int | None:
    """The protocol of somebody's first message, which may be one that this version cannot `decode`."""
    try:
        words = msgspec.msgpack.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    known = isinstance(words, list) and len(words) > 1 and words[0] == "hello" and isinstance(words[1], int)
    return words[1] if known else None


def decode(data: bytes | bytearray | memoryview) -> Message:
    """Return the message in `data`, which holds exactly one.

    Raises
    ------
    WireError
        Too long, not MessagePack, an unknown kind of message, or fields of the wrong type.
    """
    if len(data) > MAX_MESSAGE_BYTES:
        raise WireError(f"a message of {len(data)} bytes came, the limit is {MAX_MESSAGE_BYTES}")
    try:
        return _decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise WireError(f"a message that this version of pmrun does not understand: {error}") from error
