# SPDX-License-Identifier: Apache-2.0
"""Where the launcher can run a job: one module per place, found by name, imported when chosen.

A backend is a module or package here without a leading underscore ("-" may be written for "_"), or a module that
another distribution names in the entry point group `pmrun.backends`. It holds a class `Backend` as
launcher/backends/_base.py describes it. Invariant: listing them imports none of them.
"""

from __future__ import annotations

import importlib
import types
from typing import TYPE_CHECKING

from pmrun.errors import UsageError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoints

_GROUP = "pmrun.backends"


def names() -> list[str]:
    """All backends, sorted."""
    import pkgutil  # costs milliseconds at every start, and only help and errors list the backends

    own = {module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_")}
    return sorted(own | _entry_points().names)


def load(name: str) -> types.ModuleType:
    """Import one backend.

    Raises
    ------
    UsageError
        There is none of this name, or what it needs is not installed.
    """
    stem = name.replace("-", "_")
    module = f"{__name__}.{stem}"
    try:
        if stem.isidentifier() and not stem.startswith("_"):
            return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module:
            raise
    for entry in _entry_points().select(name=name):
        found = entry.load()
        if not isinstance(found, types.ModuleType) or not hasattr(found, "Backend"):
            raise UsageError(
                f"the backend {name!r} ({entry.value}) is no module with a class Backend: correct its package"
            )
        return found
    raise UsageError(f"unknown backend {name!r}: choose one of {', '.join(names())}")


def submits(name: str | None) -> bool:
    """Whether this one hands jobs to an engine, which can be asked about them later; false where there is none of the
    name, of which others complain."""
    try:
        return name is not None and hasattr(load(name).Backend, "client")
    except UsageError:
        return False


def _entry_points() -> EntryPoints:
    from importlib.metadata import entry_points  # milliseconds, too

    return entry_points(group=_GROUP)
