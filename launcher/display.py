# SPDX-License-Identifier: Apache-2.0
"""The controller's side of the ranks' output: to the terminal (or pipe), to a file per rank, credit back.

A destination takes a block from its weaver only when the one before is written, so a reader that stalls
stops the credit, then the agent, then the rank, and nothing else. Standard output and error share one
destination when they are the same terminal, pipe or file, so that an unfinished line on one is broken before
the other writes. Invariant: credit for bytes is given only after they were written or dropped on purpose.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from typing import Final

from pmrun import wire
from pmrun.launcher.job import Output
from pmrun.launcher.output import Key, Tagger, Weaver
from pmrun.launcher.poller import GONE, WRITE, Poller
from pmrun.launcher.sink import Sink

_ALL_CREDIT_BYTES: Final = 6 << 20  # for all streams of the gang together
_LEAST_CREDIT_BYTES: Final = 16 << 10
_MOST_CREDIT_BYTES: Final = 256 << 10
_RANK_FILE: Final = re.compile(r"rank-(0|[1-9][0-9]{0,8})\.(?:out|err)")


def credit_bytes(world_size: int) -> int:
    """How much of one stream may be under way between agent and terminal."""
    return max(_LEAST_CREDIT_BYTES, min(_MOST_CREDIT_BYTES, _ALL_CREDIT_BYTES // (2 * world_size)))


def _stale_files(folder: str, world_size: int) -> list[str]:
    """Files that a job of more ranks left: plain ones named exactly as pmrun names them, nothing else."""
    found = []
    with os.scandir(folder) as entries:
        for entry in entries:
            name = _RANK_FILE.fullmatch(entry.name)
            if name and int(name[1]) >= world_size and entry.is_file(follow_symlinks=False):
                found.append(entry.path)
    return found


class _Destination:
    """A sink and its weaver; at most one block is being written."""

    def __init__(self, sink: Sink, weaver: Weaver) -> None:
        self.sink = sink
        self.weaver = weaver
        self._block: memoryview = memoryview(b"")
        self._owed: tuple[Key, int] | None = None
        self._said: list[bytes] = []

    @property
    def blocked(self) -> bool:
        """Whether a block waits for room."""
        return len(self._block) > 0

    @property
    def empty(self) -> bool:
        """Whether everything is written."""
        return not self.blocked and not self._said and self.weaver.empty()

    def say(self, line: bytes) -> None:
        """A line of pmrun's own, before whatever the ranks have waiting."""
        self._said.append(line)

    def pump(self, give: Callable[[Key, int], None]) -> None:
        """Write until there is no room or nothing due."""
        while True:
            while self._block:
                count = self.sink.write(self._block)
                if count == 0:
                    return
                self._block = self._block[count:]
            if self._owed is not None:
                give(*self._owed)
                self._owed = None
            if not self._compose():
                return

    def _compose(self) -> bool:
        if self._said:
            line = self.weaver.end_line() + b"".join(self._said)
            self._said.clear()
            self._block = memoryview(line)
            return True
        now = time.time()
        clock = time.strftime("%H:%M:%S", time.localtime(now)) + f".{int(now * 1000) % 1000:03d}"
        taken = self.weaver.take(time.monotonic(), clock)
        if taken is None:
            return False
        block, key, count = taken
        self._block, self._owed = memoryview(block), (key, count)
        return True


class Display:
    """Where the gang's output goes."""

    def __init__(self, output: Output, world_size: int, grant: Callable[[int, int, int], None]) -> None:
        self._only = output.only_ranks
        self._grant = grant
        self._credit = credit_bytes(world_size)
        self._owed: dict[Key, int] = {}
        self._files: dict[Key, int] = {}
        self._taggers: list[Tagger] = []
        out, err = Sink(1), Sink(2)
        self.stdout = out
        self._sinks = (out, err)
        self._by_stream = {wire.OUT: self._destination(out, output, world_size)}
        same = out.identity is not None and out.identity == err.identity
        self._by_stream[wire.ERR] = (
            self._by_stream[wire.OUT] if same else self._destination(err, output, world_size)
        )  # fmt: skip
        self._destinations = list(dict.fromkeys(self._by_stream.values()))

    def _destination(self, sink: Sink, output: Output, world_size: int) -> _Destination:
        colour = sink.is_tty and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
        tagger = Tagger(world_size, output.tag, output.timestamp, colour)
        self._taggers.append(tagger)
        return _Destination(sink, Weaver(tagger, self._credit // 2))

    def name_nodes(self, names: list[str]) -> None:
        """There are several nodes: show whose a line is. `names` by rank."""
        for tagger in self._taggers:
            tagger.name_nodes(names)

    def open_files(self, directory: str, world_size: int) -> None:
        """Create a file per rank and stream; a line says why when it cannot be done.

        The files of an earlier job's further ranks are removed: beside the others they would look like this one's.
        """
        folder = os.path.abspath(directory)
        try:
            os.makedirs(folder, exist_ok=True)
            for rank in range(world_size):
                for stream, suffix in ((wire.OUT, "out"), (wire.ERR, "err")):
                    path = os.path.join(folder, f"rank-{rank}.{suffix}")
                    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NONBLOCK
                    self._files[rank, stream] = os.open(path, flags, 0o666)
            for path in _stale_files(folder, world_size):
                os.unlink(path)
        except OSError as error:
            self._drop_files()
            self.say(f"pmrun: --output-dir: {error.strerror}: {error.filename!r}; the output is shown here only\n")

    def feed(self, message: wire.Output, now: float) -> None:
        """Take what a rank wrote."""
        key = (message.rank, message.stream)
        if message.data and key in self._files:
            self._write_file(key, message.data)
        if self._only is not None and message.rank not in self._only:
            self._give(key, len(message.data))
            return
        self._by_stream[message.stream].weaver.feed(key, message.data, now)

    def say(self, text: str) -> None:
        """Lines of pmrun's own, on standard error."""
        self._by_stream[wire.ERR].say(text.encode("utf-8", "surrogateescape"))

    def show(self, data: bytes) -> bool:
        """Bytes on standard error as they are; False, and nothing is shown, while it has no room."""
        destination = self._by_stream[wire.ERR]
        if destination.blocked:
            return False
        destination.say(data)
        return True

    def pump(self) -> None:
        """Write what is due as far as there is room."""
        for destination in self._destinations:
            destination.pump(self._give)

    def watch(self, poller: Poller) -> None:
        """Ask to be woken when a blocked destination has room again, and when stdout's reader goes away."""
        for destination in self._destinations:
            sink = destination.sink
            if sink.closed:
                poller.forget(sink.fileno())
            elif destination.blocked:
                poller.watch(sink.fileno(), WRITE, lambda _: None)  # every round pumps
            elif sink is self.stdout and not sink.is_tty:
                poller.watch(sink.fileno(), 0, self._on_reader_gone)
            else:
                poller.forget(sink.fileno())

    def _on_reader_gone(self, events: int) -> None:
        if events & GONE:
            self.stdout.closed = True

    def deadline(self) -> float | None:
        """When an unfinished line becomes due."""
        times = [item.weaver.deadline() for item in self._destinations if not item.blocked]
        return min((at for at in times if at is not None), default=None)

    def end_streams(self, world_size: int, now: float) -> None:
        """No more output will come from anywhere."""
        for rank in range(world_size):
            for stream in (wire.OUT, wire.ERR):
                self._by_stream[stream].weaver.feed((rank, stream), b"", now)

    def next_attempt(self) -> None:
        """All that the ranks wrote is shown, and others begin: files go on where they are, credit begins anew."""
        self._owed.clear()
        for destination in self._destinations:
            destination.weaver.next_attempt()

    @property
    def empty(self) -> bool:
        """Whether everything is written."""
        return all(destination.empty for destination in self._destinations)

    def close(self) -> None:
        """Close what was opened here."""
        self._drop_files()
        for sink in self._sinks:
            sink.close()

    def _give(self, key: Key, count: int) -> None:
        owed = self._owed.get(key, 0) + count
        if owed >= self._credit // 4:  # fewer messages; three quarters are still out
            self._grant(*key, owed)
            owed = 0
        self._owed[key] = owed

    def _write_file(self, key: Key, data: bytes) -> None:
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[os.write(self._files[key], rest) :]
        except OSError as error:
            os.close(self._files.pop(key))
            self.say(f"pmrun: --output-dir: {error.strerror}: the file of rank {key[0]} ends here\n")

    def _drop_files(self) -> None:
        for fd in self._files.values():
            os.close(fd)
        self._files.clear()
