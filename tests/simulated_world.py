# SPDX-License-Identifier: Apache-2.0
"""What a simulated job runs on: dice, time, and links that are late, cut, stormy or, when hostile, out of order.

Everything that will happen is in one queue; what is said of one moment happens in the order in which it was said. A
route is one direction of one node's link in one attempt: each attempt has links of its own, as it has in pmrun.
Invariant: a seed and the code decide everything that happens.
"""

from __future__ import annotations

import abc
import heapq
import random
from collections.abc import Callable
from typing import NamedTuple

from pmrun import wire


class Route(NamedTuple):
    """One direction of a link."""

    way: str  # up: to the controller; down: from it
    attempt: int
    node: int


class Clock:
    """A machine's monotonic clock, which nobody else's agrees with."""

    def __init__(self, chance: random.Random) -> None:
        self._offset = chance.choice([0.0, 0.0, 1e6 * chance.random()])
        self._rate = 1.0 + chance.choice([0.0, 1e-4, -1e-4])

    def read(self, now: float) -> float:
        return self._offset + now * self._rate

    def when(self, reading: float | None) -> float:
        """The true time of a reading; never is infinity."""
        return float("inf") if reading is None else (reading - self._offset) / self._rate + 1e-9


class World(abc.ABC):
    """The dice, the time and the links."""

    def __init__(self, seed: int, hostile: bool, tell: Callable[[str], None] | None) -> None:
        self.chance = random.Random(seed)
        self.hostile = hostile
        self.now = 0.0
        self.latency_s = 0.0
        self.cut: set[Route] = set()
        self.storm_until = 0.0
        self._tell = tell
        self._queue: list[tuple[float, int, Callable[..., None], tuple[object, ...]]] = []
        self._serial = 0
        self._arrivals: dict[Route, float] = {}

    def dice(self, most: float = 1.0) -> float:
        return self.chance.random() * most

    def after(self, delay: float, call: Callable[..., None], *arguments: object) -> None:
        self.at(self.now + delay, call, *arguments)

    def at(self, moment: float, call: Callable[..., None], *arguments: object) -> None:
        self._serial += 1
        heapq.heappush(self._queue, (moment, self._serial, call, arguments))

    def next_at(self) -> float:
        """When the first thing in the queue happens; never is infinity."""
        return self._queue[0][0] if self._queue else float("inf")

    def happen(self) -> None:
        """Let the first thing in the queue happen."""
        self.now, _, call, arguments = heapq.heappop(self._queue)
        call(*arguments)

    def story(self, text: str) -> None:
        if self._tell is not None:
            self._tell(f"{self.now:9.4f}  {text}")

    def carry(self, route: Route, message: wire.Message, deliver: Callable[..., None], *to: object) -> None:
        """Late, but in order, and cut where the route is when it arrives; hostile links repeat and overtake."""
        delay = self.dice(self.latency_s)
        if self.now < self.storm_until:
            delay += self.dice(3.0)
        arrival = max(self._arrivals.get(route, 0.0), self.now + delay)
        if self.hostile and self.dice() < 0.1:
            self.after(delay, self._deliver, route, message, deliver, to)
            if self.dice() < 0.5:
                return  # it overtook those before it; else it comes twice
        self._arrivals[route] = arrival
        self.at(arrival, self._deliver, route, message, deliver, to)

    def hang_up(self, route: Route, tell: Callable[..., None], *to: object) -> None:
        """The end of a connection comes after all that was sent on it, unless it is cut."""
        arrival = max(self._arrivals.get(route, 0.0), self.now + self.dice(self.latency_s))
        self.at(arrival, self._hung_up, route, tell, to)

    @abc.abstractmethod
    def asleep_until(self, route: Route) -> float:
        """Until when nobody reads at the route's end."""

    def _hung_up(self, route: Route, tell: Callable[..., None], to: tuple[object, ...]) -> None:
        if route not in self.cut:
            tell(*to)

    def _deliver(
        self, route: Route, message: wire.Message, deliver: Callable[..., None], to: tuple[object, ...]
    ) -> None:
        if route in self.cut:
            return
        if self.asleep_until(route) > self.now:
            self.at(self.asleep_until(route), self._deliver, route, message, deliver, to)
            return
        if not isinstance(message, wire.Beat):
            self.story(f"{route.way} {route.node}: {message}")
        deliver(*to, message)
