# SPDX-License-Identifier: Apache-2.0
"""Links across machines: ZeroMQ, one ROUTER at the controller, a DEALER at each agent, CURVE between them.

All keys follow from the job's secret (launcher/keys.py). CURVE alone would let in anybody who knows the server's
public key, so a ZAP handler, served in the controller's own loop, admits the nodes' keys and no other, and tells
which node a message is from. A socket monitor tells of connections that ended; no connection is made anew by
itself, so a loss is a loss on both sides. Invariant: a message reaches its reader only from a peer whose key is in
the list, and no queue grows beyond what its sender has credit for.
"""

from __future__ import annotations

import collections
import os
import socket
from typing import Final, NamedTuple

import zmq
from zmq.utils import z85

from pmrun import wire
from pmrun.launcher import keys
from pmrun.launcher.interfaces import endpoint
from pmrun.launcher.link import Event, LinkLost
from pmrun.launcher.poller import READ, Handler, Poller

_HANDSHAKE_MS: Final = 10_000  # a connection that has not proved itself by then is closed
_LINGER_MS: Final = 1_000  # at the end, for what was queued
_QUEUE_MESSAGES: Final = 32  # of one link inside libzmq, each way: 2 MiB of output
_BACKLOG_CONNECTIONS: Final = 1024
_ZAP_ENDPOINT: Final = "inproc://zeromq.zap.01"
_REFUSED: Final = zmq.EVENT_HANDSHAKE_FAILED_AUTH | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
_HUB_EVENTS: Final = zmq.EVENT_ACCEPTED | zmq.EVENT_DISCONNECTED | _REFUSED


class KeyPair(NamedTuple):
    """A CURVE key pair, as ZeroMQ writes it."""

    public: bytes
    secret: bytes


def key_pair(secret: bytes, label: str) -> KeyPair:
    """The key pair that belongs to a label; any 32 bytes are a secret key of curve25519."""
    own: bytes = z85.encode(keys.derive(secret, label))
    return KeyPair(zmq.curve_public(own), own)


class MonitorEvent(NamedTuple):
    """What a socket's monitor says: an event, and its number (a descriptor, an errno)."""

    event: int
    value: int


def monitor_events(monitor: zmq.Socket[bytes]) -> list[MonitorEvent]:
    """All that a monitor has to say now."""
    found: list[MonitorEvent] = []
    while True:
        try:
            head = monitor.recv_multipart(zmq.NOBLOCK)[0]
        except zmq.Again:
            return found
        found.append(MonitorEvent(int.from_bytes(head[:2], "little"), int.from_bytes(head[2:6], "little", signed=True)))


def descriptor_of(sock: zmq.Socket[bytes]) -> int:
    """Readable when the socket may have something to do; edge-triggered, so ask `has_input` before a wait."""
    return int(sock.get(zmq.FD))


def has_input(sock: zmq.Socket[bytes]) -> bool:
    """Whether a receive would give something now."""
    return bool(int(sock.get(zmq.EVENTS)) & zmq.POLLIN)


def bounded(sock: zmq.Socket[bytes]) -> zmq.Socket[bytes]:
    """Limits on what libzmq holds and waits for."""
    sock.set(zmq.MAXMSGSIZE, wire.MAX_MESSAGE_BYTES)
    sock.set(zmq.SNDHWM, _QUEUE_MESSAGES)
    sock.set(zmq.RCVHWM, _QUEUE_MESSAGES)
    sock.set(zmq.HANDSHAKE_IVL, _HANDSHAKE_MS)
    sock.set(zmq.LINGER, _LINGER_MS)
    return sock


class NetLink:
    """An agent's end; made by launcher/dial.py, connected and proved."""

    needs_lease = True

    def __init__(
        self, context: zmq.Context[zmq.Socket[bytes]], dealer: zmq.Socket[bytes], monitor: zmq.Socket[bytes]
    ) -> None:
        self._context = context
        self._dealer = dealer
        self._monitor = monitor
        self._out: collections.deque[bytes] = collections.deque()
        self._lost = False
        self.backlog_bytes = 0

    def watch(self, poller: Poller, handler: Handler) -> None:
        for sock in (self._dealer, self._monitor):
            poller.watch(descriptor_of(sock), READ, handler)

    def forget(self, poller: Poller) -> None:
        for sock in (self._dealer, self._monitor):
            poller.forget(descriptor_of(sock))

    def pending(self) -> bool:
        return has_input(self._dealer) or has_input(self._monitor)

    def send(self, message: wire.Message) -> None:
        data = wire.encode(message)
        self._out.append(data)
        self.backlog_bytes += len(data)
        self._flush()

    def receive(self) -> list[wire.Message]:
        if self._lost:
            raise LinkLost("the connection was closed")
        self._lost = any(item.event == zmq.EVENT_DISCONNECTED for item in monitor_events(self._monitor))
        messages = []
        while True:
            try:
                messages.append(wire.decode(self._dealer.recv(zmq.NOBLOCK)))
            except zmq.Again:
                break
            except wire.WireError as error:
                raise LinkLost(str(error)) from error
        if self._lost and not messages:
            raise LinkLost("the connection was closed")
        self._flush()
        return messages

    def close(self) -> None:
        self._dealer.disable_monitor()
        self._monitor.close(0)
        self._dealer.close()
        self._context.term()

    def _flush(self) -> None:
        while self._out and not self._lost:
            try:
                self._dealer.send(self._out[0], zmq.NOBLOCK)
            except zmq.Again:
                return
            self.backlog_bytes -= len(self._out.popleft())


class _Peer:
    """One agent's connection."""

    __slots__ = ("backlog_bytes", "fd", "node", "number", "out", "route")

    def __init__(self, number: int, route: bytes, node: int, fd: int) -> None:
        self.number = number
        self.route = route  # ROUTER's name for the connection
        self.node = node  # as its key says
        self.fd = fd
        self.out: collections.deque[bytes] = collections.deque()
        self.backlog_bytes = 0  # of `out`


class NetHub:
    """The controller's end: bound to given addresses, open to the nodes of one job."""

    sends_later = True

    def __init__(self, secret: bytes, num_nodes: int, binds: list[tuple[str, int]]) -> None:
        """Listen on each (address, port); port 0 takes a free one, told in `endpoints`. Raises OSError."""
        self._admitted = {key_pair(secret, keys.control_label(node)).public: node for node in range(-1, num_nodes)}
        self._peers: dict[int, _Peer] = {}
        self._by_route: dict[bytes, _Peer | None] = {}  # None: dropped, and not listened to
        self._by_fd: dict[int, bytes] = {}
        self._from: dict[int, str] = {}  # address by descriptor, of connections that are open
        self._next = 0
        self._refused, self._failed, self._last_refused = 0, 0, ""
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context(io_threads=1)  # one: its events come in order
        self._zap = self._context.socket(zmq.REP)
        self._zap.set(zmq.LINGER, 0)
        self._router = bounded(self._context.socket(zmq.ROUTER))
        self._monitor = self._router.get_monitor_socket(_HUB_EVENTS)
        try:
            self._zap.bind(_ZAP_ENDPOINT)
            self.endpoints = self._listen(key_pair(secret, keys.CONTROLLER_LABEL), binds)
        except zmq.ZMQError as error:
            self.close()
            raise OSError(error.errno, os.strerror(error.errno or 0)) from None

    def _listen(self, pair: KeyPair, binds: list[tuple[str, int]]) -> list[tuple[str, int]]:
        self._router.set(zmq.BACKLOG, _BACKLOG_CONNECTIONS)
        self._router.set(zmq.ROUTER_MANDATORY, 1)  # a full queue is told instead of dropping the message
        self._router.set(zmq.CURVE_SERVER, 1)
        self._router.set(zmq.CURVE_SECRETKEY, pair.secret)
        self._router.set(zmq.ZAP_DOMAIN, b"pmrun")
        bound = []
        for ip, port in binds:
            self._router.set(zmq.IPV6, ":" in ip)
            self._router.bind(f"tcp://{endpoint(ip, port)}")
            text = bytes(self._router.get(zmq.LAST_ENDPOINT)).rstrip(b"\0").decode()
            bound.append((ip, int(text.rpartition(":")[2])))
        return bound

    def watch(self, poller: Poller, handler: Handler) -> None:
        for sock in (self._router, self._zap, self._monitor):
            poller.watch(descriptor_of(sock), READ, handler)

    def pending(self) -> bool:
        return has_input(self._router) or has_input(self._zap) or has_input(self._monitor)

    def receive(self) -> list[Event]:
        self._admit()
        ended = self._note_connections()
        events: list[Event] = []
        while True:
            try:
                route, body = self._router.recv_multipart(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                break
            except ValueError:
                continue  # not of two parts: no agent sends such
            ended += self._take(route.bytes, body, events)
        for route_bytes in ended:  # after what they had sent
            peer = self._by_route.pop(route_bytes, None)
            if peer is not None and self._peers.pop(peer.number, None) is not None:
                events.append(Event(peer.number, None, "the connection was closed"))
        for peer in list(self._peers.values()):
            self._flush(peer)
        return events

    def send(self, peer: int, message: wire.Message) -> None:
        known = self._peers.get(peer)
        if known is not None:
            data = wire.encode(message)
            known.out.append(data)
            known.backlog_bytes += len(data)
            self._flush(known)

    def backlog_bytes(self, peer: int) -> int:
        known = self._peers.get(peer)
        return 0 if known is None else known.backlog_bytes

    def drop(self, poller: Poller, peer: int) -> None:
        known = self._peers.pop(peer, None)
        if known is not None:
            self._by_route[known.route] = None

    def strangers(self) -> str:
        if not self._refused:
            return ""
        many = "a connection" if self._refused == 1 else f"{self._refused} connections"
        last = f" (the last from {self._last_refused})" if self._last_refused else ""
        return f"{many} without this job's secret refused{last}"

    def close(self) -> None:
        self._router.disable_monitor()
        self._monitor.close(0)
        self._router.close()
        self._zap.close()
        self._context.term()

    # ---- details --------------------------------------------------------------------------------------

    def _admit(self) -> None:
        """Answer libzmq's questions whether a key may come in (ZAP, RFC 27)."""
        while True:
            try:
                version, number, _, _, _, mechanism, *credentials = self._zap.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            key = z85.encode(credentials[0]) if mechanism == b"CURVE" and credentials else b""
            node = self._admitted.get(key)
            verdict = [b"400", b"unknown key", b""] if node is None else [b"200", b"OK", str(node).encode()]
            self._zap.send_multipart([version, number, *verdict, b""])

    def _note_connections(self) -> list[bytes]:
        """Follow connections by their descriptors; returns the routes of those that ended."""
        ended = []
        for event, value in monitor_events(self._monitor):
            if event == zmq.EVENT_ACCEPTED:
                self._from[value] = _peer_address(value)
            elif event == zmq.EVENT_DISCONNECTED:
                came_from = self._from.pop(value, "")
                route = self._by_fd.pop(value, None)
                if route is not None:
                    ended.append(route)
                elif self._failed:
                    self._failed -= 1
                    self._last_refused = came_from or self._last_refused
            else:
                self._refused += 1
                self._failed += 1
        return ended

    def _take(self, route: bytes, body: zmq.Frame, events: list[Event]) -> list[bytes]:
        """One message; returns routes that ended meanwhile."""
        ended: list[bytes] = []
        if route not in self._by_route:
            fd = int(body.get(zmq.SRCFD))
            ended = self._note_connections()  # what is told of this descriptor so far was of those before it
            peer = _Peer(self._next, route, int(str(body.get("User-Id"))), fd)
            self._next += 1
            self._peers[peer.number] = self._by_route[route] = peer
            if fd in self._from:
                self._by_fd[fd] = route
            else:
                ended.append(route)  # it said hello and left
        known = self._by_route[route]
        if known is None:
            return ended
        message = _decode(body.bytes, known.node, str(body.get("Peer-Address")))
        if isinstance(message, wire.WireError):
            events.append(Event(known.number, None, str(message)))
            self._by_route[route] = None
            self._peers.pop(known.number, None)
        else:
            events.append(Event(known.number, message))
        return ended

    def _flush(self, peer: _Peer) -> None:
        while peer.out:
            try:
                self._router.send_multipart([peer.route, peer.out[0]], zmq.NOBLOCK)
            except zmq.Again:
                return  # its queue is full; `receive` tries again
            except zmq.ZMQError:
                peer.out.clear()  # it is gone, as the monitor will say
                peer.backlog_bytes = 0
                return
            peer.backlog_bytes -= len(peer.out.popleft())


def _decode(data: bytes, node: int, address: str) -> wire.Message | wire.WireError:
    """A message, or why not; another version's Hello as far as it can be understood."""
    try:
        message = wire.decode(data)
    except wire.WireError as error:
        version = wire.spoken_version(data)
        return error if version is None else wire.Hello(version, node, 0, address, address)
    if isinstance(message, wire.Hello) and message.node_rank != node:
        return wire.WireError(f"it came with the key of node {node} and says that it is node {message.node_rank}")
    return message


def _peer_address(fd: int) -> str:
    """Where a connection of libzmq comes from; "" when it is gone already, and its number perhaps another file's."""
    try:
        own = os.dup(fd)
    except OSError:
        return ""
    try:
        sock = socket.socket(fileno=own)
    except OSError:
        os.close(own)
        return ""
    with sock:
        try:
            return str(sock.getpeername()[0])
        except OSError:
            return ""
