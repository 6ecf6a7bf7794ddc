# SPDX-License-Identifier: Apache-2.0
"""The file that `--json` writes and `--compare` reads, and what is in it.

One object: what was measured with, and `lines`, each a point with the times of its loops. Invariant: a file is written
whole, or the one that was there stays; one of another form is refused by name, never half understood.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
from pathlib import Path
from typing import Any, Final, NamedTuple

from pmrun.errors import UsageError

FORMAT: Final = "pmrun-bench-1"
ALIKE: Final = ("ranks", "dtype", "op")  # what two files must have in common for a ratio to mean anything

Key = tuple[str, int, str, str]  # operation, bytes, contender, variant


class Spread(NamedTuple):
    """µs per call: the median, and the fastest and slowest loop."""

    us: float
    low: float
    high: float


def spread(loops_us: list[float]) -> Spread:
    """Of the loops of a point."""
    ordered = sorted(loops_us)
    middle = len(ordered) // 2
    median = ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2
    return Spread(median, ordered[0], ordered[-1])


def cores() -> int:
    return len(os.sched_getaffinity(0))


def machine() -> dict[str, Any]:
    """Where a run is made."""
    memory_kib = int(Path("/proc/meminfo").read_text().split()[1])
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "host": os.uname().nodename,
        "cpu": _cpu_model(),
        "cores": cores(),
        "memory_gib": round(memory_kib / (1 << 20), 1),
        "kernel": platform.release(),
        "load_at_start": round(os.getloadavg()[0], 2),
    }


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def write(path: str, settings: dict[str, Any], lines: list[dict[str, Any]], *, complete: bool) -> None:
    """Write the file; `complete` is false where the gang ended before everything was measured."""
    content = {"format": FORMAT, "complete": complete, "settings": settings, "lines": lines}
    fresh = f"{path}.{os.getpid()}"
    try:
        with open(fresh, "w", encoding="utf-8") as file:
            json.dump(content, file, ensure_ascii=False, indent=1)
            file.write("\n")
        os.replace(fresh, path)
    except OSError as error:
        if os.path.exists(fresh):
            os.unlink(fresh)
        raise UsageError(f"--json {path}: {error.strerror}; the figures above are not kept") from None


def read(path: str, settings: dict[str, Any]) -> dict[Key, Spread]:
    """The points of an earlier file; UsageError where it cannot be compared with a run of these settings."""
    try:
        with open(path, encoding="utf-8") as file:
            content = json.load(file)
    except OSError as error:
        raise UsageError(f"--compare {path}: {error.strerror}; name a file that --json wrote") from None
    except ValueError:
        content = None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise UsageError(f"--compare {path}: this is no file of pmrun bench --json in the form '{FORMAT}'")
    try:
        for name in ALIKE:
            if content["settings"][name] != settings[name]:
                raise UsageError(
                    f"--compare {path}: it was measured with {name} {content['settings'][name]}, this run has "
                    f"{settings[name]}: give the same"
                )
        return _points(content["lines"])
    except (KeyError, TypeError, AttributeError):
        raise UsageError(f"--compare {path}: it is damaged: something that --json writes is missing in it") from None


def _points(lines: list[dict[str, Any]]) -> dict[Key, Spread]:
    loops: dict[Key, list[float]] = {}
    for line in lines:
        if line["kind"] == "point":
            key = (line["op"], line["bytes"], line["contender"], line["variant"])
            loops.setdefault(key, []).extend(map(float, line["loops_us"]))
    return {key: spread(values) for key, values in loops.items() if values}


def verdict(new: Spread, old: Spread) -> str:
    """ "slower" or "faster" where no loop of the one is within the loops of the other, else nothing."""
    if new.low > old.high:
        return "slower"
    return "faster" if new.high < old.low else ""
