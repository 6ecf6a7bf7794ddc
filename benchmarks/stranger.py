# SPDX-License-Identifier: Apache-2.0
"""A stranger who tries to get into a job: connections to its ports, at a bounded rate, and whether any was let in.

    stranger.py listen PORT                   an ordinary listener, for comparison, until its input ends
    stranger.py try RATE ADDRESS:PORT...      reads numbers of attempts, a line each, and answers each with a JSON line

An attempt is one of: nothing said, rubbish, a HELLO of pmrun's data connections with a forged MAC, and ZeroMQ greetings
under CURVE and PLAIN with forged keys. It counts as let in where the other side answers with anything but its own greeting
of ZeroMQ and an error. Invariant: attempts begin when they are due, whether or not earlier ones were answered.
"""

from __future__ import annotations

import json
import os
import select
import socket
import sys
import time

ANSWER_S = 0.5  # who said nothing by then says nothing
POLL_S = 0.01
GREETING_BYTES = 64  # of ZeroMQ (RFC 23)


def greeting(mechanism: bytes) -> bytes:
    return b"\xff" + bytes(8) + b"\x7f\x03\x00" + mechanism.ljust(20, b"\0") + bytes(32)


def zmq_hello(body: bytes) -> bytes:
    command = b"\x05HELLO" + body
    return b"\x04" + bytes([len(command)]) + command


def attempts() -> list[bytes]:
    """What is said, in turn."""
    hello = b"pmrun\r\n\0" + b"".join(number.to_bytes(4, "little") for number in (1, 1, 0, 0)) + os.urandom(64)
    curve = greeting(b"CURVE") + zmq_hello(b"\x01\x00" + bytes(72) + os.urandom(120))
    plain = greeting(b"PLAIN") + zmq_hello(b"\x00" + bytes([len(hello)]) + hello)
    return [b"", b"GET / HTTP/1.1\r\n\r\n", hello, curve, plain]


def let_in(answer: bytes) -> bool:
    """Whether this is more than what everybody is told."""
    if not answer.startswith(b"\xff"):
        return bool(answer)
    command = answer[GREETING_BYTES:]
    return bool(command) and not command[2:].startswith(b"\x05ERROR")


class Waiting:
    """Attempts that have not been answered, and the sum of all."""

    def __init__(self) -> None:
        self.answers: dict[socket.socket, tuple[bytes, float]] = {}
        self.refused = self.accepted = 0

    def begin(self, target: tuple[str, int], said: bytes) -> None:
        sock = socket.create_connection(target, ANSWER_S)
        self.answers[sock] = (b"", time.monotonic() + ANSWER_S)
        try:
            sock.sendall(said)
        except OSError:  # closed already
            self._end(sock)
        else:
            if not said:
                self._end(sock)

    def until(self, due: float) -> None:
        """Sleep till then, and take what was answered: waking up for each answer would disturb those that share a core."""
        time.sleep(max(0.0, due - time.monotonic()))
        for sock in select.select(list(self.answers), [], [], 0.0)[0]:
            self._read(sock)
        for sock, (_, deadline) in list(self.answers.items()):
            if time.monotonic() > deadline:
                self._end(sock)

    def _read(self, sock: socket.socket) -> None:
        answer, deadline = self.answers[sock]
        try:
            data = sock.recv(4096)
        except OSError:
            data = b""
        self.answers[sock] = (answer + data, deadline)
        if not data:
            self._end(sock)

    def _end(self, sock: socket.socket) -> None:
        answer, _ = self.answers.pop(sock)
        sock.close()
        if let_in(answer):
            self.accepted += 1
        else:
            self.refused += 1


def attempt(count: int, rate: float, targets: list[tuple[str, int]]) -> Waiting:
    """Make them all, and wait for the last answers."""
    waiting, said = Waiting(), attempts()
    start = time.monotonic()
    for number in range(count):
        waiting.until(start + number / rate)
        waiting.begin(targets[number % len(targets)], said[number // len(targets) % len(said)])
    while waiting.answers:
        waiting.until(time.monotonic() + POLL_S)
    return waiting


def listen(port: int) -> None:
    """Read what each has to say, and close, until standard input ends."""
    with socket.create_server(("", port), backlog=1024) as listener:
        print("listening", flush=True)
        while sys.stdin not in select.select([listener, sys.stdin], [], [])[0]:
            sock, _ = listener.accept()
            with sock:
                sock.settimeout(ANSWER_S)
                sock.recv(4096)


def main() -> None:
    if sys.argv[1] == "listen":
        listen(int(sys.argv[2]))
        return
    rate = float(sys.argv[2])
    targets = [(address, int(port)) for address, _, port in (text.rpartition(":") for text in sys.argv[3:])]
    for line in sys.stdin:
        done = attempt(int(line), rate, targets)
        print(json.dumps({"refused": done.refused, "accepted": done.accepted}), flush=True)


if __name__ == "__main__":
    main()
