# SPDX-License-Identifier: Apache-2.0
"""The steward: does for ranks that another launcher started on this machine what the agent does for pmrun's own.

`python -m pmrun.launcher.steward LISTENER LINE WORLD_SIZE TIMEOUT_S`, started by the first rank (pmrun.meeting) with a
listening socket, that rank's own line, and stderr. It leaves its parent at once, gathers all ranks or tells those that came who
is missing, makes the window, and from then on holds the store and marks in the window who is gone; how a process
ended it cannot know, only whether it had left by pm.shutdown(). It has one thread and never blocks but in poll. Invariant: it
ends when the last rank has, or when the gang could not be formed, and nothing of it stays.
"""

from __future__ import annotations

import contextlib
import os
import resource
import socket
import sys
import time
from typing import Final

from pmrun import meeting, store_wire, window
from pmrun.launcher.cgroup import ControlGroups, usable_cpus, usable_memory
from pmrun.launcher.polled_host import PolledHost
from pmrun.launcher.poller import READ, Poller
from pmrun.store_host import OwnTable
from pmrun.store_server import StoreServer

_STRANGERS_MAX: Final = 64  # connections beyond one for each rank
_FILES_PER_RANK: Final = 2
_FILES_OTHER: Final = 32
_ABRUPT: Final = "its process ended without leaving (killed by a signal, or os._exit)"


class Guest:
    """A connection, until all have come."""

    def __init__(self, sock: socket.socket, pid: int) -> None:
        sock.setblocking(False)
        self.sock = sock
        self.pidfd = os.pidfd_open(pid)
        self.frames = store_wire.Frames()
        self.join: meeting.Join | None = None


class Steward:
    """One gang's steward."""

    def __init__(self, listener: socket.socket, first: socket.socket, world_size: int, timeout_s: float) -> None:
        self._listener = listener
        self._world_size = world_size
        self._timeout_s = timeout_s
        self._by = time.monotonic() + timeout_s
        self._node = os.uname().nodename
        self._poller = Poller()
        self._guests: dict[int, Guest] = {}  # by descriptor
        self._joined: dict[int, Guest] = {}  # by rank
        self._pidfds: dict[int, int] = {}  # of the ranks that live, once all have come
        self._window: window.Window | None = None
        self._store = PolledHost(self._poller, b"", self._say)
        self._table = OwnTable(StoreServer(world_size), self._store, time.monotonic)
        self._store.route = self._table
        self._over = False
        listener.setblocking(False)
        self._poller.watch(listener.fileno(), READ, self._on_connection)
        self._receive_guest(first)

    def run(self) -> None:
        """Until the last rank has ended."""
        while not self._over:
            deadline = self._table.deadline() if self._window is not None else self._by
            now = time.monotonic()
            self._poller.wait(None if deadline is None else max(0.0, deadline - now))
            now = time.monotonic()
            self._table.on_tick(now)
            if self._window is None and not self._over and now >= self._by:
                missing = [str(rank) for rank in range(self._world_size) if rank not in self._joined]
                self._fail(
                    f"rank{'s' * (len(missing) > 1)} {', '.join(missing[:16])}{', ...' * (len(missing) > 16)} of "
                    f"{self._world_size} did not call pm.init() within {self._timeout_s:g} s: every rank must"
                )

    # ---- gathering ----------------------------------------------------------------------------------------

    def _on_connection(self, events: int) -> None:
        try:
            sock, _ = self._listener.accept()
        except OSError:
            return  # it is gone already, or there is no descriptor for it now
        _, uid = meeting.peer_of(sock)
        if uid != os.geteuid() or len(self._guests) >= self._world_size + _STRANGERS_MAX:
            sock.close()
            return
        self._receive_guest(sock)

    def _receive_guest(self, sock: socket.socket) -> None:
        try:
            guest = Guest(sock, meeting.peer_of(sock)[0])
        except OSError:
            sock.close()  # its process is gone
            return
        self._guests[sock.fileno()] = guest
        self._poller.watch(sock.fileno(), READ, lambda _: self._on_guest(guest))

    def _on_guest(self, guest: Guest) -> None:
        try:
            data = guest.sock.recv(1 << 16)
            words = guest.frames.feed(data, meeting.join_decoder)
        except BlockingIOError:
            return
        except (OSError, store_wire.StoreWireError):
            data, words = b"", []
        if not data or (words and guest.join is not None):
            self._on_guest_gone(guest)
        elif words:
            self._on_join(guest, words[0][0])

    def _on_join(self, guest: Guest, join: meeting.Join) -> None:
        problem = ""
        if (join.store_version, join.window_version) != (store_wire.VERSION, window.VERSION):
            problem = "rank 0 and this rank run different versions of pmrun: install one"
        elif join.world_size != self._world_size or not 0 <= join.rank < self._world_size:
            problem = (
                f"rank 0 was told of {self._world_size} ranks, this one that it is {join.rank} of {join.world_size}"
            )
        elif join.rank in self._joined:
            problem = f"another process has joined as rank {join.rank} already: two of them call pm.init()"
        if problem:
            self._tell(guest, problem)
            self._dismiss(guest)
            return
        guest.join = join
        self._joined[join.rank] = guest
        self._poller.watch(guest.pidfd, READ, lambda _: self._on_guest_gone(guest))
        if len(self._joined) == self._world_size:
            self._begin()

    def _on_guest_gone(self, guest: Guest) -> None:
        self._dismiss(guest)
        if guest.join is not None:
            del self._joined[guest.join.rank]
            self._fail(f"rank {guest.join.rank} ended, or gave up, before all ranks had called pm.init()")

    def _tell(self, guest: Guest, problem: str) -> None:
        with contextlib.suppress(OSError):  # it is gone, and needs no answer
            guest.sock.send(meeting.frame(meeting.Joined(problem)))

    def _dismiss(self, guest: Guest) -> None:
        fd = guest.sock.fileno()
        if self._guests.pop(fd, None) is not None:
            self._poller.forget(fd)
            self._poller.forget(guest.pidfd)
            guest.sock.close()
            os.close(guest.pidfd)

    def _fail(self, problem: str) -> None:
        for guest in self._guests.values():  # also those that have not said yet who they are
            self._tell(guest, problem)
        self._over = True

    def _begin(self) -> None:
        """All have come: the gang exists."""
        self._poller.forget(self._listener.fileno())
        self._listener.close()
        for guest in list(self._guests.values()):
            if guest.join is None:
                self._dismiss(guest)
        cpus = {cpu for guest in self._joined.values() if guest.join is not None for cpu in guest.join.cpus}
        with contextlib.suppress(OSError, ValueError):  # else it stays where the first rank is bound
            os.sched_setaffinity(0, cpus)
        groups = ControlGroups()
        heap = window.heap_bytes(usable_memory(groups), self._world_size)
        try:
            made = window.Window(self._world_size, self._world_size, 0, usable_cpus(groups), heap)
        except OSError as error:
            self._fail(f"cannot make the ranks' shared memory: {error.strerror}; check ulimit -v and -f")
            return
        self._window = made
        lifeline, self._alive = os.pipe()  # whose other end is held here alone
        for rank, guest in self._joined.items():
            self._poller.forget(guest.sock.fileno())
            self._pidfds[rank] = guest.pidfd
            self._poller.watch(guest.pidfd, READ, lambda _, r=rank: self._on_end(r))  # type: ignore[misc]
            with contextlib.suppress(OSError):  # it is gone, as its pidfd will tell
                socket.send_fds(guest.sock, [meeting.frame(meeting.Joined(""))], [made.fd, lifeline])
            self._store.add(rank, guest.sock)
        os.close(lifeline)

    # ---- keeping ------------------------------------------------------------------------------------------

    def _on_end(self, rank: int) -> None:
        """A rank's process is gone."""
        assert self._window is not None
        pidfd = self._pidfds.pop(rank)
        self._poller.forget(pidfd)
        os.close(pidfd)
        failed = self._window.rank_state(rank) == window.RANK_ATTACHED
        if failed:
            self._window.write_abort(window.ABORT_RANK_FAILED, rank, self._node, _ABRUPT)
        self._window.mark_departed(rank, failed)
        self._store.close(rank)
        self._table.ended(rank)
        record = self._window.read_abort()  # of a rank, perhaps, that told why before it left
        if record is not None:
            self._store.end_gang(record.state, record.rank, record.node, record.text)
        self._over = not self._pidfds

    def _say(self, text: str) -> None:
        with contextlib.suppress(OSError):  # stderr is closed, or nobody reads it
            os.write(2, f"pmrun: {text}\n".encode("utf-8", "replace"))


def main(arguments: list[str]) -> None:
    """Be the steward in a grandchild of the first rank, which must not find a child that it did not make."""
    listener_fd, line_fd, world_size = map(int, arguments[:3])
    try:
        os.close(os.pidfd_open(os.getpid()))
    except OSError as error:
        sys.exit(f"pmrun: cannot watch processes: {error.strerror} (pidfd_open, Linux 5.3 or newer)")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = _FILES_PER_RANK * (world_size + _STRANGERS_MAX) + _FILES_OTHER
    if hard != resource.RLIM_INFINITY and hard < needed:
        sys.exit(f"pmrun: {world_size} ranks need {needed} open files, the hard limit is {hard}: raise it (ulimit -Hn)")
    if soft != resource.RLIM_INFINITY and soft < needed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
    if os.fork() != 0:
        os._exit(0)
    listener, line = socket.socket(fileno=listener_fd), socket.socket(fileno=line_fd)
    Steward(listener, line, world_size, float(arguments[3])).run()


if __name__ == "__main__":
    main(sys.argv[1:])
