# SPDX-License-Identifier: Apache-2.0
"""The fake's HTTP: one request at a time, on the thread of a selector, one connection each.

A connection is looked at when something came, as a node that died leaves some on which nothing ever will. Invariant:
half a request holds the fake up for no longer than `_PATIENCE_S`, and connections that are silent are at most
`_SILENT_MAX`.
"""

from __future__ import annotations

import contextlib
import selectors
import socket
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Final

from pmrun.testing.fake_batch.objects import Answer

_PATIENCE_S: Final = 5.0
_SILENT_MAX: Final = 512

Answerer = Callable[[str, str, Mapping[str, str], bytes], Answer]


class Server(HTTPServer):
    """Listens on one address, on a port of its choice."""

    request_queue_size = 128
    allow_reuse_address = False

    def __init__(self, address: str, selector: selectors.BaseSelector, answer: Answerer) -> None:
        self.answer = answer
        self._selector = selector
        self._silent: list[socket.socket] = []  # connections, oldest first
        super().__init__((address, 0), _Handler)
        self.socket.setblocking(False)
        selector.register(self.socket, selectors.EVENT_READ, self._accept)

    def close(self) -> None:
        """Listen no more."""
        self._selector.unregister(self.socket)
        for connection in [*self._silent]:
            self._drop(connection)
        self.server_close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # whoever it was is gone
            connection, address = self.get_request()
            self._silent.append(connection)
            self._selector.register(connection, selectors.EVENT_READ, lambda: self._answer(connection, address))
            if len(self._silent) > _SILENT_MAX:
                self._drop(self._silent[0])

    def _answer(self, connection: socket.socket, address: object) -> None:
        self._silent.remove(connection)
        self._selector.unregister(connection)
        connection.setblocking(True)
        try:
            self.finish_request(connection, address)
        except OSError:
            return  # whoever asked is gone
        finally:
            self.shutdown_request(connection)

    def _drop(self, connection: socket.socket) -> None:
        self._silent.remove(connection)
        self._selector.unregister(connection)
        connection.close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # with it clients are told to go on with a body that they announce
    timeout = _PATIENCE_S
    server: Server

    def do_POST(self) -> None:
        """Any method."""
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        headers = {"-".join(map(str.capitalize, name.split("-"))): value for name, value in self.headers.items()}
        answer = self.server.answer(self.command, self.path, headers, body)
        self.send_response(answer.status)
        for name, value in {"Content-Length": str(len(answer.body)), **answer.headers, "Connection": "close"}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body)
        self.close_connection = True

    do_GET = do_PUT = do_HEAD = do_DELETE = do_POST

    def log_message(self, format: str, *arguments: object) -> None:
        """Nothing is written where a test's output goes."""
