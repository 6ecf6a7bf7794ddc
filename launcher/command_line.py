# SPDX-License-Identifier: Apache-2.0
"""Splits the command line: pmrun's own options first, then what each rank runs, untouched.

The first word that is no option ends pmrun's part: a script or program, `-m module`, or `--`. Everything after it
belongs to the user's program, `--help` included, which is why no general option parser is used: those look for
options in the whole line, and the import of one costs more than the rest of `pmrun --help` together.
Invariant: this module neither opens files nor interprets values.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Any, NamedTuple

from pmrun.errors import UsageError
from pmrun.launcher.option import Option, suggestion
from pmrun.launcher.options import OPTIONS

if TYPE_CHECKING:
    from collections.abc import Sequence


class Kind(enum.Enum):
    """What the words after the options are."""

    NOTHING = "nothing"
    WORD = "word"  # a script, or a program's bare name
    MODULE = "module"
    PROGRAM = "program"


class Setting(NamedTuple):
    """One option with its text, and where the text was found, as an error should say it."""

    option: Option[Any]
    text: str
    origin: str


class CommandLine(NamedTuple):
    """The command line, split. `words` starts with the script, module or program."""

    settings: list[Setting]
    kind: Kind
    words: tuple[str, ...]


def split(
    arguments: Sequence[str], options: tuple[Option[Any], ...] = OPTIONS, help_command: str = "pmrun --help"
) -> CommandLine:
    """Raises UsageError for an unknown option or one whose value is missing. Subcommands bring options of their own."""
    table = _Table(options, help_command)
    settings: list[Setting] = []
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        if word == "--":
            return CommandLine(settings, Kind.PROGRAM, tuple(rest))
        if word == "-m":
            return CommandLine(settings, Kind.MODULE, tuple(rest))
        if word.startswith("--"):
            settings.append(table.long(word, rest))
        elif word.startswith("-") and len(word) > 1:
            settings.append(table.short(word, rest))
        else:
            return CommandLine(settings, Kind.WORD, (word, *rest))
    return CommandLine(settings, Kind.NOTHING, ())


class _Table:
    """The options that are known, and how they are written."""

    def __init__(self, options: tuple[Option[Any], ...], help_command: str) -> None:
        self._by_name = {option.name: option for option in options if option.name != option.short}
        self._by_letter = {option.short: option for option in options if option.short}
        self._help = help_command

    def long(self, word: str, rest: list[str]) -> Setting:
        name, equals, value = word[2:].partition("=")
        option = self._by_name.get(name)
        text = "true"
        if option is None and name.startswith("no-"):
            option = self._by_name.get(name[3:])
            text = "false"
            if option is not None and not option.negatable:
                option = None
        if option is None:
            raise UsageError(f"unknown option {word.partition('=')[0]}{self._close(name)}; see {self._help}")
        if option.flag:
            if equals:
                raise UsageError(f"option --{name} takes no value; write --{name} alone")
            return Setting(option, text, word)
        return _with_value(option, f"--{name}", value if equals else None, rest)

    def short(self, word: str, rest: list[str]) -> Setting:
        option = self._by_letter.get(word[1])
        if option is None:
            raise UsageError(f"unknown option {word}{self._close(word.lstrip('-'))}; see {self._help}")
        attached = word[2:].removeprefix("=")
        if not option.flag:
            return _with_value(option, word[:2], attached or None, rest)
        if attached:
            raise UsageError(f"option {word[:2]} takes no value; write options one by one")
        return Setting(option, "true", word)

    def _close(self, name: str) -> str:
        negatable = [f"--no-{option.name}" for option in self._by_name.values() if option.negatable]
        return suggestion(f"--{name}", [f"--{known}" for known in self._by_name] + negatable)


def _with_value(option: Option[Any], spelling: str, value: str | None, rest: list[str]) -> Setting:
    if value is None:
        if not rest or rest[0] == "--":
            raise UsageError(f"option {spelling} needs a value: {spelling} {option.metavar}")
        value = rest.pop(0)
    return Setting(option, value, f"{spelling} {value!r}")
