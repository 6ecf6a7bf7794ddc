# SPDX-License-Identifier: Apache-2.0
"""Subcommands: `pmrun <name> ...`, one module per name, found by its file's name, imported when called.

A command is a module here without a leading underscore that has `run(argv)`, which returns the exit code. Where its
opening comment begins with "`pmrun name ...`: what it does", the help page shows that line. The word must be the first
on the command line and exactly the name, with "-" for the file's "_"; a script of that name is run as `./name`. Invariant: looking for a command,
or listing them, imports none.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

_FOLDER = os.path.dirname(__file__)
_SUMMARY = r'^"""`(pmrun [^`]+)`: (.+?)\.?$'


def find(word: str) -> Callable[[list[str]], int] | None:
    """The command of this name, or None."""
    name = word.replace("-", "_")
    if "_" in word or not name.isidentifier() or name.startswith("_"):
        return None
    if not os.path.isfile(os.path.join(_FOLDER, f"{name}.py")):
        return None
    command: Callable[[list[str]], int] = importlib.import_module(f"{__name__}.{name}").run
    return command


def summaries() -> list[tuple[str, str]]:
    """How each command that is for people is written, and what it does; sorted."""
    import re

    found = []
    for name in sorted(os.listdir(_FOLDER)):
        if name.endswith(".py") and not name.startswith("_"):
            with open(os.path.join(_FOLDER, name), encoding="utf-8") as file:
                summary = re.search(_SUMMARY, file.read(1024), re.MULTILINE)
            if summary is not None:
                found.append((summary[1], summary[2]))
    return found
