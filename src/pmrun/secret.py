# SPDX-License-Identifier: Apache-2.0
"""The job's secret, as a file has it: read by pmrun on nodes that are started by hand, and by ranks of other launchers.

Invariant: what is returned came from a file that nobody but its owner, this user or root, can read or write.
"""

from __future__ import annotations

import os
import stat
from typing import Final

from pmrun.errors import UsageError

SECRET_BYTES: Final = 32
_FILE_BYTES_MAX: Final = 1 << 16


def read_secret(path: str, named: str) -> bytes:
    """The content of a secret file.

    Parameters
    ----------
    path : str
    named : str
        How the user named the file, for messages: "--secret-file", say.

    Raises
    ------
    UsageError
        Not there, readable or writable by others, of somebody else, or too short to be a secret.
    """
    who = f"{named} {path}" if named.startswith("-") else f"{named}={path}"
    remedy = f"make one with: pmrun secret {path}"
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise UsageError(f"{who}: {error.strerror}; {remedy}, and copy it to every node") from None
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise UsageError(f"{who}: this is not a regular file; {remedy}")
        if status.st_mode & 0o077:
            mode = f"{stat.S_IMODE(status.st_mode):04o}"
            raise UsageError(f"{who}: others may use it (mode {mode}); try: chmod 600 {path}")
        if status.st_uid not in (os.geteuid(), 0):
            raise UsageError(f"{who}: it belongs to another user; {remedy}")
        data = os.read(fd, _FILE_BYTES_MAX + 1)
    finally:
        os.close(fd)
    if not SECRET_BYTES <= len(data) <= _FILE_BYTES_MAX:
        raise UsageError(
            f"{who}: it has {len(data)} bytes, a secret has at least {SECRET_BYTES} "
            f"(and at most {_FILE_BYTES_MAX}); {remedy}"
        )
    return data
