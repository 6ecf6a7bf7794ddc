# SPDX-License-Identifier: Apache-2.0
"""Which rank the others wait for most, from how long each waited in its last calls. Pure.

A rank that comes last to every meeting waits least in it: that is seen without comparing clocks of machines. A rank's
typical wait leaves the longest tenth of its last calls out, so that a few hiccups name nobody. Invariant: no rank is
named unless the others lose a good part of their time and it alone does not, which balanced gangs never look like.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec

from pmrun.window import Pace

_CALLS_MIN: Final = 32
_SHARE_MIN: Final = 0.10  # of the time that the others lose
_APART: Final = 4.0  # how many times longer than it the others wait, each of them


class Straggler(msgspec.Struct, frozen=True):
    """The rank that the others wait for, and the parts of their time that they and it spend waiting."""

    rank: int
    calls: int
    share: float
    others_share: float  # the least of theirs

    def __str__(self) -> str:
        return (
            f"the others wait for rank {self.rank} most: in the last {self.calls} calls it spent {self.share:.0%} of "
            f"the time waiting, every other rank {self.others_share:.0%} or more"
        )


def find(paces: Mapping[int, Pace | None]) -> Straggler | None:
    """The straggler among all ranks of a gang, if there is one."""
    known = {rank: pace for rank, pace in paces.items() if pace is not None and pace.calls >= _CALLS_MIN}
    if len(known) < 2 or len(known) < len(paces):
        return None
    shares = {rank: pace.calls * pace.typical_s / pace.span_s for rank, pace in known.items() if pace.span_s > 0}
    if len(shares) < len(known):
        return None
    first, second, *_ = sorted(shares, key=lambda rank: shares[rank])
    if shares[second] < max(_SHARE_MIN, _APART * shares[first]):
        return None
    return Straggler(first, min(pace.calls for pace in known.values()), shares[first], shares[second])
