# SPDX-License-Identifier: Apache-2.0
"""The agent's side of the node's window: the memfd through which ranks see each other and are told of deaths.

The numbers here are those of _native/core/window_layout.h (tests/tidy compares them). The agent creates the
file, writes the header, later the ranks' states and, unless a rank was first, the abort record; it reads the
abort record and the flight recorders, also of ranks that are dead. Invariant: text is written before the
word that makes it valid, each by a system call of its own, whose locks order the stores for readers that
load the word with acquire.
"""

from __future__ import annotations

import os
import resource
import struct
import time
from collections.abc import Callable
from typing import Final

import msgspec

MAGIC: Final = 0x31304E4957524D50
VERSION: Final = 1
HEADER_BYTES: Final = 8192
RANKS_MAX: Final = 1024

ABORT_OFFSET: Final = 64
ABORT_NONE: Final = 0
ABORT_RANK_FAILED: Final = 1
ABORT_MISMATCH: Final = 2
ABORT_STALLED: Final = 3
ABORT_STOPPED: Final = 4
NODE_NAME_BYTES: Final = 64
ERROR_TEXT_BYTES: Final = 768

DEPARTURES_OFFSET: Final = 1024
STOP_ASKED_OFFSET: Final = 1028
RANK_STATE_OFFSET: Final = 1088
RANK_ATTACHED: Final = 1
RANK_LEFT: Final = 3
RANK_FAILED: Final = 4

HEED_OFFSET: Final = 5184
HEED_NONE: Final = 0
HEED_ASKS: Final = 1
HEED_AGREED: Final = 2

RECORDER_STRIDE: Final = 65536
RECORDER_ENTRIES: Final = 256
RECORDER_SITES: Final = 256
RECORDER_SITE_BYTES: Final = 184
RECORDER_COMMS: Final = 124
RECORD_BYTES: Final = 64
RECORDER_HEAD_BYTES: Final = 64
MEMBERSHIP_BYTES: Final = 16

MODE_CALL: Final = 0
MODE_STARTED: Final = 1
MODE_WAIT: Final = 2

# pmr_kind, in order; "send" and "recv" appear in the recorder only.
KINDS: Final = (
    "barrier", "broadcast", "reduce", "allreduce", "gather", "allgather", "scatter", "reduce_scatter", "alltoall",
    "scan", "exscan", "gatherv", "allgatherv", "scatterv", "reduce_scatterv", "alltoallv", "send", "recv",
)  # fmt: skip
# Of these nobody comes out before all have entered.
_MEETINGS: Final = frozenset(
    KINDS.index(kind)
    for kind in ("barrier", "allreduce", "allgather", "reduce_scatter", "alltoall",
                 "allgatherv", "reduce_scatterv", "alltoallv")
)  # fmt: skip

# pmr_form, in order: what the user called, where pmrun made several calls out of it.
FORMS: Final = (
    "", "split", "dup", "shared", "scatter", "scatterv", "gatherv", "allgatherv", "alltoallv", "broadcast_object",
    "reduce_object", "allreduce_object", "gather_object", "allgather_object", "scatter_object", "alltoall_object",
)  # fmt: skip

_HEADER = struct.Struct("<QIIIIIIQ")  # magic, version, local size, size, first rank, cpus, flags, heap bytes
_ABORT = struct.Struct(f"<IIii{NODE_NAME_BYTES}s{ERROR_TEXT_BYTES}s")
_WORD = struct.Struct("<I")
_RECORDER_HEAD = struct.Struct("<QQQqII")  # count, tick_hz, base_ticks, base_realtime_ns, pid, sites
_RECORD = struct.Struct(
    "<QQQQIIIiBBBBB"
)  # number, bytes, entered, done, seq, comm, site, peer, kind, dtype, op, form, mode
_RING_ENTRY = struct.Struct(f"{_RECORD.format}{RECORD_BYTES - _RECORD.size}x")
_MEMBERSHIP = struct.Struct("<IIII")  # taken, comm, group, size

_HUGE_PAGE: Final = 2 << 20
_ADDRESS_SPACE: Final = 1 << 45  # for all heaps together: a quarter of what x86-64 gives a process


class AbortRecord(msgspec.Struct, frozen=True):
    """What ended the gang, as the first to notice wrote it."""

    state: int
    rank: int
    node: str
    text: str


class Call(msgspec.Struct, frozen=True):
    """An entry of a rank's flight recorder."""

    name: str  # as the user wrote it
    seq: int  # its number in the communicator; 0: a message, which has none
    comm: int
    peer: int  # of a message; -1: any rank
    site: str
    inside: bool
    number: int = 0  # counts the rank's calls
    entered_s: float = 0.0  # since the epoch
    mode: int = MODE_CALL

    @property
    def waited_for(self) -> bool:
        """Whether the rank can do nothing else before it is over."""
        return self.inside and self.mode != MODE_STARTED

    def __str__(self) -> str:
        number = f" #{self.seq}" if self.seq else ""
        if not self.seq:
            other = f"rank {self.peer}" if self.peer >= 0 else "any rank"
            number = f" {'to' if self.name == 'send' else 'from'} {other}"
        where = f" at {self.site}" if self.site else ""
        comm = f" of communicator {self.comm}" if self.comm else ""
        return f"{self.name}{number}{comm}{where}"


class Membership(msgspec.Struct, frozen=True):
    """A communicator that a rank has open: ranks with the same `comm` and `group` are in the same one."""

    comm: int
    group: int
    size: int


class Pace(msgspec.Struct, frozen=True, array_like=True):
    """How long a rank waited in those of its last calls in which all have to meet."""

    calls: int
    typical_s: float  # of one call: the mean without the longest tenth
    span_s: float  # from the first of them to the last


def heap_bytes(memory_bytes: int, local_world_size: int) -> int:
    """Size of each rank's sparse heap: the node's memory, where limits on address space and files allow.

    Parameters
    ----------
    memory_bytes : int
        Physical memory or the control group's limit.
    local_world_size : int
        Every rank maps the heaps of all.
    """
    bound = _ADDRESS_SPACE
    for limit in (resource.RLIMIT_AS, resource.RLIMIT_FSIZE):
        soft, _ = resource.getrlimit(limit)
        if soft != resource.RLIM_INFINITY:
            bound = min(bound, soft // 2)  # the other half is the program's own
    wanted = -(-memory_bytes // _HUGE_PAGE)
    return max(1, min(wanted, bound // local_world_size // _HUGE_PAGE)) * _HUGE_PAGE


class Window:
    """One node's window, held by its agent."""

    def __init__(self, world_size: int, local_world_size: int, first_rank: int, cpus: int, heap: int) -> None:
        self._local_world_size = local_world_size
        self._departures = 0
        self.fd = os.memfd_create("pmrun-window", os.MFD_CLOEXEC)
        header = _HEADER.pack(MAGIC, VERSION, local_world_size, world_size, first_rank, cpus, 0, heap)
        try:
            os.ftruncate(self.fd, HEADER_BYTES + local_world_size * RECORDER_STRIDE)
            os.pwrite(self.fd, header, 0)
        except OSError:
            os.close(self.fd)
            raise

    def close(self) -> None:
        os.close(self.fd)

    def read_abort(self) -> AbortRecord | None:
        """What the ranks or this agent wrote about the end, if anything."""
        _, state, rank, _, node, text = _ABORT.unpack(os.pread(self.fd, _ABORT.size, ABORT_OFFSET))
        if state == ABORT_NONE:
            return None
        return AbortRecord(state, rank, _text(node), _text(text))

    def write_abort(self, state: int, rank: int, node: str, text: str) -> bool:
        """Tell the ranks why the gang ends, unless somebody did. Returns whether this call wrote it."""
        (claimed,) = _WORD.unpack(os.pread(self.fd, _WORD.size, ABORT_OFFSET))
        if claimed:
            return False
        os.pwrite(self.fd, _WORD.pack(1), ABORT_OFFSET)
        body = _ABORT.pack(1, ABORT_NONE, rank, 0, _field(node, NODE_NAME_BYTES), _field(text, ERROR_TEXT_BYTES))
        os.pwrite(self.fd, body[8:], ABORT_OFFSET + 8)
        os.pwrite(self.fd, _WORD.pack(state), ABORT_OFFSET + 4)
        return True

    def mark_departed(self, local_rank: int, failed: bool) -> None:
        """Record that a rank's process is gone; ranks that wait for it look when `departures` moves."""
        state = RANK_FAILED if failed else RANK_LEFT
        os.pwrite(self.fd, _WORD.pack(state), RANK_STATE_OFFSET + 4 * local_rank)
        self._departures += 1
        os.pwrite(self.fd, _WORD.pack(self._departures), DEPARTURES_OFFSET)

    def rank_state(self, local_rank: int) -> int:
        """What the rank, or this agent, said last about itself."""
        (state,) = _WORD.unpack(os.pread(self.fd, _WORD.size, RANK_STATE_OFFSET + 4 * local_rank))
        return int(state)

    def ask_to_stop(self) -> None:
        """Let `pm.should_stop()` say so, on the ranks that ask."""
        os.pwrite(self.fd, _WORD.pack(1), STOP_ASKED_OFFSET)

    def heed(self, local_rank: int) -> int:
        """Whether the rank asks if it should stop, or has agreed to: HEED_..."""
        return os.pread(self.fd, 1, HEED_OFFSET + local_rank)[0]

    def last_call(self, local_rank: int) -> Call | None:
        """The newest call in a rank's flight recorder, if it ever made one."""
        count, sites = self._recorded(local_rank)
        if count == 0:
            return None
        at = (count % RECORDER_ENTRIES) * RECORD_BYTES
        return self._call(local_rank, self._read(local_rank, RECORDER_HEAD_BYTES + at, RECORD_BYTES), count, sites)

    def open_call(self, local_rank: int) -> Call | None:
        """What a rank waits in; else the oldest nonblocking call that is not over."""
        waits = self.waiting(local_rank)
        if waits is not None:
            return waits
        return self._oldest(local_rank, lambda mode: True)

    def waiting(self, local_rank: int) -> Call | None:
        """The oldest call that a rank has not come out of and can do nothing else before."""
        return self._oldest(local_rank, lambda mode: mode != MODE_STARTED)

    def pid(self, local_rank: int) -> int:
        """The process that called `pm.init()`, which need not be the one that was started; 0: none did."""
        return int(self._head(local_rank)[4])

    def newest_calls(self, local_rank: int) -> dict[int, int]:
        """Of each communicator that is in the ring: the number of the newest collective that the rank entered."""
        newest: dict[int, int] = {}
        for entry in self._ring(local_rank):
            if entry[4] and entry[12] != MODE_WAIT:
                newest[entry[5]] = max(newest.get(entry[5], 0), entry[4])
        return newest

    def memberships(self, local_rank: int) -> dict[int, Membership]:
        """The communicators that a rank has open, by number."""
        at = RECORDER_HEAD_BYTES + RECORDER_ENTRIES * RECORD_BYTES + RECORDER_SITES * RECORDER_SITE_BYTES
        table = self._read(local_rank, at, RECORDER_COMMS * MEMBERSHIP_BYTES)
        found: dict[int, Membership] = {}
        for _, comm, group, size in _MEMBERSHIP.iter_unpack(table):
            if size and (comm not in found or found[comm].size < size):  # the node's part of a span has its number too
                found[comm] = Membership(comm, group, size)
        return found

    def pace(self, local_rank: int) -> Pace | None:
        """How long the rank waited for others lately; None: it met them too seldom to tell."""
        hertz = self._head(local_rank)[1]
        timed = (entry for entry in self._ring(local_rank) if entry[2] and entry[3])  # it may be at the second one now
        met = [entry for entry in timed if entry[8] in _MEETINGS and not entry[12]]
        if not met or not hertz:
            return None
        waits = sorted(entry[3] - entry[2] for entry in met)
        usual = waits[: len(waits) - len(waits) // 10]
        return Pace(len(met), sum(usual) / len(usual) / hertz, (met[-1][3] - met[0][2]) / hertz)

    def _oldest(self, local_rank: int, counts: Callable[[int], bool]) -> Call | None:
        for entry in self._ring(local_rank, only_open=True):
            if entry[3] == 0 and counts(entry[12]):
                at = RECORDER_HEAD_BYTES + (entry[0] % RECORDER_ENTRIES) * RECORD_BYTES
                record = self._read(local_rank, at, RECORD_BYTES)
                call = self._call(local_rank, record, entry[0], self._head(local_rank)[5])
                if call is not None and call.inside:  # it may have ended since the ring was read
                    return call
        return None

    def _ring(self, local_rank: int, only_open: bool = False) -> list[tuple[int, ...]]:
        """The records that can be read, oldest first; nothing if only those are asked for that are not over, and all are."""
        count = self._head(local_rank)[0]
        if count == 0:
            return []
        ring = self._read(local_rank, RECORDER_HEAD_BYTES, RECORDER_ENTRIES * RECORD_BYTES)
        first = max(1, count - RECORDER_ENTRIES + 1)
        if only_open:  # this runs for every rank each second
            done = memoryview(ring).cast("Q")[3 :: RECORD_BYTES // 8].tolist()
            if 0 not in (done if first > 1 else done[1 : count + 1]):
                return []
        entries = [
            entry
            for at, entry in enumerate(_RING_ENTRY.iter_unpack(ring))
            if first <= entry[0] <= count and entry[0] % RECORDER_ENTRIES == at and entry[8] < len(KINDS)
        ]
        return sorted(entries)

    def _head(self, local_rank: int) -> tuple[int, ...]:
        return _RECORDER_HEAD.unpack(self._read(local_rank, 0, _RECORDER_HEAD.size))

    def _recorded(self, local_rank: int) -> tuple[int, int]:
        """How many calls a rank has recorded, and how many call sites."""
        count, *_, sites = self._head(local_rank)
        return count, sites

    def _read(self, local_rank: int, at: int, count: int) -> bytes:
        return os.pread(self.fd, count, HEADER_BYTES + local_rank * RECORDER_STRIDE + at)

    def _call(self, local_rank: int, record: bytes, expected: int, sites: int) -> Call | None:
        """A record as text; None where the rank was killed while it wrote it."""
        number, _, entered, done, seq, comm, site, peer, kind, _, _, form, mode = _RECORD.unpack_from(record)
        if number != expected or kind >= len(KINDS) or form >= len(FORMS):
            return None
        text = ""
        if 0 < site < min(sites, RECORDER_SITES):
            at = RECORDER_HEAD_BYTES + RECORDER_ENTRIES * RECORD_BYTES + site * RECORDER_SITE_BYTES
            text = _text(self._read(local_rank, at, RECORDER_SITE_BYTES))
        _, hertz, base_ticks, base_ns, *_ = self._head(local_rank)
        entered_s = base_ns / 1e9 + (entered - base_ticks) / max(hertz, 1) if entered else time.time()
        return Call(FORMS[form] or KINDS[kind], seq, comm, peer, text, done == 0, number, entered_s, mode)


def _text(field: bytes) -> str:
    return field.split(b"\0", 1)[0].decode("utf-8", "replace")


def _field(text: str, size: int) -> bytes:
    """`text` on one line, cut to fit with its NUL, never inside a character."""
    data = " ".join(text.split()).encode("utf-8", "replace")[: size - 1]
    return data.decode("utf-8", "ignore").encode()
