# SPDX-License-Identifier: Apache-2.0
"""Where a running `pmrun` and `pmrun attach` meet: a socket in the kernel's own namespace, which no file stands for.

Its name has the user and the job, so that the running jobs can be listed, and it goes with the process, however
that ends. Anybody may take such a name or dial it: so each side asks the kernel who the other is. Invariant:
neither side says a word to another user's process, but for a refusal.
"""

from __future__ import annotations

import os
import socket
import struct
from typing import Final

from pmrun import meeting

_CREDENTIALS: Final = struct.Struct("iII")  # pid, uid, gid
_LISTENS: Final = 0x10000  # in the flags that /proc/net/unix shows


def listen(job_id: str) -> socket.socket | None:
    """The job's end; None where the kernel refuses it: then nobody can attach."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.bind(_address(job_id))
        sock.listen(8)
    except OSError:
        sock.close()
        return None
    sock.setblocking(False)
    return sock


def dial(job_id: str) -> socket.socket:
    """A connection to a job of this user.

    Raises
    ------
    OSError
        No such job runs here, or what has its name is another user's.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.connect(_address(job_id))
        if not is_own(sock):
            raise PermissionError("another user's process has its name")
    except OSError:
        sock.close()
        raise
    return sock


def is_own(sock: socket.socket) -> bool:
    """Whether the other end is a process of this user."""
    data = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    _, uid, _ = _CREDENTIALS.unpack(data)
    return bool(uid == os.geteuid())


def jobs() -> list[str]:
    """This user's jobs that run in this network namespace, sorted."""
    return _listeners(_prefix())


def others() -> bool:
    """Whether gangs of this user run here that another launcher started: their stewards let nobody attach."""
    return bool(_listeners(meeting.name_prefix()))


def _listeners(prefix: str) -> list[str]:
    """The rest of each name that begins so and is listened on, sorted."""
    found = set()
    with open("/proc/net/unix", encoding="utf-8", errors="surrogateescape") as file:
        for line in file:
            fields = line.split(maxsplit=7)
            if len(fields) == 8 and fields[7].startswith("@" + prefix) and int(fields[3], 16) & _LISTENS:
                found.add(fields[7].rstrip("\n").removeprefix("@" + prefix))
    return sorted(found)


def _prefix() -> str:
    return f"pmrun/{os.geteuid()}/"


def _address(job_id: str) -> bytes:
    return b"\0" + os.fsencode(_prefix() + job_id)
