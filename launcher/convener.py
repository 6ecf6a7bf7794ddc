# SPDX-License-Identifier: Apache-2.0
"""The convener: stands in for the controller where another launcher started ranks on several nodes.

It lives in the steward of rank 0's node, in that one's poll loop. The other nodes' stewards dial it with the job's keys
(launcher/net_link.py), its own speaks to it over a socket pair, and all are peers alike. When the roll is complete, each is
told everybody's place; from then on it holds the gang's store, keeps the nodes' leases, and passes the first verdict, or
the loss of a node, on to all. It ends nobody. Invariant: every node that has said a word hears what becomes of the start.
"""

from __future__ import annotations

from typing import Final

from pmrun import window, wire
from pmrun.errors import ExitCode
from pmrun.launcher.lease import LEASE_S, Leases
from pmrun.launcher.link import Event, Hub
from pmrun.launcher.poller import Handler, Poller
from pmrun.launcher.roll_call import RollCall
from pmrun.launcher.store_route import GangStore
from pmrun.version import RELEASE

_STAY_S: Final = 3.0  # after a start that failed: nodes that are only just coming are told why
_OWN: Final = -1  # the peer that is this very process; a NetHub counts from 0


class Convener:
    """Of one gang.

    Parameters
    ----------
    hub : Hub
        Open to whoever has the job's secret.
    own : Hub
        Of the one peer that is the steward in this process.
    world_size : int
    timeout_s : float
        For all ranks to come, counted from `now`.
    """

    def __init__(self, hub: Hub, own: Hub, world_size: int, timeout_s: float, poller: Poller, now: float) -> None:
        self._hub = hub
        self._own = own
        self._poller = poller
        self._timeout_s = timeout_s
        self._by = now + timeout_s
        self._roll = RollCall(world_size, RELEASE)
        self._known: set[int] = {_OWN}  # peers that may be spoken to
        self._leases = Leases(now)
        self._peers: list[int] = []  # by node, once all have come
        self._nodes: dict[int, int] = {}  # by peer; those that ended are not in it
        self._ranks: list[range] = []
        self._hosts: list[str] = []
        self._store: GangStore | None = None
        self._verdict: wire.Verdict | None = None
        self._failure = ""  # why there will be no gang
        self._stay_until = 0.0  # after that, for those that have not heard of it
        self.over = False

    def watch(self, handler: Handler) -> None:
        """Before each wait; the handler is to call `work`."""
        self._hub.watch(self._poller, handler)
        self._own.watch(self._poller, handler)

    def pending(self) -> bool:
        """Whether there is something that no descriptor will tell of."""
        return self._hub.pending()

    def deadline(self) -> float:
        """When `on_tick` has something to do."""
        own = self._stay_until if self._failure else self._by
        times = [self._leases.deadline(), self._store.deadline() if self._store else own]
        return min(at for at in times if at is not None)

    def work(self, now: float) -> None:
        """Take what has come."""
        for event in self._hub.receive():
            self._on_event(event, now)
        for event in self._own.receive():
            self._on_event(event._replace(peer=_OWN), now)

    def on_tick(self, now: float) -> None:
        """Time has passed."""
        if self._store is None and not self._failure and now >= self._by:
            strangers = self._hub.strangers()
            self._fail(
                f"not all ranks called pm.init() within {self._timeout_s:g} s: waited for {self._roll.missing()}"
                f"{'; ' * bool(strangers)}{strangers}",
                now,
            )
        if self._failure:
            self.over = now >= self._stay_until or self._roll.all_heard
        for peer in self._leases.look(now):
            self._lose(peer, f"no sign of life for {LEASE_S:g} s", now)
        if self._leases.beat_due(now):
            for peer in self._known - {_OWN}:
                self.send(peer, wire.Beat())
        if self._store is not None:
            self._store.on_tick(now)

    def send(self, peer: int, message: wire.Message) -> None:
        """Queue a message; for a peer that is gone it is dropped."""
        if peer == _OWN:
            self._own.send(0, message)
        else:
            self._hub.send(peer, message)

    def backlog_bytes(self, peer: int) -> int:
        """How much is queued for a peer."""
        return self._own.backlog_bytes(0) if peer == _OWN else self._hub.backlog_bytes(peer)

    def close(self) -> None:
        """Let go of the port, once what was said is on its way."""
        self._own.close()
        self._hub.close()

    # ---- events -------------------------------------------------------------------------------------------

    def _on_event(self, event: Event, now: float) -> None:
        if event.message is None:
            self._lose(event.peer, event.why, now)
            return
        if event.peer not in self._known:
            self._known.add(event.peer)
            self._leases.add(event.peer, now)
        self._leases.heard(event.peer, now)
        node = self._nodes.get(event.peer)
        if node is not None:
            self._on_message(node, event.message, now)
        elif isinstance(event.message, wire.Hello):
            self._on_hello(event.peer, event.message)
        elif isinstance(event.message, wire.StartFailed) and self._store is None:
            self._fail(event.message.text, now)

    def _on_hello(self, peer: int, hello: wire.Hello) -> None:
        problem = self._roll.on_hello(peer, hello) or self._failure
        if self._store is not None:
            problem = f"{hello.host} ({hello.address}) came when the gang was whole: do two jobs have the same name?"
        if problem:
            self.send(peer, wire.Refused(problem, ExitCode.START_FAILED))
        elif self._roll.whole:
            self._begin()

    def _fail(self, text: str, now: float) -> None:
        """There will be no gang."""
        if not self._failure:
            self._failure = text
            self._stay_until = min(now + _STAY_S, self._by)
            for peer in self._known:
                self.send(peer, wire.Refused(text, ExitCode.START_FAILED))

    def _begin(self) -> None:
        nodes = self._roll.in_order()
        self._peers = [node.peer for node in nodes]
        self._nodes = {peer: number for number, peer in enumerate(self._peers)}
        self._ranks = [node.ranks for node in nodes]
        self._hosts = [node.hello.host for node in nodes]
        layout = tuple(map(len, self._ranks))
        self._store = GangStore(layout, self, self._peers)
        for number, peer in enumerate(self._peers):
            self.send(peer, wire.Gathered(number, layout, tuple(node.hello.address for node in nodes)))

    def _on_message(self, node: int, message: wire.Message, now: float) -> None:
        assert self._store is not None
        if isinstance(message, wire.StoreRequest | wire.StoreClosed):
            self._store.on_message(node, message, now)
        elif isinstance(message, wire.RankLeft):
            if message.rank in self._ranks[node]:
                self._store.on_rank_ended(message.rank)
        elif isinstance(message, wire.Verdict):
            self._judge(node, message)
        elif isinstance(message, wire.NodeDone):
            self._forget(self._peers[node])

    def _lose(self, peer: int, why: str, now: float) -> None:
        """A node can be heard no more."""
        node = self._nodes.get(peer)
        if node is not None:
            host = self._hosts[node]
            text = f"{host} is lost ({why})"
            self._judge(node, wire.Verdict(window.ABORT_RANK_FAILED, self._ranks[node].start, host, text))
        elif self._store is None and self._roll.host_of(peer):
            self._fail(f"the ranks on {self._roll.host_of(peer)} left before all ranks had called pm.init()", now)
        self._forget(peer)

    def _judge(self, node: int, verdict: wire.Verdict) -> None:
        """The first reason is the gang's."""
        if self._verdict is None:
            self._verdict = verdict
            for other, number in self._nodes.items():
                if number != node:
                    self.send(other, verdict)

    def _forget(self, peer: int) -> None:
        self._known.discard(peer)
        self._leases.remove(peer)
        node = self._nodes.pop(peer, None)
        if node is not None and self._store is not None:
            self._store.on_node_lost(node)
            self.over = not self._nodes
        if peer != _OWN:
            self._hub.drop(self._poller, peer)
