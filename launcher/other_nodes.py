# SPDX-License-Identifier: Apache-2.0
"""A steward's dealings with the other nodes, where another launcher started ranks on several.

It dials rank 0's node, or is that node, and then makes the convener (launcher/convener.py) and speaks to it over a socket pair:
what follows is the same on all nodes. All keys, and the port, follow from the secret in PMRUN_SECRET_FILE and the launcher's name for
this start, so that two jobs with one file neither meet nor collide. Invariant: after `close` no port, socket or thread
of it is left, and whoever was to hear something has heard it, if it still listens.
"""

from __future__ import annotations

import errno
import os
import time
from typing import Final, Protocol

import msgspec

from pmrun import env, window, wire
from pmrun.errors import ExitCode, LaunchError
from pmrun.foreign import Placement
from pmrun.launcher import interfaces, keys
from pmrun.launcher.convener import Convener
from pmrun.launcher.dial import Meeting, dial
from pmrun.launcher.lease import LEASE_S, Leases
from pmrun.launcher.link import Link, LinkLost, SocketHub, SocketLink, socket_pair
from pmrun.launcher.meeting_place import own_address, split_main
from pmrun.launcher.net_link import NetHub
from pmrun.launcher.poller import Poller
from pmrun.launcher.store_route import BACKLOG_BYTES
from pmrun.secret import read_secret
from pmrun.version import RELEASE

_BIND_S: Final = 5.0  # for what has the port, which is an earlier start of this job as a rule, to end
_AGAIN_S: Final = 0.05
_SETTLE_S: Final = 1.5  # when the main node is gone: for ranks that end by themselves, and what they still receive


class Listener(Protocol):
    """The steward, as it is told of what happens elsewhere."""

    def on_gathered(self, word: wire.Gathered) -> None:
        """All ranks of the gang have come."""

    def on_refused(self, text: str) -> None:
        """There will be no gang, or none with these ranks."""

    def on_verdict(self, word: wire.Verdict) -> None:
        """The gang ends."""

    def on_reply(self, word: wire.StoreReply) -> None:
        """The store answered one of this node's ranks."""


class OtherNodes:
    """Of one steward; made by `meet_others`.

    Parameters
    ----------
    link : Link
        To the convener.
    convener : Convener or None
        Where it is in this process.
    hello : wire.Hello
        Of this node, before its ranks have come.
    """

    def __init__(
        self, link: Link, convener: Convener | None, hello: wire.Hello, listener: Listener, poller: Poller, now: float
    ) -> None:
        self._link = link
        self._convener = convener
        self._hello = hello
        self._listener = listener
        self._poller = poller
        self._lease = Leases(now)
        if link.needs_lease:
            self._lease.add(0, now)
        self._main = ""  # address of rank 0's node, once all have met
        self._lost = ""  # why that one can be heard no more
        self._lost_at: float | None = None  # when its end is told
        self._judged = False
        self._deaf = False  # the link is closed
        self._left = False
        self.send(hello)

    def work(self, now: float) -> None:
        """Take what has come."""
        if self._convener is not None:
            self._convener.work(now)
        if self._deaf:
            return
        try:
            messages = self._link.receive()
        except LinkLost as error:
            self._lose(str(error), now + _SETTLE_S)
            return
        if messages:
            self._lease.heard(0, now)
        for message in messages:
            self._on_message(message)

    def watch(self) -> None:
        """Before each wait."""
        if not self._deaf:
            self._link.watch(self._poller, self._on_events)
        if self._convener is not None:
            self._convener.watch(self._on_events)

    def deadline(self, now: float) -> float:
        """When `on_tick` has something to do; not later than `now` where something is pending."""
        if (not self._deaf and self._link.pending()) or (self._convener is not None and self._convener.pending()):
            return now
        times = [self._lease.deadline(), self._lost_at, self._convener.deadline() if self._convener else None]
        return min(at for at in times if at is not None)

    def on_tick(self, now: float) -> None:
        """Time has passed."""
        self.work(now)
        if self._convener is not None:
            self._convener.on_tick(now)
        if self._lease.look(now):
            self._lose(f"no sign of life for {LEASE_S:g} s", now)
        if self._lease.beat_due(now):
            self.send(wire.Beat())
        if self._lost_at is not None and now >= self._lost_at:
            self._lost_at = None
            self._listener.on_verdict(self._end_of_main())

    @property
    def crowded(self) -> bool:
        """Whether the link is full, and no more requests to the store are to be read."""
        return self._link.backlog_bytes > BACKLOG_BYTES

    @property
    def over(self) -> bool:
        """Whether nobody needs this node's steward any more."""
        return self._left and (self._convener is None or self._convener.over)

    def close(self) -> None:
        """Give everything back, once what was said is on its way."""
        if self._convener is not None:
            self._convener.close()
        self._close_link()

    # ---- what the steward says ----------------------------------------------------------------------------

    def call_roll(self, first_rank: int) -> None:
        """All ranks of this node have come."""
        self.send(msgspec.structs.replace(self._hello, first_rank=first_rank))

    def give_up(self, text: str) -> None:
        """The ranks of this node will not come."""
        self.send(wire.StartFailed(-1, text, ExitCode.START_FAILED))
        self._leave()

    def judge(self, verdict: wire.Verdict) -> None:
        """The gang ends, as this node sees it; the first time counts."""
        if not self._judged:
            self._judged = True
            self.send(verdict)

    def ended(self, rank: int) -> None:
        """A rank's process is gone."""
        self.send(wire.RankLeft(rank))

    def done(self) -> None:
        """The last one is."""
        self.send(wire.NodeDone(()))
        self._leave()

    # ---- details ------------------------------------------------------------------------------------------

    def _on_events(self, events: int) -> None:
        self.work(time.monotonic())

    def _on_message(self, message: wire.Message) -> None:
        if self._left:
            return
        if isinstance(message, wire.Gathered):
            self._main = message.peers[0]
            self._listener.on_gathered(message)
        elif isinstance(message, wire.Refused):
            self._listener.on_refused(message.text)
            self._leave()
        elif isinstance(message, wire.Verdict):
            self._judged = True
            self._listener.on_verdict(message)
        elif isinstance(message, wire.StoreReply):
            self._listener.on_reply(message)

    def _lose(self, why: str, tell_at: float) -> None:
        """Rank 0's node can be heard no more."""
        self._close_link()
        self._lost = why
        if self._main:
            self._lost_at = tell_at
        else:
            self._listener.on_refused(
                f"the steward of rank 0's node is gone ({why}) before all ranks had come: see what the ranks there wrote"
            )
            self._leave()

    def _end_of_main(self) -> wire.Verdict:
        return wire.Verdict(window.ABORT_RANK_FAILED, 0, self._main, f"its node is lost ({self._lost})")

    def send(self, message: wire.Message) -> None:
        """Say something to the convener, while there is one."""
        if not self._deaf:
            self._link.send(message)

    def _leave(self) -> None:
        """This node's ranks need nothing more."""
        self._left = True
        if self._convener is None:
            self._close_link()

    def _close_link(self) -> None:
        if not self._deaf:
            self._deaf = True
            self._lease.remove(0)
            self._link.forget(self._poller)
            self._link.close()


# ---- meeting them -------------------------------------------------------------------------------------------


def job_secret(placement: Placement) -> bytes:
    """What the ranks of this start of the gang have in common, and no others."""
    name = "\0".join((placement.launcher, placement.job, str(placement.world_size)))
    return keys.job_secret(read_secret(os.environ[env.SECRET_FILE], env.SECRET_FILE), name)


def meet_others(
    placement: Placement, secret: bytes, listener: Listener, poller: Poller, timeout_s: float, first_fd: int
) -> OtherNodes:
    """Dial rank 0's node, or be it.

    Parameters
    ----------
    placement : Placement
        Of this node's first rank.
    timeout_s : float
        For all ranks to come.
    first_fd : int
        Readable when that rank has ended: there is nobody to dial for then.

    Raises
    ------
    LaunchError, UsageError
        Rank 0's node cannot be reached in time, or cannot listen.
    """
    host, port = split_main(os.environ.get(env.MAIN) or placement.main_address)
    port = port or keys.main_port(secret)
    wanted = os.environ.get(env.INTERFACE)
    convener: Convener | None = None
    link: Link
    if placement.rank == 0:
        address = own_address(host, wanted, "the main address", f"{env.MAIN} and {env.INTERFACE}")
        hub = _listen(secret, address, port, min(timeout_s, _BIND_S))
        ours, theirs = socket_pair()
        link = SocketLink(ours)
        convener = Convener(hub, SocketHub(theirs), placement.world_size, timeout_s, poller, time.monotonic())
    else:
        meeting = Meeting(((host, port),), secret, -1, timeout_s)
        link, address = dial(meeting, first_fd, lambda text: None)  # what stands in the way is told at the end
        if wanted is not None:
            address = interfaces.matching(wanted)
    hello = wire.Hello(
        wire.VERSION, -1, os.getpid(), os.uname().nodename, address, release=RELEASE, world_size=placement.world_size,
        local_world_size=placement.local_world_size,
    )  # fmt: skip
    return OtherNodes(link, convener, hello, listener, poller, time.monotonic())


def _listen(secret: bytes, address: str, port: int, patience_s: float) -> NetHub:
    until = time.monotonic() + patience_s
    while True:
        try:
            return NetHub(secret, 0, [(address, port)])
        except OSError as error:
            if error.errno != errno.EADDRINUSE or time.monotonic() >= until:
                raise LaunchError(
                    f"cannot listen on {interfaces.endpoint(address, port)}: {error.strerror}; does another job with "
                    f"this secret run here? give it a secret of its own, or {env.MAIN}=ADDRESS:PORT"
                ) from None
        time.sleep(_AGAIN_S)
