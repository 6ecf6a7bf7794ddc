# SPDX-License-Identifier: Apache-2.0
"""A thousand agents in one process: `python many_agents.py SECRET PORT COUNT`, one real connection each.

They say what real agents do (hello, started, done) to a real controller, and start nothing. Prints how long it took
until all had their orders, and until all were told to leave.
"""

from __future__ import annotations

import resource
import sys
import time

import zmq

from pmrun import wire
from pmrun.launcher import keys
from pmrun.launcher.net_link import key_pair


def main(secret: bytes, port: int, count: int) -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    context = zmq.Context()
    context.set(zmq.MAX_SOCKETS, count + 10)
    server = key_pair(secret, keys.CONTROLLER_LABEL).public
    sockets = []
    begin = time.monotonic()
    for node in range(count):
        pair = key_pair(secret, keys.control_label(node))
        sock = context.socket(zmq.DEALER)
        sock.set(zmq.CURVE_SERVERKEY, server)
        sock.set(zmq.CURVE_PUBLICKEY, pair.public)
        sock.set(zmq.CURVE_SECRETKEY, pair.secret)
        sock.set(zmq.LINGER, 0)
        sock.connect(f"tcp://127.0.0.1:{port}")
        sock.send(wire.encode(wire.Hello(wire.VERSION, node, node + 1, f"n{node}", "127.0.0.1", 1, "1")))
        sockets.append(sock)
    for sock in sockets:
        start = await_message(sock, wire.Start)
        assert len(start.peers) == count
    joined = time.monotonic()
    for node, sock in enumerate(sockets):
        sock.send(wire.encode(wire.Started((node + 1,))))
        sock.send(wire.encode(wire.RankExited(node, node + 1, 0, 0, False, 0, -1, "", b"", b"", "")))
        sock.send(wire.encode(wire.NodeDone(())))
    for sock in sockets:
        await_message(sock, wire.Leave)
    released = time.monotonic()
    context.destroy(0)
    print(f"joined {joined - begin:.3f} released {released - begin:.3f}")


def await_message(sock, kind):
    while True:
        message = wire.decode(sock.recv())
        if isinstance(message, kind):
            return message


if __name__ == "__main__":
    main(bytes.fromhex(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
