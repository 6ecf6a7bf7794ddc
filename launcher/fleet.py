# SPDX-License-Identifier: Apache-2.0
"""What a backend gives the controller: its hold on the agents of one attempt, and a way to another one.

Invariant: a fleet serves one attempt. When it is closed nothing of it is left within reach of this machine, and the
next one shares no agent, no key and no connection with it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from pmrun.launcher.link import Hub
from pmrun.launcher.poller import Poller
from pmrun.launcher.rendezvous import Seat


class Fleet(Protocol):
    """A backend's hold on the agents of one attempt."""

    hub: Hub
    seats: tuple[Seat, ...]
    counts: tuple[int, ...]  # ranks of each node
    least: int  # so many nodes are enough
    release: str  # of pmrun, as every agent must have it; "" where it is the same file

    def watch(self, poller: Poller, note: Callable[[int, str], None], ended: Callable[[int, str], None]) -> None:
        """Watch what was started for each node: `note` takes news, `ended` the last words; call before each wait."""

    def replace(self, node: int) -> str:
        """The agent did not come: start one elsewhere for its seat; returns the host's name, "" where there is none."""

    def sweep(self, node: int) -> None:
        """The node's agent is gone: end what it left, as far as this machine can."""

    def close(self) -> None:
        """The agents were told to leave: wait for them and give back what they took; may be called again."""


Muster = Callable[[frozenset[int]], Fleet]  # a further fleet, given the seats of the last one that fell silent
