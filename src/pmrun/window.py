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
RECORD_BYTES: Final = 64
RECORDER_HEAD_BYTES: Final = 64

# pmr_kind, in order; "send" and "recv" appear in the recorder only.
KINDS: Final = (
    "barrier", "broadcast", "reduce", "allreduce", "gather", "allgather", "scatter", "reduce_scatter", "alltoall",
    "scan", "exscan", "gatherv", "allgatherv", "scatterv", "reduce_scatterv", "alltoallv", "send", "recv",
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
_RECORD = struct.Struct("<QQQQIIIiBBBB")  # number, bytes, entered, done, seq, comm, site, peer, kind, dtype, op, form

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

    def __str__(self) -> str:
        number = f" #{self.seq}" if self.seq else ""
        if not self.seq:
            other = f"rank {self.peer}" if self.peer >= 0 else "any rank"
            number = f" {'to' if self.name == 'send' else 'from'} {other}"
        where = f" at {self.site}" if self.site else ""
        comm = f" of communicator {self.comm}" if self.comm else ""
        return f"{self.name}{number}{comm}{where}"


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
        """The oldest call that a rank has not come out of: what it waits in, be it by a later call or a request."""
        count, sites = self._recorded(local_rank)
        ring = self._read(local_rank, RECORDER_HEAD_BYTES, RECORDER_ENTRIES * RECORD_BYTES)
        for number in range(max(1, count - RECORDER_ENTRIES + 1), count + 1):
            at = (number % RECORDER_ENTRIES) * RECORD_BYTES
            call = self._call(local_rank, ring[at : at + RECORD_BYTES], number, sites)
            if call is not None and call.inside:
                return call
        return None

    def _recorded(self, local_rank: int) -> tuple[int, int]:
        """How many calls a rank has recorded, and how many call sites."""
        count, *_, sites = _RECORDER_HEAD.unpack(self._read(local_rank, 0, _RECORDER_HEAD.size))
        return count, sites

    def _read(self, local_rank: int, at: int, count: int) -> bytes:
        return os.pread(self.fd, count, HEADER_BYTES + local_rank * RECORDER_STRIDE + at)

    def _call(self, local_rank: int, record: bytes, expected: int, sites: int) -> Call | None:
        """A record as text; None where the rank was killed while it wrote it."""
        number, _, _, done, seq, comm, site, peer, kind, _, _, form = _RECORD.unpack_from(record)
        if number != expected or kind >= len(KINDS) or form >= len(FORMS):
            return None
        text = ""
        if 0 < site < min(sites, RECORDER_SITES):
            at = RECORDER_HEAD_BYTES + RECORDER_ENTRIES * RECORD_BYTES + site * RECORDER_SITE_BYTES
            text = _text(self._read(local_rank, at, RECORDER_SITE_BYTES))
        return Call(FORMS[form] or KINDS[kind], seq, comm, peer, text, done == 0)


def _text(field: bytes) -> str:
    return field.split(b"\0", 1)[0].decode("utf-8", "replace")


def _field(text: str, size: int) -> bytes:
    """`text` on one line, cut to fit with its NUL, never inside a character."""
    data = " ".join(text.split()).encode("utf-8", "replace")[: size - 1]
    return data.decode("utf-8", "ignore").encode()
