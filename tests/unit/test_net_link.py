# SPDX-License-Identifier: Apache-2.0
"""Links across machines, over real sockets: who holds the secret comes in, nobody else, and nothing gets lost."""

import os
import random
import select
import socket
import threading
import time

import pytest
import zmq
from zmq.utils import z85

from pmrun import wire
from pmrun.errors import LaunchError
from pmrun.launcher import keys
from pmrun.launcher.dial import LifelineCut, Meeting, dial
from pmrun.launcher.link import LinkLost
from pmrun.launcher.net_link import NetHub, key_pair
from pmrun.launcher.poller import Poller

SECRET = bytes(range(32))
DEADLINE_S = 20.0


class Served:
    """A hub, served until something holds."""

    def __init__(self, nodes=3, ip="127.0.0.1"):
        self.hub = NetHub(SECRET, nodes, [(ip, 0)])
        self.port = self.hub.endpoints[0][1]
        self.poller = Poller()
        self.events = []

    def until(self, condition, what="it"):
        end = time.monotonic() + DEADLINE_S
        while not condition():
            assert time.monotonic() < end, f"waited for {what}; {self.events} {self.hub.strangers()}"
            self.hub.watch(self.poller, lambda _: None)
            self.poller.wait(0.0 if self.hub.pending() else 0.02)
            self.events += self.hub.receive()

    def dial(self, node=1, secret=SECRET, host="127.0.0.1", timeout_s=DEADLINE_S, port=None, lifeline=-1):
        """Dial in a thread while the hub is served; a link, or the error."""
        found = []
        meeting = Meeting(((host, port or self.port),), secret, node, timeout_s)

        def go():
            try:
                found.append(dial(meeting, lifeline, lambda _: None)[0])
            except LaunchError as error:
                found.append(error)

        thread = threading.Thread(target=go)
        thread.start()
        self.until(lambda: found, "the dialling")
        thread.join()
        return found[0]

    def greet(self, link, node=1):
        link.send(wire.Hello(wire.VERSION, node, 1))
        self.until(lambda: any(isinstance(event.message, wire.Hello) for event in self.events), "a hello")
        return self.events.pop().peer


@pytest.fixture
def served():
    found = Served()
    yield found
    found.hub.close()


def receive_until(link, count):
    got, poller, end = [], Poller(), time.monotonic() + DEADLINE_S
    while len(got) < count:
        assert time.monotonic() < end
        link.watch(poller, lambda _: None)
        poller.wait(0.0 if link.pending() else 0.02)
        got += link.receive()
    return got


def test_messages_go_both_ways_whole_and_in_order(served, rng: random.Random):
    link = served.dial()
    peer = served.greet(link)
    up = [wire.Output(number, 1, rng.randbytes(rng.choice([0, 1, 100, 65536]))) for number in range(300)]
    down = [wire.Stdin(rng.randbytes(rng.choice([0, 1, 65536]))) for _ in range(300)]
    for message in up:
        link.send(message)
    for message in down:
        served.hub.send(peer, message)
    assert link.backlog_bytes > 0, "libzmq holds a bounded number; the rest waits here"
    got, poller, end = [], Poller(), time.monotonic() + DEADLINE_S
    while len(got) < len(down) or len(served.events) < len(up):
        assert time.monotonic() < end
        link.watch(poller, lambda _: None)
        served.hub.watch(poller, lambda _: None)
        poller.wait(0.0 if link.pending() or served.hub.pending() else 0.02)
        got += link.receive()
        served.events += served.hub.receive()
    assert [event.message for event in served.events] == up and got == down
    assert link.backlog_bytes == 0
    link.close()


@pytest.mark.parametrize("ip", ["::1"])
def test_ipv6(ip):
    served = Served(ip=ip)
    link = served.dial(host=ip)
    served.greet(link)
    link.close()
    served.hub.close()


def test_both_sides_notice_the_end_after_the_last_message(served):
    link = served.dial()
    peer = served.greet(link)
    link.send(wire.NodeDone(()))
    link.close()
    served.until(lambda: len(served.events) == 2)
    assert [(event.peer, event.message) for event in served.events] == [(peer, wire.NodeDone(())), (peer, None)]
    served.hub.send(peer, wire.Leave())  # to nobody: silent

    link = served.dial()
    peer = served.greet(link)
    served.hub.send(peer, wire.Leave(3))
    served.hub.close()
    assert receive_until(link, 1) == [wire.Leave(3)]
    with pytest.raises(LinkLost):
        receive_until(link, 1)
    link.close()
    served.hub = NetHub(SECRET, 1, [("127.0.0.1", 0)])  # for the fixture


def test_another_secret_is_refused_on_both_sides(served):
    error = served.dial(secret=b"x" * 32)
    assert "does not take our secret" in str(error) and "another secret" in str(error)
    served.until(served.hub.strangers, "the refusal to be counted")
    assert "without this job's secret refused" in served.hub.strangers()
    assert not served.events


def test_a_node_that_is_not_of_the_job(served):
    assert "does not expect this node" in str(served.dial(node=3))
    assert not served.events


def test_a_node_cannot_take_anothers_number(served):
    link = served.dial(node=1)
    link.send(wire.Hello(wire.VERSION, 2, 1))
    served.until(lambda: served.events)
    assert served.events[0].message is None and "key of node 1" in served.events[0].why
    link.send(wire.Hello(wire.VERSION, 1, 1))
    other = served.dial(node=2)
    other.send(wire.Hello(wire.VERSION, 2, 1))
    served.until(lambda: len(served.events) > 1)
    assert served.events[1].message == wire.Hello(wire.VERSION, 2, 1), "who lied once is not listened to"
    link.close()
    other.close()


def test_another_versions_hello_is_understood_as_far_as_it_goes(served):
    link = served.dial(node=1)
    link._dealer.send(b"\x95\xa5hello\x63\x01\xc0\xc0")  # version 99, and fields that this version does not know
    served.until(lambda: served.events)
    assert served.events[0].message == wire.Hello(99, 1, 0, "127.0.0.1", "127.0.0.1")
    link._dealer.send(b"nonsense")
    served.until(lambda: len(served.events) > 1)
    assert served.events[1].message is None and "does not understand" in served.events[1].why
    link.close()


def strangers(port, rng):
    """Connections without the secret, of all kinds: with no key, with his own, with rubbish, with nothing at all."""
    context = zmq.Context()
    server = key_pair(SECRET, keys.CONTROLLER_LABEL).public
    sockets = []
    for kind in range(12):
        sock = context.socket(rng.choice([zmq.DEALER, zmq.REQ]))
        sock.set(zmq.LINGER, 0)
        if kind % 2:  # knows even the controller's public key
            own = key_pair(rng.randbytes(32), "x")
            sock.set(zmq.CURVE_SERVERKEY, server if kind % 4 == 1 else z85.encode(rng.randbytes(32)))
            sock.set(zmq.CURVE_PUBLICKEY, own.public)
            sock.set(zmq.CURVE_SECRETKEY, own.secret)
        sock.connect(f"tcp://127.0.0.1:{port}")
        sock.send(wire.encode(wire.Hello(wire.VERSION, 1, 1)))
        sockets.append(sock)
    raw = []
    for kind in range(12):
        sock = socket.create_connection(("127.0.0.1", port))
        if kind % 3:
            sock.sendall(
                rng.choice([b"GET / HTTP/1.1\r\n\r\n", b"\xff" + bytes(8) + b"\x7f\x03\x00", rng.randbytes(500)])
            )
        raw.append(sock)
    return context, sockets, raw


def test_strangers_get_no_message_through(served, rng: random.Random):
    link = served.dial(node=1)
    peer = served.greet(link)
    context, sockets, raw = strangers(served.port, rng)
    served.until(lambda: "connections" in served.hub.strangers())
    for number in range(50):
        served.hub.send(peer, wire.Credit(number, 1, 1))
        link.send(wire.Beat())
    got = []
    served.until(lambda: got.extend(link.receive()) or (len(got) == len(served.events) == 50))
    assert all((event.peer, event.message) == (peer, wire.Beat()) for event in served.events)
    for sock in raw:
        sock.close()
    context.destroy(0)
    link.close()


class Tap:
    """Stands between an agent and its controller, passes everything on, and keeps what the agent said."""

    def __init__(self, port):
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.kept = []
        self._to = port
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self):
        while True:
            agent, _ = self._listener.accept()
            with agent, socket.create_connection(("127.0.0.1", self._to)) as controller:
                self.kept.append(b"")
                other = {agent: controller, controller: agent}
                while other:
                    for sock in select.select(list(other), [], [])[0]:
                        data = sock.recv(65536)
                        if not data:
                            other = {}
                            break
                        other[sock].sendall(data)
                        if sock is agent:
                            self.kept[-1] += data
            if len(self.kept) == 2:
                self._listener.close()
                return

    def join(self):
        self._thread.join()


def test_a_recorded_join_is_worth_nothing(served):
    """The first connection is the dialler's probe, the second the agent's."""
    tap = Tap(served.port)
    link = served.dial(port=tap.port)
    served.greet(link)
    link.close()
    tap.join()
    served.until(lambda: served.events and served.events[-1].message is None)
    served.events.clear()
    said = tap.kept[1]
    assert len(said) > 500, "greeting, hello, initiate, message"
    with socket.create_connection(("127.0.0.1", served.port)) as sock:
        sock.sendall(said)
        served.until(served.hub.strangers, "the refusal")
    assert not served.events


# ---- dialling ---------------------------------------------------------------------------------------------


def test_nobody_there():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        told = []
        meeting = Meeting((("127.0.0.1", sock.getsockname()[1]),), SECRET, 0, 0.5)
        with pytest.raises(LaunchError, match=r"127.0.0.1:\d+ dialled, connection refused, for 0.5 s"):
            dial(meeting, -1, told.append)
        assert len(told) == 1, "what does not change is told once"


def test_a_name_that_nobody_knows():
    meeting = Meeting((("no-such-host.invalid", 1),), SECRET, 0, 0.2)
    with pytest.raises(LaunchError, match=r"no-such-host.invalid: .*for 0.2 s"):
        dial(meeting, -1, lambda _: None)


def test_the_controller_may_come_late():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    found, told = [], threading.Event()
    meeting = Meeting((("127.0.0.1", port),), SECRET, 0, DEADLINE_S)
    thread = threading.Thread(target=lambda: found.append(dial(meeting, -1, lambda _: told.set())[0]))
    thread.start()
    assert told.wait(DEADLINE_S)
    served = Served()
    served.hub.close()
    served.hub = NetHub(SECRET, 1, [("127.0.0.1", port)])
    served.until(lambda: found)
    thread.join()
    found[0].close()
    served.hub.close()


def test_the_lifeline_ends_it():
    read_fd, write_fd = os.pipe()
    os.close(write_fd)
    with pytest.raises(LifelineCut):
        dial(Meeting((("127.0.0.1", 1),), SECRET, 0, DEADLINE_S), read_fd, lambda _: None)
    os.close(read_fd)


def test_a_port_that_answers_and_says_nothing():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        with pytest.raises(LaunchError, match="answers, but does not finish the handshake"):
            dial(Meeting((("127.0.0.1", sock.getsockname()[1]),), SECRET, 0, 0.5), -1, lambda _: None)


def test_a_port_that_is_taken(served):
    with pytest.raises(OSError, match="in use"):
        NetHub(SECRET, 1, [("127.0.0.1", served.port)])
