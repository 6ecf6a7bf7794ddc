# SPDX-License-Identifier: Apache-2.0
"""A package in a ConfigMap, for Kubernetes where no bucket or volume is at hand. Pure: what it makes is sent by others.

Mounted as a directory, it is one to the nodes (place_directory.py). Invariant: the manifest follows from the package
alone, so two jobs of the same code share one object, and nobody can change it.
"""

from __future__ import annotations

import base64
from typing import Any, Final

from pmrun.errors import UsageError
from pmrun.launcher.code_package.archive import SUFFIX, Package, amount

BYTES_MAX: Final = 1 << 20  # of all values together, as the API server counts
FOLDER: Final = "/var/run/pmrun/code"  # where nodes have it
_DIGITS: Final = 32  # of the hash in the name: a name is to be short, and this many never meet


def name(digest: str) -> str:
    """The object's name."""
    return f"pmrun-code-{digest[:_DIGITS]}"


def address(digest: str) -> str:
    """The package's address on a node that mounts it at FOLDER."""
    return f"{FOLDER}/{digest}{SUFFIX}"


def manifest(package: Package) -> dict[str, Any]:
    """The object; its namespace is the caller's business.

    Raises
    ------
    UsageError
        It does not fit.
    """
    if package.packed_bytes > BYTES_MAX:
        raise UsageError(
            f"--code: packed, the code takes {amount(package.packed_bytes)}, and a ConfigMap {amount(BYTES_MAX)}; largest: "
            f"{package.largest}; give --code-store s3://bucket/prefix or a volume's directory, or leave something out"
        )
    data = base64.b64encode(package.file.read()).decode()
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": name(package.digest)},
        "immutable": True,
        "binaryData": {f"{package.digest}{SUFFIX}": data},
    }
