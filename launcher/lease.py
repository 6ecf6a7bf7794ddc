# SPDX-License-Identifier: Apache-2.0
"""Leases: who has not been heard of for too long, by the clock of the one who listens.

Both sides say something at least every `BEAT_S`; a peer that was silent for `LEASE_S` is lost, on this machine too,
where it may be stopped or hang. No clock is compared with another machine's here. A listener that was away itself
(stopped, starved, its machine asleep) has heard nobody, and gives everybody that time again. Sans-I/O. Invariant: a peer that beats in time is never lost, however
late the listener looks.
"""

from __future__ import annotations

from typing import Final

BEAT_S: Final = 1.0
LEASE_S: Final = 9.0  # so that a cut is told within 10 s, also by a listener that waits for a CPU
BACKSTOP_S: Final = 15.0  # longer than an agent whose lifeline or lease has ended takes for its own end
_AWAY_S: Final = 3 * BEAT_S  # between two looks: longer than any wait, so the listener did not run


class Leases:
    """The peers of one process, by number."""

    def __init__(self, now: float) -> None:
        self._heard: dict[int, float] = {}
        self._looked = now
        self._beat_at = now + BEAT_S
        self._paused_at: float | None = None

    def add(self, peer: int, now: float) -> None:
        """Expect signs of life from a peer from now on."""
        self._heard[peer] = now

    def remove(self, peer: int) -> None:
        """Expect nothing more."""
        self._heard.pop(peer, None)

    def heard(self, peer: int, now: float) -> None:
        """A peer said something."""
        if peer in self._heard:
            self._heard[peer] = now

    def pause(self, now: float) -> None:
        """The peers were stopped on purpose: their silence means nothing until `resume`."""
        self._paused_at = now

    def resume(self, now: float) -> None:
        """They go on."""
        if self._paused_at is not None:
            self._paused_at = None
            self._heard = dict.fromkeys(self._heard, now)

    def look(self, now: float) -> list[int]:
        """The peers whose lease ran out, told once each; call after all that had arrived was `heard`."""
        away = now - self._looked
        self._looked = now
        if away > _AWAY_S:
            self._heard = {peer: min(at + away, now) for peer, at in self._heard.items()}
        if self._paused_at is not None:
            return []
        late = [peer for peer, at in self._heard.items() if now >= at + LEASE_S]
        for peer in late:
            del self._heard[peer]
        return late

    def beat_due(self, now: float) -> bool:
        """Whether it is time to say something to every peer; the answer yes counts as said."""
        if now < self._beat_at:
            return False
        self._beat_at = now + BEAT_S
        return True

    def deadline(self) -> float:
        """When to look or beat next: the lease that ends first does not wait for a beat."""
        if self._paused_at is not None or not self._heard:
            return self._beat_at
        return min(self._beat_at, min(self._heard.values()) + LEASE_S)
