# SPDX-License-Identifier: Apache-2.0
"""Weaves the ranks' output into one stream of whole, tagged lines. Pure: bytes and the time in, blocks out.

A `Weaver` stands before one destination (a terminal, a pipe). Each rank's stream is queued raw, and a block
is composed only when the destination has room, so what is held is bounded by the credit that the agents
have. Bytes are never decoded. Invariant: lines of different streams never mix. An unfinished line (a prompt)
is shown after `PROMPT_S` of silence, or after `BUSY_PROMPT_S` while others talk: a rank that only lost the CPU
between a line and its newline is not taken for one that asks. If another stream then has something to say,
the line is broken first; its rest gets a tag of its own, or is dropped if it is the newline that came late. A
line longer than a stream's queue goes out in pieces, and nobody cuts in while the pieces keep coming, up to
`WHOLE_LINE_BYTES`.
"""

from __future__ import annotations

import collections
from typing import Final

PROMPT_S: Final = 0.08
BUSY_PROMPT_S: Final = 0.5
BLOCK_BYTES: Final = 64 << 10
WHOLE_LINE_BYTES: Final = 1 << 20

Key = tuple[int, int]  # rank, stream number


class Tagger:
    """Makes the prefix of a line: "12:34:56.789 [ 3] ", and with several nodes "[ 3 b] "."""

    def __init__(self, world_size: int, tag: bool, timestamp: bool, colour: bool) -> None:
        self._width = len(str(world_size - 1))
        self._tag = tag
        self._timestamp = timestamp
        self._colour = colour
        self._nodes: list[str] = []

    def name_nodes(self, names: list[str]) -> None:
        """From now on tags have the node's name; `names` by rank."""
        width = max(map(len, names))
        self._nodes = [f" {name:<{width}}" for name in names]

    def prefix(self, rank: int, clock: str) -> bytes:
        """What to put before each line of `rank`; `clock` is the time of day to show."""
        node = self._nodes[rank] if self._nodes else ""
        text = f"[{rank:>{self._width}}{node}] " if self._tag else ""
        if text and self._colour:
            text = f"\x1b[3{1 + rank % 6}m{text}\x1b[0m"
        if self._timestamp:
            text = f"{clock} {text}"
        return text.encode()


class _Stream:
    """What one rank wrote to one descriptor and is not shown yet."""

    __slots__ = ("broken", "data", "ended", "held_until", "line_bytes", "newline", "since")

    def __init__(self) -> None:
        self.data = bytearray()
        self.newline = -1  # index of the last newline in data
        self.since = 0.0  # when the unfinished line at the end of data began to wait
        self.line_bytes = 0  # shown already of the line that goes on in data
        self.held_until = 0.0  # until then the next piece of a long line is waited for
        self.ended = False
        self.broken = False  # its unfinished line got a newline that was not its own


class Weaver:
    """All streams of one destination."""

    def __init__(self, tagger: Tagger, piece_bytes: int) -> None:
        self._tagger = tagger
        self._piece_bytes = piece_bytes
        self._streams: dict[Key, _Stream] = {}
        self._turn: collections.deque[Key] = collections.deque()  # streams with data, next first
        self._open: Key | None = None  # whose unfinished line stands at the end of what was shown
        self._cut = False  # such a line stands there, and whose it was is gone
        self._shown_at = 0.0  # when a block was composed last

    def feed(self, key: Key, data: bytes, now: float) -> None:
        """Take bytes of one stream; empty: its end."""
        stream = self._streams.get(key)
        if stream is None:
            stream = self._streams[key] = _Stream()
        if not data:
            stream.ended = True
            return
        if not stream.data:
            self._turn.append(key)
            stream.since = now
        at = data.rfind(b"\n")
        if at >= 0:
            stream.newline = len(stream.data) + at
            stream.since = now
        stream.data += data

    def take(self, now: float, clock: str) -> tuple[bytes, Key, int] | None:
        """Compose the next block: what to write, whose it is, how many of its bytes that consumes.

        None when nothing is due; `deadline` tells when something may be.
        """
        if self._open is not None:
            stream = self._streams[self._open]
            if stream.data and (stream.newline >= 0 or stream.line_bytes < WHOLE_LINE_BYTES):
                return self._continue(self._open, stream, now, clock)
            if not stream.data and now < stream.held_until and not stream.ended:
                return None
        for _ in range(len(self._turn)):
            key = self._turn[0]
            stream = self._streams[key]
            if key == self._open:
                return self._continue(key, stream, now, clock)
            size = self._due(stream, now)
            if size and stream.broken:
                stream.broken = False
                if stream.data.startswith(b"\n"):
                    return self._drop_newline(key, stream)
            if size:
                prefix = self.end_line() + self._tagger.prefix(key[0], clock)
                stream.line_bytes = 0
                return self._compose(key, stream, size, prefix, now, clock)
            self._turn.rotate(-1)
        return None

    def deadline(self) -> float | None:
        """When `take` will have something, if nothing is fed before; meaningful after it returned None."""
        times = [self._due_at(self._streams[key]) for key in self._turn]
        if self._open is not None and times:
            times = [max(at, self._streams[self._open].held_until) for at in times]
        return min(times, default=None)

    def empty(self) -> bool:
        """Whether everything fed was taken."""
        return not self._turn

    def end_line(self) -> bytes:
        """What to write before a line that is not a rank's."""
        if self._cut:
            self._cut = False
            return b"\n"
        if self._open is None:
            return b""
        self._streams[self._open].broken = True
        self._open = None
        return b"\n"

    def next_attempt(self) -> None:
        """Everything fed was taken, and all streams begin anew: no line of theirs goes on."""
        self._cut = self._cut or self._open is not None
        self._open = None
        self._streams.clear()

    def _due(self, stream: _Stream, now: float) -> int:
        """How many bytes may be shown: whole lines, or an unfinished one that is long, late or final."""
        if stream.newline >= 0:
            return stream.newline + 1
        return len(stream.data) if now >= self._due_at(stream) else 0

    def _due_at(self, stream: _Stream) -> float:
        whole = stream.newline >= 0 or stream.ended or len(stream.data) >= self._piece_bytes
        return 0.0 if whole else min(max(stream.since, self._shown_at) + PROMPT_S, stream.since + BUSY_PROMPT_S)

    def _continue(self, key: Key, stream: _Stream, now: float, clock: str) -> tuple[bytes, Key, int]:
        """More of the line that stands unfinished at the end of what was shown."""
        if stream.newline >= 0:
            first = stream.data.index(b"\n") + 1
            self._open = None
            stream.line_bytes = 0
            return self._compose(key, stream, first, b"", now, clock)
        return self._compose(key, stream, len(stream.data), b"", now, clock)

    def _compose(
        self, key: Key, stream: _Stream, size: int, prefix: bytes, now: float, clock: str
    ) -> tuple[bytes, Key, int]:
        if size > BLOCK_BYTES:
            cut = stream.data.rfind(b"\n", 0, BLOCK_BYTES) + 1
            size = cut or BLOCK_BYTES
        block = bytes(stream.data[:size])
        del stream.data[:size]
        stream.newline -= min(size, stream.newline + 1)
        stream.since = self._shown_at = now  # credit goes back with this block: the rest may be on its way
        if block.endswith(b"\n"):
            tag = self._tagger.prefix(key[0], clock)
            shown = prefix + (block[:-1].replace(b"\n", b"\n" + tag) if tag else block[:-1]) + b"\n"
        else:
            shown = prefix + block
            stream.line_bytes += size
            self._open = key
            long_line = size >= self._piece_bytes or stream.line_bytes > size
            if long_line and stream.line_bytes < WHOLE_LINE_BYTES:
                stream.held_until = now + PROMPT_S
            else:
                stream.held_until = 0.0
        self._next_turn(key, stream)
        return shown, key, size

    def _drop_newline(self, key: Key, stream: _Stream) -> tuple[bytes, Key, int]:
        del stream.data[:1]
        stream.newline -= 1
        self._next_turn(key, stream)
        return b"", key, 1

    def _next_turn(self, key: Key, stream: _Stream) -> None:
        """Others first, and a stream without data has no turn."""
        self._turn.remove(key)
        if stream.data:
            self._turn.append(key)
