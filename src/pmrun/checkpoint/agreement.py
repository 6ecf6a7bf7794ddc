# SPDX-License-Identifier: Apache-2.0
"""How the ranks come to one mind about a save: words in `pm.store`, with deadlines.

Not by collectives: the store may be used from any thread, so a save runs beside the program's own collectives, and its
waits end when the gang does. Invariant: the rank that leaves last deletes the keys, and none is read after that.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Final, TypeVar

import msgspec

from pmrun import store
from pmrun.checkpoint.versions import Piece
from pmrun.errors import CheckpointError, StoreTimeout

_LOOK_S: Final = 5.0  # so often is looked whether who is waited for still runs
_NAMED_MAX: Final = 8


class Opening(msgspec.Struct, frozen=True):
    """The version that is being made, or why there is none."""

    version: str
    problem: str


class Confirmation(msgspec.Struct, frozen=True):
    """A rank is at this step, and its shard, if it has one, is with the storage."""

    step: int
    sharded: bool
    piece: Piece | None
    problem: str


class Verdict(msgspec.Struct, frozen=True):
    """How it ended: "" is well."""

    problem: str


_Word = TypeVar("_Word", Opening, Confirmation, Verdict)


class Agreement:
    """What the ranks tell each other about one save."""

    def __init__(self, prefix: str, rank: int, world_size: int, timeout_s: float) -> None:
        self._prefix = prefix
        self._rank = rank
        self._world_size = world_size
        self._timeout_s = timeout_s

    def open(self, word: Opening) -> None:
        self._tell("opening", word)

    def opening(self) -> Opening:
        (word,) = self._hear(Opening, ["opening"], (0,))
        return word

    def confirm(self, word: Confirmation) -> None:
        self._tell(f"rank/{self._rank}", word)

    def confirmations(self) -> list[Confirmation]:
        """Those of all ranks, in their order."""
        ranks = range(self._world_size)
        return self._hear(Confirmation, [f"rank/{rank}" for rank in ranks], ranks)

    def decide(self, word: Verdict) -> None:
        self._tell("verdict", word)

    def verdict(self) -> Verdict:
        (word,) = self._hear(Verdict, ["verdict"], (0,))
        return word

    def leave(self) -> None:
        """This rank needs the keys no more."""
        if store.add(f"{self._prefix}/left") == self._world_size:
            for key in store.keys(f"{self._prefix}/"):
                store.delete(key)

    def _tell(self, name: str, word: Opening | Confirmation | Verdict) -> None:
        store.set(f"{self._prefix}/{name}", msgspec.json.encode(word))

    def _hear(self, kind: type[_Word], names: list[str], ranks: Sequence[int]) -> list[_Word]:
        by = time.monotonic() + self._timeout_s
        keys = [f"{self._prefix}/{name}" for name in names]
        while True:
            left = by - time.monotonic()
            try:
                values = store.get_many(keys, timeout=max(0.0, min(left, _LOOK_S)))
            except StoreTimeout as error:
                said = set(store.keys(f"{self._prefix}/"))
                silent = [rank for rank, key in zip(ranks, keys, strict=True) if key not in said]
                gone = [rank for rank in silent if rank in error.ended]
                if silent and (gone or left <= _LOOK_S):
                    why = f"{_named(gone)} ended" if gone else f"{self._timeout_s:g} s have passed"
                    raise CheckpointError(
                        f"{_named(silent)} did not take part, and {why}: every rank must save each step"
                    ) from None
                continue
            return [msgspec.json.decode(value, type=kind) for value in values]


def _named(ranks: Sequence[int]) -> str:
    text = ", ".join(map(str, ranks[:_NAMED_MAX]))
    more = f" and {len(ranks) - _NAMED_MAX} more" if len(ranks) > _NAMED_MAX else ""
    return f"rank{'s' * (len(ranks) > 1)} {text}{more}"
