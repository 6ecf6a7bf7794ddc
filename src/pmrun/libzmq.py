# SPDX-License-Identifier: Apache-2.0
"""Where libzmq is: the one that came with pyzmq, found without importing pyzmq (which takes 50 ms per rank).

A wheel carries the library beside the package, in `pyzmq.libs`; a pyzmq that was built here is linked to the system's,
which its extension leads to. Invariant: nothing is loaded; what is found is only a path for the C core.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path


def find() -> str | None:
    """Path of libzmq, or of a library that is linked to it; None without pyzmq."""
    spec = find_spec("zmq")
    if spec is None or spec.origin is None:
        return None
    package = Path(spec.origin).parent
    for place, pattern in (
        (package.parent / "pyzmq.libs", "libzmq*.so*"),
        (package, "libzmq*.so*"),
        (package / "backend" / "cython", "_zmq*.so"),
        (package / "backend" / "cython", "*.so"),
    ):
        found = sorted(place.glob(pattern))
        if found:
            return str(found[0])
    return None
