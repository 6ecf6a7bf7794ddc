# SPDX-License-Identifier: Apache-2.0
"""When something happened on a node, in the controller's time, though no two machines' clocks agree.

A node stamps what it says with its monotonic clock. A message arrives later than it was stamped by the difference of the two
clocks and by its way; the least of all those delays is the difference and the shortest way. So a node's reading plus its least
delay is the moment in the controller's time, late by that shortest way, and readings of several nodes compare. Clocks run at
rates of their own, so that only what was heard lately counts. Nobody's wall clock is asked. Sans-I/O.
Invariant: `here` is no sooner than the moment itself, and no later than it by more than the slowest way of a message, but for
what the clocks' rates differ by in the time that counts.
"""

from __future__ import annotations

from typing import Final

PERIOD_S: Final = 5.0  # the least delays of this and of the last period count; clocks part by 0.2 ms a second at worst
_NEVER: Final = float("inf")


class Clocks:
    """The clocks of all nodes, as their messages tell."""

    def __init__(self, num_nodes: int) -> None:
        self._until = [0.0] * num_nodes  # by node: when its period ends
        self._before = [_NEVER] * num_nodes  # the least delay of the last period
        self._least = [_NEVER] * num_nodes  # and of this one

    def heard(self, node: int, stamp_s: float, now: float) -> None:
        """A message came that the node had stamped."""
        if now >= self._until[node]:
            recent = now < self._until[node] + PERIOD_S
            self._before[node] = self._least[node] if recent else _NEVER
            self._least[node] = _NEVER
            self._until[node] = now + PERIOD_S
        self._least[node] = min(self._least[node], now - stamp_s)

    def here(self, node: int, stamp_s: float) -> float:
        """The moment of a node's reading, of which something was heard already, in this process' time."""
        return stamp_s + min(self._before[node], self._least[node])
