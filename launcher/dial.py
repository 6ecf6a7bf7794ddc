# SPDX-License-Identifier: Apache-2.0
"""How an agent finds its controller: by address and secret, again and again until the start's time is up.

Names are looked up anew at every try, as DNS may be late; each address is tried with a plain connection first, which
says why it fails, then with ZeroMQ and the keys. The lifeline, a descriptor that ends when whoever started the agent
is gone, ends the dialling too. Invariant: a returned link has proved both sides, and a failed try leaves nothing.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import time
from collections.abc import Callable
from typing import Final, NamedTuple

import zmq

from pmrun.errors import LaunchError
from pmrun.launcher import interfaces, keys
from pmrun.launcher.net_link import NetLink, bounded, key_pair, monitor_events

_PAUSE_S: Final = 0.2  # between rounds, growing
_PAUSE_MOST_S: Final = 2.0
_CONNECT_S: Final = 5.0
_PROOF_S: Final = 10.0
_NEVER_MS: Final = 86_400_000  # -1 would drop what had arrived when the connection ended
_REFUSALS: Final = 3  # so many times the keys were not taken: they will not be


class Meeting(NamedTuple):
    """Where to go and how to prove oneself."""

    addresses: tuple[tuple[str, int], ...]  # names or numbers, each with its port
    secret: bytes
    node: int  # -1: not known
    start_timeout_s: float


class LifelineCut(LaunchError):
    """Whoever started this agent is gone."""


class _NoAnswer(Exception):
    """Why one try failed."""


class _NotTaken(_NoAnswer):
    """Somebody answered, but not to our keys."""


def dial(meeting: Meeting, lifeline: int, tell: Callable[[str], None]) -> tuple[NetLink, str]:
    """Connect to the controller.

    Parameters
    ----------
    meeting
        Whom to meet.
    lifeline
        Readable, or at its end, when the agent is not wanted any more; -1: there is none.
    tell
        Called with one line when what stands in the way changes.

    Returns
    -------
    The link, and this machine's address on it.

    Raises
    ------
    LaunchError
        Nobody answered in time, or not to our keys; LifelineCut.
    """
    end = time.monotonic() + meeting.start_timeout_s
    pause, told, refusals = _PAUSE_S, "", 0
    while True:
        problems = []
        for host, port in meeting.addresses:
            try:
                return _try_host(meeting, host, port, min(end, time.monotonic() + _CONNECT_S + _PROOF_S), lifeline)
            except _NoAnswer as problem:
                problems.append(str(problem))
                refusals += isinstance(problem, _NotTaken)
        text = "; ".join(problems)
        if refusals >= _REFUSALS:
            raise LaunchError(f"{text}; it has another secret, or is another program: check the secret and the port")
        if time.monotonic() >= end:
            raise LaunchError(f"{text}, for {meeting.start_timeout_s:g} s; is pmrun running there, with this secret?")
        if text != told:
            tell(text)
            told = text
        _wait(lifeline, min(pause, max(0.0, end - time.monotonic())))
        pause = min(pause * 1.5, _PAUSE_MOST_S)


def _wait(lifeline: int, seconds: float) -> None:
    readable, _, _ = select.select([lifeline] if lifeline >= 0 else [], [], [], seconds)
    if readable:
        raise LifelineCut("whoever started this agent is gone")


def _try_host(meeting: Meeting, host: str, port: int, end: float, lifeline: int) -> tuple[NetLink, str]:
    try:
        found = interfaces.resolve(host)
    except OSError as error:
        raise _NoAnswer(f"{host}: {error.strerror or error}") from None
    problem = _NoAnswer(f"{host}: it has no address")
    for ip in found:
        shown = interfaces.endpoint(ip, port)
        try:
            own = _probe(ip, port, min(end, time.monotonic() + _CONNECT_S), lifeline)
            return _prove(meeting, ip, port, min(end, time.monotonic() + _PROOF_S), lifeline), own
        except _NotTaken:
            raise
        except _NoAnswer as found_problem:
            problem = _NoAnswer(f"{shown} dialled, {found_problem}")
    raise problem


def _probe(ip: str, port: int, end: float, lifeline: int) -> str:
    """Connect and hang up; returns this machine's address on the way there."""
    family = socket.AF_INET6 if ":" in ip else socket.AF_INET
    address = socket.getaddrinfo(ip, port, family, socket.SOCK_STREAM)[0][4]
    with socket.socket(family, socket.SOCK_STREAM) as sock:
        sock.setblocking(False)
        number = sock.connect_ex(address)
        while number in (errno.EINPROGRESS, errno.EALREADY):
            watched = [lifeline] if lifeline >= 0 else []
            left = end - time.monotonic()
            readable, writable, _ = select.select(watched, [sock], [], max(0.0, left))
            if readable:
                raise LifelineCut("whoever started this agent is gone")
            if not writable:
                raise _NoAnswer("no answer")
            number = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if number:
            raise _NoAnswer(os.strerror(number).lower())
        return interfaces.numeric(sock.getsockname())


def _prove(meeting: Meeting, ip: str, port: int, end: float, lifeline: int) -> NetLink:
    """Connect with our keys."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context(io_threads=1)
    dealer = bounded(context.socket(zmq.DEALER))
    monitor = dealer.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED
                                        | zmq.EVENT_HANDSHAKE_FAILED_AUTH)  # fmt: skip
    link = NetLink(context, dealer, monitor)
    try:
        own = key_pair(meeting.secret, keys.control_label(meeting.node))
        dealer.set(zmq.CURVE_SERVERKEY, key_pair(meeting.secret, keys.CONTROLLER_LABEL).public)
        dealer.set(zmq.CURVE_PUBLICKEY, own.public)
        dealer.set(zmq.CURVE_SECRETKEY, own.secret)
        dealer.set(zmq.RECONNECT_IVL, _NEVER_MS)
        dealer.set(zmq.IPV6, ":" in ip)
        dealer.connect(f"tcp://{interfaces.endpoint(ip, port)}")
        _await_proof(monitor, f"{interfaces.endpoint(ip, port)} answers, but", end, lifeline)
    except BaseException:
        dealer.set(zmq.LINGER, 0)
        link.close()
        raise
    return link


def _await_proof(monitor: zmq.Socket[bytes], who: str, end: float, lifeline: int) -> None:
    poller = zmq.Poller()
    poller.register(monitor, zmq.POLLIN)
    if lifeline >= 0:
        poller.register(lifeline, zmq.POLLIN)
    while True:
        ready = dict(poller.poll(max(0, int((end - time.monotonic()) * 1000))))
        if lifeline in ready:
            raise LifelineCut("whoever started this agent is gone")
        if not ready:
            raise _NoAnswer("it answers, but does not finish the handshake")
        for event, _ in monitor_events(monitor):
            if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                return
            if event == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
                raise _NotTaken(f"{who} it does not expect this node")
            raise _NotTaken(f"{who} it does not take our secret")
