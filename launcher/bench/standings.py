# SPDX-License-Identifier: Apache-2.0
"""From the times of several contenders to figures and ratios.

A contender's figure at a point is the median over rounds of the median over loops; a peer's is that of its better
variant. A ratio is the best peer's figure over pmrun's: above 1, pmrun is faster; its spread is that of the same ratio
within single rounds. Invariant: only times of the same round are compared.
"""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any

from pmrun.bench.points import MEANING

World = int | str  # ranks, or nodes and ranks of each, as in "2x4"
Point = tuple[str, World, int]  # operation, world, bytes
Who = tuple[str, str]  # contender, variant

_ORDER = list(MEANING)


def world_size(world: World) -> int:
    """How many ranks that is."""
    return world if isinstance(world, int) else math.prod(map(int, world.split("x")))


def by_size(world: World) -> tuple[int, str]:
    """What worlds are sorted by."""
    return world_size(world), str(world)


def named(world: World) -> str:
    """As pages and plots call it."""
    return f"{world} ranks" if isinstance(world, int) else f"{world} nodes × ranks"


@dataclass(frozen=True)
class Comparison:
    """One of pmrun's variants against the best peer, at one point."""

    us: float
    best_peer: str
    best_us: float
    low: float  # the smallest and the largest ratio that a single round gave
    high: float

    @property
    def ratio(self) -> float:
        return self.best_us / self.us


class Standings:
    """All measured points of one kind of line, with the figures that pages and plots show."""

    def __init__(self, lines: Iterable[dict[str, Any]], kind: str = "point") -> None:
        self.rounds: dict[Point, dict[Who, dict[int, float]]] = defaultdict(lambda: defaultdict(dict))
        for line in lines:
            if line["kind"] == kind:
                point = (line["op"], line["ranks"], line["bytes"])
                who = (line["contender"], line["variant"])
                self.rounds[point][who][line["round"]] = statistics.median(line["loops_us"])

    def points(self) -> list[Point]:
        return sorted(self.rounds, key=lambda point: (by_size(point[1]), _ORDER.index(point[0]), point[2]))

    def figures(self, point: Point) -> dict[Who, float]:
        """Return the µs of every (contender, variant)."""
        return {who: statistics.median(rounds.values()) for who, rounds in self.rounds[point].items()}

    def peers_best(self, point: Point) -> dict[str, tuple[float, str]]:
        """Return each peer's µs and the variant that reached it."""
        best: dict[str, tuple[float, str]] = {}
        for (name, variant), us in self.figures(point).items():
            if name != "pmrun" and (name not in best or us < best[name][0]):
                best[name] = (us, variant)
        return best

    def compare(self, point: Point, own: str, among: Collection[str] = ()) -> Comparison | None:
        """Return the standing of pmrun's variant `own`, against all peers or `among` some; None where one is missing."""
        ours = self.rounds[point].get(("pmrun", own))
        ranking = {name: best for name, best in self.peers_best(point).items() if not among or name in among}
        if not ours or not ranking:
            return None
        peer = min(ranking, key=lambda name: ranking[name][0])
        us, variant = ranking[peer]
        theirs = self.rounds[point][(peer, variant)]
        ratios = [theirs[turn] / ours[turn] for turn in ours if turn in theirs] or [math.nan]
        return Comparison(statistics.median(ours.values()), peer, us, min(ratios), max(ratios))

    def comparisons(self, own: str, among: Collection[str] = ()) -> dict[Point, Comparison]:
        found = {point: self.compare(point, own, among) for point in self.points()}
        return {point: comparison for point, comparison in found.items() if comparison}

    def curves(self) -> dict[tuple[str, World], dict[str, list[tuple[int, float]]]]:
        """Time over size by (operation, world) and by whose it is: what a plot shows."""
        panels: dict[tuple[str, World], dict[str, list[tuple[int, float]]]] = defaultdict(lambda: defaultdict(list))
        for point in self.points():
            op, world, size = point
            for name, (us, _) in self.peers_best(point).items():
                panels[op, world][name].append((size, us))
            for (name, own), us in self.figures(point).items():
                if name == "pmrun":
                    panels[op, world][f"pmrun, {own}"].append((size, us))
        return panels


def geometric_mean(values: Iterable[float]) -> float:
    logs = [math.log(value) for value in values]
    return math.exp(statistics.fmean(logs))
