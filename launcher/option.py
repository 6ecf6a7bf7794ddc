# SPDX-License-Identifier: Apache-2.0
"""What an option of the `pmrun` command is, the values that options got, and how their texts are read.

A parser takes the text as the user wrote it and raises ValueError with the cause and the remedy; whoever knows where
the text came from puts that in front. The options themselves are in launcher/options.py, those of subcommands beside
them. Invariant: nothing here looks at the machine or at other options.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Generic, TypeVar

from pmrun import env

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pmrun.launcher.hosts import Host

T = TypeVar("T")

Ranks = frozenset[int]
Hosts = tuple["Host", ...]
NodeRange = tuple[int, int]
EnvPairs = tuple[tuple[str, "str | None"], ...]

_UNITS_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
SET_BY_AGENT = (
    env.RANK, env.WORLD_SIZE, env.LOCAL_RANK, env.LOCAL_WORLD_SIZE, env.NODE_RANK, env.NUM_NODES, env.MAIN_IP,
    env.JOB_ID, env.ATTEMPT, env.PEERS, env.NODE_NAME, env.WINDOW_FD, env.STORE_FD, env.DEBUG_FD, env.DEBUG_SIGNAL, env.LAYOUT,
    env.DATA_ADDRESS, env.TORCH_RANK, env.TORCH_WORLD_SIZE, env.TORCH_LOCAL_RANK, env.TORCH_LOCAL_WORLD_SIZE,
)  # fmt: skip
RANKS_MAX = 1_000_000  # a bound for ranges like 0-999999999, which would be spelled out in memory
WHOLE = (int, str)
TIME = (int, float, str)
_TRUE = ("true", "yes", "on", "1")
_FALSE = ("false", "no", "off", "0")


class Option(Generic[T]):
    """One option: `--name`, PMRUN_NAME, and the key `name` of the configuration file.

    Attributes
    ----------
    parse : callable
        Text to value; ValueError with cause and remedy.
    flag : bool
        Takes no value: `--name` is true and `--no-name`, where `negatable`, false.
    repeatable : bool
        Values (tuples) add up over all places instead of replacing each other.
    settable : bool
        May come from the environment and the configuration file.
    kinds : tuple of type
        What its value may be in the configuration file; with `list`, also an array of the others.
    complete : str
        What a shell offers for the value: "file", "dir", or words separated by spaces.
    """

    __slots__ = (
        "complete", "default", "flag", "group", "kinds", "metavar", "name", "negatable", "parse", "repeatable",
        "settable", "short", "text",
    )  # fmt: skip

    def __init__(
        self,
        name: str,
        parse: Callable[[str], T],
        default: T,
        *,
        group: str,
        text: str,
        metavar: str = "",
        short: str = "",
        flag: bool = False,
        negatable: bool = False,
        repeatable: bool = False,
        settable: bool = True,
        kinds: tuple[type, ...] = (str,),
        complete: str = "",
    ) -> None:
        self.name = name
        self.parse = parse
        self.default = default
        self.group = group
        self.text = text
        self.metavar = metavar
        self.short = short
        self.flag = flag
        self.negatable = negatable
        self.repeatable = repeatable
        self.settable = settable
        self.kinds = (bool,) if flag else kinds
        self.complete = complete

    @property
    def spelling(self) -> str:
        """The way it is written on the command line."""
        return f"-{self.short}" if self.name == self.short else f"--{self.name}"

    @property
    def variable(self) -> str:
        """The environment variable that sets it."""
        return env.OPTION_PREFIX + self.name.upper().replace("-", "_")


class Values:
    """Values of options, typed by the option that is asked for. What was not set has its default."""

    def __init__(self) -> None:
        self._values: dict[str, object] = {}

    def put(self, option: Option[T], text: str) -> None:
        """Parse and keep; a later value replaces, or, where repeatable, joins the earlier ones."""
        value = option.parse(text)
        if option.repeatable and isinstance(value, tuple):
            earlier = self._values.get(option.name, ())
            assert isinstance(earlier, tuple)
            self._values[option.name] = earlier + value
        else:
            self._values[option.name] = value

    def get(self, option: Option[T]) -> T:
        value: T = self._values.get(option.name, option.default)  # type: ignore[assignment]  # put() stored a T
        return value


# ---- parsers ---------------------------------------------------------------------------------------------


def parse_count(text: str) -> int | None:
    """A number of ranks; None for "auto"."""
    if text == "auto":
        return None
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise ValueError("the number of ranks is a whole number from 1 on, or 'auto' for the CPUs of this machine")
    if int(text) > RANKS_MAX:
        raise ValueError(f"a gang has at most {RANKS_MAX} ranks")
    return int(text)


def parse_duration(text: str) -> float:
    """Seconds from "30", "1.5", "500ms", "30s", "5m" or "2h"; never negative."""
    number = text.rstrip("msh")
    unit = text[len(number) :] or "s"
    try:
        seconds = float(number) * _UNITS_S[unit]
    except (ValueError, KeyError):
        seconds = -1.0
    if not 0.0 <= seconds < 1e9:
        raise ValueError("a time is a number of seconds, or has a unit: 1.5, 500ms, 30s, 5m, 2h")
    return seconds


def parse_duration_above_zero(text: str) -> float:
    seconds = parse_duration(text)
    if seconds == 0.0:
        raise ValueError("it must be longer than zero; leave the option out for no limit")
    return seconds


def parse_limit(text: str) -> float:
    return 0.0 if text == "none" else parse_duration(text)


def parse_on_hang(text: str) -> str:
    if text not in ("end", "report"):
        raise ValueError("choose 'end' or 'report'")
    return text


def parse_flag(text: str) -> bool:
    if text.lower() in _TRUE:
        return True
    if text.lower() in _FALSE:
        return False
    raise ValueError("a switch is 'true' or 'false'")


def parse_rank_set(text: str) -> Ranks:
    """Ranks from "0,2-4"."""
    ranks: set[int] = set()
    for part in text.split(","):
        low, dash, high = part.strip().partition("-")
        if not (low.isdigit() and (high.isdigit() if dash else True)):
            raise ValueError("ranks are numbers and ranges, separated by commas: 0,2-4")
        last = int(high) if dash else int(low)
        if last < int(low):
            raise ValueError(f"the range {part.strip()} runs backwards; write {high}-{low}")
        if last >= RANKS_MAX:
            raise ValueError(f"there is no rank {last}")
        ranks.update(range(int(low), last + 1))
    return frozenset(ranks)


def parse_stdin(text: str) -> int | str:
    """A rank, "all" or "none"."""
    if text in ("all", "none"):
        return text
    if not text.isdigit():
        raise ValueError("give one rank's number, 'all' or 'none'")
    return int(text)


def parse_env(text: str) -> EnvPairs:
    """One NAME=VALUE, or NAME alone (value None: the one it has here)."""
    name, equals, value = text.partition("=")
    if not name:
        raise ValueError("write NAME=VALUE, or NAME to hand on the value it has here")
    check_name(name)
    if "\0" in value:
        raise ValueError(f"the value of {name} holds a NUL character, which ends a value: leave it out")
    try:
        os.fsencode(value)
    except UnicodeEncodeError:
        raise ValueError(
            f"the value of {name} has characters that this locale cannot write: use a UTF-8 locale (LC_ALL=C.UTF-8)"
        ) from None
    if name in SET_BY_AGENT:
        raise ValueError(f"{name} is what pmrun tells each rank; it cannot be set from outside")
    return ((name, value if equals else None),)


def check_name(name: str) -> None:
    """Raise ValueError where this cannot be a variable's name; the system takes more, but no program asks for it."""
    if not name or not name.isprintable() or "=" in name or " " in name:
        raise ValueError(f"{name!r} is not a variable's name: letters, digits and underscores make one")
    try:
        os.fsencode(name)
    except UnicodeEncodeError:
        raise ValueError(f"{name!r} cannot be written in this locale: use letters, digits and underscores") from None


def parse_host_list(text: str) -> Hosts:
    """Hosts from "a:8,b:8"."""
    from pmrun.launcher.hosts import parse_hosts  # most jobs have none

    return parse_hosts(text)


def parse_node_range(text: str) -> NodeRange:
    """Least and most nodes, from "4" or "2:4"."""
    low, colon, high = text.partition(":")
    count = whole_number(1, RANKS_MAX, "the number of nodes")
    least, most = count(low), count(high if colon else low)
    if least > most:
        raise ValueError(f"the range {text} runs backwards; write {most}:{least}")
    return least, most


def parse_text(text: str) -> str:
    if not text or "\0" in text:
        raise ValueError("the value is empty; leave the option out, or give one")
    return text


def whole_number(least: int, most: int, what: str) -> Callable[[str], int]:
    """A parser of whole numbers in a range."""

    def parse(text: str) -> int:
        if not text.isascii() or not text.isdigit() or not least <= int(text) <= most:
            raise ValueError(f"{what} is a whole number from {least} to {most}")
        return int(text)

    return parse


def one_of(words: Sequence[str], what: str) -> Callable[[str], str]:
    """A parser of one word of several."""

    def parse(text: str) -> str:
        if text not in words:
            close = suggestion(text, list(words))
            raise ValueError(f"there is no {what} '{text}'{close}; choose one of: {', '.join(words)}")
        return text

    return parse


def suggestion(word: str, known: list[str], prefix: str = "") -> str:
    """The words " (did you mean ...?)" when something known is close, else nothing. What all words begin with is given
    apart, as it would make them all alike."""
    import difflib  # only on the way out

    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f" (did you mean {prefix}{close[0]}?)" if close else ""
