# SPDX-License-Identifier: Apache-2.0
"""The controller's part in debugging: brings together ranks that wait in pdb and those who look at them.

Who looks is a `pmrun attach`, which came by launcher/attach_line.py, or, for a rank that nobody else looks at,
pmrun's own terminal, one rank at a time. What a debugger shows waits here until somebody takes it; the credit for
it goes back then, so that a rank is held at its write and nothing is lost. A rank's plain output is shown to
whoever looks at the rank as well, as far as they keep up. Invariant: a rank has one who looks, and the terminal is
pmrun's own again before the report is written.
"""

from __future__ import annotations

import functools
import os
import socket
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

from pmrun import wire
from pmrun.errors import ExitCode
from pmrun.launcher import attach_line
from pmrun.launcher.link import LinkLost, SocketLink
from pmrun.launcher.poller import READ, Poller

if TYPE_CHECKING:
    from pmrun.launcher.console import Console
    from pmrun.launcher.display import Display

_GUESTS_MAX: Final = 64
_BACKLOG_BYTES: Final = 256 << 10  # towards one guest


class _Guest:
    """A `pmrun attach`."""

    def __init__(self, sock: socket.socket) -> None:
        self.link = SocketLink(sock)
        self.rank = -1  # until it has said which
        self.leaving = False  # once the last word is sent

    @property
    def has_room(self) -> bool:
        return self.link.backlog_bytes < _BACKLOG_BYTES


class AttachDesk:
    """Over a job.

    Parameters
    ----------
    job_id : str
    display : Display
        pmrun's own output.
    send : callable
        Sends to the agent of a rank.
    """

    def __init__(self, job_id: str, display: Display, send: Callable[[int, wire.Message], None]) -> None:
        self._job_id = job_id
        self._display = display
        self._send = send
        self._listener = attach_line.listen(job_id)
        self._poller: Poller | None = None
        self._guests: list[_Guest] = []
        self._names: list[str] = []  # node of each rank; empty while there is no gang
        self._ended: set[int] = set()
        self._waiting: dict[int, str] = {}  # ranks in pdb, and where or why
        self._shown: dict[int, bytearray] = {}  # by rank: what nobody has taken yet
        self._console: Console | None = None
        self._own_rank = -1  # that pmrun's own terminal shows
        self._left: set[int] = set()  # ranks that the user left by Ctrl-]

    # ---- the gang -------------------------------------------------------------------------------------

    def begin(self, starts: Sequence[wire.Start]) -> None:
        """A gang begins."""
        self._names = [start.node_name for start in starts for _ in range(start.local_world_size)]
        self._ended.clear()

    def end(self) -> None:
        """The gang is over."""
        for rank in range(len(self._names)):
            self.on_exit(rank)
        self._names = []

    def on_message(self, message: wire.Debugging | wire.Shown) -> None:
        """A rank's debugger said something."""
        rank = message.rank
        if not 0 <= rank < len(self._names):
            return
        if isinstance(message, wire.Shown):
            self._shown.setdefault(rank, bytearray()).extend(message.data)
        elif message.text:
            self._waiting[rank] = message.text
            self._on_waits(rank)
        elif rank in self._waiting:
            self.pump()
            del self._waiting[rank]
            self._left.discard(rank)
            self._drop_shown(rank)
            guest = self._guest_of(rank)
            if guest is not None:
                guest.link.send(message)
            self._free_console(rank)

    def on_output(self, message: wire.Output) -> None:
        """A rank wrote something, which goes where the gang's output goes; who looks at the rank sees it too."""
        guest = self._guest_of(message.rank) if self._guests else None
        if guest is not None and message.data and guest.has_room:
            guest.link.send(wire.Shown(message.rank, message.data))

    def on_exit(self, rank: int) -> None:
        """A rank's process is gone."""
        self.on_message(wire.Debugging(rank, ""))
        self._ended.add(rank)
        self._shown.pop(rank, None)
        guest = self._guest_of(rank)
        if guest is not None:
            self._dismiss(guest, wire.Leave())

    def _on_waits(self, rank: int) -> None:
        guest = self._guest_of(rank)
        if guest is not None:
            guest.link.send(wire.Debugging(rank, self._waiting[rank]))
        elif not self._take_console(rank):
            self._display.say(f"{self._line(rank)}; to talk to it: {self._command(rank)}\n")

    def _line(self, rank: int) -> str:
        where = f" (node {self._names[rank]})" if len(set(self._names)) > 1 else ""
        return f"pmrun: rank {rank}{where} waits in pdb: {self._waiting[rank]}"

    def _command(self, rank: int) -> str:
        return f"pmrun attach {self._job_id} --rank {rank}"

    # ---- the loop -------------------------------------------------------------------------------------

    def watch(self, poller: Poller) -> bool:
        """Poll for those who look; returns whether the standard input is theirs."""
        self._poller = poller
        if self._listener is not None:
            poller.watch(self._listener.fileno(), READ, lambda _: self._on_knock())
        for guest in self._guests:
            guest.link.watch(poller, functools.partial(self._on_guest, guest))
        taken = self._console is not None and self._console.taken
        if taken:
            poller.watch(0, READ, lambda _: self._on_key())
        return taken

    def pump(self) -> None:
        """Show what there is room for."""
        for rank, data in self._shown.items():
            guest = self._guest_of(rank)
            if guest is not None and guest.has_room:
                guest.link.send(wire.Shown(rank, bytes(data)))
            elif guest is not None or rank != self._own_rank or not self._display.show(bytes(data)):
                continue
            self._drop_shown(rank)
        for guest in [guest for guest in self._guests if guest.leaving and not guest.link.wants_write()]:
            self._part(guest)

    def suspend(self, stop: bool) -> None:
        """pmrun itself stops, or goes on."""
        if self._console is not None and self._own_rank >= 0:
            if stop:
                self._console.release()
            else:
                self._console.take()

    def close(self) -> None:
        """The job is over."""
        self.end()
        for guest in [*self._guests]:
            self._part(guest)
        if self._listener is not None:
            self._listener.close()

    def _drop_shown(self, rank: int) -> None:
        data = self._shown.get(rank)
        if data:
            self._send(rank, wire.Typed(rank, credit=len(data)))
            data.clear()

    # ---- pmrun's own terminal -------------------------------------------------------------------------

    def _take_console(self, rank: int) -> bool:
        if self._own_rank >= 0:
            return False
        if self._console is None:
            from pmrun.launcher.console import Console  # most jobs are never debugged

            self._console = Console()
        if not self._console.take():
            return False
        self._own_rank = rank
        keys = "q or Ctrl-D ends the gang, Ctrl-] leaves it waiting"
        self._display.say(f"{self._line(rank)}; the others wait for it ({keys})\n")
        self._send(rank, wire.Typed(rank, b"", 0, *self._console.size()))
        return True

    def resize(self) -> None:
        """pmrun's own terminal has another size now."""
        if self._console is not None and self._own_rank >= 0:
            self._send(self._own_rank, wire.Typed(self._own_rank, b"", 0, *self._console.size()))

    def _free_console(self, rank: int) -> None:
        """pmrun's terminal shows this rank no more: it is the next one's, if there is one."""
        if self._console is None or rank != self._own_rank:
            return
        self._console.release()
        self._own_rank = -1
        for other in sorted(self._waiting.keys() - self._left):
            if self._guest_of(other) is None and self._take_console(other):
                return

    def _on_key(self) -> None:
        try:
            data = os.read(0, 4096)
        except OSError:  # another job has the terminal now
            data = b""
        from pmrun.launcher.console import LEAVE_KEY

        rank = self._own_rank
        keys, leave, _ = data.partition(LEAVE_KEY)
        if keys:
            self._send(rank, wire.Typed(rank, keys))
        if leave or not data:
            self._left.add(rank)
            self._display.say(f"\npmrun: rank {rank} waits on; to talk to it: {self._command(rank)}\n")
            self._free_console(rank)

    # ---- pmrun attach ---------------------------------------------------------------------------------

    def _guest_of(self, rank: int) -> _Guest | None:
        return next((guest for guest in self._guests if guest.rank == rank and not guest.leaving), None)

    def _on_knock(self) -> None:
        assert self._listener is not None
        try:
            sock, _ = self._listener.accept()
        except OSError:  # it went again, or no descriptor is left
            return
        if not attach_line.is_own(sock) or len(self._guests) == _GUESTS_MAX:
            sock.close()
            return
        self._guests.append(_Guest(sock))

    def _on_guest(self, guest: _Guest, events: int) -> None:
        try:
            messages = guest.link.receive()
        except LinkLost:
            self._part(guest)
            return
        for message in messages:
            if isinstance(message, wire.Attach) and guest.rank < 0:
                self._admit(guest, message)
            elif isinstance(message, wire.Typed) and guest.rank >= 0 and not guest.leaving:
                self._on_typed(guest.rank, message)

    def _admit(self, guest: _Guest, asked: wire.Attach) -> None:
        rank = asked.rank if asked.rank >= 0 else min(self._waiting, default=-1)
        refusal = self._refusal(rank)
        if refusal:
            self._dismiss(guest, wire.Refused(refusal, ExitCode.USAGE))
            return
        guest.rank = rank
        guest.link.send(wire.Debugging(rank, self._waiting.get(rank, "")))
        self._left.discard(rank)
        if asked.rows > 0:
            self._send(rank, wire.Typed(rank, b"", 0, asked.rows, asked.columns))

    def _refusal(self, rank: int) -> str:
        if rank < 0:
            return "no rank waits in pdb: say which one to look at, with --rank"
        if rank >= len(self._names):
            return f"there is no rank {rank} now: the job has {len(self._names)}"
        if rank in self._ended:
            return f"rank {rank} has ended"
        if rank == self._own_rank:
            return f"the terminal of pmrun itself talks to rank {rank}: Ctrl-] there leaves it"
        return f"another pmrun attach looks at rank {rank}: Ctrl-] there leaves it" if self._guest_of(rank) else ""

    def _on_typed(self, rank: int, typed: wire.Typed) -> None:
        if typed.rows > 0:
            self._send(rank, wire.Typed(rank, b"", 0, typed.rows, typed.columns))
        if rank in self._waiting:
            self._send(rank, wire.Typed(rank, typed.data))
        elif b"\x03" in typed.data:  # Ctrl-C
            self._send(rank, wire.Interrupt(rank))

    def _dismiss(self, guest: _Guest, word: wire.Message) -> None:
        guest.link.send(word)
        guest.leaving = True

    def _part(self, guest: _Guest) -> None:
        self._guests.remove(guest)
        if self._poller is not None:
            guest.link.forget(self._poller)
        guest.link.close()
