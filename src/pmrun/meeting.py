# SPDX-License-Identifier: Apache-2.0
"""How ranks that another launcher started become a gang: those of a node meet at a steward.

The node's first rank starts the steward (launcher/steward.py), a process that does for them what the agent does for pmrun's
own ranks: it makes the window, holds the store and marks who is gone. All ranks, the first one too, ask it to join over a
unix socket and get the window's descriptor once all have come, here and on the other nodes, whose stewards it meets; the socket
stays as their line to the store. The others find it by an abstract name, which is no file and goes with the steward. Invariant:
both sides check that the other is the same user's (SO_PEERCRED), and every wait has a deadline that names who is missing.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import socket
import struct
import subprocess
import sys
import threading
import time
from typing import Final, NamedTuple

import msgspec

from pmrun import env, secret, store_wire, window
from pmrun.errors import ForkedError, LaunchError, UsageError
from pmrun.foreign import Placement, join_timeout_s

STEWARD: Final = "pmrun.launcher.steward"  # run by name: the launcher is no part of what a rank imports
_GRACE_S: Final = 5.0  # for the steward's answer, beyond its own deadline
_AGAIN_S: Final = 0.01
_PEER = struct.Struct("3i")  # pid, uid, gid


class Join(msgspec.Struct, frozen=True, array_like=True, tag="join"):
    """A rank's first words to the steward. Fields are positional: only ever append, with a default."""

    store_version: int
    window_version: int
    rank: int
    world_size: int
    cpus: tuple[int, ...]  # that it may use


class Joined(msgspec.Struct, frozen=True, array_like=True, tag="joined"):
    """The steward's answer. Without a problem the window's descriptor and the lifeline's come with it.

    The rest is of gangs on several nodes.
    """

    problem: str
    first_rank: int = 0  # of this node
    node_rank: int = 0
    layout: tuple[int, ...] = ()  # ranks of each node, in node order
    peers: tuple[str, ...] = ()  # their addresses


class Met(NamedTuple):
    """What a rank holds after the meeting."""

    window_fd: int
    lifeline_fd: int  # hangs up with the steward
    line: socket.socket  # to the store
    first_rank: int  # of the window
    node_rank: int
    layout: tuple[int, ...]  # ranks of each node, in node order; () on one machine
    peers: tuple[str, ...]  # addresses of all nodes, in node order; () on one machine


join_decoder: Final = msgspec.msgpack.Decoder(Join)
_joined_decoder: Final = msgspec.msgpack.Decoder(Joined)

_met: Met | None = None
_met_pid = 0
_meeting = threading.Lock()


def meet(placement: Placement) -> Met:
    """Join the gang, once; later calls return the same.

    Raises
    ------
    LaunchError
        It cannot be formed: the text says who is missing, or what else is wrong.
    UsageError
        What ranks on several nodes need is missing.
    ForkedError
        This process is a child of one that met.
    """
    global _met, _met_pid
    with _meeting:
        if _met is not None and os.getpid() != _met_pid:
            raise ForkedError("this process is a child made by fork of a rank, and has no place of its own in the gang")
        if _met is None:
            if not placement.on_one_machine:
                _check_nodes(placement)
            if placement.ranks_here > window.RANKS_MAX:
                raise UsageError(f"{placement.ranks_here} ranks on one machine: the most is {window.RANKS_MAX}")
            _met = _join(placement, join_timeout_s(os.environ))
            _met_pid = os.getpid()
        return _met


def met() -> Met | None:
    """What `meet` returned, if it has."""
    return _met


def _check_nodes(placement: Placement) -> None:
    """Before anything is started: on each rank alike, so that none waits for one that was refused."""
    nodes = f"{placement.num_nodes} nodes" if placement.num_nodes > 0 else "several nodes"
    what = f"{placement.launcher} started {placement.world_size} ranks on {nodes}"
    path = os.environ.get(env.SECRET_FILE)
    if not path:
        raise UsageError(
            f"{what}, which find each other by a secret: make one with 'pmrun secret FILE', copy it to every node, and set "
            f"{env.SECRET_FILE}=FILE for all ranks; or set {env.FOREIGN}=0 to run each alone"
        )
    secret.read_secret(path, env.SECRET_FILE)
    if not (os.environ.get(env.MAIN) or placement.main_address or placement.node_rank == 0):
        raise UsageError(
            f"{what}, but does not tell where rank 0 is: set {env.MAIN}=ADDRESS, of its node, for all ranks"
        )


def peer_of(sock: socket.socket) -> tuple[int, int]:
    """Process and user id of whoever made the other end."""
    pid, uid, _ = _PEER.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size))
    return pid, uid


def frame(word: Join | Joined) -> bytes:
    """The bytes of one word."""
    data = msgspec.msgpack.encode(word)
    return struct.pack("<I", len(data)) + data


# ---- joining ------------------------------------------------------------------------------------------------


def _join(placement: Placement, timeout_s: float) -> Met:
    name = _name(placement)
    if (placement.rank if placement.on_one_machine else placement.local_rank) == 0:
        line = _start_steward(placement, name, timeout_s)
    else:
        line = _find_steward(placement, name, timeout_s)
    try:
        cpus = tuple(sorted(os.sched_getaffinity(0)))
        # Rank 0's node may have come last, and waits as long for the others.
        line.settimeout((1 if placement.on_one_machine else 2) * timeout_s + _GRACE_S)
        join = Join(store_wire.VERSION, window.VERSION, placement.rank, placement.world_size, cpus)
        with contextlib.suppress(BrokenPipeError):  # it gave up already; why is still to be read
            line.sendall(frame(join))
        word, (window_fd, lifeline_fd) = _answer(line)
        return Met(window_fd, lifeline_fd, line, word.first_rank, word.node_rank, word.layout, word.peers)
    except BaseException:
        line.close()
        raise


def _answer(line: socket.socket) -> tuple[Joined, tuple[int, int]]:
    """The steward's word, and the descriptors of the window and the lifeline, once all ranks have joined."""
    frames = store_wire.Frames()
    fds: list[int] = []
    words: list[tuple[Joined, int]] = []
    try:
        while not words:
            data, got, _, _ = socket.recv_fds(line, 1 << 16, 2)
            fds += got
            if not data:
                raise ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))
            words = frames.feed(data, _joined_decoder)
        problem = words[0][0].problem
        if problem or len(fds) != 2:
            raise LaunchError(problem or "the steward sent no window: is there no descriptor left (ulimit -n)?")
        for fd in fds:
            os.set_inheritable(fd, False)
        window_fd, lifeline_fd = fds
        fds.clear()
        return words[0][0], (window_fd, lifeline_fd)
    except ConnectionError:
        raise LaunchError(
            "the steward of this gang is gone before all ranks had come: see what the node's first rank wrote"
        ) from None
    except TimeoutError:
        raise LaunchError("the steward of this gang does not answer: is it stopped?") from None
    finally:
        for fd in fds:
            os.close(fd)


def _find_steward(placement: Placement, name: str, timeout_s: float) -> socket.socket:
    by = time.monotonic() + timeout_s
    while True:
        line = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            line.settimeout(max(_AGAIN_S, by - time.monotonic()))
            line.connect(name)
            _, uid = peer_of(line)
        except OSError as error:
            line.close()
            if error.errno not in (errno.ECONNREFUSED, errno.EAGAIN, None):  # None: a time-out
                raise LaunchError(f"cannot meet the other ranks: {error.strerror}") from error
            if time.monotonic() >= by:
                first = "rank 0" if placement.on_one_machine else "this node's first rank"
                raise LaunchError(
                    f"{first} of {placement.world_size} ({placement.launcher}) has not called pm.init() within "
                    f"{timeout_s:g} s: every rank must. Or set {env.FOREIGN}=0, to run alone; a program that a rank "
                    "starts in turn is no rank"
                ) from None
            time.sleep(_AGAIN_S)
            continue
        if uid != os.geteuid():
            line.close()
            raise LaunchError(f"the meeting point of this gang belongs to user {uid}, not to this user: it is not used")
        return line


def _start_steward(placement: Placement, name: str, timeout_s: float) -> socket.socket:
    """Take the name, and hand it to a process of its own; return this rank's line to that."""
    if not sys.executable:
        raise LaunchError("there is no Python to run the gang's steward with: sys.executable is empty")
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with theirs, socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        try:
            listener.bind(name)
            listener.listen(placement.ranks_here)
            safe = ["-P"] if sys.version_info >= (3, 11) else []  # no module of the user's working directory
            numbers = [listener.fileno(), theirs.fileno(), timeout_s]
            paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
            started = subprocess.run(
                [sys.executable, *safe, "-m", STEWARD, *map(str, numbers)],
                env={**os.environ, "PYTHONPATH": os.pathsep.join(os.path.abspath(path) for path in paths if path)},
                pass_fds=(listener.fileno(), theirs.fileno()), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                cwd="/", start_new_session=True, check=False, timeout=timeout_s,
            )  # fmt: skip
        except OSError as error:
            ours.close()
            if error.errno == errno.EADDRINUSE:
                raise LaunchError(
                    f"another process meets as rank {placement.rank} of this gang ({placement.launcher}): does a program "
                    f"that this rank started call pm.init() too? Set {env.FOREIGN}=0 for it"
                ) from None
            raise LaunchError(f"cannot start the gang's steward: {error.strerror}") from error
        except subprocess.TimeoutExpired:
            ours.close()
            raise LaunchError(
                f"the gang's steward did not start within {timeout_s:g} s: is the machine overloaded?"
            ) from None
        if started.returncode != 0:
            ours.close()
            raise LaunchError(
                f"the gang's steward did not start (exit code {started.returncode}); see what it wrote above"
            )
    return ours


# ---- the meeting's name -------------------------------------------------------------------------------------


def name_prefix() -> str:
    """What the names of this user's stewards begin with, after the NUL."""
    return f"pmrun-steward/{os.geteuid()}/"


def _name(placement: Placement) -> str:
    """The same for all ranks of this start of the gang on this node, and for no other on this machine."""
    common = _launcher_process(placement.mark) if placement.mark else ""
    node = "" if placement.on_one_machine else str(placement.node_rank)
    told = "\0".join((placement.launcher, placement.job, str(placement.world_size), common, node))
    return f"\0{name_prefix()}{hashlib.sha256(told.encode('utf-8', 'surrogateescape')).hexdigest()[:40]}"


def _launcher_process(mark: str) -> str:
    """Process id and start time of the nearest process, this one first, that was not started with `mark`."""
    pid = os.getpid()
    prefix = mark.encode() + b"="
    while True:
        try:
            with open(f"/proc/{pid}/stat", "rb") as file:
                fields = file.read().rpartition(b") ")[2].split()
            with open(f"/proc/{pid}/environ", "rb") as file:
                marked = any(entry.startswith(prefix) for entry in file.read().split(b"\0"))
        except OSError:
            return str(pid)  # another user's, or hidden: no process of this launch
        parent = int(fields[1])
        if not marked or parent <= 0:
            return f"{pid}/{int(fields[19])}"
        pid = parent
