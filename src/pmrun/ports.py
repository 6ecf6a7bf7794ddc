# SPDX-License-Identifier: Apache-2.0
"""`pm.listen` and `pm.connect`: plain TCP between ranks, with the address published to the others by name.

    server = pm.listen("params")              # on one rank: a socket that listens, on a free port
    sock = pm.connect("params", timeout=30)   # on the others: a socket that is connected to it

What travels is the program's own: pmrun neither checks nor encrypts it, and whoever reaches the port can connect. Invariant:
a name is published only while its port can be connected to, and by one rank.
"""

from __future__ import annotations

import socket
import time
from typing import Final

from pmrun import current, store
from pmrun.errors import StoreTimeout, UsageError

_PAUSE_S: Final = 0.05  # between attempts: whoever listens may only be restarting


def listen(name: str, port: int = 0, backlog: int = 128) -> socket.socket:
    """Listen on this node's address, the one that the other nodes know, and publish it.

    Parameters
    ----------
    name : str
    port : int
        0: any that is free.
    backlog : int
        So many connections may wait to be accepted.

    Raises
    ------
    UsageError
        Another rank listens by this name, or the port is taken.
    """
    host = current.peers()[current.node_rank()]
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind((host, port))
            sock.listen(backlog)
        except OSError as error:
            raise UsageError(f"listen({name!r}): cannot listen on {host} port {port}: {error.strerror}") from None
        address = f"{current.rank()} {sock.getsockname()[1]} {host}"
        published = store.compare_and_set(_key(name), None, address)
        if not published.swapped:
            rank, _, where = (published.current or b"").decode().partition(" ")
            raise UsageError(f"listen({name!r}): rank {rank} listens by this name (port and address {where})")
    except BaseException:
        sock.close()
        raise
    return sock


def address_of(name: str, timeout: float | None = None) -> tuple[str, int]:
    """Return host and port that were published by this name; wait for them. `timeout` and errors: `pm.store.get`."""
    _, port, host = store.get(_key(name), timeout).decode().split(" ")
    return host, int(port)


def connect(name: str, timeout: float | None = None) -> socket.socket:
    """Connect to what listens by this name; wait until it does.

    Raises
    ------
    StoreTimeout
        Nobody listens by this name in time, or nothing answers at its address.
    """
    limit_s = store.patience_s(timeout)
    by = time.monotonic() + limit_s
    host, port = address_of(name, limit_s)
    while True:
        try:
            return socket.create_connection((host, port), max(0.001, min(by - time.monotonic(), 3600.0)))
        except OSError as error:
            if time.monotonic() + _PAUSE_S >= by:
                text = f"connect({name!r}): {host} port {port}: {error.strerror or error} for {limit_s:g} s"
                raise StoreTimeout(text, (_key(name),), (), ()) from None
        time.sleep(_PAUSE_S)


def _key(name: str) -> str:
    return f"pmrun/port/{name}"
