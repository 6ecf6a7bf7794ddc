# SPDX-License-Identifier: Apache-2.0
"""The steward: does for ranks that another launcher started on a node what the agent does for pmrun's own.

`python -m pmrun.launcher.steward LISTENER LINE TIMEOUT_S`, started by the node's first rank (pmrun.meeting) with a
listening socket, that rank's own line, its environment and stderr. It leaves its parent at once, gathers the node's ranks or
tells those that came who is missing, makes the window, and from then on holds the store, or the way to it, and marks in the
window who is gone; how a process ended it cannot know, only whether it had left by pm.shutdown(). Where there are several
nodes it meets their stewards (launcher/other_nodes.py). It has one thread, which blocks in nothing but poll once it has dialled.
Invariant: it ends when the last rank has, or when the gang could not be formed, and nothing of it stays.
"""

from __future__ import annotations

import contextlib
import os
import resource
import socket
import sys
import time
from typing import TYPE_CHECKING, Final

from pmrun import foreign, meeting, store_wire, window, wire
from pmrun.errors import PmrunError
from pmrun.foreign import Placement
from pmrun.launcher.cgroup import ControlGroups, usable_cpus, usable_memory
from pmrun.launcher.polled_host import PolledHost
from pmrun.launcher.poller import READ, Poller
from pmrun.store_host import OwnTable
from pmrun.store_server import StoreServer

if TYPE_CHECKING:
    from pmrun.launcher.other_nodes import OtherNodes

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

    def __init__(self, listener: socket.socket, first: socket.socket, placement: Placement, timeout_s: float) -> None:
        self._listener = listener
        self._placement = placement
        self._world_size = placement.world_size
        self._here = placement.ranks_here
        self._timeout_s = timeout_s
        self._by = time.monotonic() + timeout_s
        self._node = os.uname().nodename
        self._poller = Poller()
        self._guests: dict[int, Guest] = {}  # by descriptor
        self._joined: dict[int, Guest] = {}  # by rank
        self._pidfds: dict[int, int] = {}  # of the ranks that live, once all have come
        self._first_rank = 0
        self._window: window.Window | None = None
        self._store: PolledHost
        self._table: OwnTable | None = None  # the gang's store, where no other node needs it
        self._nodes: OtherNodes | None = None
        self._over = False
        listener.setblocking(False)
        self._poller.watch(listener.fileno(), READ, lambda _: self._accept_all())
        self._receive_guest(first)

    def run(self) -> None:
        """Until the last rank has ended."""
        if self._here == self._world_size:
            self._store = PolledHost(self._poller, b"", self._say)
            self._table = OwnTable(StoreServer(self._world_size), self._store, time.monotonic)
            self._store.route = self._table
        else:
            self._meet_others()
        while not self._over or (self._nodes is not None and not self._nodes.over):
            self._poller.wait(self._patience_s())
            now = time.monotonic()
            if self._table is not None:
                self._table.on_tick(now)
            if self._nodes is not None:
                self._nodes.on_tick(now)
                self._store.pause(self._nodes.crowded)
            if len(self._joined) < self._here and not self._over and self._window is None and now >= self._by:
                self._fail(self._missing())
        if self._nodes is not None:
            self._nodes.close()

    def _meet_others(self) -> None:
        from pmrun.launcher import keys, other_nodes  # and with them what one machine does not need: ZeroMQ
        from pmrun.launcher.store_route import LinkRoute

        first = next(iter(self._guests.values()), None)
        if first is None:  # its process is gone already, and the launcher will end the others
            self._over = True
            return
        try:
            secret = other_nodes.job_secret(self._placement)
            self._nodes = other_nodes.meet_others(
                self._placement, secret, self, self._poller, self._timeout_s, first.pidfd
            )
        except PmrunError as error:
            self._accept_all()  # whoever came meanwhile is to hear of it
            self._fail(str(error))
            return
        self._store = PolledHost(self._poller, keys.data_key(secret, 0), self._say)
        self._store.route = LinkRoute(self._nodes)

    def _patience_s(self) -> float | None:
        """How long nothing has to be done."""
        now = time.monotonic()
        times = [
            self._table.deadline() if self._table is not None else None,
            self._by if self._window is None and len(self._joined) < self._here else None,
        ]
        if self._nodes is not None:
            self._nodes.watch()
            times.append(self._nodes.deadline(now))
        deadline = min((at for at in times if at is not None), default=None)
        return None if deadline is None else max(0.0, deadline - now)

    def _missing(self) -> str:
        within = f"did not call pm.init() within {self._timeout_s:g} s: every rank must"
        if self._nodes is None:
            missing = [str(rank) for rank in range(self._world_size) if rank not in self._joined]
            named = f"{', '.join(missing[:16])}{', ...' * (len(missing) > 16)}"
            return f"rank{'s' * (len(missing) > 1)} {named} of {self._world_size} {within}"
        came = ", ".join(map(str, sorted(self._joined)))
        return f"{self._here - len(self._joined)} of the {self._here} ranks on {self._node} {within} ({came} did)"

    # ---- gathering ----------------------------------------------------------------------------------------

    def _accept_all(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return  # there is none, it is gone already, or there is no descriptor for it now
            _, uid = meeting.peer_of(sock)
            if uid != os.geteuid() or len(self._guests) >= self._here + _STRANGERS_MAX:
                sock.close()
            else:
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
        if len(self._joined) == self._here:
            self._on_all_here()

    def _on_guest_gone(self, guest: Guest) -> None:
        self._dismiss(guest)
        if guest.join is not None:
            del self._joined[guest.join.rank]
            where = f" on {self._node}" * (self._nodes is not None)
            self._fail(f"rank {guest.join.rank}{where} ended, or gave up, before all ranks had called pm.init()")

    def _on_all_here(self) -> None:
        """The ranks of this node have come."""
        if self._nodes is None:
            self._begin(meeting.Joined(""))
            return
        ranks = sorted(self._joined)
        self._first_rank = ranks[0]
        if ranks[-1] - ranks[0] + 1 == len(ranks):
            self._nodes.call_roll(ranks[0])
            return
        listed = ", ".join(map(str, ranks[:16])) + ", ..." * (len(ranks) > 16)
        way = self._placement.in_a_row
        self._fail(
            f"ranks {listed} are on {self._node}: pmrun needs ranks with consecutive numbers on each node"
            + f"; start them with {way}" * bool(way)
        )

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
        if self._nodes is not None:
            self._nodes.give_up(problem)
        self._refuse(problem)

    def _refuse(self, problem: str) -> None:
        for guest in self._guests.values():  # also those that have not said yet who they are
            self._tell(guest, problem)
        self._over = True

    def _begin(self, word: meeting.Joined) -> None:
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
        heap = window.heap_bytes(usable_memory(groups), self._here)
        try:
            made = window.Window(self._world_size, self._here, self._first_rank, usable_cpus(groups), heap)
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
                socket.send_fds(guest.sock, [meeting.frame(word)], [made.fd, lifeline])
            self._store.add(rank, guest.sock)
        os.close(lifeline)

    # ---- keeping ------------------------------------------------------------------------------------------

    def _on_end(self, rank: int) -> None:
        """A rank's process is gone."""
        assert self._window is not None
        pidfd = self._pidfds.pop(rank)
        self._poller.forget(pidfd)
        os.close(pidfd)
        local_rank = rank - self._first_rank
        failed = self._window.rank_state(local_rank) == window.RANK_ATTACHED
        if failed:
            self._window.write_abort(window.ABORT_RANK_FAILED, rank, self._node, _ABRUPT)
        self._window.mark_departed(local_rank, failed)
        self._store.close(rank)
        record = self._tell_store()
        if self._table is not None:
            self._table.ended(rank)
        self._over = not self._pidfds
        if self._nodes is None:
            return
        self._nodes.ended(rank)
        if record is not None:
            self._nodes.judge(wire.Verdict(record.state, record.rank, record.node, record.text))
        if self._over:
            self._nodes.done()

    def _tell_store(self) -> window.AbortRecord | None:
        """Those that wait in the store hear what the window says of the end; a rank, perhaps, told why before it left."""
        assert self._window is not None
        record = self._window.read_abort()
        if record is not None:
            self._store.end_gang(record.state, record.rank, record.node, record.text)
        return record

    # ---- what other nodes say -----------------------------------------------------------------------------

    def on_gathered(self, word: wire.Gathered) -> None:
        """All ranks of the gang have come."""
        self._begin(meeting.Joined("", self._first_rank, word.node_rank, word.layout, word.peers))

    def on_refused(self, text: str) -> None:
        """There will be no gang, or none with these ranks."""
        if self._window is None:
            self._refuse(text)

    def on_verdict(self, word: wire.Verdict) -> None:
        """The gang ends."""
        if self._window is not None:
            self._window.write_abort(word.state, word.rank, word.node, word.text)
            self._tell_store()

    def on_reply(self, word: wire.StoreReply) -> None:
        """The store answered one of this node's ranks."""
        self._store.reply(word.rank, store_wire.decode(word.word, store_wire.reply_decoder))

    def _say(self, text: str) -> None:
        with contextlib.suppress(OSError):  # stderr is closed, or nobody reads it
            os.write(2, f"pmrun: {text}\n".encode("utf-8", "replace"))


def main(arguments: list[str]) -> None:
    """Be the steward in a grandchild of the first rank, which must not find a child that it did not make."""
    listener_fd, line_fd = map(int, arguments[:2])
    placement = foreign.recognise(os.environ)
    assert placement is not None, "whoever starts a steward has recognised the launcher"
    guests = placement.ranks_here + _STRANGERS_MAX
    try:
        os.close(os.pidfd_open(os.getpid()))
    except OSError as error:
        sys.exit(f"pmrun: cannot watch processes: {error.strerror} (pidfd_open, Linux 5.3 or newer)")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = _FILES_PER_RANK * guests + _FILES_OTHER
    if placement.rank == 0 and not placement.on_one_machine:
        needed += placement.world_size  # connections of other nodes, of at least one rank each
    if hard != resource.RLIM_INFINITY and hard < needed:
        sys.exit(
            f"pmrun: {placement.world_size} ranks need {needed} open files, the hard limit is {hard}: raise it (ulimit -Hn)"
        )
    if soft != resource.RLIM_INFINITY and soft < needed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
    if os.fork() != 0:
        os._exit(0)
    listener, line = socket.socket(fileno=listener_fd), socket.socket(fileno=line_fd)
    Steward(listener, line, placement, float(arguments[2])).run()


if __name__ == "__main__":
    main(sys.argv[1:])
