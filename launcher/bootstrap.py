# SPDX-License-Identifier: Apache-2.0
"""What an agent that `pmrun` starts by a command reads first, from its standard input: whom to meet, and the secret.

One frame: a 4-byte length and a MessagePack array. After it nothing is written, and the pipe stays open as long as
whoever started the agent lives. The version comes first, so that an agent of another pmrun says what is wrong.
Invariant: nothing of it is ever on a command line, where `ps` would show it.
"""

from __future__ import annotations

import os
import struct
from typing import Final

import msgspec

from pmrun import wire
from pmrun.errors import LaunchError
from pmrun.version import RELEASE

MARK: Final = b"pmrun-agent: "  # begins a line of an agent's standard output that is meant for pmrun
_LENGTH = struct.Struct("<I")
_BYTES_MAX: Final = 16 << 20


class Bootstrap(msgspec.Struct, frozen=True, array_like=True):
    """Fields are positional: only ever append, with a default."""

    version: int
    release: str
    secret: bytes
    node_rank: int
    addresses: tuple[tuple[str, int], ...]  # of the controller
    start_timeout_s: float
    interface: str | None
    environment: tuple[tuple[bytes, bytes], ...]  # put over the agent's own
    deaf: bool = False  # to signals: whoever started it is on its machine, and hears them too


def pack(bootstrap: Bootstrap) -> bytes:
    """The frame."""
    data = msgspec.msgpack.encode(bootstrap)
    return _LENGTH.pack(len(data)) + data


def read(fd: int) -> Bootstrap:
    """Read the frame.

    Raises
    ------
    LaunchError
        It ended early, is not understood, or is of another version.
    """
    (length,) = _LENGTH.unpack(_read_exactly(fd, _LENGTH.size))
    if length > _BYTES_MAX:
        raise LaunchError("the standard input of `pmrun agent` is not from pmrun; it is started by pmrun itself")
    data = _read_exactly(fd, length)
    try:
        version, release = msgspec.msgpack.decode(data)[:2]
        if version == wire.VERSION:
            return msgspec.msgpack.decode(data, type=Bootstrap)
    except (msgspec.DecodeError, UnicodeDecodeError, ValueError, TypeError) as error:
        raise LaunchError(f"the standard input of `pmrun agent` is not understood: {error}") from None
    raise LaunchError(
        f"here is pmrun {RELEASE} (protocol {wire.VERSION}), pmrun {release} (protocol {version}) started it: "
        "install one version on all nodes"
    )


def _read_exactly(fd: int, count: int) -> bytes:
    data = b""
    while len(data) < count:
        piece = os.read(fd, count - len(data))
        if not piece:
            raise LaunchError("the standard input of `pmrun agent` ended early: pmrun, which starts it, is gone")
        data += piece
    return data
