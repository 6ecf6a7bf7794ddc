# SPDX-License-Identifier: Apache-2.0
"""The job's secret and everything made from it: key pairs of the control plane, the data key, the main port.

HKDF with SHA-256 (RFC 5869) gives one independent key per label, so whoever holds the secret knows all keys and
whoever sees one learns no other. A CURVE secret key is any 32 bytes; its public key follows from it. So the
controller knows every node's public key before the node has said a word, and the nodes know the controller's.
Invariant: a secret never leaves through a command line, an environment or a log.
"""

from __future__ import annotations

import os
from typing import Final

from pmrun.errors import UsageError
from pmrun.secret import SECRET_BYTES

_SALT: Final = b"pmrun 1"  # changes when the meaning of a label does
_PORTS: Final = range(20000, 32000)  # below those that the kernel gives to outgoing connections


def new_secret() -> bytes:
    """A secret for one job."""
    return os.urandom(SECRET_BYTES)


def hkdf(secret: bytes, salt: bytes, info: bytes, length: int) -> bytes:
    """HKDF-SHA256, extract and expand."""
    import hashlib  # milliseconds that a job on one machine, which derives nothing at its start, need not pay
    import hmac

    key = hmac.new(salt, secret, hashlib.sha256).digest()
    result = block = b""
    for number in range(1, -(-length // 32) + 1):
        block = hmac.new(key, block + info + bytes([number]), hashlib.sha256).digest()
        result += block
    return result[:length]


def derive(secret: bytes, label: str, length: int = 32) -> bytes:
    """`length` bytes that belong to this secret and `label` alone."""
    return hkdf(secret, _SALT, label.encode("utf-8", "surrogateescape"), length)


def job_secret(secret: bytes, job: str) -> bytes:
    """The secret of one job among those that another launcher starts with the same file; `job` is the launcher's name for it."""
    return derive(secret, f"job {job}")


def run_secret(secret: bytes, token: str) -> bytes:
    """The secret of one try of a job that an engine starts, so that tries which overlap do not take each other's nodes."""
    return derive(secret, f"run {token}") if token else secret


def data_key(secret: bytes, attempt: int) -> bytes:
    """Proves to each other that the ends of a data connection belong to the same attempt."""
    return derive(secret, f"data {attempt}")


def control_label(node: int) -> str:
    """Label of a node's key pair; -1 is for nodes that do not know their number yet."""
    return "control node" if node < 0 else f"control node {node}"


CONTROLLER_LABEL: Final = "control main"


def main_port(secret: bytes) -> int:
    """Where nodes that are started by hand meet, when no port was given: jobs with other secrets meet elsewhere."""
    return _PORTS[int.from_bytes(derive(secret, "main port", 4), "little") % len(_PORTS)]


# ---- files ------------------------------------------------------------------------------------------------


def write_secret(path: str) -> None:
    """Make a new secret file, which only its owner can read; UsageError where it cannot be made."""
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        raise UsageError(f"{path} exists; remove it first, or name another file") from None
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}; name another file") from None
    with os.fdopen(fd, "w", encoding="ascii") as file:
        file.write(new_secret().hex() + "\n")
