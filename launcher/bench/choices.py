# SPDX-License-Identifier: Apache-2.0
"""The options of `pmrun bench`, beside those of pmrun itself, and its help page.

The words of the command line are told apart by the same table-driven parser as pmrun's own; what is no option is an
operation. Invariant: `read` starts nothing, and everything that can be refused without a rank is refused there.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any, NamedTuple

from pmrun.bench import points
from pmrun.bench.points import GROUPS, ITEM_BYTES, OPS, expand, size_range
from pmrun.errors import UsageError
from pmrun.launcher.bench.peers import PEERS, Environments, default_home
from pmrun.launcher.command_line import Kind, Setting, split
from pmrun.launcher.help_page import entry
from pmrun.launcher.option import (
    Option,
    Values,
    one_of,
    parse_duration_above_zero,
    parse_flag,
    parse_text,
    suggestion,
    whole_number,
)
from pmrun.launcher.options import OPTIONS

_UNITS = {"": 1, "B": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
_SIZE_MAX = 64 << 30
MEMORIES = ("private", "library")


def parse_size(text: str) -> int:
    """Bytes from "8", "64K", "1MiB"."""
    word = text.upper().removesuffix("IB").removesuffix("B") if text.upper() != "B" else text
    number = word.rstrip("KMG")
    unit = word[len(number) :]
    if not number.isascii() or not number.isdigit() or unit not in _UNITS or int(number) < 1:
        raise ValueError("a size is a number of bytes from 1 on, or has a unit: 8, 64K, 1M, 2G")
    size = int(number) * _UNITS[unit]
    if size > _SIZE_MAX:
        raise ValueError(f"at most {_SIZE_MAX >> 30}G are measured")
    return size


def parse_sizes(text: str) -> tuple[int, ...]:
    return tuple(parse_size(part.strip()) for part in text.split(","))


def parse_peers(text: str) -> tuple[str, ...]:
    check = one_of(tuple(PEERS), "peer")
    return tuple(check(part.strip()) for part in text.split(","))


WHAT, REPORTS, OTHERS = "What is measured", "What is shown", "Against whom"

SIZES: Option[tuple[int, ...] | None] = Option(
    "sizes", parse_sizes, None, metavar="8,1K,1M", group=WHAT, settable=False,
    text="these sizes, in bytes that one rank puts in, instead of a range",
)  # fmt: skip
SMALLEST = Option("min", parse_size, 8, metavar="SIZE", group=WHAT, settable=False, text="smallest size; default: 8")
LARGEST = Option("max", parse_size, 16 << 20, metavar="SIZE", group=WHAT, settable=False, text="largest; default: 16M")
FACTOR = Option(
    "factor", whole_number(2, 1 << 30, "the factor"), 8, metavar="N", group=WHAT, settable=False,
    text="each size is so many times the one before; default: 8",
)  # fmt: skip
DTYPE = Option(
    "dtype", one_of(tuple(ITEM_BYTES), "dtype"), "float32", metavar="NAME", group=WHAT, settable=False,
    complete=" ".join(ITEM_BYTES), text="type of the elements, by numpy's name, or bfloat16; default: float32",
)  # fmt: skip
OP = Option(
    "op", one_of(OPS, "reduction"), "sum", metavar="|".join(OPS), group=WHAT, settable=False, complete=" ".join(OPS),
    text="what reductions do; default: sum",
)  # fmt: skip
MEMORY = Option(
    "memory", one_of(MEMORIES, "kind of memory"), "private", metavar="private|library", group=WHAT, settable=False,
    complete="private library", text="numpy's own arrays, or those of pm.empty; default: private",
)  # fmt: skip
TIME = Option(
    "time", parse_duration_above_zero, 0.1, metavar="TIME", group=WHAT, settable=False,
    text="how long each point is measured; default: 100ms",
)  # fmt: skip
WARM_UP = Option(
    "warm-up", whole_number(0, 1_000_000, "the warm-up"), 6, metavar="CALLS", group=WHAT, settable=False,
    text="calls before a point is timed; default: 6",
)  # fmt: skip
CHECK = Option(
    "check", parse_flag, False, flag=True, group=WHAT, settable=False,
    text="new data for each call, and each result compared; without, one call of each point is",
)  # fmt: skip
JSON: Option[str | None] = Option(
    "json", parse_text, None, metavar="FILE", group=REPORTS, settable=False, complete="file",
    text="write all figures to FILE",
)  # fmt: skip
COMPARE: Option[str | None] = Option(
    "compare", parse_text, None, metavar="FILE", group=REPORTS, settable=False, complete="file",
    text="show ratios to an earlier --json file, and mark what got slower beyond the spread of both",
)  # fmt: skip
PLOT: Option[str | None] = Option(
    "plot", parse_text, None, metavar="FILE", group=REPORTS, settable=False, complete="file",
    text="draw time over size, both in powers, to FILE.png or FILE.svg (needs pmrun[bench])",
)  # fmt: skip
AGAINST: Option[tuple[str, ...]] = Option(
    "peers", parse_peers, (), metavar=",".join(PEERS), group=OTHERS, settable=False, repeatable=True,
    complete=" ".join(PEERS),
    text="measure these beside pmrun in the same place, in turn, and show ratios with their spread",
)  # fmt: skip
ROUNDS = Option(
    "rounds", whole_number(1, 1000, "the number of rounds"), 3, metavar="N", group=OTHERS, settable=False,
    text="with --peers: how often each has its turn; default: 3",
)  # fmt: skip
INSTALL: Option[tuple[str, ...]] = Option(
    "install-peers", parse_peers, (), metavar="NAMES", group=OTHERS, settable=False, repeatable=True,
    complete=" ".join(PEERS),
    text="make the environments of these peers (from the package index), and end",
)  # fmt: skip
PEERS_DIR: Option[str | None] = Option(
    "peers-dir", parse_text, None, metavar="DIR", group=OTHERS, settable=False, complete="dir",
    text="where the peers' environments are; default: pmrun/peers in the user's cache folder",
)  # fmt: skip

TABLE: tuple[Option[Any], ...] = (
    SIZES, SMALLEST, LARGEST, FACTOR, DTYPE, OP, MEMORY, TIME, WARM_UP, CHECK,
    JSON, COMPARE, PLOT,
    AGAINST, ROUNDS, INSTALL, PEERS_DIR,
)  # fmt: skip

_OWN = {option.name for option in TABLE}
KNOWN = (*(option for option in OPTIONS if option.name not in _OWN), *TABLE)  # --memory is another thing here


class Choices(NamedTuple):
    """What `pmrun bench` was asked for."""

    operations: list[str]
    sizes: list[int]
    values: Values
    settings: list[Setting]  # of pmrun itself


def read(argv: list[str]) -> Choices:
    """Tell bench's options, pmrun's and the operations apart; UsageError for what is wrong by itself."""
    values = Values()
    settings: list[Setting] = []
    words: list[str] = []
    rest = argv
    while rest:
        line = split(rest, KNOWN, "pmrun bench --help")
        for setting in line.settings:
            if setting.option not in TABLE:
                settings.append(setting)
                continue
            try:
                values.put(setting.option, setting.text)
            except ValueError as error:
                raise UsageError(f"{setting.origin}: {error}") from None
        if line.kind in (Kind.MODULE, Kind.PROGRAM):
            raise UsageError("pmrun bench runs no program of yours; name operations, or see pmrun bench --help")
        words += line.words[:1]
        rest = list(line.words[1:])
    for word in words:
        if word not in points.known():
            close = suggestion(word, points.known())
            raise UsageError(f"there is no operation '{word}'{close}; choose from: {_listed()}")
    return Choices(expand(words or ["all"]), _sizes(values), values, settings)


def _listed() -> str:
    return (
        ", ".join([*GROUPS["p2p"], points.PAIRS, *GROUPS["collectives"]])
        + ", iallreduce and so on; groups: "
        + ", ".join(GROUPS)
    )


def _sizes(values: Values) -> list[int]:
    sizes = values.get(SIZES)
    if sizes:
        return sorted(set(sizes))
    smallest, largest = values.get(SMALLEST), values.get(LARGEST)
    if largest < smallest:
        raise UsageError(f"--min {smallest} is above --max {largest}: give a range from small to large")
    return size_range(smallest, largest, values.get(FACTOR))


def check_files(values: Values) -> None:
    """Refuse, before anything runs, what could not be written, read or drawn after it."""
    for option in (JSON, PLOT):
        name = values.get(option)
        if name is not None:
            check_target(f"{option.spelling} {name}", name)
    plot = values.get(PLOT)
    if plot is not None:
        if not plot.lower().endswith((".png", ".svg")):
            raise UsageError(f"--plot {plot}: a plot is a .png or an .svg; give the file one of these endings")
        need("matplotlib", "--plot", "pip install 'pmrun[bench]'")
    if values.get(DTYPE) == "bfloat16":
        need("ml_dtypes", "--dtype bfloat16", "pip install ml_dtypes")


def environments(values: Values) -> Environments:
    """Where the peers are."""
    named = values.get(PEERS_DIR)
    return Environments(Path(named) if named is not None else default_home())


def need(package: str, what: str, remedy: str) -> None:
    """UsageError where a package is not installed."""
    if importlib.util.find_spec(package) is None:
        raise UsageError(f"{what} needs {package}, which is not installed here: {remedy}")


def check_target(what: str, name: str) -> None:
    """UsageError unless a file of this name can be written."""
    path = os.path.abspath(name)
    folder = os.path.dirname(path)
    if os.path.isdir(path):
        raise UsageError(f"{what}: it is a directory; name a file in it")
    if not os.path.isdir(folder):
        raise UsageError(f"{what}: there is no directory {folder}; create it first")
    if not os.access(path if os.path.exists(path) else folder, os.W_OK):
        raise UsageError(f"{what}: it may not be written; choose another file")


HELP = """\
pmrun bench: measure what connects the ranks

Usage
  pmrun bench [pmrun's options] [options] [operations]

{options}

Operations (default: all)
  latency bandwidth bibandwidth           between rank 0 and another node's first rank, or rank 1
  pairs                                   both, between all nodes, or all ranks of one
  {collectives}
  iallreduce, ibroadcast, ...             how much of it runs while the program computes
  {groups}        groups of these

Examples
  pmrun bench -n 4                                    everything, on this machine
  pmrun bench --hosts a:1,b:1 latency allreduce       between two machines
  pmrun bench -n 4 --json new.json --compare old.json what got slower
  pmrun bench -n 4 --peers mpich,gloo allreduce       beside others, here or with --hosts
"""


def help_text() -> str:
    """The page that `pmrun bench --help` prints."""
    lines: list[str] = []
    group = ""
    for option in TABLE:
        if option.group != group:
            group = option.group
            lines += [""] * bool(lines) + [group]
        lines += entry(option)
    half = len(points.COLLECTIVES) // 2
    rows = [" ".join(points.COLLECTIVES[:half]), " ".join(points.COLLECTIVES[half:])]
    return HELP.format(options="\n".join(lines), collectives="\n  ".join(rows), groups=", ".join(GROUPS))
