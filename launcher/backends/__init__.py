# SPDX-License-Identifier: Apache-2.0
"""Where the launcher can run a job: one module per place, found by name, imported when chosen.

A backend is a module here without a leading underscore that holds a class `Backend` as launcher/backends/_base.py
describes it. Invariant: listing them imports none of them.
"""

from __future__ import annotations

import importlib
import types

from pmrun.errors import UsageError


def names() -> list[str]:
    """All backends, sorted."""
    import pkgutil  # costs milliseconds at every start, and only help and errors list the backends

    return sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_"))


def load(name: str) -> types.ModuleType:
    """Import one backend.

    Raises
    ------
    UsageError
        There is none of this name.
    """
    module = f"{__name__}.{name}"
    try:
        if name.isidentifier() and not name.startswith("_"):
            return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module:
            raise
    raise UsageError(f"unknown backend {name!r}: choose one of {', '.join(names())}")
